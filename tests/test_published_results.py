"""What the documentation publishes is what the records say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lficam.explainers import EXPLAINERS
from lficam.sweep import paired_interval, read_records, read_sweep, write_summary

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "docs" / "results.md").read_text()
EXPERIMENTS = sorted((ROOT / "experiments").glob("*/sweep.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.parent.name)
def test_tables_are_those_of_the_records(file, tmp_path):
    home = tmp_path / file.parent.name
    home.mkdir()
    for name in ("sweep.yaml", "records.jsonl"):
        shutil.copy(file.parent / name, home)
    with_folder = "--data folder:" in json.loads((home / "records.jsonl").read_text().splitlines()[0])["command"]
    table = write_summary(read_sweep(home / "sweep.yaml", "folder:FOLDER" if with_folder else None))
    assert table == (file.parent / "table.md").read_text()
    headline = table[table.index("| variant | runs |") : table.index("\n\nEverything")]
    assert headline in RESULTS


def test_score_cam_beside_the_others():
    found = {}
    for row in read_records(ROOT / "experiments" / "cifar10-twelve-epochs" / "records.jsonl"):
        if row["variant"] == "LFI-CAM" and row["seed"] is not None:
            found.setdefault((row["explainer"], row["metric"]), []).append(row["value"])
    metrics = ("patch_deletion", "road", "insertion", "deletion", "average_drop", "average_gain", "adcc")
    for name in ("attention", "class_evidence", "grad_cam", "score_cam", "feature_mean", "centre", "ones"):
        shown = [f"{np.mean(found[name, metric]):.3f}" if (name, metric) in found else "-" for metric in metrics]
        assert f"| {name} | {' | '.join(shown)} |" in RESULTS
    for name in ("attention", "class_evidence"):
        shown = []
        for metric in metrics:
            differences = np.subtract(found[name, metric], found["score_cam", metric])
            low, high = paired_interval(differences.tolist())
            shown.append(f"{differences.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        assert f"| {name} minus score_cam | {' | '.join(shown)} |" in RESULTS


def shown_means(experiment, names=("variant", "dataset", "pictures", "explainer", "metric")):
    """The mean over runs as the tables show it, by these fields of the records."""
    found = {}
    for row in read_records(ROOT / "experiments" / experiment / "records.jsonl"):
        if row["seed"] is not None:
            found.setdefault(tuple(row[name] for name in names), []).append(row["value"])
    return {key: f"{np.mean(values):.3f}" for key, values in found.items()}


@pytest.fixture(scope="module")
def on_scenes():
    return shown_means("scenes-claims")


VARIANTS = ("plain", "ABN", "LFI-CAM", "LFI-CAM, w = 1/K", "LFI-CAM, scores")
SLOW = ("rise", "lime")


def test_where_every_explainer_points_on_every_network(on_scenes):
    for name in [*EXPLAINERS, "ones"]:
        one, two = (25, 10) if name in SLOW else (250, 250)
        asked = [("digits-in-scenes", one), ("two-digits", two)]
        shown = [on_scenes.get((of, *where, name, "pointing"), "-") for where in asked for of in VARIANTS]
        assert f"| {name} | {'25; 10' if name in SLOW else '250'} | {' | '.join(shown)} |" in RESULTS


def test_every_explainer_on_scenes_with_its_time(on_scenes):
    times = json.loads((ROOT / "experiments" / "scenes-claims" / "times.json").read_text())["explainers"]
    times = {row["explainer"]: row for row in times}
    assert {"score_cam", "rise", "lime"} < set(times)
    metrics = ("pointing", "energy", "box_iou_tuned", "max_box_acc_v2", "mask_iou_tuned", "pxap")
    for name in [*EXPLAINERS, "ones"]:
        shown = " | ".join(on_scenes["LFI-CAM", "digits-in-scenes", 25, name, metric] for metric in metrics)
        time, passes = "-", "-"
        if name in times:
            milliseconds, passes = times[name]["milliseconds"], f"{times[name]['passes']:,}"
            time = f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"
        assert f"| {name} | {time} | {passes} | {shown} |" in RESULTS


LYING = "planted-shortcut-conflict"


def test_which_explainer_shows_the_mark_on_every_network():
    found = shown_means("shortcut-claims")
    for name in [*EXPLAINERS, "ones"]:
        mark, digit = (30, 20) if name in SLOW else (250, 250)
        asked = [(LYING, mark, name, "mark_pointing"), ("planted-shortcut", digit, name, "pointing")]
        shown = [found.get((of, *about), "-") for about in asked for of in VARIANTS]
        assert f"| {name} | {'30; 20' if name in SLOW else '250'} | {' | '.join(shown)} |" in RESULTS


def test_which_measure_notices_who_shows_the_mark():
    found = shown_means("shortcut-claims", ("dataset", "pictures", "explainer", "metric"))
    many = ("mark_pointing", "mark_pointing_chance", "top_patch", "patch_deletion")
    asked = [(250, metric) for metric in many] + [(60, metric) for metric in ("road", "deletion", "average_drop")]
    for name in ("attention", "class_evidence", "grad_cam", "score_cam", "feature_mean", "centre", "random", "ones"):
        shown = [found.get((LYING, count, name, metric), "-") for count, metric in asked]
        assert f"| {name} | {' | '.join(shown)} |" in RESULTS
