"""Records to one self-contained HTML page: no model, no GPU, no network."""

import base64
import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from matplotlib.figure import Figure

from lficam.errors import RunError
from lficam.files import read_record, write_whole

MARKER = "<!-- lficam report -->"
_CURVES = (("train_loss", "val_loss", "loss"), ("train_accuracy", "val_accuracy", "accuracy"))


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Render a run directory as one HTML page from the records in it.

    Args:
        run: with ``config.json``, ``metrics.json``, ``metrics.csv`` and what `lficam.evaluate` left.
        out: the page; None: ``report.html`` in the run. An earlier report is replaced, any other file is not.

    Returns:
        The page's path.

    Raises:
        RunError: no finished run there, or ``out`` is a file of somebody else.

    >>> write_report("no-such-run")
    Traceback (most recent call last):
    ...
    lficam.errors.RunError: run: expected a run with config.json, got no-such-run; train first, or mend the path.
    """
    run = Path(run)
    return _write_page(
        Path(out) if out is not None else run / "report.html",
        "report.html",
        name=run.resolve().name,
        config=read_record(run / "config.json"),
        metrics=read_record(run / "metrics.json"),
        recipe=yaml.safe_dump(read_record(run / "recipe.yaml"), sort_keys=False),
        curves=_curves(run / "metrics.csv"),
        comparisons=[_comparison(path) for path in sorted(run.glob("comparison/*/comparison.json"))],
        evaluations=[_evaluation(path) for path in sorted(run.glob("evaluation/*/evaluation.json"))],
    )


def write_audit(audit: Mapping[str, Any], out: str | Path) -> Path:
    """Render an audit's record as one HTML page: a verdict a line, and every value behind them.

    Args:
        audit: of `lficam.audit.Audit.to_dict`.
        out: the page; an earlier page of lficam is replaced, any other file is not.

    Raises:
        RunError: ``out`` is a file of somebody else.
    """
    return _write_page(Path(out), "audit.html", audit=audit)


def require_page(page: Path) -> None:
    """Refuse to write over a file of somebody else, before the work that leads to it.

    Raises:
        RunError: there is one.
    """
    if page.is_dir() or (page.is_file() and not page.read_text(errors="replace").startswith(MARKER)):
        raise RunError(f"out: {page} exists and is no lficam report; name another file. Nothing was changed.")


def _write_page(page: Path, template: str, **values: Any) -> Path:
    require_page(page)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lficam.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    environment.filters["count"] = lambda number: f"{number:,}"
    try:
        html = environment.get_template(template).render(marker=MARKER, **values)
    except (jinja2.UndefinedError, TypeError) as error:
        raise RunError(
            f"run: its records lack what the page shows ({error}); evaluate it anew, or restore them."
        ) from error
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, html)
    return page


def _curves(path: Path) -> str:
    """Loss and accuracy per epoch as inline SVG."""
    if not path.is_file():
        raise RunError(f"run: expected {path.name} in {path.parent}, got none; restore it.")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for axes, (train, held, name) in zip(figure.subplots(1, 2), _CURVES, strict=True):
        for column, label in ((train, "training"), (held, "validation")):
            points = [(int(row["epoch"]) + 1, float(row[column])) for row in rows if row[column]]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _evaluation(path: Path) -> dict[str, Any]:
    """An evaluation's record with its pictures embedded."""
    evaluation = read_record(path)
    for row in evaluation["gallery"]:
        row["source"] = _embedded(path.parent / row["file"])
    return evaluation


def _comparison(path: Path) -> dict[str, Any]:
    """A comparison's record with its strips embedded."""
    comparison = read_record(path)
    for row in comparison["rows"]:
        row["source"] = _embedded(path.parent / row["file"])
    return {"name": path.parent.name, **comparison}


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
