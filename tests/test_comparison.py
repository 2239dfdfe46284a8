"""Explainers side by side: which rows, which columns, and that every column is what its explainer gives."""

import json
import shutil

import pytest
import torch
from PIL import Image

import lficam
from lficam.cli import main
from lficam.comparison import (
    DEFAULT_EXPLAINERS,
    compare,
    questions_of_files,
    questions_of_pairs,
    questions_of_set,
)
from lficam.contract import Preprocessing
from lficam.data.pictures import Pictures
from lficam.data.scenes import load_scenes
from lficam.errors import DataError, InvalidInputError, UnknownNameError
from lficam.explainers import VERSUS

from .conftest import DIGIT_SIZE, digit_model


@pytest.fixture(scope="module")
def two_digits():
    return load_scenes("two-digits", "test", DIGIT_SIZE).select(torch.arange(0, 200, 20))


def test_a_picture_of_two_objects_is_asked_for_each(two_digits, tmp_path):
    model = digit_model()
    questions = questions_of_set(two_digits, model.config.preprocessing, 4)
    labels = two_digits.object_labels[[0, 9]].tolist()
    assert [(question.asked, question.other) for question in questions] == [
        (labels[0][0], labels[0][1]),
        (labels[0][1], labels[0][0]),
        (labels[1][0], labels[1][1]),
        (labels[1][1], labels[1][0]),
    ]
    result = compare(model, questions, tmp_path / "out")
    assert result.rows[0]["captions"] == [str(labels[0][0]), *DEFAULT_EXPLAINERS, VERSUS]
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    passes = {row["explainer"]: row["passes"] for row in record["explainers"]}
    assert passes == {**dict.fromkeys(DEFAULT_EXPLAINERS, 1), "score_cam": 66}
    assert all(row["milliseconds"] > 0 for row in record["explainers"])
    strip = Image.open(tmp_path / "out" / record["rows"][0]["file"])
    assert strip.height == 120  # five times 24
    assert strip.width == 9 * 120 + 8 * 4
    assert (tmp_path / "out" / "comparison.png").is_file()


def test_of_two_objects_evidence_is_held_against_the_other_however_it_is_asked_for(two_digits, tmp_path):
    model = digit_model()
    questions = questions_of_set(two_digits, model.config.preprocessing, 2)
    shown = {}
    for name in ("class_evidence", VERSUS):
        result = compare(model, questions, tmp_path / name, [name])
        assert result.rows[0]["captions"][-1] == VERSUS
        with Image.open(tmp_path / name / result.rows[0]["file"]) as strip:
            shown[name] = strip.crop((strip.width - strip.height, 0, strip.width, strip.height)).tobytes()
    assert shown["class_evidence"] == shown[VERSUS]


def test_pairs_put_two_classes_side_by_side():
    model = digit_model()
    digits = load_scenes("digits-in-scenes", "test", DIGIT_SIZE).select(torch.arange(0, 200, 10))
    questions = questions_of_pairs(digits, model.config.preprocessing, 6)
    assert len(questions) == 6
    for one, other in zip(questions[::2], questions[1::2], strict=True):
        assert one.image.shape == (3, DIGIT_SIZE, 2 * DIGIT_SIZE)
        assert torch.equal(one.image, other.image)
        assert (one.asked, one.other) == (other.other, other.asked)
        assert one.asked != one.other
    alike = digits.select(torch.nonzero(digits.labels == digits.labels[0]).flatten())
    with pytest.raises(DataError, match="two classes"):
        questions_of_pairs(alike, model.config.preprocessing, 2)


def test_pairs_are_refused_by_a_network_of_one_size(tmp_path):
    model = digit_model("plain")
    classify = model.classify

    def of_one_size(features, images):
        return classify(features.view(len(features), 64, 6, 6), images)

    model.classify = of_one_size
    digits = load_scenes("digits-in-scenes", "test", DIGIT_SIZE).select(torch.arange(0, 200, 10))
    with pytest.raises(InvalidInputError, match=r"takes pictures of 24 x 24 only.*24 x 48; leave --pairs out"):
        compare(model, questions_of_pairs(digits, model.config.preprocessing, 2), tmp_path / "out", ("grad_cam",))


