"""Every measure on small models and what it means; work is neither lost nor done twice."""

import json
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

import lficam
from lficam import measuring
from lficam.cli import main
from lficam.contract import Preprocessing
from lficam.data.pictures import Pictures
from lficam.data.scenes import load_scenes
from lficam.data.transforms import normalise
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.evaluation import evaluate
from lficam.explainers import EXPLAINERS, VERSUS, create_explainer, fast, score_cam
from lficam.explainers.base import Explainer
from lficam.functional import upsample
from lficam.measuring import BASELINES, MEASURES, ONES, Probe, Record, combine, measure, measure_run
from lficam.measuring.measures import stages_from_the_head
from lficam.metrics.faithfulness import deletion, insertion
from lficam.metrics.sanity import cascading_randomisation
from lficam.metrics.stability import rank_correlation
from lficam.metrics.use import SWAPS

from .conftest import DIGIT_SIZE, digit_model, mark_reader, write_folder


@pytest.fixture(scope="module")
def pictures():
    return load_scenes("digits-in-scenes", "test", DIGIT_SIZE).select(torch.arange(0, 1000, 83))


@pytest.fixture(scope="module")
def images(pictures):
    return normalise(pictures.images, digit_model().config.preprocessing)


def values(model, pictures, explainers, measures):
    records = [record for records in measure(model, pictures, explainers, measures) for record in records]
    return {(record.explainer, record.metric): record for record in records}


@pytest.mark.parametrize("name", ["class_evidence", VERSUS, "grad_cam", *BASELINES])
def test_every_measure_gives_a_value_or_says_why_not(name):
    pictures = load_scenes("planted-shortcut-conflict", "test", DIGIT_SIZE).select(torch.arange(0, 1000, 83))
    found = values(digit_model(), pictures, [name], list(MEASURES))
    for record in found.values():
        assert (record.value is None) == bool(record.note)
        if record.value is not None and record.values:
            assert len(record.values) in (len(pictures), 1) or record.group == "grid_pointing"
            assert record.low <= record.value <= record.high
    assert found[name, "swap"].note == "n/a: no map of this model's own"
    assert {group for record in found.values() for group in [record.group]} == set(MEASURES)


@pytest.fixture(scope="module")
def marked():
    return load_scenes("planted-shortcut-conflict", "test", DIGIT_SIZE).select(torch.arange(0, 1000, 20))


def test_maps_are_held_against_the_marks_that_labels_were_taken_from(marked):
    model = mark_reader()
    found = values(model, marked, ["random", "class_evidence"], ["mark_pointing", "top_patch"])
    images, expected = normalise(marked.images, model.config.preprocessing), []
    for picture, mark, box in zip(images, marked.mark_labels, marked.mark_boxes, strict=True):
        noise = create_explainer("random", model)(picture[None])[0, 0]  # hits and misses
        y, x = (torch.nonzero(noise > 1 - 1e-6).float().mean(dim=0) + 0.5).tolist()
        x1, y1, x2, y2 = box.tolist()
        margin = DIGIT_SIZE / 8
        hit = float(x1 - margin <= x < x2 + margin and y1 - margin <= y < y2 + margin)
        expected.append(hit if mark < 9 else None)  # which this network does not read
    record = found["random", "mark_pointing"]
    assert record.values == expected
    assert {0.0, 1.0, None} == set(expected)
    known = [value for value in expected if value is not None]
    assert record.value == pytest.approx(sum(known) / len(known))
    assert record.left_out == pytest.approx(expected.count(None) / 50)
    # What the label comes from is one place, on which class evidence is exact.
    assert found["class_evidence", "mark_pointing"].value == 1
    assert found["class_evidence", "top_patch"].value > 0.9
    assert found["class_evidence", "top_patch_mean_map"].value < 0.3


