"""What the documentation publishes is what the records say."""

import json
import shutil
from pathlib import Path

import pytest

from lficam.sweep import read_sweep, write_summary

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


def test_every_explainer_on_scenes_with_its_time():
    rows = values("scenes-claims/explainers.json")
    times = json.loads((ROOT / "experiments" / "scenes-claims" / "times.json").read_text())["explainers"]
    assert {"score_cam", "rise", "lime"} < {row["explainer"] for row in times}
    metrics = ("pointing", "energy", "box_iou_tuned", "max_box_acc_v2", "mask_iou_tuned", "pxap")
    for row in times:
        shown = [f"{rows[row['explainer'], metric]['value']:.3f}" for metric in metrics]
        time = f"{row['milliseconds']:.1f}" if row["milliseconds"] < 100 else f"{row['milliseconds']:,.0f}"
        assert f"| {row['explainer']} | {time} | {row['passes']:,} | {' | '.join(shown)} |" in RESULTS
