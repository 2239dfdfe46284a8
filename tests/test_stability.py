"""Stability of runs: the matrix, the chance beside it, the paper's protocol, the gate."""

import json

import pytest
import torch

import lficam
from lficam.cli import main
from lficam.contract import Preprocessing
from lficam.data.scenes import load_scenes
from lficam.errors import InvalidInputError
from lficam.metrics.stability import map_iou
from lficam.stability import measure_stability

from .conftest import DIGIT_SIZE, digit_model


@pytest.fixture(scope="module")
def pictures():
    return load_scenes("digits-in-scenes", "test", DIGIT_SIZE).select(torch.arange(0, 1000, 25))


def test_all_pairs_and_what_they_are_made_of(pictures):
    models = {str(seed): digit_model(seed=seed) for seed in range(3)}
    found = measure_stability(models, pictures, "digits", validation={"0": 0.5, "1": 0.9, "2": 0.7})
    assert [row["runs"] for row in found.pairs] == [["0", "1"], ["0", "2"], ["1", "2"]]
    from lficam.data.transforms import normalise

    images = normalise(pictures.images, Preprocessing(DIGIT_SIZE, DIGIT_SIZE))
    maps = {name: lficam.create_explainer("attention", model)(images) for name, model in models.items()}
    for row in found.pairs:
        expected = map_iou(*(maps[name] for name in row["runs"])).nanmean()
        assert row["iou"] == pytest.approx(float(expected), abs=1e-5)
    iou = found.measures[0]
    assert iou["value"] == pytest.approx(sum(row["iou"] for row in found.pairs) / 3)
    assert iou["corrected"] == pytest.approx((iou["value"] - iou["shuffled"]) / (1 - iou["shuffled"]), abs=1e-6)
    assert found.paper["baseline"] == "1"
    assert found.paper["iou"] == pytest.approx((found.pairs[0]["iou"] + found.pairs[2]["iou"]) / 2)


def test_a_map_that_never_looks_is_perfectly_stable_and_corrected_to_nothing(pictures):
    found = measure_stability(
        {"a": digit_model(seed=0), "b": digit_model(seed=1)}, pictures, "digits", explainer="centre"
    )
    for row in found.measures:
        assert row["value"] == pytest.approx(1, abs=1e-5)
        assert row["corrected"] is None or abs(row["corrected"]) < 1
    assert found.measures[0]["corrected"] is None
    assert found.paper is None


def test_a_model_and_itself_agree_on_more_than_the_class(pictures):
    found = measure_stability(
        {"a": digit_model(seed=0), "b": digit_model(seed=0)}, pictures, "digits", "class_evidence", limit=20
    )
    assert found.facts["pictures"] == 20
    assert found.measures[0]["corrected"] == pytest.approx(1, abs=1e-5)


def test_runs_that_cannot_be_compared_are_refused(pictures):
    with pytest.raises(InvalidInputError, match="at least two"):
        measure_stability({"a": digit_model(seed=0)}, pictures, "digits")
    other = digit_model(seed=1)
    other.config.preprocessing = Preprocessing(DIGIT_SIZE, DIGIT_SIZE + 4)
    with pytest.raises(InvalidInputError, match="a and b have different preprocessing"):
        measure_stability({"a": digit_model(seed=0), "b": other}, pictures, "digits")
    with pytest.raises(InvalidInputError, match="different class_names"):
        measure_stability({"a": digit_model(seed=0), "b": digit_model(seed=0, classes=3)}, pictures, "digits")


def test_the_command_gates_a_build(run, folder, tmp_path, capsys):
    words = ["stability", str(run.directory), str(run.directory), "--data", f"folder:{folder}"]
    assert main(words) == 2  # one run twice is one run
    assert "at least two" in capsys.readouterr().err
    import shutil

    other = shutil.copytree(run.directory, tmp_path / "other")
    words = ["stability", str(run.directory), str(other), "--data", f"folder:{folder}"]
    extra = ["--json", str(tmp_path / "s.json"), "--figure", str(tmp_path / "s.png"), "--explainer", "feature_mean"]
    assert main([*words, *extra, "--minimum", "0.5"]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["measures"][0]["value"] == pytest.approx(1)
    assert (tmp_path / "s.png").is_file()
    assert "cannot be chosen" in capsys.readouterr().out
    assert main([*words, "--minimum", "1.5"]) == 1
    assert "below --minimum 1.5" in capsys.readouterr().err


def test_without_two_pictures_of_a_class_there_is_no_chance_to_correct_for(pictures):
    first = torch.tensor([int(torch.nonzero(pictures.labels == label)[0]) for label in pictures.labels.unique()])
    found = measure_stability({"a": digit_model(seed=0), "b": digit_model(seed=1)}, pictures.select(first), "digits")
    assert found.measures[0]["value"] is not None
    assert found.measures[0]["shuffled"] is None
    assert found.measures[0]["corrected"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_corrected_value_lies_in_its_interval(pictures):
    found = measure_stability(
        {"a": digit_model(seed=0), "b": digit_model(seed=1)}, pictures, "digits", "class_evidence"
    )
    for row in found.measures:
        assert row["low"] <= row["corrected"] <= row["high"]


def test_runs_trained_on_other_data_are_refused(pictures):
    one, other = digit_model(seed=0), digit_model(seed=1)
    other.config.training = {"data": "planted-shortcut"}
    with pytest.raises(InvalidInputError, match="different training data"):
        measure_stability({"a": one, "b": other}, pictures, "digits")
