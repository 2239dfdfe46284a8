"""Models x explainers x measures -> records: one value a line, with its interval and the values of all pictures."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lficam.data.pictures import OnDemand, Pictures
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.evaluation import evaluation_directory, knows_holes
from lficam.explainers import EXPLAINERS
from lficam.explainers.fast import PRECISIONS, Precision
from lficam.files import read_record, write_whole
from lficam.measuring.measures import MEASURES, OfTheSet
from lficam.measuring.probe import ONES, Probe
from lficam.metrics.intervals import between_runs, bootstrap_mean
from lficam.models.plain import PlainClassifier

BASELINES = ("feature_mean", "centre", "random", ONES)
# What a localisation measure has beside it: no value of the map's own.
CONTROLS = ("_chance", "_mean_map")
# What became new with each version of the measures, of which there is one whenever a value or a record changes.
CHANGES = {
    2: "masks are masks, a peak is the middle of its level top, patches of equal sums are equal",
    3: "sanity loses a stage at a time, level maps are not ranked, numbers of a whole set have intervals",
}
SCHEMA = max(CHANGES)
_NEEDS = {
    "boxes": "its objects' boxes",
    "masks": "its objects' masks",
    "lying_marks": "marks of another class than the object's, such as planted-shortcut-conflict",
}
# What takes seconds a run; the others are asked for by name.
DEFAULT_EXPLAINERS = ("attention", "class_evidence", "grad_cam", *BASELINES)
DEFAULT_MEASURES = ("patch_deletion", "average_drop", "adcc")


@dataclass
class Record:
    """One value: a run, an explainer, a measure.

    Attributes:
        explainer: whose maps.
        group: the measure by the name that asks for it.
        metric: the value's own name; a group may give several.
        value: the mean over the pictures; None where none could be judged or the measure does not apply.
        low: of its 95 % interval, by resampling pictures; None where there is one value in all.
        high: likewise.
        better: ``higher`` or ``lower``.
        left_out: share of pictures that could not be judged.
        values: one a picture, None where left out; empty for a number of the whole set.
        note: why there is no value.
    """

    explainer: str
    group: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    better: str = "higher"
    left_out: float = 0.0
    values: list[float | None] = None  # type: ignore[assignment]
    note: str = ""

    def __post_init__(self) -> None:
        self.values = self.values or []

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def row(self) -> Tensor:
        """The values of the pictures, (N,), NaN where left out."""
        return torch.tensor([torch.nan if value is None else value for value in self.values])


def measure(
    model: PlainClassifier,
    pictures: Pictures,
    explainers: Sequence[str],
    measures: Sequence[str],
    known: Sequence[Record] = (),
    precision: Precision = "32",
) -> Iterator[list[Record]]:
    """Measure explainers on a sample of pictures: the records of one measure after the other.

    Faithfulness and planted marks ask about the class that the model predicts, localisation about the true one.

    Args:
        model: trained, with its preprocessing.
        pictures: the sample.
        explainers: names of ``lficam.explainers.EXPLAINERS``, and ``ones`` (a map of ones).
        measures: names of ``MEASURES``.
        known: records that are there already and are not made again.
        precision: of Score-CAM, RISE and LIME; ``auto`` is bfloat16 where the device has it natively.

    Raises:
        UnknownNameError: no such explainer, measure or precision.
        InvalidInputError: a measure of boxes, masks or marks on a set without, or an explainer that the model cannot
            carry.
    """
    require_known(explainers, measures, precision)
    _require_fit(pictures, measures)
    done = {(record.explainer, record.group) for record in known}
    with Probe(model, pictures, precision) as probe:
        for name in dict.fromkeys(explainers):
            for group in dict.fromkeys(measures):
                if (name, group) not in done:
                    yield _records(probe, name, group)


def about(model: PlainClassifier, measures: Sequence[str]) -> list[str]:
    """What is to be known of some measures of a model: what cannot be otherwise by construction or training."""
    notes = [_about_holes(model)] if {"patch_deletion", "top_patch"} & set(measures) else []
    if "sanity" in measures and model.config.method != "plain" and getattr(model, "fin_name", "") != "first_guess":
        notes.append(
            "The attention map is made before the classifier's last layer and has no class: it cannot react to that "
            "layer (its rank correlation is 1 when the layer is lost), and it cannot say why one class and not another."
        )
    return notes


def _about_holes(model: PlainClassifier) -> str:
    known = knows_holes(model)
    if known is None:
        return "Patches taken away: whether the model's training had hidden patches was not recorded."
    if known:
        return "Patches taken away ask in the model's own domain (IDSDS): patches were hidden in its training."
    return "Patches taken away show the model holes that its training had not; --hidden_patch trains with them."


def require_known(explainers: Sequence[str], measures: Sequence[str], precision: str = "32") -> None:
    """Refuse names that nothing is registered under.

    Raises:
        UnknownNameError: the first of them.
    """
    for name in explainers:
        if name not in (*EXPLAINERS, ONES):
            raise UnknownNameError("explainer", name, [*EXPLAINERS, ONES])
    for group in measures:
        if group not in MEASURES:
            raise UnknownNameError("metric", group, MEASURES)
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)


def fits(pictures: Pictures, group: str) -> bool:
    """Whether a set knows what a measure needs: objects' boxes or masks, or marks that lie."""
    needs = MEASURES[group].needs
    return not needs or getattr(pictures, needs) is not None


