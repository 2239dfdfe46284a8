"""Evaluation: its figures against counts made by hand, its records, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch

import lficam
from lficam.contract import Preprocessing
from lficam.data.pictures import Pictures
from lficam.data.scenes import load_scenes
from lficam.data.transforms import normalise
from lficam.errors import DataError, InvalidInputError
from lficam.evaluation import UNIFORM, evaluate, model_size, taken_from_the_mark
from lficam.explainers import VERSUS

from .conftest import DIGIT_SIZE, digit_model, mark_reader


@pytest.fixture(scope="module")
def few():
    """Every tenth picture of each set."""
    names = ("digits-in-scenes", "two-digits", "planted-shortcut-conflict")
    return {name: load_scenes(name, "test", DIGIT_SIZE).select(torch.arange(0, 1000, 20)) for name in names}


@pytest.fixture(scope="module")
def evaluations(few, tmp_path_factory):
    model = digit_model()
    root = tmp_path_factory.mktemp("evaluations")
    return {name: (evaluate(model, pictures, name, root / name), root / name) for name, pictures in few.items()}


def test_errors_are_counted(few, evaluations):
    pictures, (evaluation, _) = few["digits-in-scenes"], evaluations["digits-in-scenes"]
    model = digit_model()
    with torch.no_grad():
        logits = model(normalise(pictures.images, model.config.preprocessing))
    wrong = sum(int(row.argmax()) != int(label) for row, label in zip(logits, pictures.labels, strict=True))
    assert evaluation.classification["top1_error"]["value"] == wrong / 50
    far = sum(int(label) not in row.topk(5).indices for row, label in zip(logits, pictures.labels, strict=True))
    assert evaluation.classification["top5_error"]["value"] == far / 50
    assert sum(row["pictures"] for row in evaluation.classes) == 50


def test_every_map_stands_beside_chance_and_the_baselines(evaluations):
    rows = {row["map"]: row for row in evaluations["digits-in-scenes"][0].localization}
    assert list(rows) == ["attention", "class_evidence", "cam", "grad_cam", UNIFORM, "feature_mean", "centre"]
    for row in rows.values():
        assert 0 <= row["pointing_chance"] <= 1
        assert 0 <= row["box_iou_chance"] < 1
        assert 0 <= row["pointing_mean_map"] <= 1
    # A map that is the same for all pictures is its own mean.
    assert rows["centre"]["pointing_mean_map"] == pytest.approx(rows["centre"]["pointing"]["value"])
    assert rows["centre"]["box_iou_mean_map"] == pytest.approx(rows["centre"]["box_iou"])
    assert rows["centre"]["class_targeted"] is False
    assert "top1_error_uniform" in evaluations["digits-in-scenes"][0].classification


def test_two_digits_ask_for_each_and_for_one_against_the_other(few, evaluations):
    evaluation = evaluations["two-digits"][0]
    rows = {row["map"]: row for row in evaluation.localization}
    assert VERSUS in rows
    assert rows["class_evidence"]["pointing"]["cases"] == 50
    # A map without a class has one peak, which lies in one of two boxes that do not overlap: at most half.
    assert rows["attention"]["pointing"]["value"] <= 0.5
    assert evaluation.classes == []
    model = digit_model()
    with torch.no_grad():
        predicted = model(normalise(few["two-digits"].images, model.config.preprocessing)).argmax(dim=1).tolist()
    asked = few["two-digits"].object_labels.tolist()
    wrong = sum(label not in pair for label, pair in zip(predicted, asked, strict=True))
    assert evaluation.classification["top1_error"]["value"] == wrong / 50


def test_a_mark_is_followed_by_a_network_that_reads_marks(few):
    pictures = few["planted-shortcut-conflict"]
    shortcut = evaluate(mark_reader(), pictures, "marks").shortcut
    taken = int((pictures.mark_labels < 9).sum())
    assert shortcut["label_taken_from_the_mark"] == taken > 0
    assert shortcut["label_is_the_marks"]["value"] == taken / 50
    peaks = {row["map"]: row for row in shortcut["peaks"]}
    assert {row["on_the_mark"]["cases"] for row in peaks.values()} == {taken}
    assert peaks["class_evidence"]["on_the_mark"]["value"] == 1
    assert peaks["centre"]["near_the_mark"]["value"] == 0


def test_wrong_labels_that_are_a_marks_by_chance_are_not_taken_from_it(few, evaluations):
    shortcut = evaluations["planted-shortcut-conflict"][0].shortcut
    assert shortcut["label_is_the_marks"]["value"] > 0
    assert shortcut["label_taken_from_the_mark"] == 0
    assert "peaks" not in shortcut
    marked = few["planted-shortcut-conflict"]
    assert torch.equal(taken_from_the_mark(marked, marked.mark_labels), torch.ones(50, dtype=torch.bool))
    assert not taken_from_the_mark(marked, marked.labels).any()
    wrong = torch.where((marked.labels + 1) % 10 == marked.mark_labels, marked.labels + 2, marked.labels + 1) % 10
    other = torch.where(torch.arange(50) < 6, marked.mark_labels, wrong)  # about one in nine
    assert not taken_from_the_mark(marked, other).any()
    of_two = replace(marked, class_names=["a", "b"], labels=torch.zeros(50).long(), mark_labels=torch.ones(50).long())
    assert not taken_from_the_mark(of_two, of_two.mark_labels).any()  # every wrong label is the mark's
    assert few["digits-in-scenes"].lying_marks is None
    assert not taken_from_the_mark(few["digits-in-scenes"], few["digits-in-scenes"].labels).any()


def test_records_and_gallery_are_written(evaluations):
    for evaluation, directory in evaluations.values():
        written = json.loads((directory / "evaluation.json").read_text())
        assert written == json.loads(json.dumps(evaluation.to_dict()))
        assert {row["file"] for row in written["gallery"]} == {path.name for path in directory.glob("*.png")}
        assert {row["right"] for row in written["gallery"]} == {True, False}


def test_multiply_adds_are_those_of_the_layers():
    model = digit_model("plain")
    adds = 0

    def count(layer, inputs, output):
        nonlocal adds
        kernel = layer.weight.shape[1:].numel()
        adds += kernel * output.shape[1:].numel()

    layers = [module for module in model.modules() if hasattr(module, "weight") and module.weight.ndim in (2, 4)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.backbone(torch.zeros(1, 3, DIGIT_SIZE, DIGIT_SIZE))
    for handle in handles:
        handle.remove()
    size = model_size(model, DIGIT_SIZE)
    assert size["multiply_adds"] == adds
    assert size["parameters"] == 272_474


def small_set(**changes):
    values = {
        "images": torch.zeros(4, 3, DIGIT_SIZE, DIGIT_SIZE, dtype=torch.uint8),
        "labels": torch.zeros(4, dtype=torch.int64),
        "class_names": [str(number) for number in range(10)],
        "names": ["a"] * 4,
    }
    return Pictures(**{**values, **changes})


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (small_set(class_names=["0", "1"]), "missing: 2, 3"),
        (small_set(class_names=[*map(str, range(10)), "x"]), "unknown: x"),
        (small_set(class_names=[*map(str, range(9, -1, -1))]), "reordered"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(pictures, message):
    with pytest.raises(DataError, match=message):
        evaluate(digit_model(), pictures, "a set")


def test_a_model_without_preprocessing_is_refused():
    with pytest.raises(InvalidInputError, match="preprocessing"):
        evaluate(lficam.create_model("cifar_resnet20"), small_set(), "a set")


def test_a_model_that_diverged_has_no_error_to_tell(few):
    model = digit_model()
    torch.nn.init.constant_(model.linear_head.bias, torch.inf)
    with pytest.raises(InvalidInputError, match="NaN or infinity to 50 of 50 pictures"):
        evaluate(model, few["digits-in-scenes"], "digits-in-scenes")


def test_fewer_than_five_classes_have_no_top_five_and_no_gallery_is_needed():
    model = digit_model(classes=3)
    pictures = small_set(class_names=["0", "1", "2"])
    evaluation = evaluate(model, pictures, "a set")
    assert "top5_error" not in evaluation.classification
    assert evaluation.gallery == []
    assert evaluation.localization == []


def test_boxes_follow_the_pictures_through_resizing_and_crop():
    torch.manual_seed(0)
    model = digit_model()
    model.config.preprocessing = Preprocessing(size=16, resize=20)
    images = torch.randint(0, 256, (6, 3, 40, 80), dtype=torch.uint8)
    # 80 x 40 becomes 40 x 20, of which the middle 16 x 16 is seen: (24, 4) to (56, 36) of the picture.
    everything = torch.tensor([24.0, 4.0, 56.0, 36.0])
    corner = torch.tensor([0.0, 0.0, 26.0, 6.0])
    boxes = everything.repeat(6, 1, 2, 1)
    boxes[:, 0, 1] = corner
    boxes[0] = torch.nan
    pictures = small_set(
        images=images,
        labels=torch.arange(6),
        names=["a"] * 6,
        boxes=boxes,
        object_labels=torch.arange(6).unsqueeze(1),
    )
    seen = pictures.seen_boxes(boxes, model.config.preprocessing)
    assert seen[1].tolist() == [[[0, 0, 16, 16], [0, 0, 1, 1]]]
    assert seen[0].isnan().all()
    rows = {row["map"]: row for row in evaluate(model, pictures, "a set").localization}
    assert rows["centre"]["pointing"] == {**rows["centre"]["pointing"], "value": 1.0, "cases": 5}
    outside = replace(pictures, boxes=torch.tensor([0.0, 0.0, 20.0, 40.0]).repeat(6, 1, 1))
    assert evaluate(model, outside, "a set").localization == []


def test_a_model_without_evidence_has_a_gallery_of_two_digits(few, tmp_path):
    model = digit_model("plain", backbone="mobilenetv3_small_050")
    model.config.preprocessing = Preprocessing(32, 32)
    evaluation = evaluate(model, few["two-digits"], "two-digits", tmp_path / "out")
    assert {tuple(row["captions"]) for row in evaluation.gallery} == {("image",)}
    assert {row["map"] for row in evaluation.localization} == {"grad_cam", "feature_mean", "centre"}
