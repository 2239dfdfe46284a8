"""What the documentation publishes is what the records say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

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


def values(name):
    rows = json.loads((ROOT / "experiments" / name).read_text())["rows"]
    return {(row["explainer"], row["metric"]): row for row in rows}


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


def test_every_explainer_on_scenes_with_its_time():
    rows = values("scenes-claims/explainers.json")
    times = json.loads((ROOT / "experiments" / "scenes-claims" / "times.json").read_text())["explainers"]
    assert {"score_cam", "rise", "lime"} < {row["explainer"] for row in times}
    metrics = ("pointing", "energy", "box_iou_tuned", "max_box_acc_v2", "mask_iou_tuned", "pxap")
    for name in ("centre", "random", "ones"):
        shown = [f"{rows[name, metric]['value']:.3f}" for metric in metrics]
        assert f"| {name} | - | - | {' | '.join(shown)} |" in RESULTS
    for row in times:
        shown = [f"{rows[row['explainer'], metric]['value']:.3f}" for metric in metrics]
        time = f"{row['milliseconds']:.1f}" if row["milliseconds"] < 100 else f"{row['milliseconds']:,.0f}"
        assert f"| {row['explainer']} | {time} | {row['passes']:,} | {' | '.join(shown)} |" in RESULTS
