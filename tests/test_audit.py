"""Verdicts from values made by hand, and the page and exit code of a real audit."""

import json
from html import unescape
from pathlib import Path

import pytest
import torch

from lficam import audit as room
from lficam.audit import MARGINS, audit
from lficam.cli import main
from lficam.data.scenes import load_scenes
from lficam.errors import InvalidInputError, UnknownNameError

from .conftest import DIGIT_SIZE, digit_model, mark_reader


def values(mean, spread=0.01, count=400):
    """(1, N) around a mean."""
    return mean + spread * torch.randn(1, count, generator=torch.Generator().manual_seed(round(1000 * mean)))


def swap_values(other, trivial, agreement, count):
    """What the swap test finds: points lost with another picture's map and with trivial ones, labels that stay."""
    lost = {"other_image": other, **trivial}
    found = {("attention", f"accuracy_lost_with_{name}"): torch.full((1, count), share) for name, share in lost.items()}
    return {**found, ("attention", "agreement_with_other_image"): torch.full((1, count), agreement)}


@pytest.mark.parametrize(
    ("own", "centre", "spread", "verdict"),
    [
        (0.40, 0.30, 0.01, "holds"),
        (0.32, 0.31, 0.01, "holds trivially"),
        (0.30, 0.40, 0.01, "holds trivially"),
        (0.01, 0.30, 0.01, "fails"),
        (-0.20, 0.00, 0.01, "fails"),
        (0.36, 0.31, 2.00, "unknown"),
        (-0.10, -0.20, 0.01, "fails"),  # ahead of the best, and worse than nothing
    ],
)
def test_a_map_must_beat_the_best_of_those_that_cost_nothing(own, centre, spread, verdict):
    found = {
        ("attention", "patch_deletion"): values(own, spread),
        ("centre", "patch_deletion"): values(centre, spread),
        ("random", "patch_deletion"): values(-0.05),
    }
    judged = room._against_baselines(found, "attention", "patch_deletion")
    assert judged.verdict == verdict
    assert f"the best trivial map ({'centre' if centre > -0.05 else 'random'})" in judged.reason


@pytest.mark.parametrize(
    ("other", "trivial", "verdict"),
    [(0.05, 0.04, "holds"), (0.05, 0.0, "holds trivially"), (0.0, 0.0, "fails"), (MARGINS["accuracy"] / 2, 0, "fails")],
)
@pytest.mark.parametrize("best", room._LEARNED_BY_NOBODY)
def test_a_label_uses_a_map_if_another_pictures_costs_accuracy(other, trivial, verdict, best):
    found = swap_values(other, dict.fromkeys(room._LEARNED_BY_NOBODY, 0.05) | {best: trivial}, 0.97, count=4000)
    (judged,) = room._use(found)
    assert judged.verdict == verdict
    assert "97.0%" in judged.reason
    assert f"nobody learned ({best}) {100 * trivial:.2f}" in judged.reason
    assert room._use({}) == []


@pytest.mark.parametrize(("kept", "verdict"), [(0.1, "holds"), (-0.1, "holds"), (0.9, "fails"), (-0.9, "fails")])
def test_a_map_that_survives_the_loss_of_all_weights_fails(kept, verdict):
    assert room._from_the_weights({("cam", "randomised"): values(kept)}, "cam").verdict == verdict
    assert room._from_the_weights({}, "cam").verdict == "unknown"


def test_maps_that_are_turned_around_in_every_second_picture_are_kept_all_the_same():
    turned = torch.tensor([[0.9, -0.9] * 200])
    assert room._from_the_weights({("cam", "randomised"): turned}, "cam").verdict == "fails"


