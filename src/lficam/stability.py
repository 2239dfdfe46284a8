"""Do models trained alike explain alike? Maps of several runs on the same pictures, against each other and chance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from torch import Tensor

from lficam.data.pictures import Pictures
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.evaluation import Subject, require_comparable, require_same_classes
from lficam.explainers import EXPLAINERS, VERSUS, create_at
from lficam.explainers.fast import Precision
from lficam.metrics.checks import require_maps
from lficam.metrics.intervals import jackknife_margin, percentiles, resampled_means
from lficam.metrics.stability import (
    PAPER_THRESHOLD,
    SPEARMAN,
    SSIM,
    Likeness,
    chance_corrected,
    highest,
    partners_of_one_class,
    thresholded,
)
from lficam.models.plain import PlainClassifier
from lficam.progress import progress_bar

MEASURES: dict[str, Likeness] = {
    "iou": thresholded(PAPER_THRESHOLD),
    "iou_top_10": highest(0.1),
    "iou_top_30": highest(0.3),
    "rank_correlation": SPEARMAN,
    "structural_similarity": SSIM,
}
_BATCH = 128


@dataclass
class Stability:
    """How alike the maps of some runs are.

    Attributes:
        facts: source, explainer, number of pictures, runs.
        measures: a row a measure: ``value``, the mean over all pairs of runs; ``shuffled``, the same with another
            picture of the class in place of one run's own; ``corrected``, (value - shuffled) / (1 - shuffled), with
            its 95 % interval over pictures and runs, ``low`` and ``high``, and ``without``, what it is without each run
            in turn; ``deviation`` of the value over the pairs; ``left_out``, the share of comparisons that could not be
            made. None where there is nothing to compare, and no interval or deviation of two runs: a single pair does
            not say what another pair would.
        pairs: a row a pair of runs, with each measure's value.
        paper: the paper's protocol, mean IoU with the run of the best validation accuracy; None where a run has no
            validation part, and so none may be chosen.
    """

    facts: dict[str, Any]
    measures: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    paper: dict[str, Any] | None

    @property
    def matrix(self) -> list[list[float | None]]:
        """IoU of all pairs of runs, a row a run; None of a run with itself, and where nothing could be compared."""
        iou = {frozenset(pair["runs"]): pair["iou"] for pair in self.pairs}
        runs = self.facts["runs"]
        return [[iou.get(frozenset((one, other))) for other in runs] for one in runs]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return dict(vars(self))


def measure_stability(
    models: Mapping[str, PlainClassifier],
    pictures: Pictures,
    source: str,
    explainer: str = "attention",
    limit: int = 1000,
    validation: Mapping[str, float | None] | None = None,
    measures: Sequence[str] = tuple(MEASURES),
    precision: Precision = "32",
) -> Stability:
    """Hold the maps of all pairs of models against each other.

    Source: section 4.4 of the paper, whose IoU is the first measure. Beside it stands what maps of *different* pictures
    of a class score: a map that never looks at its picture is perfectly stable and corrected to nothing.

    Args:
        models: trained, by name; at least two, alike but for their training (`require_comparable`).
        pictures: a test set.
        source: its name, for the record.
        explainer: whose maps; one that is asked for a class is asked for the true one.
        limit: pictures at most, drawn from the whole set with a fixed seed.
        validation: accuracy of each model on its validation part, for the paper's protocol, which is of ``iou``.
        measures: names of ``MEASURES``.
        precision: of Score-CAM, RISE and LIME; ``auto`` is bfloat16 where the device has it natively.

    Raises:
        InvalidInputError: fewer than two models, models that differ in more than their training, or an explainer that
            would ask each of them about another class.
        DataError: pictures of other classes than the models'.

    >>> measure_stability({}, None, "none")
    Traceback (most recent call last):
    ...
    lficam.errors.InvalidInputError: runs: expected at least two to compare, got 0.
    """
    _require_several(models)
    require_same_question(explainer)
    require_comparable(models)
    require_same_classes(next(iter(models.values())), pictures, source)
    drawn = pictures.sample(limit)
    maps = {name: _maps(model, drawn, explainer, precision) for name, model in models.items()}
    return stability_of_maps(maps, drawn.labels, {"source": source, "explainer": explainer}, validation, measures)


def stability_of_maps(
    maps: Mapping[str, Tensor],
    labels: Tensor,
    facts: Mapping[str, Any],
    validation: Mapping[str, float | None] | None = None,
    measures: Sequence[str] = tuple(MEASURES),
) -> Stability:
    """`measure_stability` of maps (N, 1, H, W) that are there already, by run, all of the same labelled pictures.

    Raises:
        InvalidInputError: fewer than two runs, or maps that are not one of each picture, all of one size, in [0, 1].
    """
    _require_several(maps)
    like = next(iter(maps.values()))
    for of_run in maps.values():
        require_maps(of_run, like, unit=True)
    if len(labels) != len(like):
        raise InvalidInputError(f"labels: expected {len(like)}, one a picture, got {len(labels)}.")
    partners, runs = partners_of_one_class(labels), list(combinations(maps, 2))
    pairs = {name: _compared(MEASURES[name], maps, runs, partners) for name in measures}
    return Stability(
        facts={**facts, "pictures": len(labels), "runs": list(maps)},
        measures=[_measure(name, of_pairs, runs) for name, of_pairs in pairs.items()],
        pairs=[
            {"runs": list(names), **{name: _number(found[place, 0].nanmean()) for name, found in pairs.items()}}
            for place, names in enumerate(runs)
        ],
        paper=_papers(pairs["iou"], runs, validation or {}) if "iou" in pairs else None,
    )


def _require_several(runs: Mapping[str, Any]) -> None:
    if len(runs) < 2:
        raise InvalidInputError(f"runs: expected at least two to compare, got {len(runs)}.")


def require_same_question(explainer: str) -> None:
    """Refuse an explainer that is unknown, or whose maps of two runs may be of two questions.

    Raises:
        UnknownNameError: no such explainer.
        InvalidInputError: it asks each run about its own rival of a class.
    """
    if explainer not in EXPLAINERS:
        raise UnknownNameError("explainer", explainer, EXPLAINERS)
    if explainer == VERSUS:
        raise InvalidInputError(
            f"explainer: {VERSUS} asks each run about its own rival of the class, and runs may differ in it; compare "
            "class_evidence."
        )


def _maps(model: PlainClassifier, pictures: Pictures, explainer: str, precision: Precision) -> Tensor:
    """(N, 1, S, S) on the CPU; one that is asked for a class is asked for the true one."""
    with progress_bar() as progress:
        subject = Subject(model, pictures, model.config.required_preprocessing(), _BATCH, progress)
        return subject.maps(create_at(precision, explainer, model), pictures.labels)


def _compared(
    likeness: Likeness, maps: Mapping[str, Tensor], runs: Sequence[tuple[str, str]], partners: Tensor
) -> Tensor:
    """(P, 2, N) of P pairs of runs: of the pictures' own maps, and of those held against a partner's; NaN is left out.

    What is prepared of a run serves all its pairs.
    """
    has_partner, prepared = partners >= 0, {run: likeness.prepare(of_run) for run, of_run in maps.items()}
    found = []
    for one, other in ((prepared[one], prepared[other]) for one, other in runs):
        by_chance = torch.full((len(partners),), torch.nan)
        if has_partner.any():
            by_chance[has_partner] = likeness.compare(one[has_partner], other[partners[has_partner]]).cpu()
        found.append(torch.stack((likeness.compare(one, other).cpu(), by_chance)))
    return torch.stack(found)


def _measure(name: str, pairs: Tensor, runs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    value, shuffled = pairs.nanmean(dim=(0, 2))
    corrected = chance_corrected(value, shuffled)
    without = _without_each(pairs, runs)
    low, high = _interval(pairs, float(corrected), without)
    deviation = pairs[:, 0].nanmean(dim=1).std() if len(runs) > 1 else torch.tensor(torch.nan)
    return {
        "measure": name,
        "value": _number(value),
        "shuffled": _number(shuffled),
        "corrected": _number(corrected),
        "low": low,
        "high": high,
        "without": without,
        "deviation": _number(deviation),
        "left_out": float(pairs[:, 0].isnan().float().mean()),
    }


def _interval(pairs: Tensor, corrected: float, without: Sequence[float] | None) -> tuple[float | None, float | None]:
    """The corrected value's 95 % interval: over pictures, and by the jackknife over runs, root of squares summed."""
    over_pictures = chance_corrected(*resampled_means(pairs.nanmean(dim=0)))
    over_pictures = over_pictures[~over_pictures.isnan()]
    if without is None or len(over_pictures) == 0 or math.isnan(corrected):
        return None, None
    low, high = percentiles(over_pictures)
    over_runs = jackknife_margin(without)
    below, above = math.hypot(corrected - low, over_runs), math.hypot(high - corrected, over_runs)
    return corrected - below, min(corrected + above, 1.0)


