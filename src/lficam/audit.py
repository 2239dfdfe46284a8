"""A true explanation or a pretty one? Each claim that a map makes, held against what costs nothing, with a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lficam.data.pictures import Pictures
from lficam.errors import InvalidInputError
from lficam.evaluation import carried, require_comparable
from lficam.explainers import VERSUS, create_explainer
from lficam.explainers.fast import Precision
from lficam.measuring import BASELINES, Record, about, combine, fits, measure_run
from lficam.metrics.intervals import Mean, bootstrap_mean
from lficam.models.plain import PlainClassifier
from lficam.stability import measure_stability

Word = Literal["holds", "holds trivially", "fails", "unknown"]
DEFAULT_EXPLAINERS = ("attention", "class_evidence", VERSUS, "grad_cam")
# What counts as a difference, fixed before anything was measured; what is measured since takes the same.
MARGINS = {
    "accuracy": 0.005,
    "patch_deletion": 0.03,
    "patch_deletion_margin": 0.03,
    "top_patch": 0.03,
    "pointing": 0.03,
    "mark_pointing": 0.03,
    "stability": 0.03,
}
# Maps that no network has to learn; where one of them serves the label as well, its use of the own map is trivial.
_LEARNED_BY_NOBODY = ("feature_mean", "constant", "dataset_mean", "zero")
# A map that keeps more than half of its ranks when every weight is lost does not come of the weights. Unlike maps keep
# some by chance: 0.1 to 0.2 on grids of 8 x 8 cells, nearly half on 2 x 2, of which it can hardly be told.
RANKS_KEPT = 0.5
# What not every set knows, and why it may say nothing.
_PLACES = {
    "pointing": "no object is known, or all labels were taken from marks",
    "mark_pointing": "in one run at least too few wrong labels are a mark's to say that any was taken from it",
}
# Without a natural zero: noise is their nothing.
_RATES = ("top_patch", *_PLACES)
# Not asked of "A, not B", which is of the lead.
_OF_THE_LOGIT = ("patch_deletion", "top_patch")
_CLAIMS = {
    "patch_deletion": "says how much the label's logit loses without a patch",
    "patch_deletion_margin": "says how much the lead over the second class loses without a patch",
    "top_patch": "is highest on the patch that the label's logit needs most",
    "pointing": "points at the object",
    "mark_pointing": "points at the planted mark that the label was taken from",
}


@dataclass
class Verdict:
    """What became of a claim.

    Attributes:
        claim: in words; its subject is the map.
        explainer: whose map.
        verdict: ``holds`` beyond the margin and its interval; ``holds trivially``: true, and true of a map that costs
            nothing; ``fails``; ``unknown``: the interval does not decide.
        value: what was measured.
        low: of its 95 % interval; None where there is none.
        high: likewise.
        reason: the numbers in words.
    """

    claim: str
    explainer: str
    verdict: Word
    value: float | None
    low: float | None
    high: float | None
    reason: str


@dataclass
class Audit:
    """The verdicts on one or several runs.

    Attributes:
        facts: source, runs, pictures, margins.
        verdicts: one a claim and explainer.
        notes: what cannot be otherwise by construction.
        rows: every value behind the verdicts, see `lficam.measuring.combine`.
    """

    facts: dict[str, Any]
    verdicts: list[Verdict]
    notes: list[str]
    rows: list[dict[str, Any]]

    @property
    def failed(self) -> list[Verdict]:
        """Those that should stop a build."""
        return [verdict for verdict in self.verdicts if verdict.verdict == "fails"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


def audit(
    models: Mapping[str, PlainClassifier],
    pictures: Pictures,
    source: str,
    limit: int = 500,
    explainers: Sequence[str] = (),
    precision: Precision = "32",
) -> Audit:
    """Measure and judge the maps of trained runs on a sample of pictures; records go to each run's directory.

    The trivial maps that a claim is held against are the channel mean, a fixed Gaussian in the centre, noise, and where
    one place is asked for the mean of the explainer's own maps. The margins are ``MARGINS``: half a point of accuracy,
    0.03 of all else.

    Args:
        models: trained, by run directory; several must be alike but for their training.
        pictures: a test set; with boxes, or planted marks, it is asked where maps point.
        source: its name.
        limit: pictures at most, drawn from the whole set; ten times as many for the swap test, which is cheap and where
            half a point of accuracy is to be seen.
        explainers: whose maps; those of ``DEFAULT_EXPLAINERS`` that the models carry, unless given.
        precision: of Score-CAM, RISE and LIME; ``auto`` is bfloat16 where the device has it natively.

    Raises:
        UnknownNameError: no such explainer or precision.
        InvalidInputError: no model, models that cannot be compared or do not carry an explainer, or too few pictures.
    """
    if not models:
        raise InvalidInputError("runs: expected at least one, got none.")
    require_comparable(models)
    first = next(iter(models.values()))
    own = _carried(first, explainers)
    drawn, many = pictures.sample(limit), pictures.sample(10 * limit) if "attention" in own else None
    measures = [group for group in ("patch_deletion", *_RATES) if fits(pictures, group)]
    records = {}
    for run, model in models.items():
        records[run] = measure_run(run, model, drawn, source, [*own, *BASELINES], measures, precision)
        records[run] += measure_run(run, model, drawn, source, own, ["sanity"], precision)
        if many:
            records[run] += measure_run(run, model, many, source, ["attention"], ["swap"])
    values = _values(records)
    verdicts = _use(values)
    for metric in (metric for metric in _CLAIMS if metric not in _PLACES or metric in measures):
        asked = [name for name in own if name != VERSUS or metric not in _OF_THE_LOGIT]
        verdicts += [_against_baselines(values, name, metric) for name in asked]
    verdicts += [_from_the_weights(values, name) for name in own]
    if len(models) > 1:
        judged = [name for name in own if name != VERSUS]  # each run has its own rival of a class
        rows = {of: _iou(models, drawn, source, of, precision) for of in (*judged, "feature_mean")}
        verdicts += [_stable(name, rows[name], rows["feature_mean"]) for name in judged]
    facts = {
        "source": source,
        "runs": list(models),
        "pictures": len(drawn),
        "swapped": len(many) if many else 0,
        "precision": precision,
        "margins": MARGINS,
    }
    notes = about(first, ["patch_deletion", *(["sanity"] if many else [])])
    return Audit(facts, verdicts, notes, combine(records))


def _carried(model: PlainClassifier, explainers: Sequence[str]) -> list[str]:
    """The explainers asked for; one that cannot be had is refused here, not after an hour of the others."""
    names = list(dict.fromkeys(explainers)) or carried(model, DEFAULT_EXPLAINERS)
    for name in names:
        create_explainer(name, model)
    if missing := [name for name in names if name not in carried(model, names)]:
        raise InvalidInputError(f"explainers: these models have no {', '.join(missing)}; leave it out.")
    return names


def _iou(
    models: Mapping[str, PlainClassifier], pictures: Pictures, source: str, explainer: str, precision: Precision
) -> dict[str, Any]:
    found = measure_stability(models, pictures, source, explainer, len(pictures), measures=["iou"], precision=precision)
    return found.measures[0]


def _values(records: Mapping[str, Sequence[Record]]) -> dict[tuple[str, str], Tensor]:
    """(R, N) of every explainer and metric that all runs have values of.

    Where the label was taken from a mark, pointing at the object is not asked: there such a map is the false one.
    """
    found: dict[tuple[str, str], list[Tensor]] = {}
    for of_run in records.values():
        by_marks = [record for record in of_run if record.metric == "mark_pointing" and record.values]
        for record in (record for record in of_run if record.values):
            row = record.row()
            if record.group == "pointing" and by_marks:
                row = row.masked_fill(~by_marks[0].row().isnan(), torch.nan)
            if not row.isnan().all():
                found.setdefault((record.explainer, record.metric), []).append(row)
    return {key: torch.stack(rows) for key, rows in found.items() if len(rows) == len(records)}


def _use(values: Mapping[tuple[str, str], Tensor]) -> list[Verdict]:
    """Swap test: is another picture's map as good? And if not, is one that no network has to learn?"""
    if ("attention", "accuracy_lost_with_other_image") not in values:
        return []
    lost = _mean(values["attention", "accuracy_lost_with_other_image"])
    with_trivial = {name: _mean(values["attention", f"accuracy_lost_with_{name}"]) for name in _LEARNED_BY_NOBODY}
    cheapest = min(with_trivial, key=lambda name: with_trivial[name].value)
    margin = MARGINS["accuracy"]
    agreement = float(values["attention", "agreement_with_other_image"].mean())
    word = _word(lost, margin)
    if word == "holds":
        of_cheapest = _word(with_trivial[cheapest], margin)
        word = "holds trivially" if of_cheapest == "fails" else of_cheapest
    reason = (
        f"with another picture's map {agreement:.1%} of the labels stay and {_points(lost)} points of accuracy are "
        f"lost; with the best map that nobody learned ({cheapest}) {_points(with_trivial[cheapest])} points"
    )
    return [Verdict("is used by the label", "attention", word, lost.value, lost.low, lost.high, reason)]


