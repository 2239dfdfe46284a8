"""Stability of runs: the matrix, the chance beside it, the paper's protocol, the gate."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lficam
from lficam.cli import main
from lficam.contract import Preprocessing
from lficam.data.scenes import load_scenes
from lficam.errors import InvalidInputError
from lficam.metrics.stability import map_iou
from lficam.stability import _interval, _without_each, measure_stability, stability_of_maps

from .conftest import DIGIT_SIZE, digit_model, write_folder


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


def create_like(model, **options):
    created = lficam.create_model("cifar_resnet20", "lfi", 10, **options)
    created.config.class_names, created.config.preprocessing = model.config.class_names, model.config.preprocessing
    return created.eval()


def test_runs_that_cannot_be_compared_are_refused(pictures):
    with pytest.raises(InvalidInputError, match="at least two"):
        measure_stability({"a": digit_model(seed=0)}, pictures, "digits")
    other = digit_model(seed=1)
    other.config.preprocessing = Preprocessing(DIGIT_SIZE, DIGIT_SIZE + 4)
    with pytest.raises(InvalidInputError, match="a and b have different preprocessing"):
        measure_stability({"a": digit_model(seed=0), "b": other}, pictures, "digits")
    with pytest.raises(InvalidInputError, match="at least two to compare, got 1"):
        stability_of_maps({"a": torch.rand(4, 1, 4, 4)}, torch.zeros(4), {})
    with pytest.raises(InvalidInputError, match="one a picture"):
        stability_of_maps({"a": torch.rand(4, 1, 4, 4), "b": torch.rand(3, 1, 4, 4)}, torch.zeros(4), {})
    with pytest.raises(InvalidInputError, match="labels: expected 4, one a picture, got 3"):
        stability_of_maps({"a": torch.rand(4, 1, 4, 4), "b": torch.rand(4, 1, 4, 4)}, torch.zeros(3), {})
    spelled_out = create_like(digit_model(seed=1), fin="conv3x3")
    measure_stability({"a": digit_model(seed=0), "b": spelled_out}, pictures, "digits", limit=2)
    other = create_like(digit_model(seed=1), importance="scores")
    with pytest.raises(InvalidInputError, match="different options"):
        measure_stability({"a": digit_model(seed=0), "b": other}, pictures, "digits")
    deeper = digit_model(seed=1, backbone="cifar_resnet32")
    with pytest.raises(InvalidInputError, match="different backbone"):
        measure_stability({"a": digit_model(seed=0), "b": deeper}, pictures, "digits")
    with pytest.raises(InvalidInputError, match="different class_names"):
        measure_stability({"a": digit_model(seed=0), "b": digit_model(seed=0, classes=3)}, pictures, "digits")


def test_the_command_gates_a_build(run, folder, tmp_path, capsys):
    words = ["stability", str(run.directory), str(run.directory), "--data", f"folder:{folder}"]
    assert main(words) == 2  # one run twice is one run
    assert "at least two" in capsys.readouterr().err
    import shutil

    other = shutil.copytree(run.directory, tmp_path / "other")
    words = ["stability", str(run.directory), str(other), "--data", f"folder:{folder}"]
    assert main(words) == 2
    assert "has the weights of" in capsys.readouterr().err
    config = json.loads((other / "config.json").read_text())
    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 0.1}, other / "model.safetensors")
    config["weights_sha256"] = hashlib.sha256((other / "model.safetensors").read_bytes()).hexdigest()
    (other / "config.json").write_text(json.dumps(config))
    extra = ["--json", str(tmp_path / "s.json"), "--figure", str(tmp_path / "s.png"), "--explainer", "feature_mean"]
    assert main([*words, *extra, "--minimum", "0.5"]) == 0
    (row, *_) = json.loads((tmp_path / "s.json").read_text())["measures"]
    assert row["value"] == pytest.approx(1)
    assert (row["low"], row["high"], row["deviation"]) == (None, None, None)  # of one pair
    assert (tmp_path / "s.png").is_file()
    printed = capsys.readouterr().out
    assert "cannot be chosen" in printed
    assert f"2: {other}" in printed
    gated = ["--minimum", "1.5", "--json", str(tmp_path / "gated.json")]
    assert main([*words, *gated]) == 1
    assert "below --minimum 1.5" in capsys.readouterr().err
    assert "measures" in json.loads((tmp_path / "gated.json").read_text())
    assert main([*words, "--figure", str(tmp_path / "s.doc")]) == 2
    assert "figure: expected a file of" in capsys.readouterr().err
    write_folder(tmp_path / "others", classes=("hen", "owl"), per_class=2)
    assert main([*words[:-1], f"folder:{tmp_path / 'others'}"]) == 2
    assert "unknown: hen, owl" in capsys.readouterr().err


def test_without_two_pictures_of_a_class_there_is_no_chance_to_correct_for(pictures):
    first = torch.tensor([int(torch.nonzero(pictures.labels == label)[0]) for label in pictures.labels.unique()])
    found = measure_stability({"a": digit_model(seed=0), "b": digit_model(seed=1)}, pictures.select(first), "digits")
    assert found.measures[0]["value"] is not None
    assert found.measures[0]["shuffled"] is None
    assert found.measures[0]["corrected"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_corrected_value_lies_in_its_interval(pictures):
    models = {str(seed): digit_model(seed=seed) for seed in range(3)}
    found = measure_stability(models, pictures, "digits", "class_evidence")
    for row in found.measures:
        assert row["low"] <= row["corrected"] <= row["high"]


def test_the_interval_over_runs_is_the_jackknife_by_hand():
    names = [("a", "b"), ("a", "c"), ("b", "c")]
    own = torch.tensor([0.6, 0.7, 0.5])
    pairs = torch.stack((own, torch.full((3,), 0.2)), dim=1)[:, :, None].expand(3, 2, 10)
    without = _without_each(pairs, names)
    assert without == pytest.approx([0.375, 0.625, 0.5])
    low, high = _interval(pairs, 0.5, without)
    # Without a run one pair is left: corrected 0.375, 0.625 and 0.5; their mean squared deviation is 1/96.
    error = ((3 - 1) * (1 / 96)) ** 0.5
    assert low == pytest.approx(0.5 - 4.30265 * error, abs=1e-4)
    assert high == 1.0  # no overlap is more than perfect
    assert _without_each(pairs[:1], names[:1]) is None
    assert _interval(pairs[:1], 0.5, None) == (None, None)


def test_one_run_of_flat_maps_leaves_no_interval_and_breaks_nothing(pictures):
    maps = {name: torch.rand(len(pictures), 1, 16, 16) for name in ("a", "b")}
    maps["dead"] = torch.zeros(len(pictures), 1, 16, 16)
    found = stability_of_maps(maps, pictures.labels, {})
    json.dumps(found.to_dict(), allow_nan=False)
    ranks = next(row for row in found.measures if row["measure"] == "rank_correlation")
    assert (ranks["low"], ranks["high"]) == (None, None)
    assert ranks["corrected"] is not None


def test_flat_maps_are_told_and_break_nothing(pictures):
    maps = {name: torch.zeros(len(pictures), 1, 16, 16) for name in ("a", "b", "c")}
    found = stability_of_maps(maps, pictures.labels, {}, dict.fromkeys(maps, 0.5))
    assert found.paper == {"baseline": "a", "iou": None}
    for row in found.measures:
        assert (row["value"], row["low"], row["left_out"]) == (None, None, 1.0)


def test_runs_trained_on_other_data_are_refused(pictures):
    one, other = digit_model(seed=0), digit_model(seed=1)
    other.config.training = {"data": "planted-shortcut"}
    with pytest.raises(InvalidInputError, match="different training data"):
        measure_stability({"a": one, "b": other}, pictures, "digits")
    one.config.training = {"data": "folder:pets", "listing_sha256": "1"}
    other.config.training = {"data": "folder:pets", "listing_sha256": "2"}
    with pytest.raises(InvalidInputError, match="different training data"):
        measure_stability({"a": one, "b": other}, pictures, "digits")
    other.config.training = {"data": "folder:the-same-elsewhere", "listing_sha256": "1"}
    measure_stability({"a": one, "b": other}, pictures, "digits", limit=2)
    other.config.training = {"data": "folder:pets"}  # a training that wrote no digest down
    measure_stability({"a": one, "b": other}, pictures, "digits", limit=2)
    one.config.training, other.config.training = {"hidden_patch": 0.5}, {"hidden_patch": 0.0}
    with pytest.raises(InvalidInputError, match="different hidden patches in training"):
        measure_stability({"a": one, "b": other}, pictures, "digits")
