"""Train and evaluate the single runs of an older experiment, and write its records and table; ``lficam sweep`` is new.

    python experiments/run.py shortcut --runs RUNS
    python experiments/run.py catdog --runs RUNS --data folder:CATDOG

RUNS is a folder outside the repository; a finished run is not trained again, a stopped one goes on. Records go to
``experiments/NAME/records.jsonl``, one value a line, after each run; ``table.md`` is made from them.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lficam.evaluation import evaluate_run
from lficam.recipes import Recipe, recipe_from_values, recipe_values
from lficam.report import write_report
from lficam.training import fit

HERE = Path(__file__).parent
SCENES = ("digits-in-scenes", "two-digits")
MARKS = ("planted-shortcut", "planted-shortcut-conflict", "planted-shortcut-clean")
ON_RESNET18 = {"backbone": "resnet18", "fin": "pointwise"}


@dataclass
class Entry:
    """One run: a recipe, what differs from it, and the test sets it is measured on."""

    variant: str
    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    tests: tuple[str, ...] = ()


EXPERIMENTS: dict[str, list[Entry]] = {
    "scenes-64px": [
        Entry("LFI-CAM", "digits_in_scenes", tests=SCENES),
        Entry("plain", "digits_in_scenes_plain", tests=SCENES),
        Entry("ABN", "digits_in_scenes_abn", tests=SCENES),
    ],
    "shortcut": [
        Entry("LFI-CAM", "planted_shortcut", tests=MARKS),
        Entry("plain", "planted_shortcut_plain", tests=MARKS),
        Entry("ABN", "planted_shortcut_abn", tests=MARKS),
    ],
    "catdog": [
        Entry("LFI-CAM", "photos"),
        Entry("LFI-CAM, timm's resnet18, 112 px", "photos", {"image_size": 112, "resize": 128, "model": ON_RESNET18}),
    ],
}


def slug(variant: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in variant.lower())


def run_entry(experiment: str, entry: Entry, runs: Path, data: str | None) -> tuple[Recipe, dict, dict[str, dict]]:
    values = {**recipe_values(entry.recipe), **entry.settings}
    values["data"] = data or values.get("data", "")
    recipe = recipe_from_values(values)
    print(f"{experiment}: {entry.variant}", flush=True)
    run = fit(recipe, runs / experiment / slug(entry.variant))
    evaluations = {}
    for source in entry.tests or (recipe.data,):
        evaluations[source] = evaluate_run(run.directory, run.model, source).to_dict()
    write_report(run.directory)
    return recipe, run.metrics, evaluations


def numbers(evaluation: dict[str, Any]) -> Iterator[tuple[str, float, list[float] | None]]:
    """Metric, value and interval of everything in an evaluation that a table may ask for."""
    for name, value in evaluation["classification"].items():
        yield (name, *_value(value))
    for name in ("parameters", "multiply_adds"):
        yield name, evaluation["facts"][name], None
    for row in evaluation["localization"]:
        yield (f"pointing: {row['map']}", *_value(row["pointing"]))
        for name in ("pointing_chance", "box_iou", "box_iou_chance"):
            yield f"{name}: {row['map']}", row[name], None
    shortcut = evaluation["shortcut"]
    if shortcut:
        yield ("label_is_the_marks", *_value(shortcut["label_is_the_marks"]))
        yield "label_taken_from_the_mark", shortcut["label_taken_from_the_mark"], None
        for row in shortcut.get("peaks", []):
            yield (f"peak on the mark: {row['map']}", *_value(row["on_the_mark"]))
            yield (f"peak near the mark: {row['map']}", *_value(row["near_the_mark"]))
            yield f"peak near the mark, chance: {row['map']}", row["near_the_mark_chance"], None
            yield (f"peak on the digit: {row['map']}", *_value(row["on_the_digit"]))


def _value(value: Any) -> tuple[float, list[float] | None]:
    return (value["value"], [value["low"], value["high"]]) if isinstance(value, dict) else (value, None)


def records(experiment: str, entry: Entry, runs: Path, data: str | None) -> Iterator[dict[str, Any]]:
    recipe, metrics, evaluations = run_entry(experiment, entry, runs, data)
    common = {
        "experiment": experiment,
        "backbone": recipe.model.backbone,
        "method": recipe.model.method,
        "variant": entry.variant,
        "run": slug(entry.variant),
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "image_size": recipe.image_size,
        "command": f"python experiments/run.py {experiment} --runs RUNS" + (" --data folder:FOLDER" if data else ""),
        "seconds": metrics["training_seconds"],
    }
    yield {**common, "dataset": "training", "metric": "seconds_per_epoch", "value": metrics["seconds_per_epoch"]}
    for source, evaluation in evaluations.items():
        dataset = source if not source.startswith("folder:") else f"folder:{experiment}"
        for metric, value, interval in numbers(evaluation):
            row = {**common, "dataset": dataset, "metric": metric, "value": value}
            yield row | ({"interval95": interval} if interval else {})


def table(rows: list[dict[str, Any]]) -> str:
    """One line a metric, one column a variant."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        value = row["value"]
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
        if "interval95" in row:
            shown += " ({:.3f}-{:.3f})".format(*row["interval95"])
        cells.setdefault((row["dataset"], row["metric"]), {})[row["variant"]] = shown
    lines = [
        f"Made by `{rows[0]['command']}`; torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}. Rates with their 95 % intervals over pictures; one seed each.",
        "",
        "| data | metric | " + " | ".join(variants) + " |",
        "|---|---|" + "---|" * len(variants),
    ]
    for (dataset, metric), found in cells.items():
        lines.append(f"| {dataset} | {metric} | " + " | ".join(found.get(v, "") for v in variants) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", help="the source, where it is a folder")
    options = parser.parse_args()
    out = HERE / options.experiment
    out.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for entry in EXPERIMENTS[options.experiment]:
        rows += records(options.experiment, entry, options.runs, options.data)
        (out / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (out / "table.md").write_text(table(rows))
    print((out / "table.md").read_text())


if __name__ == "__main__":
    main()
