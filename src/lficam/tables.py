"""Records as tables for people, in a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from lficam.measuring import CONTROLS


def print_values(title: str, values: dict[str, Any]) -> None:
    """Names and values below a title, rates with their intervals; None is left out."""
    console = Console()
    console.print(title, highlight=False)
    table = Table(show_header=False, box=None)
    for key, value in values.items():
        if value is not None:
            table.add_row(key.replace("_", " "), _shown(value))
    console.print(table)


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Records of the same fields as a table below a title; None is an empty cell."""
    table = Table(title=title, title_justify="left", box=None)
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*("" if value is None else _shown(value) for value in row.values()))
    needed = Console(width=10_000).measure(table).maximum  # a name cut short, or in two, could be another's
    Console(width=max(Console().width, needed)).print(table)


def print_measures(title: str, rows: list[dict[str, Any]]) -> None:
    """Records of `lficam.measuring.combine`: a line a measure, a column an explainer, intervals below the values."""
    explainers = list(dict.fromkeys(row["explainer"] for row in rows))
    cells = {(row["metric"], row["explainer"]): row for row in rows}
    table = Table(title=title, title_justify="left", box=None)
    for column in ("measure", "better", *explainers):
        table.add_column(column.replace("_", " "))
    judged = [row for row in rows if row["value"] is not None]
    for metric, better in dict.fromkeys((row["metric"], row["better"]) for row in judged):
        of_each = [_measured(cells.get((metric, explainer))) for explainer in explainers]
        table.add_row(metric.replace("_", " "), better, *of_each)
    console = Console(width=max(Console().width, 40 + 18 * len(explainers)))
    console.print(table)
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for remark in [] if row["metric"].endswith(CONTROLS) else _remarks(row):
            said.setdefault((row["metric"], remark), []).append(row["explainer"])
    for (metric, remark), of in said.items():
        console.print(f"{metric} of {', '.join(of)}: {remark}", highlight=False)


def _remarks(row: dict[str, Any]) -> Iterator[str]:
    """What a value does not show: why it is missing, what it leaves out."""
    if row["note"]:
        yield row["note"]
    if 0 < row["left_out"] < 1:
        yield f"{row['left_out']:.1%} of the pictures are left out"


def _measured(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "n/a"
    return f"{row['value']:.3f}" + ("" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.2%} ({value['low']:.2%} to {value['high']:.2%})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _left_out(facts: dict[str, Any]) -> str:
    return f" ({facts['broken']} more are broken)" if facts.get("broken") else ""


def print_evaluation(evaluation: dict[str, Any]) -> None:
    """An evaluation's record: rates with intervals, hardest classes, where the maps point, the planted mark."""
    facts, console = evaluation["facts"], Console(width=max(Console().width, 100))
    sizes = {"parameters": f"{facts['parameters']:,}", "multiply_adds": f"{facts['multiply_adds']:,}"}
    print_values(
        f"{facts['source']}: {facts['pictures']} pictures{_left_out(facts)}, {facts['method']} on {facts['backbone']}",
        evaluation["classification"] | sizes,
    )
    _print_classes(console, evaluation["classes"])
    if evaluation["localization"]:
        table = Table(title="where the maps point", title_justify="left", box=None)
        for column in ("map", "class asked", "pointing", "chance", "mean map", "box IoU", "chance", "mean map"):
            table.add_column(column)
        for row in evaluation["localization"]:
            table.add_row(
                row["map"],
                "yes" if row["class_targeted"] else "no",
                f"{row['pointing']['value']:.3f}",
                *(f"{row[f'pointing_{control}']:.3f}" for control in ("chance", "mean_map")),
                *(f"{row[name]:.3f}" for name in ("box_iou", "box_iou_chance", "box_iou_mean_map")),
            )
        console.print(table)
    _print_shortcut(console, evaluation["shortcut"])


def _print_classes(console: Console, classes: list[dict[str, Any]]) -> None:
    if not classes:
        return
    worst = sorted(classes, key=lambda row: row["recall"])[:10]
    table = Table(title="classes, the hardest first", title_justify="left", box=None)
    for column in ("class", "pictures", "recall", "precision", "confused with"):
        table.add_column(column)
    for row in worst:
        precision = "" if row["precision"] is None else f"{row['precision']:.1%}"
        table.add_row(row["name"], str(row["pictures"]), f"{row['recall']:.1%}", precision, row["confused_with"] or "")
    console.print(table)


def _print_shortcut(console: Console, shortcut: dict[str, Any]) -> None:
    if not shortcut:
        return
    taken = shortcut["label_taken_from_the_mark"]
    console.print(f"label is the mark's: {shortcut['label_is_the_marks']['value']:.1%}; against the digit: {taken}")
    if "peaks" in shortcut:
        table = Table(title="peaks, where the label was taken from the mark", title_justify="left", box=None)
        for column in ("map", "on the mark", "near it", "chance", "on the digit"):
            table.add_column(column)
        for row in shortcut["peaks"]:
            rates = [row[key]["value"] for key in ("on_the_mark", "near_the_mark", "on_the_digit")]
            rates.insert(2, row.get("near_the_mark_chance"))
            table.add_row(row["map"], *("" if value is None else f"{value:.3f}" for value in rates))
        console.print(table)
