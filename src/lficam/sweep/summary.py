"""Table, figures and panels, made from the records and the kept maps."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from lficam.errors import InvalidInputError
from lficam.files import write_whole
from lficam.measuring import CHANGES, SCHEMA
from lficam.metrics.intervals import jackknife_margin
from lficam.sweep.plan import Sweep
from lficam.sweep.records import read_records

_USUAL: list[dict[str, Any]] = [
    {"name": "top-1 error, %", "metric": "top1_error", "percent": True},
    *(
        {"name": f"{name.replace('_', ' ')}: {what}", "metric": metric, "map": name}
        for what, metric in (("corrected IoU", "stability: iou, corrected"), ("patch deletion", "patch_deletion"))
        for name in ("attention", "class_evidence")
    ),
]


def write_summary(sweep: Sweep) -> str:
    """Make ``table.md``, ``summary.png`` and ``curves.png`` from the records, and return the table."""
    recorded = read_records(sweep.records_file)
    rows = sweep.current(recorded)
    if not rows:
        raise InvalidInputError(
            f"sweep: of the {len(recorded)} records in {sweep.records_file} none is of {sweep.path.name} as it stands; "
            "run the sweep first."
        )
    table = _table(sweep, rows)
    write_whole(sweep.path.parent / "table.md", table)
    _figure(sweep, rows).savefig(sweep.path.parent / "summary.png")
    _curves(sweep, rows).savefig(sweep.path.parent / "curves.png")
    return table


def _table(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> str:
    of_keys: dict[tuple[Any, ...], dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        of_variant = of_keys.setdefault(_key(row), {}).setdefault(row["variant"], {})
        of_variant[row["run"].rpartition("-")[2]] = row
    count = len({row["run"] for row in rows if row["seed"] is not None})
    paired = (
        f" In brackets the difference to {sweep.against}, run by run, with its 95 % t-interval; of stability, "
        "corrected, leaving out one run of both in turn."
    )
    lines = [
        f"Made by `{rows[0]['command']}`; {count} runs in all. "
        "Mean and standard deviation over the runs of a variant; stability over all pairs of them.",
        *_of_earlier_measures(rows),
        "",
        *_headline(sweep, rows),
        "Everything that was measured." + (paired if sweep.against else ""),
        "",
        "| data | pictures | map | measure | " + " | ".join(sweep.variants) + " |",
        "|---|---|---|---|" + "---|" * len(sweep.variants),
    ]
    for key, of_each in of_keys.items():
        against = of_each.get(sweep.against, {})
        cells = [_cell(of_each.get(variant, {}), against, variant == sweep.against) for variant in sweep.variants]
        named = " | ".join("" if part is None else str(part) for part in key)
        lines.append(f"| {named} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _of_earlier_measures(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Runs whose weights may be gone, and whose values an earlier version of the measures made."""
    runs = {row["run"]: row.get("schema", 1) for row in rows if row["seed"] is not None}
    for version in sorted({*runs.values()} - {SCHEMA}):
        of_version = [run for run, schema in runs.items() if schema == version]
        which = "all runs" if len(of_version) == len(runs) else ", ".join(of_version)
        since = "; ".join(f"{number}: {what}" for number, what in CHANGES.items() if number > version)
        yield f"Measured by version {version} of the measures: {which}. Since then, {since}."


