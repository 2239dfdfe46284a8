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


@pytest.fixture(scope="module")
def on_scenes():
    """The mean over runs as the tables show it, by variant, set, pictures, map and measure."""
    found = {}
    for row in read_records(ROOT / "experiments" / "scenes-claims" / "records.jsonl"):
        if row["seed"] is not None:
            key = tuple(row[name] for name in ("variant", "dataset", "pictures", "explainer", "metric"))
            found.setdefault(key, []).append(row["value"])
    return {key: f"{np.mean(values):.3f}" for key, values in found.items()}


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