@pytest.mark.parametrize(
    ("own", "trivial", "verdict"),
    [
        ((0.5, 0.4, 0.6), (0.2, 0.1, 0.3), "holds"),
        ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), "holds trivially"),
        ((0.33, 0.25, 0.41), (0.08, -0.10, 0.27), "unknown"),  # the channel mean is not shown to hold
        ((0.01, -0.01, 0.02), (0.5, 0.4, 0.6), "fails"),
        ((0.5, None, None), (0.2, None, None), "unknown"),  # one pair of runs
    ],
)
def test_a_map_is_stable_beyond_the_class_and_beyond_the_channel_mean(own, trivial, verdict):
    def row(corrected, low, high):
        return {"value": 0.6, "shuffled": 0.3, "corrected": corrected, "low": low, "high": high, "left_out": 0.0}

    assert room._stable("attention", row(*own), row(*trivial)).verdict == verdict


def test_a_model_that_answers_nothing_is_not_passed_over():
    dead = room._against_baselines({}, "attention", "patch_deletion")
    assert (dead.verdict, dead.value) == ("unknown", None)
    assert "the answers are the same" in dead.reason


def test_few_pictures_without_an_event_do_not_say_that_there_is_none():
    found = swap_values(0.0, dict.fromkeys(room._LEARNED_BY_NOBODY, 0.0), 1.0, count=50)
    assert room._use(found)[0].verdict == "unknown"


@pytest.mark.parametrize("metric", ["pointing", "mark_pointing"])
def test_pictures_with_nothing_to_point_at_do_not_count_against_pointing(metric):
    hits = torch.full((2, 400), torch.nan)
    hits[0, :40], hits[1, :80] = 1.0, 1.0  # the second run took more labels from a mark
    found = {("attention", metric): hits, ("random", metric): 0 * hits, ("centre", metric): 0 * hits}
    judged = room._against_baselines(found, "attention", metric)
    assert (judged.verdict, judged.value) == ("holds", 1.0)
    assert "85.0% of the pictures have nothing to point at" in judged.reason


def test_a_set_with_planted_marks_is_asked_whether_maps_show_them(tmp_path):
    marked = load_scenes("planted-shortcut-conflict", "test", DIGIT_SIZE).select(torch.arange(0, 1000, 20))
    (tmp_path / "config.json").write_text("{}")
    found = audit({str(tmp_path): mark_reader()}, marked, "marks", limit=50, explainers=["class_evidence", "random"])
    words = {(verdict.explainer, verdict.claim): verdict for verdict in found.verdicts}
    mark, top = (room._CLAIMS[metric] for metric in ("mark_pointing", "top_patch"))
    assert words["class_evidence", mark].verdict == words["class_evidence", top].verdict == "holds"
    assert not {words["random", mark].verdict, words["random", top].verdict} & {"holds", "holds trivially"}
    # Pointing at the object is asked of labels that were not taken from a mark only.
    assert words["class_evidence", "points at the object"].verdict != "fails"
    assert "pictures have nothing to point at" in words["class_evidence", "points at the object"].reason
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"weights_sha256": "another"}')
    unread = audit({str(other): digit_model("plain")}, marked, "marks", limit=50, explainers=["class_evidence"])
    (verdict,) = [verdict for verdict in unread.verdicts if verdict.claim == mark]
    assert (verdict.verdict, verdict.value) == ("unknown", None)
    assert "too few wrong labels are a mark's" in verdict.reason


def test_a_map_that_is_the_same_for_all_pictures_shows_no_mark():
    hits = (torch.arange(1000) < 220).float()[None]
    found = {("cam", metric): hits for metric in ("mark_pointing", "mark_pointing_mean_map")}
    found["random", "mark_pointing"] = 0 * hits
    judged = room._against_baselines(found, "cam", "mark_pointing")
    assert judged.verdict == "holds trivially"
    assert "(the mean of its own maps)" in judged.reason


def test_a_top_patch_by_chance_is_none():
    hits = (torch.arange(400) < 25).float()[None]
    found = {("cam", "top_patch"): hits, ("random", "top_patch"): hits.roll(100), ("centre", "top_patch"): 0 * hits}
    assert room._against_baselines(found, "cam", "top_patch").verdict != "holds"
    assert room._against_baselines({**found, ("cam", "top_patch"): 1 - hits}, "cam", "top_patch").verdict == "holds"