def _require_fit(pictures: Pictures, measures: Sequence[str]) -> None:
    for group in measures:
        if not fits(pictures, group):
            known = _NEEDS[MEASURES[group].needs]
            raise InvalidInputError(f"metrics: {group} needs a set that knows {known}; leave it out.")
    if len(pictures) < 2:
        raise InvalidInputError(f"data: expected at least two pictures, got {len(pictures)}.")


def _records(probe: Probe, name: str, group: str) -> list[Record]:
    of = MEASURES[group].of
    if of == "class_targeted" and (name not in EXPLAINERS or not EXPLAINERS[name].class_targeted):
        return [Record(name, group, group, None, note="n/a: not a map of one class asked for")]
    if of == "attention" and (name != "attention" or probe.model.config.method == "plain"):
        return [Record(name, group, group, None, note="n/a: no map of this model's own")]
    return [_record(name, group, metric, values) for metric, values in MEASURES[group].ask(probe, name).items()]


def _record(name: str, group: str, metric: str, values: Tensor | OfTheSet) -> Record:
    better = "higher" if metric == "average_gain" else "lower" if "agreement" in metric else MEASURES[group].better
    if metric.endswith(CONTROLS):
        better = ""
    if isinstance(values, OfTheSet):
        return Record(name, group, metric, values.value, values.low, values.high, better, values.left_out)
    mean = bootstrap_mean(values[None])
    if mean is None:
        return Record(name, group, metric, None, better=better, left_out=1.0, note="n/a: no picture can be judged")
    of_each = [None if math.isnan(value) else round(value, 5) for value in values.double().tolist()]
    return Record(name, group, metric, mean.value, mean.low, mean.high, better, mean.left_out, of_each)