def _columns(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the headline shows: what the file asks for, or what there is of the usual."""
    return sweep.headline or [column for column in _USUAL if _found(column, rows)]


def _headline(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a variant, a column each of `_columns`; "-" where a variant has no such value."""
    columns = _columns(sweep, rows)
    yield "| variant | runs | " + " | ".join(column["name"] for column in columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    of_columns = [_found(column, rows) for column in columns]
    for variant in sweep.variants:
        count = len({row["run"] for row in rows if row["variant"] == variant and row["seed"] is not None})
        cells = [
            _headline_cell(column, [row for row in found if row["variant"] == variant])
            for column, found in zip(columns, of_columns, strict=True)
        ]
        yield f"| {variant} | {count} | " + " | ".join(cells) + " |"
    yield ""


def _headline_cell(column: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    return _shown(found, scale=100 if column.get("percent") else 1) if found else "-"


def _found(column: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that a column asks for: of one test set, named or the first that has them, and one sample of it."""
    asked = (column["metric"], column.get("map", ""))
    found = [row for row in rows if (row["metric"], row["explainer"]) == asked]
    found = [row for row in found if row["dataset"] == column.get("data", found[0]["dataset"])]
    return [row for row in found if row["pictures"] == found[0]["pictures"]]


def _shown(rows: Sequence[Mapping[str, Any]], scale: int = 1) -> str:
    """Mean and deviation, the count that all runs have, or of stability the value and its interval."""
    if (count := _common_count(rows)) is not None:
        return f"{count:,}"
    mean, deviation = _mean_and_deviation(rows)
    digits = 1 if scale == 100 or abs(mean) >= 10 else 3
    shown = f"{scale * mean:.{digits}f}"
    if deviation is not None:
        return f"{shown} ± {scale * deviation:.{digits}f}"
    if len(rows) == 1 and rows[0]["seed"] is None and rows[0].get("low") is not None:
        low, high = (scale * rows[0][bound] for bound in ("low", "high"))
        return f"{shown} ({low:.{digits}f} to {high:.{digits}f})"
    return shown


def _common_count(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The whole number, such as of parameters, that all runs have."""
    values = {row["value"] for row in rows}
    return rows[0]["value"] if len(values) == 1 and isinstance(rows[0]["value"], int) else None


def _mean_and_deviation(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float | None]:
    """Over runs; of one row, which stability's is, the deviation that it brings."""
    values = [row["value"] for row in rows]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else rows[0].get("deviation")
    return float(np.mean(values)), deviation


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a line of the table."""
    return row["dataset"], row["pictures"], row["explainer"], row["metric"]


def _cell(found: Mapping[str, Mapping[str, Any]], against: Mapping[str, Mapping[str, Any]], itself: bool) -> str:
    if not found:
        return ""
    of_runs = list(found.values())
    shown = _shown(of_runs)
    if itself or _common_count(of_runs) is not None or (difference := _difference(found, against)) is None:
        return shown
    return "{} ({:+.3f}, {:+.3f} to {:+.3f})".format(shown, *difference)


def _difference(
    found: Mapping[str, Mapping[str, Any]], against: Mapping[str, Mapping[str, Any]]
) -> tuple[float, float, float] | None:
    """Of rows by the number of their run: the mean difference and its interval; None of fewer than two pairs."""
    paired = sorted(set(found) & set(against))
    differences = [found[run]["value"] - against[run]["value"] for run in paired]
    if len(paired) == 1 and found[paired[0]]["seed"] is None:
        one, other = found[paired[0]], against[paired[0]]
        if "without" not in one or "without" not in other or _numbers(one) != _numbers(other):
            return None
        margin = jackknife_margin([a - b for a, b in zip(one["without"], other["without"], strict=True)])
        return differences[0], differences[0] - margin, differences[0] + margin
    return (float(np.mean(differences)), *paired_interval(differences)) if len(paired) > 1 else None


def _numbers(row: Mapping[str, Any]) -> list[str]:
    """Of the runs whose maps were compared."""
    return [name.rpartition("-")[2] for name in row["run"].split(" and ")]


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % t-interval of the mean of differences between paired runs, two at least.

    >>> tuple(round(bound, 3) for bound in paired_interval([1.0, 2.0, 3.0]))
    (-0.484, 4.484)
    """
    if len(set(differences)) == 1:
        return differences[0], differences[0]
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return float(low), float(high)


def _figure(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The headline as a picture: an axes a column, a line a variant, a dot a run; of stability a bar its interval."""
    columns, variants, wide = _columns(sweep, rows), list(sweep.variants), 4
    height = -(-len(columns) // wide)
    figure = Figure(figsize=(2.4 + 2.3 * wide, height * (0.8 + 0.26 * len(variants))), dpi=130, layout="constrained")
    grid = figure.subplots(height, wide, squeeze=False, sharey=True)
    for axes in grid.flat[len(columns) :]:
        axes.set_axis_off()
    for column, axes in zip(columns, grid.flat, strict=False):
        scale = 100 if column.get("percent") else 1
        for row in _found(column, rows):
            place = variants.index(row["variant"])
            axes.plot([scale * row["value"]], [place], "o", color="C0", markersize=4)
            if row["seed"] is None and row.get("low") is not None:
                axes.plot([scale * row["low"], scale * row["high"]], [place, place], color="C0", linewidth=1)
        axes.set_title(textwrap.fill(column["name"], 30), fontsize=8)
        axes.set_yticks(range(len(variants)), variants)
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    return figure


def _curves(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy after each epoch, a line a run, an axes a variant; the variant compared with in grey behind."""
    variants = list(sweep.variants)
    height = -(-len(variants) // 5)
    columns = -(-len(variants) // height)
    figure = Figure(figsize=(2.4 * columns, 2.1 * height), dpi=130, layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(variants) :]:
        axes.set_axis_off()
    for variant, axes in zip(variants, grid.flat, strict=False):
        for shown, colour in ((sweep.against, "0.75"), (variant, "C0")):
            for curve in _curves_of(shown, rows):
                axes.plot(range(1, len(curve) + 1), [100 * value for value in curve], color=colour, linewidth=1.2)
        axes.set_title(variant, fontsize=8)
        axes.tick_params(labelsize=7, labelbottom=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("epoch" + (f" (grey: {sweep.against})" if sweep.against else ""), fontsize=8)
    figure.supylabel("accuracy, %", fontsize=8)
    return figure


def _curves_of(variant: str, rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """A run's accuracies in the order of its epochs."""
    curves: dict[str, list[float]] = {}
    for row in rows:
        if row["variant"] == variant and "accuracy after epoch" in row["metric"]:
            curves.setdefault(row["run"], []).append(row["value"])
    return list(curves.values())