def test_a_map_that_is_flat_fails_and_its_silence_counts_as_nothing():
    found = {("random", "patch_deletion"): values(0.0), ("centre", "patch_deletion"): values(0.05)}
    assert room._against_baselines(found, "attention", "patch_deletion").verdict == "fails"
    mostly_flat = values(0.4)
    mostly_flat[:, 40:] = torch.nan
    judged = room._against_baselines(
        {**found, ("attention", "patch_deletion"): mostly_flat}, "attention", "patch_deletion"
    )
    assert judged.value == pytest.approx(0.04, abs=0.005)
    assert judged.verdict != "holds"
    assert "90.0% of the pictures have no answer" in judged.reason


def test_two_runs_that_disagree_decide_nothing():
    found = {
        ("attention", "patch_deletion"): torch.cat((values(0.9), values(0.3))),
        ("random", "patch_deletion"): torch.cat((values(0.0), values(0.0))),
    }
    assert room._against_baselines(found, "attention", "patch_deletion").verdict == "unknown"


def test_an_audit_leaves_a_page_and_an_exit_code(run, folder, tmp_path, capsys):
    page = tmp_path / "audit.html"
    words = ["audit", str(run.directory), "--data", f"folder:{folder}", "--limit", "8", "--out", str(page)]
    code = main([*words, "--json", str(tmp_path / "audit.json")])
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "audit.json").read_text())
    failed = [verdict for verdict in found["verdicts"] if verdict["verdict"] == "fails"]
    undecided = all(verdict["verdict"] == "unknown" for verdict in found["verdicts"])
    assert code == (1 if failed or undecided else 0)
    assert ("claims fail" in err) == bool(failed)
    html = unescape(page.read_text())
    for verdict in found["verdicts"]:
        assert verdict["claim"] in html
        assert f"{verdict['verdict']:<16} {verdict['explainer']} {verdict['claim']}" in out
    assert "cannot react to that layer" in html
    assert "holes that its training had not" in html or "was not recorded" in html
    page.write_text("mine")
    assert main(words) == 2
    assert page.read_text() == "mine"


def test_two_runs_are_judged_on_stability_too(run, pictures_of_run, monkeypatch):
    models = {str(run.directory): run.model, f"{run.directory}/": run.model}  # one run, and itself
    found = audit(models, pictures_of_run, "folder", limit=8)
    stable = [verdict for verdict in found.verdicts if verdict.claim == "is the same in another training run"]
    assert {verdict.explainer for verdict in stable} == {"attention", "class_evidence", "grad_cam"}
    assert not any(verdict.verdict == "fails" for verdict in stable)
    with pytest.raises(InvalidInputError, match="at least one"):
        audit({}, pictures_of_run, "folder")


def test_other_explainers_may_be_audited(run, pictures_of_run):
    models = {str(run.directory): run.model}
    found = audit(models, pictures_of_run, "folder", limit=8, explainers=["score_cam"], precision="auto")
    assert {verdict.explainer for verdict in found.verdicts} == {"score_cam"}
    assert found.facts["swapped"] == 0
    assert not any("attention map" in note for note in found.notes)
    assert any(Path(run.directory).glob("evaluation/*/measures-8-auto.jsonl"))
    with pytest.raises(UnknownNameError, match="scores_cam"):
        audit(models, pictures_of_run, "folder", explainers=["scores_cam"])
    with pytest.raises(InvalidInputError, match="attention"):
        audit({"plain": digit_model("plain")}, pictures_of_run, "folder", explainers=["attention"])


@pytest.fixture
def pictures_of_run(run, folder):
    from lficam.data.sources import load_source

    return load_source(f"folder:{folder}", 16, with_train=False).test