def measure_run(
    run: str | Path,
    model: PlainClassifier,
    pictures: Pictures,
    source: str,
    explainers: Sequence[str],
    measures: Sequence[str],
    precision: Precision = "32",
) -> list[Record]:
    """`measure` with the records kept in ``RUN/evaluation/SOURCE/measures-N.jsonl`` of N pictures, and not made twice.

    The file's first line says of which weights and pictures they are; records of others are made anew. Then a line a
    measure: one that was interrupted is made again. Those of ``precision="auto"`` are in ``measures-N-auto.jsonl``.

    Returns:
        The records asked for, in their order.
    """
    kind = "" if precision == "32" else f"-{precision}"
    path = evaluation_directory(run, source) / f"measures-{len(pictures)}{kind}.jsonl"
    facts = {
        "schema": SCHEMA,
        "source": source,
        "pictures": len(pictures),
        "pictures_sha256": _fingerprint(pictures),
        "weights_sha256": read_record(Path(run) / "config.json").get("weights_sha256"),
    }
    known = _read_records(path, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(_line(row) for row in [facts, *map(_plain, known)]))
    made = [record for group in known for record in group]
    for records in measure(model, pictures, explainers, measures, made, precision):
        with path.open("a") as file:
            file.write(_line(_plain(records)))
        known.append(records)
    return [
        record for group in known for record in group if record.explainer in explainers and record.group in measures
    ]


def _fingerprint(pictures: Pictures) -> str:
    """Of what is measured on: the listing, objects, and pixels that are in memory, else the files' sizes."""
    digest = hashlib.sha256(pictures.listing_sha256.encode())
    parts = (pictures.images, pictures.boxes, pictures.masks, pictures.object_labels)
    for known in (*parts, pictures.mark_boxes, pictures.mark_labels):
        if isinstance(known, OnDemand):
            sizes = [item.stat().st_size if isinstance(item, Path) else item for item in known.items]
            digest.update(json.dumps(sizes, default=repr).encode())
        elif known is not None:
            for one in known:
                digest.update(repr(tuple(one.shape)).encode() + one.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [record.to_dict() for record in records]


def _line(row: Any) -> str:
    return json.dumps(row) + "\n"


def _read_records(path: Path, facts: Mapping[str, Any]) -> list[list[Record]]:
    """A list a measure; none where the file is of something else. A last line that was cut short is dropped."""
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        return [[Record(**row) for row in group] for group in rows[1:]] if rows and rows[0] == facts else []
    except (ValueError, TypeError):  # damaged: measured again
        return []


def combine(records: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """Records of several runs on the same pictures as one row a value, with an interval over runs and pictures.

    ``runs`` counts those that have a value; a ``note`` tells of others.
    """
    by_key: dict[tuple[str, str], list[Record]] = {}
    for of_run in records.values():
        for record in of_run:
            by_key.setdefault((record.explainer, record.metric), []).append(record)
    rows = []
    for (explainer, metric), found in by_key.items():
        judged = [record for record in found if record.value is not None]
        row = {"explainer": explainer, "metric": metric, "better": found[0].better, "runs": len(judged)}
        missing = next((record.note for record in found if record.value is None), "")
        note = f"{len(found) - len(judged)} of {len(found)} runs: {missing}" if judged and missing else missing
        rows.append({**row, **_over_runs(judged), "note": note})
    return rows


def _over_runs(judged: Sequence[Record]) -> dict[str, float | None]:
    """The mean of one value of several runs, with its interval over runs and pictures."""
    if judged and all(record.values for record in judged):
        mean = bootstrap_mean(torch.stack([record.row() for record in judged]))
        assert mean is not None
        return mean._asdict()
    if not judged:
        return {"value": None, "low": None, "high": None, "left_out": 1.0}
    of_runs = torch.tensor([record.value for record in judged])
    value, margin = float(of_runs.mean()), between_runs(of_runs)
    low, high = (_edge(judged, side, value, margin) for side in ("low", "high"))
    left_out = sum(record.left_out for record in judged) / len(judged)
    return {"value": value, "low": low, "high": high, "left_out": left_out}


def _edge(judged: Sequence[Record], side: str, value: float, between: float) -> float | None:
    """Of a number of the whole set: what resampled pictures move it by, and runs, root of squares summed."""
    edges = [getattr(record, side) for record in judged]
    if None in edges and len(judged) == 1:
        return None
    over_pictures = 0.0 if None in edges else sum(edges) / len(edges) - value
    margin = math.hypot(over_pictures, between)
    return value - margin if side == "low" else value + margin
