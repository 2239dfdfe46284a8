"""A small sweep: every run once, from its records alone when the runs are gone; table, figure, wrong files."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

import lficam
from lficam.cli import main
from lficam.errors import DataError, InvalidInputError, RunError
from lficam.measuring import SCHEMA
from lficam.sweep import draw_panels, paired_interval, read_sweep, run_sweep, summary, write_summary

PLAN = {
    "recipe": "RECIPE",
    "variants": {"LFI-CAM": None, "w = 1/K": {"model": {"fin": "uniform"}}},
    "runs": [{"seed": 0}, {"seed": 1}],
    "against": "w = 1/K",
    "measure": [
        {"explainers": ["attention", "centre"], "metrics": ["average_drop"], "pictures": 6},
        {"explainers": ["random"], "metrics": ["average_drop"], "pictures": 4, "variants": ["w = 1/K"]},
    ],
    "stability": {"explainers": ["attention", "class_evidence"], "pictures": 6},
    "headline": [
        {"name": "error, %", "metric": "top1_error", "percent": True},
        {"name": "IoU", "metric": "stability: iou", "map": "attention"},
        {"name": "parameters", "metric": "parameters"},
        {"name": "elsewhere", "metric": "top1_error", "data": "two-digits"},
    ],
    "panels": {
        "figure-5": {
            "pictures": 3,
            "columns": [{"variant": "w = 1/K", "map": "attention"}, {"variant": "LFI-CAM", "map": "class_evidence"}],
        }
    },
}
ROAD = {"explainers": ["cam"], "metrics": ["road"], "pictures": 6}
SMALL = {
    "epochs": 1,
    "batch_size": 8,
    "image_size": 16,
    "precision": "32",
    "device": "cpu",
    "val_fraction": 0.2,
    "augmentation": "none",
}


@pytest.fixture(scope="module")
def swept(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("experiments") / "small"
    home.mkdir()
    (home / "recipe.yaml").write_text(yaml.safe_dump({**SMALL, "data": f"folder:{folder}"}))
    (home / "sweep.yaml").write_text(yaml.safe_dump({**PLAN, "recipe": str(home / "recipe.yaml")}))
    runs = home.parent / "runs"
    assert main(["sweep", str(home / "sweep.yaml"), "--runs", str(runs), "--data", f"folder:{folder}"]) == 0
    return home, runs


def rows_of(home):
    return [json.loads(line) for line in (home / "records.jsonl").read_text().splitlines()]


def test_records_say_what_made_them(swept):
    home, _ = swept
    rows = rows_of(home)
    of_runs = [row for row in rows if not row["metric"].startswith("stability")]
    assert {row["run"] for row in of_runs} == {"lfi-cam-0", "lfi-cam-1", "w-1-k-0", "w-1-k-1"}
    for row in of_runs:
        assert {"experiment", "dataset", "backbone", "method", "variant", "seed", "metric", "value", "command"} <= set(
            row
        )
        assert row["seconds"] >= 0
        assert row["hardware"].startswith("cpu, ")
        assert row["dataset"] in ("training", "folder:small")
    about = ("stability: iou", "LFI-CAM", "attention")
    (iou,) = [row for row in rows if (row["metric"], row["variant"], row.get("explainer")) == about]
    assert iou["run"] == "lfi-cam-0 and lfi-cam-1"
    assert any(row["metric"] == "stability: the paper's protocol" for row in rows)
    curve = [row["value"] for row in rows if row["metric"] == "val_accuracy after epoch 1"]
    assert curve == [row["value"] for row in rows if row["metric"] == "val_accuracy"]


def test_a_measure_may_be_of_some_variants_and_some_test_sets(swept):
    home, _ = swept
    assert {row["variant"] for row in rows_of(home) if row.get("explainer") == "random"} == {"w = 1/K"}
    everywhere, once = ROAD, {**ROAD, "tests": ["two-digits"]}
    both = replace(read_sweep(home / "sweep.yaml"), tests=["cifar10", "two-digits"], measure=[everywhere, once])
    assert both.measures_of("LFI-CAM", "cifar10") == [everywhere]
    assert both.measures_of("LFI-CAM", "two-digits") == [everywhere, once]
    more = replace(both, measure=[*both.measure, {**ROAD, "variants": ["w = 1/K"]}])
    assert more.fingerprint("LFI-CAM", 0) == both.fingerprint("LFI-CAM", 0)
    assert more.fingerprint("w = 1/K", 0) != both.fingerprint("w = 1/K", 0)


def test_table_and_figure_come_from_the_records(swept):
    home, _ = swept
    table = (home / "table.md").read_text()
    assert "| data | pictures | map | measure | LFI-CAM | w = 1/K |" in table
    errors = [row["value"] for row in rows_of(home) if row["metric"] == "top1_error" and row["variant"] == "LFI-CAM"]
    line = next(line for line in table.splitlines() if "| top1_error |" in line)
    assert f"{sum(errors) / 2:.3f} ±" in line
    for name in ("summary.png", "curves.png", "figure-5.png"):
        assert (home / name).read_bytes().startswith(b"\x89PNG")
    shutil.copytree(home, home.parent / "copy", dirs_exist_ok=True)
    assert main(["sweep", str(home.parent / "copy" / "sweep.yaml"), "--runs", "nowhere", "--only-tables", "true"]) == 0
    assert (home.parent / "copy" / "table.md").read_text().splitlines()[2:] == table.splitlines()[2:]


def test_the_headline_is_the_mean_of_the_records(swept):
    home, _ = swept
    lines = (home / "table.md").read_text().splitlines()
    assert lines[2] == "| variant | runs | error, % | IoU | parameters | elsewhere |"
    rows = [row for row in rows_of(home) if row["variant"] == "w = 1/K"]
    first, second = (100 * row["value"] for row in rows if row["metric"] == "top1_error")
    (iou,) = (row["value"] for row in rows if (row["metric"], row["explainer"]) == ("stability: iou", "attention"))
    parameters = next(row["value"] for row in rows if row["metric"] == "parameters")
    error = f"{(first + second) / 2:.1f} ± {abs(first - second) / 2**0.5:.1f}"
    assert lines[5] == f"| w = 1/K | 2 | {error} | {iou:.3f} | {parameters:,} | - |"


def test_a_headline_is_of_one_sample_and_scales_its_interval(swept):
    sweep = read_sweep(swept[0] / "sweep.yaml")
    about = {"variant": "w = 1/K", "metric": "x", "explainer": "", "dataset": "d"}
    rows = [{**about, "pictures": pictures, "value": value, "seed": 0} for pictures, value in ((5, 0.5), (9, 0.1))]
    assert summary._found({"metric": "x"}, rows) == rows[:1]
    of_pairs = {**about, "pictures": 5, "value": 0.25, "low": 0.125, "high": 0.5, "seed": None}
    assert summary._shown([of_pairs], scale=100) == "25.0 (12.5 to 50.0)"
    earlier, now = {"run": "a-0", "seed": 0}, {"run": "a-1", "seed": 1, "schema": SCHEMA}
    (line,) = summary._of_earlier_measures([earlier, now])
    assert line.startswith("Measured by version 1 of the measures: a-0. Since then, 2: masks are masks")
    assert "".join(summary._of_earlier_measures([now])) == ""
    assert sweep.current([{**about, "run": "w-1-k-0 and w-1-k-1", "seed": None}]) == []


def test_it_goes_on_from_its_records_when_the_runs_are_gone(swept, folder, monkeypatch):
    home, _ = swept
    copy = home.parent / "resumed"
    shutil.copytree(home, copy)
    before = rows_of(copy)
    kept = [row for row in before if row["run"] != "w-1-k-1"]
    (copy / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    trained = []
    from lficam.sweep import running as room

    fit = room.fit
    monkeypatch.setattr(room, "fit", lambda recipe, out: trained.append(out.name) or fit(recipe, out))
    run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{folder}"), home.parent / "new-runs")
    assert trained == ["w-1-k-1"]
    after = rows_of(copy)
    timed = {"seconds_per_epoch"}

    def plain(rows):
        return {
            (row["run"], row["explainer"], row["metric"]): row["value"] for row in rows if row["metric"] not in timed
        }

    assert plain(after) == pytest.approx(plain(before), abs=1e-4)


def test_runs_on_other_pictures_are_refused_before_they_are_trained(swept, folder):
    home, _ = swept
    copy = home.parent / "elsewhere" / home.name
    shutil.copytree(home, copy)
    kept = [row for row in rows_of(copy) if row["run"] != "w-1-k-1"]
    (copy / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    other = home.parent / "other-pictures"
    shutil.copytree(folder, other)
    (other / "test" / "cat" / "0.png").rename(other / "test" / "cat" / "another.png")
    with pytest.raises(DataError, match="others than those"):
        run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{other}"), home.parent / "no-runs")
    assert not (home.parent / "no-runs" / home.name / "w-1-k-1").exists()


def test_maps_of_other_pictures_are_not_compared(swept, folder):
    home, runs = swept
    copy = home.parent / "mixed"
    shutil.copytree(home, copy)
    path = copy / "maps" / "w-1-k-1.npz"
    maps = dict(np.load(path))
    np.savez_compressed(path, **{**maps, "labels": 1 - maps["labels"]})
    with pytest.raises(RunError, match=r"w-1-k-1.npz has the maps of other pictures"):
        run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{folder}"), runs)


def test_what_another_process_records_meanwhile_is_kept(swept, folder, monkeypatch):
    home, _ = swept
    copy, runs = home.parent / "shared", home.parent / "shared-runs"
    shutil.copytree(home, copy)
    everything = rows_of(copy)
    elsewhere = [row for row in everything if row["run"] == "lfi-cam-0"]
    (copy / "records.jsonl").write_text("")
    sweep = read_sweep(copy / "sweep.yaml", f"folder:{folder}")
    from lficam.sweep import running as room

    trained, fit = [], room.fit
    other = FileLock(runs / sweep.name / ".locks" / "lfi-cam-0")
    (runs / sweep.name / ".locks").mkdir(parents=True)
    other.acquire()

    def fit_while_another_records(recipe, out):
        if not trained:  # the other process has ended its run by the time that this one has trained its own
            (copy / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in elsewhere))
        trained.append(out.name)
        return fit(recipe, out)

    monkeypatch.setattr(room, "fit", fit_while_another_records)
    assert run_sweep(sweep, runs) == []
    assert trained == ["w-1-k-0", "lfi-cam-1", "w-1-k-1"]
    compared = [row for row in rows_of(copy) if row["seed"] is None]
    assert {(row["variant"], row["run"]) for row in compared} == {
        ("LFI-CAM", "lfi-cam-0 and lfi-cam-1"),
        ("w = 1/K", "w-1-k-0 and w-1-k-1"),
    }
    assert len(rows_of(copy)) == len(everything)


def test_what_another_process_died_of_is_taken_and_what_it_is_at_is_told(swept, folder, monkeypatch, capsys):
    home, _ = swept
    copy, runs = home.parent / "left", home.parent / "left-runs"
    shutil.copytree(home, copy)
    (copy / "records.jsonl").write_text("")
    (copy / "figure-5.png").unlink()
    from lficam.sweep import running as room

    locks = runs / "left" / ".locks"
    locks.mkdir(parents=True)
    dying, living = FileLock(locks / "lfi-cam-0"), FileLock(locks / "w-1-k-0")
    trained, fit = [], room.fit

    def fit_while_another_dies(recipe, out):
        dying.release()
        trained.append(out.name)
        return fit(recipe, out)

    monkeypatch.setattr(room, "fit", fit_while_another_dies)
    words = ["sweep", str(copy / "sweep.yaml"), "--runs", str(runs), "--data", f"folder:{folder}"]
    dying.acquire()
    with living:
        assert main(words) == 0
    assert trained == ["lfi-cam-1", "lfi-cam-0", "w-1-k-1"]
    assert "Without records: w-1-k-0." in capsys.readouterr().out
    assert not (copy / "figure-5.png").exists()
    assert main(words) == 0
    assert trained[3:] == ["w-1-k-0"]
    assert (copy / "figure-5.png").exists()


def test_two_processes_at_once_record_every_run_once(folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**SMALL, "data": f"folder:{folder}"}))
    plan = {
        "recipe": str(tmp_path / "recipe.yaml"),
        "variants": {
            "added": {"freeze": "backbone", "init_from": "plain"},
            "plain": {"model": {"method": "plain"}},
        },
        "runs": [{"seed": 0}, {"seed": 1}],
        "stability": {"explainers": ["class_evidence"], "pictures": 6},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(plan))
    words = [sys.executable, "-m", "lficam", "sweep", str(tmp_path / "sweep.yaml"), "--runs", str(tmp_path / "runs")]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    errors = [row["run"] for row in rows_of(tmp_path) if row["metric"] == "top1_error"]
    assert sorted(errors) == ["added-0", "added-1", "plain-0", "plain-1"]
    begun = [line for out, _ in told for line in out.splitlines() if line.startswith(f"{tmp_path.name}: ")]
    assert len(set(begun)) == 4
    compared = {row["run"] for row in rows_of(tmp_path) if row["seed"] is None}
    assert compared == {"added-0 and added-1", "plain-0 and plain-1"}
    assert any("| added | 2 |" in out for out, _ in told)


def test_other_settings_are_another_run_and_stability_survives_the_loss_of_maps(swept, folder, monkeypatch):
    home, runs = swept
    copy = home.parent / "changed"
    shutil.copytree(home, copy)
    shutil.rmtree(copy / "maps")
    plan = yaml.safe_load((copy / "sweep.yaml").read_text())
    run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{folder}"), runs)
    assert rows_of(copy) == rows_of(home)
    (copy / "sweep.yaml").write_text(yaml.safe_dump({**plan, "runs": [{"seed": 0}, {"seed": 1, "lr": 0.02}]}))
    from lficam.sweep import running as room

    trained, fit = [], room.fit
    monkeypatch.setattr(room, "fit", lambda recipe, out: trained.append(out.name) or fit(recipe, out))
    run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{folder}"), home.parent / "changed-runs")
    assert trained == ["lfi-cam-1", "w-1-k-1"]
    assert {row["schema"] for row in rows_of(copy) if row["seed"] is not None} == {SCHEMA}
    # More pictures: the kept maps of the second runs are of other pictures, until these are measured again too.
    begun = []

    def fit_one(recipe, out):
        begun.append(out)
        if len(begun) > 1:
            raise KeyboardInterrupt
        return fit(recipe, out)

    monkeypatch.setattr(room, "fit", fit_one)
    grown = {**plan, "stability": {**plan["stability"], "pictures": 8}, "measure": []}
    (copy / "sweep.yaml").write_text(yaml.safe_dump(grown))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{folder}"), home.parent / "grown-runs")
    table = write_summary(read_sweep(copy / "sweep.yaml", f"folder:{folder}"))
    assert "; 1 runs in all." in table
    assert "average_drop" not in table
    monkeypatch.setattr(room, "fit", fit)
    run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{folder}"), home.parent / "grown-runs")
    rows = [row for row in rows_of(copy) if row["metric"] == "stability: iou, corrected"]
    assert {row["pictures"] for row in rows} == {8}
    (copy / "records.jsonl").write_text("half a li")
    with pytest.raises(RunError, match="is damaged"):
        run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{folder}"), runs)


def test_the_stability_of_runs_that_are_replaced_goes_with_them(swept, folder, monkeypatch):
    home, _ = swept
    copy = home.parent / "stopped-before-stability"
    shutil.copytree(home, copy)
    plan = yaml.safe_load((copy / "sweep.yaml").read_text())
    (copy / "sweep.yaml").write_text(yaml.safe_dump({**plan, "runs": [{"seed": 0}, {"seed": 1, "lr": 0.03}]}))
    from lficam.sweep import running as room

    monkeypatch.setattr(room, "_with_stability", lambda sweep, variant, rows: rows)
    run_sweep(read_sweep(copy / "sweep.yaml", f"folder:{folder}"), home.parent / "other-runs")
    assert not [row for row in rows_of(copy) if row["seed"] is None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": ["a"], "against": ""}, "expected a dict under variants"),
        ({"runs": 3}, "expected a list under runs"),
        ({"runs": [None]}, "expected names and values"),
        ({"runs": []}, "at least one variant and one run"),
        ({"runs": [{"seed": 1}, {"seed": 1}]}, "are the same"),
        ({"variants": {"a": {}, "w = 1/K": {"seed": 3}}}, r"two of the runs of w = 1/K"),
        ({"settings": {"devices": 2, "batch_size": 8}}, "on one device, got 2"),
        ({"stability": {"explainers": ["class_evidence_versus"], "pictures": 6}}, "its own rival"),
        ({"tests": ["two-digit"]}, "Did you mean 'two-digits'"),
        ({"measure": [{"explainers": ["cam"], "metrics": ["road"], "picture": 5}]}, "pictures \\(a number\\)"),
        ({"measure": [{"explainers": ["cam"], "metrics": ["road"], "pictures": 1}]}, "at least 2 pictures"),
        ({"measure": [{**ROAD, "variants": ["W = 1/K"]}]}, "variants of a measure 'W = 1/K'"),
        (
            {"tests": ["two-digits"], "measure": [{**ROAD, "tests": ["cifar10"]}]},
            "unknown tests of a measure 'cifar10'",
        ),
        ({"measure": [{**ROAD, "precision": "bf16"}]}, "unknown precision 'bf16'"),
        ({"stability": {"explainers": ["cam"], "pictures": 6, "variants": ["w = 1/K"]}}, "pictures \\(a number\\)"),
        ({"measure": [{"explainers": ["cam"], "metrics": ["road"]}]}, "pictures \\(a number\\)"),
        ({"measure": [{"explainers": ["cam"], "metrics": ["raod"], "pictures": 5}]}, "Did you mean 'road'"),
        ({"stability": {"explainers": ["camm"], "pictures": 5}}, "Did you mean 'cam'"),
        ({"variants": {"a": {"epochs": 0}}, "against": ""}, "epochs: got 0"),
        ({"variants": {"a": {"epoch": 1}}, "against": ""}, "settings that no recipe has"),
        ({"against": "nobody"}, "against 'nobody' is none of"),
        ({"headline": [{"name": "error"}]}, "headline needs name and metric"),
        ({"headline": ["error"]}, "expected names and values"),
        ({"headline": [{"name": 1, "metric": "top1_error"}]}, "are words"),
        ({"headline": [{"name": "a", "metric": "road", "map": "attenton"}]}, "Did you mean 'attention'"),
        ({"seeds": 3}, "expected recipe, variants, runs"),
        ({"panels": {"a": {"pictures": 3}}}, "panel a needs a name"),
        ({"panels": {"a": {"pictures": 0, "columns": []}}}, "panel a needs"),
        ({"panels": {"summary": {"pictures": 3, "columns": []}}}, "panel summary needs a name of its own"),
        (
            {"variants": {"a": {"init_from": "b"}, "b": {"init_from": "a"}}, "against": ""},
            "a starts from b starts from a",
        ),
        ({"panels": {"a": {"pictures": 3, "columns": ["LFI-CAM"]}}}, "a column of panel a needs variant and map"),
        ({"panels": {"a": {"pictures": 3, "columns": [{"variant": "LFI-CAM", "map": "cam"}]}}}, "shows cam of LFI-CAM"),
        (
            {"panels": {"a": {"pictures": 3, "columns": [{"variant": "LFI-CAM", "map": "attention", "run": 2}]}}},
            "shows run 2 of 2",
        ),
        ({"variants": {"a, b": {}, "a b": {}}, "against": ""}, "would share a directory"),
    ],
)
def test_a_wrong_file_is_refused_before_the_work(swept, tmp_path, change, message):
    plan = yaml.safe_load((swept[0] / "sweep.yaml").read_text())
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**plan, "panels": {}, "measure": [ROAD], **change}))
    with pytest.raises(InvalidInputError, match=message):
        read_sweep(tmp_path / "sweep.yaml")


def test_the_documented_file_is_a_sweep(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
    (tmp_path / "sweep.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    sweep = read_sweep(tmp_path / "sweep.yaml")
    assert len(sweep.measures_of("LFI-CAM", "two-digits")) == 2
    assert len(sweep.measures_of("plain", "two-digits")) == 1


def test_a_panel_shows_the_kept_map_of_its_column(swept, folder):
    home, _ = swept
    pixels = np.asarray(Image.open(home / "figure-5.png").convert("RGB")).astype(int)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    copy = home.parent / "no-maps"
    shutil.copytree(home, copy)
    (copy / "maps" / "w-1-k-0.npz").unlink()
    with pytest.raises(RunError, match="shows attention of w = 1/K"):
        draw_panels(read_sweep(copy / "sweep.yaml", f"folder:{folder}"))


def test_a_variant_starts_from_the_run_of_another(folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**SMALL, "data": f"folder:{folder}"}))
    plan = {
        "recipe": str(tmp_path / "recipe.yaml"),
        "variants": {
            "FIN added": {"freeze": "backbone", "init_from": "plain", "lr": 0.02},
            "plain": {"model": {"method": "plain"}},
        },
        "runs": [{"seed": 0, "lr": 0.2}],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(plan))
    sweep = read_sweep(tmp_path / "sweep.yaml", f"folder:{folder}")
    run_sweep(sweep, tmp_path / "runs")
    recipes = [tmp_path / "runs" / sweep.name / name / "recipe.yaml" for name in ("plain-0", "fin-added-0")]
    assert [yaml.safe_load(recipe.read_text())["lr"] for recipe in recipes] == [0.2, 0.02]
    before, after = (lficam.load(tmp_path / "runs" / sweep.name / name) for name in ("plain-0", "fin-added-0"))
    for name, tensor in before.state_dict().items():
        if name not in ("backbone.fc.weight", "backbone.fc.bias"):
            assert torch.equal(tensor, after.state_dict()[name]), name
    assert {row["variant"]: row["settings"]["lr"] for row in rows_of(tmp_path)} == {"plain": 0.2, "FIN added": 0.02}
    gained = [row for row in rows_of(tmp_path) if row["metric"] == "points_gained by the retrofit"]
    assert [row["variant"] for row in gained] == ["FIN added"]
    changed = {**plan, "variants": {**plan["variants"], "plain": {"model": {"method": "plain"}, "lr": 0.01}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(changed))
    other = read_sweep(tmp_path / "sweep.yaml", f"folder:{folder}")
    assert other.fingerprint("FIN added", 0) != sweep.fingerprint("FIN added", 0)
    # What more is measured of its parent is nothing to it.
    measured = replace(sweep, measure=[*sweep.measure, {**ROAD, "variants": ["plain"]}])
    assert measured.fingerprint("plain", 0) != sweep.fingerprint("plain", 0)
    assert measured.fingerprint("FIN added", 0) == sweep.fingerprint("FIN added", 0)


def test_missing_and_broken_files(tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "no.yaml"), "--runs", str(tmp_path)]) == 2
    assert "expected a YAML file" in capsys.readouterr().err
    (tmp_path / "sweep.yaml").write_text("a: [")
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--runs", str(tmp_path)]) == 2


def test_a_difference_in_stability_leaves_out_one_run_of_both_in_turn():
    def row(value, without, runs=(0, 1, 2)):
        return {"value": value, "without": without, "seed": None, "run": " and ".join(f"x-{run}" for run in runs)}

    found, against = row(0.5, [0.375, 0.625, 0.5]), row(0.2, [0.2, 0.2, 0.2])
    mean, low, high = summary._difference({"2": found}, {"2": against})
    assert mean == pytest.approx(0.3)
    error = ((3 - 1) * (1 / 96)) ** 0.5
    assert (high - mean, mean - low) == pytest.approx((4.30265 * error,) * 2, abs=1e-4)
    shifted = row(0.1, [0.275, 0.525, 0.4])  # runs that are hard for both cancel out
    assert summary._difference({"2": found}, {"2": shifted})[1:] == pytest.approx((0.4, 0.4))
    assert summary._difference({"2": found}, {"2": row(0.2, [0.2] * 3, runs=(0, 1, 3))}) is None


def test_a_paired_interval_is_students():
    assert paired_interval([0.5, 0.5]) == (0.5, 0.5)
    low, high = paired_interval([1.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2)
    assert high - 2 == pytest.approx(12.706204736432095)  # t of 0.975 with one degree of freedom, times the error of 1