def test_files_are_asked_for_what_the_model_predicts(tmp_path):
    model = digit_model("plain")
    Image.new("RGB", (30, 24), "red").save(tmp_path / "red.png")
    questions = questions_of_files([tmp_path / "red.png"], model.config.preprocessing)
    result = compare(model, questions, tmp_path / "out", ("grad_cam", "feature_mean", "random"))
    assert [row["explainer"] for row in result.explainers] == ["grad_cam", "feature_mean", "random"]
    predicted = model.predict(tmp_path / "red.png")
    assert result.rows[0]["class"] == predicted.label
    assert result.rows[0]["probability"] == pytest.approx(predicted.probability, rel=1e-5)


def test_what_a_model_cannot_carry_is_left_out_of_the_default_and_refused_by_name(tmp_path):
    pictures = Pictures(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), list("ab"), ["x", "y"])
    model = digit_model("plain", backbone="mobilenetv3_small_050")
    model.config.preprocessing = Preprocessing(32, 32)
    questions = questions_of_set(pictures, model.config.preprocessing, 1)
    names = [row["explainer"] for row in compare(model, questions, tmp_path / "a").explainers]
    assert names == ["grad_cam", "grad_cam_pp", "layer_cam", "score_cam"]
    with pytest.raises(InvalidInputError, match="use grad_cam"):
        compare(model, questions, tmp_path / "b", ["cam"])
    with pytest.raises(UnknownNameError, match="explainer 'kam'"):
        compare(model, questions, tmp_path / "c", ["kam"])


def test_the_command_and_its_section_of_the_report(run, folder, tmp_path, capsys):
    directory = shutil.copytree(run.directory, tmp_path / "run")
    words = [
        "compare",
        str(directory),
        "--data",
        f"folder:{folder}",
        "--count",
        "2",
        "--explainers",
        "attention",
        "cam",
    ]
    assert main([*words, "--json", str(tmp_path / "c.json")]) == 0
    assert "milliseconds" in capsys.readouterr().out
    out = json.loads((tmp_path / "c.json").read_text())
    assert len(out["rows"]) == 2
    assert main([*words, "--pairs", "true"]) == 0
    assert main(["report", str(directory), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("Explainers side by side") == 2
    assert main(["compare", str(directory)]) == 2
    assert "either --images or --data" in capsys.readouterr().err
    images = ["--images", str(folder / "test" / "cat"), "--count", "1", "--out", str(tmp_path / "images")]
    assert main(["compare", str(directory), *images, "--explainers", "attention"]) == 0


def test_unbalanced_pairs_end_with_what_there_is():
    images = torch.zeros(6, 3, DIGIT_SIZE, DIGIT_SIZE, dtype=torch.uint8)
    pictures = Pictures(images, torch.tensor([0, 0, 0, 0, 0, 1]), ["a", "b"], list("uvwxyz"))
    questions = questions_of_pairs(pictures, Preprocessing(DIGIT_SIZE, DIGIT_SIZE), 6)
    assert {(question.asked, question.other) for question in questions} == {(0, 1), (1, 0)}
    assert len(questions) == 2


def test_wrong_use_of_the_command_is_one_sentence(run, folder, tmp_path, capsys):
    images = str(folder / "test" / "cat")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    handmade = lficam.create_model("cifar_resnet20", num_classes=2)
    handmade.save_pretrained(tmp_path / "handmade")
    for words, said in (
        ([str(run.directory), "--images", images, "--count", "0"], "--count: expected at least 1"),
        ([str(run.directory), "--images", images, "--pairs", "true"], "--pairs takes the pictures of --data"),
        ([str(run.directory), "--images", images, "--out", str(tmp_path / "mine")], "holds other content"),
        ([str(tmp_path / "handmade"), "--images", images], "no preprocessing"),
    ):
        assert main(["compare", *words]) == 2
        assert said in capsys.readouterr().err