def _against_baselines(values: Mapping[tuple[str, str], Tensor], name: str, metric: str) -> Verdict:
    """Ahead of nothing, and of the best map that costs nothing?"""
    own, rivals = _answered(values, name, metric)
    if not rivals:
        why = _PLACES.get(metric, "the answers are the same whatever is taken away")
        return Verdict(_CLAIMS[metric], name, "unknown", None, None, None, f"of no map can it be judged: {why}")
    if own is None:
        reason = "in one run at least all its maps are flat"
        return Verdict(_CLAIMS[metric], name, "fails", None, None, None, reason)
    means = {rival: _mean(row).value for rival, row in rivals.items()}
    best = max(means, key=lambda rival: means[rival])
    nothing = torch.zeros_like(own)
    if metric in _RATES and ("random", metric) in values:  # noise on a single cell is flat
        nothing = values["random", metric].nan_to_num(0.0)
    mean, ahead, margin = _mean(own), _mean(own - rivals[best]), MARGINS[metric]
    word, of_nothing = _word(ahead, margin), _word(_mean(own - nothing), margin)
    if of_nothing != "holds":
        word = of_nothing
    elif word == "fails":
        word = "holds trivially"
    reason = f"{_shown(mean)}; the best trivial map ({best}) has {means[best]:.3f}, ahead {_shown(ahead)}"
    if missing := float(values[name, metric].isnan().float().mean()):
        what = "have nothing to point at and are left out" if metric in _PLACES else "have no answer and count as 0"
        reason += f"; {missing:.1%} of the pictures {what}"
    return Verdict(_CLAIMS[metric], name, word, mean.value, mean.low, mean.high, reason)