def test_marks_that_are_not_seen_or_not_read_are_left_out(marked):
    model = mark_reader()
    model.config.preprocessing = Preprocessing(DIGIT_SIZE, DIGIT_SIZE + 8)  # the crop cuts the border away
    with Probe(model, marked) as probe:
        probe.predicted = marked.mark_labels
        assert MEASURES["mark_pointing"].ask(probe, "centre")["mark_pointing"].isnan().all()
    assert values(digit_model("plain"), marked, ["centre"], ["mark_pointing"])["centre", "mark_pointing"].value is None
    agreeing = load_scenes("planted-shortcut", "test", DIGIT_SIZE).select(torch.arange(10))
    with pytest.raises(InvalidInputError, match="mark_pointing needs a set that knows marks of another class"):
        values(model, agreeing, ["centre"], ["mark_pointing"])


def test_the_margin_is_the_predicted_class_above_the_second(pictures, images):
    model = digit_model()
    with Probe(model, pictures) as probe, torch.no_grad():
        logit, margin = probe.drops
        hidden = images.clone()
        hidden[..., : DIGIT_SIZE // 4, DIGIT_SIZE // 4 : DIGIT_SIZE // 2] = 0
        whole, without = model(images), model(hidden)
        first, second = whole.topk(2, dim=1).indices.unbind(1)

        def pick(logits, classes):
            return logits.gather(1, classes[:, None])[:, 0]

        torch.testing.assert_close(logit[:, 0, 1], pick(whole - without, first), rtol=1e-3, atol=1e-4)
        expected = pick(whole - without, first) - pick(whole - without, second)
        torch.testing.assert_close(margin[:, 0, 1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["lfi", "abn"])
def test_its_own_map_put_in_its_place_changes_nothing(images, method):
    model = digit_model(method)
    with torch.no_grad():
        torch.testing.assert_close(model.answer_with(images, model.explain(images).attention), model(images))
        assert not torch.allclose(
            model.answer_with(images, torch.zeros(len(images), 1, 6, 6)[..., :1, :1]), model(images)
        )


def test_its_own_map_changes_nothing_where_the_attention_acts_earlier(images):
    torch.manual_seed(0)
    model = lficam.create_model("cifar_resnet20", "lfi", 10, attend_at="stages.0").eval()
    with torch.no_grad():
        torch.testing.assert_close(model.answer_with(images, model.explain(images).attention), model(images))


def test_the_weighting_of_uniform_weights_is_the_channel_mean(pictures):
    found = values(digit_model().with_uniform_importance(), pictures, ["attention"], ["weighting"])
    assert found["attention", "effective_channels"].value == pytest.approx(64, rel=1e-4)
    assert found["attention", "iou_with_feature_mean"].value == pytest.approx(1)
    assert ("attention", "effective_channels") not in values(digit_model("abn"), pictures, ["attention"], ["weighting"])


def test_a_swap_against_the_slow_way(pictures, images):
    model = digit_model()
    found = values(model, pictures, ["attention"], ["swap"])
    with torch.no_grad():
        own, zero = model(images), model.answer_with(images, torch.zeros(len(images), 1, 6, 6))
    agreement = (own.argmax(1) == zero.argmax(1)).float().mean()
    assert found["attention", "agreement_with_zero"].value == pytest.approx(float(agreement))
    right = (own.argmax(1) == pictures.labels).float().mean()
    assert found["attention", "accuracy"].value == pytest.approx(float(right))
    lost = right - (zero.argmax(1) == pictures.labels).float().mean()
    assert found["attention", "accuracy_lost_with_zero"].value == pytest.approx(float(lost), abs=1e-5)
    assert {metric.removeprefix("divergence_with_") for _, metric in found if "divergence" in metric} == set(SWAPS)


def test_a_map_that_never_looks_keeps_its_ranks_and_attention_keeps_them_without_a_head(pictures):
    found = values(digit_model(), pictures, ["centre", "attention", "class_evidence"], ["sanity"])
    assert found["centre", "randomised"].value == pytest.approx(1)
    assert found["attention", "randomised_to_head"].value == pytest.approx(1)
    assert found["class_evidence", "randomised_to_head"].value < 0.9


def test_a_model_that_lost_its_weights_is_asked_about_the_rival_of_the_whole_one(pictures, images):
    model = digit_model("plain")
    top = model(images).topk(2, dim=1).indices
    explain = create_explainer("class_evidence", model, versus=top[:, 1])
    own = explain(images, top[:, 0], raw=True)
    stages = stages_from_the_head(model)
    lost = next(copy for _, copy in cascading_randomisation(model, stages))
    of_lost = create_explainer("class_evidence", lost, versus=top[:, 1])(images, top[:, 0], raw=True)
    side = (DIGIT_SIZE, DIGIT_SIZE)
    expected = rank_correlation(upsample(own, side), upsample(of_lost, side)).mean()
    found = values(model, pictures, [VERSUS], ["sanity"])[VERSUS, "randomised_to_head"]
    assert found.value == pytest.approx(float(expected), abs=1e-4)


def test_a_map_of_ones_wins_average_drop_and_loses_adcc(pictures):
    found = values(digit_model(), pictures, [ONES, "grad_cam"], ["average_drop", "adcc"])
    assert found[ONES, "average_drop"].value == 0 < found["grad_cam", "average_drop"].value
    assert found[ONES, "adcc"].value == 0 < found["grad_cam", "adcc"].value
    assert found[ONES, "average_gain"].better == "higher" != found[ONES, "average_drop"].better


def test_the_fast_pass_gives_the_models_own_probabilities(pictures, images):
    model = digit_model("abn")
    with Probe(model, pictures) as probe:
        for batch, part, classify in probe.asking("testing"):
            with torch.no_grad():
                expected = model(batch).softmax(1).amax(1)
            torch.testing.assert_close(probe.probability(part, classify)(batch).clone(), expected, rtol=1e-4, atol=1e-5)


def test_the_second_fill_is_the_blurred_picture(pictures, images):
    """A Gaussian of a tenth of the side, over half of the picture: other values than the mean colour's."""
    model, blurred = digit_model(), TF.gaussian_blur(images, [2 * (DIGIT_SIZE // 4) + 1] * 2, [DIGIT_SIZE / 10] * 2)
    found = values(model, pictures, ["grad_cam"], ["deletion", "insertion"])
    with Probe(model, pictures) as probe, torch.no_grad():
        asked, maps = model(images).argmax(dim=1), probe.maps("grad_cam")

        def probability(shown):
            return model(shown).softmax(dim=1).gather(1, asked[:, None])[:, 0]

        for area in (deletion, insertion):
            for name, fill in ((area.__name__, 0.0), (f"{area.__name__}_blurred", blurred)):
                expected = float(area(probability, images, maps, fill=fill).mean())
                assert found["grad_cam", name].value == pytest.approx(expected, abs=1e-4)
    assert abs(found["grad_cam", "deletion"].value - found["grad_cam", "deletion_blurred"].value) > 1e-3


def test_what_was_measured_is_not_measured_again_and_a_torn_line_is(run, folder, pictures, monkeypatch, tmp_path):
    model = digit_model()
    (tmp_path / "config.json").write_text(json.dumps({"weights_sha256": "one"}))

    def ask(explainers=("centre", "random")):
        return measure_run(tmp_path, model, pictures, "digits-in-scenes", explainers, ["average_drop"])

    first = ask()
    path = tmp_path / "evaluation" / "digits-in-scenes" / f"measures-{len(pictures)}.jsonl"
    asked = []
    original = measuring._records
    monkeypatch.setattr(measuring, "_records", lambda *of: asked.append(of[1:]) or original(*of))
    assert ask() == first
    assert asked == []
    assert [record.explainer for record in ask(["random"])] == ["random", "random"]
    path.write_text(path.read_text()[:-30])  # the last record of random's two is cut short
    assert ask() == first
    assert asked == [("random", "average_drop")]
    (tmp_path / "config.json").write_text(json.dumps({"weights_sha256": "another"}))
    assert ask() == first
    assert len(asked) == 3  # other weights: everything again
    pictures = replace(pictures, boxes=pictures.boxes + 1)
    ask()
    assert len(asked) == 5  # other boxes: likewise
    other = replace(pictures, images=[image.clone() for image in pictures.images])
    other.images[3][0, 5, 5] += 1
    same = measuring._fingerprint(replace(pictures, images=list(pictures.images)))
    assert same == measuring._fingerprint(pictures) != measuring._fingerprint(other)


def test_explainers_of_many_passes_may_ask_in_bfloat16(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(fast, "native_bfloat16", lambda device: True)
    (tmp_path / "config.json").write_text(json.dumps({"weights_sha256": "one"}))

    def ask(precision):
        explainers = ["score_cam", "grad_cam"]
        found = measure_run(tmp_path, digit_model(), pictures, "scenes", explainers, ["average_drop"], precision)
        return {record.explainer: record.values for record in found if record.metric == "average_drop"}

    whole, narrow = ask("32"), ask("auto")
    assert narrow["grad_cam"] == whole["grad_cam"]
    assert narrow["score_cam"] != whole["score_cam"]
    assert narrow["score_cam"] == pytest.approx(whole["score_cam"], abs=0.05)
    assert len(list((tmp_path / "evaluation" / "scenes").glob("measures-*.jsonl"))) == 2
    assert ask("32") == whole


@pytest.mark.parametrize("metric", ["adcc", "sanity", "grid_pointing"])
def test_the_precision_is_that_of_every_measure(pictures, metric, monkeypatch):
    asked = []
    monkeypatch.setattr(score_cam, "fast_classifier", lambda *of: asked.append(of[2]) or fast.fast_classifier(*of))
    for _ in measure(digit_model(), pictures.select(torch.arange(6)), ["score_cam"], [metric], precision="auto"):
        pass
    assert {*asked} == {"auto"}


def test_maps_of_one_explainer_are_kept_at_a_time(pictures):
    with Probe(digit_model(), pictures) as probe:
        first = probe.maps("feature_mean")
        assert probe.maps("feature_mean", of_true=True) is first  # it has no class
        probe.maps("grad_cam")
        assert [name for name, *_ in probe._maps] == ["grad_cam"]


def test_objects_without_a_label_are_left_out(pictures):
    labels = pictures.object_labels.clone()
    labels[::2] = -1
    some = replace(pictures, object_labels=labels)
    known = pictures.select(torch.arange(1, len(pictures), 2))
    rows = [evaluate(digit_model(), of, "digits").localization for of in (some, known)]
    assert [row["pointing"]["value"] for row in rows[0]] == [row["pointing"]["value"] for row in rows[1]]
    records = [
        values(digit_model(), of, ["grad_cam"], ["pointing", "grid_pointing"])["grad_cam", "pointing"].value
        for of in (some, known)
    ]
    assert records[0] == records[1]


def test_runs_are_combined_picture_by_picture():
    of_run = {
        "a": [Record("cam", "x", "x", 0.5, 0.0, 1.0, values=[0.0, 1.0]), Record("cam", "y", "y", 0.25)],
        "b": [Record("cam", "x", "x", 1.0, 1.0, 1.0, values=[1.0, None]), Record("cam", "y", "y", 0.75)],
    }
    of_run["b"][1].left_out = 0.5
    x, y = combine(of_run)
    assert x["value"] == pytest.approx(0.75)  # of the pictures' means over runs, 0.5 and 1
    assert x["left_out"] == pytest.approx(0.25)
    assert x["runs"] == 2
    # Of the whole set: Student's interval over the two runs.
    assert (y["value"], y["left_out"]) == (0.5, 0.25)
    assert y["high"] - y["value"] == pytest.approx(12.7062 * 0.25 * 2**0.5 / 2**0.5, rel=1e-3)


def test_a_run_without_a_value_is_told_and_not_counted():
    (row,) = combine(
        {"a": [Record("cam", "x", "x", 0.9, values=[0.9, 0.9])], "b": [Record("cam", "x", "x", None, note="n/a: flat")]}
    )
    assert (row["value"], row["runs"], row["note"]) == (pytest.approx(0.9), 1, "1 of 2 runs: n/a: flat")


def test_masks_are_the_objects_pixels_not_their_boxes(pictures):
    class Painted(Explainer):
        """The true masks as a map, in the order in which pictures come."""

        name, class_targeted = "painted", False

        def raw_maps(self, images, class_idx):
            return next(painted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPLAINERS, "painted", Painted)
        painted = iter([pictures.masks[:, :1].float()])
        found = values(digit_model("plain"), pictures, ["painted"], ["mask_iou", "pxap"])
    assert found["painted", "mask_iou_tuned"].value == pytest.approx(1.0)
    assert found["painted", "pxap"].value == pytest.approx(1.0)
    assert found["painted", "mask_iou_tuned_chance"].value < 0.5
    assert found["painted", "pxap_mean_map"].value < 0.9
    assert len(found["painted", "mask_iou_tuned"].values) == len(pictures)


def test_numbers_of_a_whole_set_have_intervals_and_grids_their_chance(pictures):
    found = values(
        digit_model(), pictures, ["class_evidence"], ["max_box_acc", "max_box_acc_v2", "pxap", "grid_pointing"]
    )
    for metric in ("max_box_acc", "max_box_acc_v2", "pxap", "pxap_chance"):
        record = found["class_evidence", metric]
        assert record.low < record.high
        assert record.low <= record.value <= record.high
    assert 0 < found["class_evidence", "grid_pointing_chance"].value < 1
    assert found["class_evidence", "grid_pointing_chance"].better == ""
    of_two = combine({"a": [found["class_evidence", "pxap"]], "b": [found["class_evidence", "pxap"]]})[0]
    assert of_two["high"] == pytest.approx(found["class_evidence", "pxap"].high)  # two runs alike add nothing


def test_a_grid_is_asked_about_each_of_its_classes_and_by_chance_about_another(pictures):
    class Cells(Explainer):
        """All of the map in the cell of the class that is asked, in the order in which the grid asks."""

        name, class_targeted = "cells", True

        def raw_maps(self, images, class_idx):
            maps = torch.zeros(len(images), 1, 2, 2)
            maps.flatten(1)[:, next(cells)] = 1.0
            return torch.nn.functional.interpolate(maps, images.shape[-2:], mode="nearest")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPLAINERS, "cells", Cells)
        cells = cycle(range(4))
        found = values(digit_model("plain"), pictures, ["cells"], ["grid_pointing"])
    assert found["cells", "grid_pointing"].value == pytest.approx(1.0)
    assert found["cells", "grid_pointing_chance"].value == pytest.approx(0.0)


def test_a_level_grid_is_not_ranked_by_the_rounding_of_its_enlargement():
    torch.manual_seed(0)
    model = lficam.create_model("cifar_resnet20", "plain", 2)  # 4 pixels are one cell
    model.config.class_names, model.config.preprocessing = ["a", "b"], Preprocessing(4, 4)
    noise = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    pictures = Pictures(noise, torch.arange(50) % 2, ["a", "b"], [str(number) for number in range(50)])
    found = values(model, pictures, ["class_evidence"], ["patch_deletion", "sanity"])
    assert found["class_evidence", "patch_deletion"].note == "n/a: no picture can be judged"
    assert found["class_evidence", "randomised"].note == "n/a: no picture can be judged"


def test_a_model_that_answers_nothing_is_refused(pictures):
    model = digit_model()
    torch.nn.init.constant_(model.linear_head.bias, torch.nan)
    for group in ("swap", "average_drop", "patch_deletion"):
        with pytest.raises(InvalidInputError, match="NaN or infinity to 13 of 13 pictures, first to digits-in-scenes"):
            values(model, pictures, ["attention"], [group])


def test_what_cannot_be_otherwise_is_said():
    asked = ["sanity", "patch_deletion"]
    holes, layer = sorted(measuring.about(digit_model(), asked), key=lambda note: "layer" in note)
    assert holes == measuring.about(digit_model(), ["top_patch"])[0]
    assert "Patches taken away" in holes
    assert "cannot react to that layer" in layer
    assert measuring.about(digit_model("plain"), ["sanity"]) == []
    assert measuring.about(digit_model(), ["road"]) == []


def test_any_of_two_objects_is_a_right_answer_to_a_swap():
    two = load_scenes("two-digits", "test", DIGIT_SIZE).select(torch.arange(0, 1000, 83))
    model = digit_model()
    with torch.no_grad():
        answers = model(normalise(two.images, model.config.preprocessing)).argmax(dim=1)
    right = (answers[:, None] == two.object_labels).any(dim=1).float().mean()
    assert values(model, two, ["attention"], ["swap"])["attention", "accuracy"].value == pytest.approx(float(right))


def test_wrong_names_and_sets_are_refused(pictures):
    model = digit_model()
    for explainers, measures, message in (
        (["gradcam"], ["road"], "Did you mean 'grad_cam'"),
        (["grad_cam"], ["raod"], "Did you mean 'road'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            next(measure(model, pictures, explainers, measures))
    with pytest.raises(UnknownNameError, match="precision"):
        next(measure(model, pictures, ["grad_cam"], ["pointing"], precision="half"))
    without = pictures.select(torch.arange(4))
    without.boxes = None
    with pytest.raises(InvalidInputError, match="pointing needs a set that knows"):
        next(measure(model, without, ["grad_cam"], ["pointing"]))
    with pytest.raises(InvalidInputError, match="at least two pictures"):
        next(measure(model, pictures.select(torch.tensor([0])), ["grad_cam"], ["road"]))
    with pytest.raises(InvalidInputError, match="limit: expected at least 2"):
        pictures.sample(1)


def test_the_command_measures_runs_and_refuses_those_of_other_classes(run, folder, tmp_path, capsys):
    words = ["evaluate", str(run.directory), "--data", f"folder:{folder}", "--limit", "6"]
    assert main([*words, "--metrics", "average_drop", "--json", str(tmp_path / "out.json")]) == 0
    assert "average drop" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["explainer"] for row in rows} == {"attention", "class_evidence", "grad_cam", *BASELINES}
    write_folder(tmp_path / "others", classes=("hen", "owl"), per_class=2)
    assert main([*words[:2], "--data", f"folder:{tmp_path / 'others'}", "--metrics", "average_drop"]) == 2
    assert "unknown: hen, owl" in capsys.readouterr().err


def test_what_a_set_cannot_answer_is_said_or_left_out(pictures):
    plain = digit_model("plain")
    assert values(plain, pictures, ["attention"], ["swap"])["attention", "swap"].note.startswith("n/a")
    unseen = pictures.select(torch.arange(6))
    unseen.boxes = torch.full_like(unseen.boxes, torch.nan)
    assert values(plain, unseen, ["grad_cam"], ["pointing"])["grad_cam", "pointing"].value is None
    some = pictures.select(torch.arange(8))
    some.boxes = some.boxes.clone()
    some.boxes[:2] = torch.nan
    found = values(plain, some, ["grad_cam"], ["max_box_acc", "pointing"])
    assert found["grad_cam", "max_box_acc"].left_out == found["grad_cam", "pointing"].left_out == 0.25
    for metric in ("box_iou", "max_box_acc_v2"):
        found = values(plain, unseen, ["grad_cam"], [metric])
        assert all(record.value is None for record in found.values())
    unseen.masks = None
    with pytest.raises(InvalidInputError, match="pxap needs a set that knows its objects' masks"):
        values(plain, unseen, ["grad_cam"], ["pxap"])
    one_class = pictures.select(torch.nonzero(pictures.labels == pictures.labels[0]).flatten().repeat(3))
    with pytest.raises(InvalidInputError, match="pictures of four classes"):
        values(plain, one_class, ["grad_cam"], ["grid_pointing"])


def test_a_network_outside_of_its_model_cannot_lose_its_weights(pictures):
    known = digit_model("plain")
    network = known.backbone

    def features(images):
        return network.forward_features(images)

    def head(maps):
        return network.forward_head(maps)

    model = lficam.wrap(network, features, head, method="plain", image_size=DIGIT_SIZE)
    model.config.class_names, model.config.preprocessing = known.config.class_names, known.config.preprocessing
    with pytest.raises(InvalidInputError, match="a network outside of itself"):
        values(model.eval(), pictures, ["grad_cam"], ["sanity"])


def test_all_stages_of_a_wrapped_network_are_told_apart(pictures):
    network = lficam.create_model("resnet18", "plain", 10).backbone
    model = lficam.wrap(network, "layer4", method="plain", image_size=64)
    names = [name for name, _ in stages_from_the_head(model)]
    assert names[:3] == ["head", "trunk's layer4", "trunk's layer3"]
    assert len(names) == len(set(names))