def _without_each(pairs: Tensor, names: Sequence[Sequence[str]]) -> list[float] | None:
    """The corrected value without each run and all its pairs; None where that leaves nothing to compare."""
    runs = list(dict.fromkeys(name for pair in names for name in pair))
    if len(runs) < 3:
        return None
    without = []
    for run in runs:
        kept = torch.tensor([run not in pair for pair in names])
        without.append(float(chance_corrected(*pairs[kept].nanmean(dim=(0, 2)))))
    return None if any(math.isnan(value) for value in without) else without


def _number(value: Tensor) -> float | None:
    """None where nothing could be compared, which is NaN."""
    return None if value.isnan() else float(value)


def _papers(
    pairs: Tensor, runs: Sequence[tuple[str, str]], validation: Mapping[str, float | None]
) -> dict[str, Any] | None:
    accuracies = {name: validation.get(name) for pair in runs for name in pair}
    if any(value is None for value in accuracies.values()):
        return None
    baseline = max(accuracies, key=lambda name: accuracies[name] or 0.0)
    with_baseline = pairs[[baseline in pair for pair in runs], 0]
    return {"baseline": baseline, "iou": _number(with_baseline.nanmean(dim=1).nanmean())}


def require_figure(path: Path) -> None:
    """Refuse a figure that could not be written, before the work that leads to it.

    Raises:
        InvalidInputError: no such folder, or no kind of picture.
    """
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds or not path.parent.is_dir():
        raise InvalidInputError(f"figure: expected a file of {', '.join(sorted(kinds))} in a folder, got {path}.")


def save_stability_figure(stability: Stability, path: Path) -> None:
    """The matrix of the pairs' IoU as a picture."""
    names, matrix = stability.facts["runs"], stability.matrix
    side = 2.2 + 0.7 * len(names)
    figure = Figure(figsize=(side + 1, side), dpi=130, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.array(matrix, dtype=float), vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value is not None:
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    iou = stability.measures[0]
    own, shuffled, corrected = (
        "n/a" if iou[key] is None else f"{iou[key]:.2f}" for key in ("value", "shuffled", "corrected")
    )
    axes.set_title(f"IoU {own}, other pictures of the class {shuffled}, corrected {corrected}")
    figure.colorbar(image)
    figure.savefig(path)