def _answered(
    values: Mapping[tuple[str, str], Tensor], name: str, metric: str
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """A map's values of a metric, and those of the maps that cost nothing; a baseline is no rival of its own.

    A picture with nothing to point at is left out; elsewhere one without an answer counts as nothing.
    """
    rivals = {rival: (rival, metric) for rival in BASELINES if rival != name}
    rivals["the mean of its own maps"] = (name, f"{metric}_mean_map")
    keys = {"own": (name, metric), **rivals}
    found = {of: values[key] for of, key in keys.items() if key in values}
    if metric not in _PLACES:
        found = {of: row.nan_to_num(0.0) for of, row in found.items()}
    return found.pop("own", None), found


def _from_the_weights(values: Mapping[tuple[str, str], Tensor], name: str) -> Verdict:
    claim, key = "comes of the learned weights", (name, "randomised")
    if key not in values or values[key].isnan().all(dim=1).any():
        return Verdict(claim, name, "unknown", None, None, None, "no map but flat ones to compare")
    kept = _mean(values[key].abs())  # a map that is turned around is kept too
    word: Word = "holds" if kept.high < RANKS_KEPT else "fails" if kept.low > RANKS_KEPT else "unknown"
    reason = f"rank correlation with the map after all weights are lost, whichever its sign: {_shown(kept)}"
    return Verdict(claim, name, word, kept.value, kept.low, kept.high, reason)


def _stable(name: str, own: Mapping[str, Any], trivial: Mapping[str, Any]) -> Verdict:
    """Ahead of chance, and of the channel mean, which needs no learning?"""
    claim, margin = "is the same in another training run", MARGINS["stability"]
    if own["corrected"] is None or trivial["corrected"] is None:
        reason = "nothing to compare: maps are flat, never change, or no class has two pictures"
        return Verdict(claim, name, "unknown", own["value"], None, None, reason)
    if own["low"] is None or trivial["low"] is None:
        reason = f"corrected IoU {own['corrected']:.3f}, of too few pairs of runs to know what others would score"
        return Verdict(claim, name, "unknown", own["corrected"], None, None, reason)
    word = _word(_as_mean(own), margin)
    if word == "holds" and not (own["low"] > trivial["high"] and own["corrected"] - trivial["corrected"] >= margin):
        word = "holds trivially" if _word(_as_mean(trivial), margin) == "holds" else "unknown"
    reason = (
        f"IoU {own['value']:.3f}, {own['shuffled']:.3f} with another picture of the class, corrected "
        f"{own['corrected']:.3f} ({own['low']:.3f} to {own['high']:.3f}); the channel mean's corrected "
        f"{trivial['corrected']:.3f} ({trivial['low']:.3f} to {trivial['high']:.3f})"
    )
    return Verdict(claim, name, word, own["corrected"], own["low"], own["high"], reason)


def _as_mean(row: Mapping[str, Any]) -> Mean:
    return Mean(row["corrected"], row["low"], row["high"], row["left_out"])


def _word(difference: Mean, margin: float) -> Word:
    """Beyond the margin, and not by chance; below it for sure; or undecided."""
    if difference.low > 0 and difference.value >= margin:
        return "holds"
    return "fails" if difference.high < margin else "unknown"


def _mean(values: Tensor) -> Mean:
    mean = bootstrap_mean(values)
    assert mean is not None
    return mean


def _shown(mean: Mean) -> str:
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def _points(mean: Mean) -> str:
    return f"{100 * mean.value:.2f} ({100 * mean.low:.2f} to {100 * mean.high:.2f})"
