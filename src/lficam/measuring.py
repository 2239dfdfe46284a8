"""Models x explainers x measures -> records: one value a line, with its interval and the values of all pictures."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from lficam import functional as LF
from lficam.contract import in_eval_mode
from lficam.data.pictures import Pictures
from lficam.data.transforms import HIDDEN_GRID, normalise
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.evaluation import Subject, evaluation_directory
from lficam.explainers import EXPLAINERS, create_explainer
from lficam.explainers.fast import Classifier, fast_classifier
from lficam.files import read_record, write_whole
from lficam.metrics import faithfulness, localization
from lficam.metrics.intervals import bootstrap_mean
from lficam.metrics.localization import shuffled
from lficam.metrics.sanity import cascading_randomisation
from lficam.metrics.stability import map_iou, rank_correlation
from lficam.metrics.use import SWAPS, divergence, effective_channels, label_agreement, swapped
from lficam.models.abn import ABNClassifier
from lficam.models.lfi import LFIClassifier
from lficam.models.plain import PlainClassifier
from lficam.progress import progress_bar

VERSUS = "class_evidence_versus"
ONES = "ones"
BASELINES = ("feature_mean", "centre", "random", ONES)
_BATCH = 100
# Of the record files: raised when a measure or the form of a record changes.
_SCHEMA = 1
_GRID = 2

Values = dict[str, Tensor]


class Probe:
    """A model on a sample of pictures: what several measures ask of it, asked once.

    Args:
        model: trained, with its preprocessing; on the device where it is.
        pictures: the sample.

    Attributes:
        model: see above.
        pictures: see above.
    """

    def __init__(self, model: PlainClassifier, pictures: Pictures) -> None:
        self.model, self.pictures = model, pictures
        self._stack = ExitStack()
        progress = self._stack.enter_context(progress_bar())
        self._stack.enter_context(in_eval_mode(model))
        self.subject = Subject(model, pictures, model.config.required_preprocessing(), _BATCH, progress)
        self._maps: dict[tuple[str, bool, bool], Tensor] = {}

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @cached_property
    def logits(self) -> Tensor:
        """(N, C), the model's answers."""
        return self.subject.logits(self.model, "classifying")

    @cached_property
    def predicted(self) -> Tensor:
        """(N,), the class that faithfulness asks about."""
        return self.logits.argmax(dim=1)

    @cached_property
    def runner_up(self) -> Tensor:
        """(N,), the second class: a margin is the predicted one's logit minus its."""
        return self.logits.topk(2, dim=1).indices[:, 1]

    @cached_property
    def true(self) -> Tensor:
        """(N,), the class that localisation asks about: the (first) object's."""
        known = self.pictures.object_labels
        return self.pictures.labels if known is None else known[:, 0]

    @cached_property
    def drops(self) -> tuple[Tensor, Tensor]:
        """What the logit and the margin lose without each patch of a grid, (N, P, P) each."""
        found = []
        for images, part, classify in self.asking("taking patches away"):
            patches = min(HIDDEN_GRID, *images.shape[-2:])
            found.append(faithfulness.patch_drops(self._logit_and_margin(part, classify), images, patches).cpu())
        logit, margin = torch.cat(found).unbind(-1)
        return logit, margin

    def _logit_and_margin(self, part: slice, classify: Classifier) -> Classifier:
        """Pictures (n, 3, H, W) to (n, 2): the predicted class's logit, and what it is above the second's."""
        device = next(self.model.parameters()).device
        asked, other = self.predicted[part].to(device)[:, None], self.runner_up[part].to(device)[:, None]

        def both(pictures: Tensor) -> Tensor:
            logits = classify(pictures)
            logit = logits.gather(1, asked)
            return torch.cat((logit, logit - logits.gather(1, other)), dim=1)

        return both

    def asking(self, description: str) -> Iterator[tuple[Tensor, slice, Classifier]]:
        """Batches, each with the slice that it is and the model as a fast function of pictures to logits, float32."""
        with ExitStack() as stack:
            classify: Classifier | None = None
            for images, part in self.subject.batches(description):
                if classify is None:
                    classify = stack.enter_context(fast_classifier(self.model, images, "32"))
                yield images, part, classify

    def probability(self, part: slice, classify: Classifier) -> Classifier:
        """Pictures to the probability of the class that the whole picture was taken for."""
        asked = self.predicted[part].to(next(self.model.parameters()).device)[:, None]
        return lambda pictures: classify(pictures).softmax(dim=1).gather(1, asked)[:, 0]

    def side_by_side(self, grid: Tensor) -> Tensor:
        """Four pictures as one of twice the side, (1, 3, 2 H, 2 W).

        Raises:
            InvalidInputError: the network takes pictures of its own size only.
        """
        preprocessing = self.subject.preprocessing
        images = self.pictures.prepared(grid.tolist(), preprocessing)
        rows = [torch.cat(list(row), dim=2) for row in images.split(_GRID)]
        device = next(self.model.parameters()).device
        picture = normalise(torch.cat(rows, dim=1)[None].to(device), preprocessing)
        try:
            with torch.inference_mode():
                self.model(picture)
        except RuntimeError as error:
            raise InvalidInputError(
                f"metrics: grid_pointing asks for pictures of {tuple(picture.shape[-2:])}, which this network does not "
                f"take; leave it out. ({error})"
            ) from error
        return picture

    def maps(self, name: str, raw: bool = False, of_true: bool = False) -> Tensor:
        """(N, 1, H, W) in [0, 1], or with ``raw`` the method's own values, resized; of the predicted or true class."""
        key = (name, raw, of_true)
        if key not in self._maps:
            self._maps[key] = self._ask(name, raw, self.true if of_true else self.predicted)
        return self._maps[key]

    def _ask(self, name: str, raw: bool, asked: Tensor) -> Tensor:
        side = self.subject.preprocessing.size
        if name == ONES:
            return torch.ones(len(self.pictures), 1, side, side)
        explainer, versus = create_explainer("class_evidence" if name == VERSUS else name, self.model), None
        if name == VERSUS:
            versus = torch.where(asked == self.predicted, self.runner_up, self.predicted)
        maps = self.subject.maps(explainer, asked, versus, raw)
        return LF.upsample(maps, (side, side)) if raw else maps


@dataclass(frozen=True)
class Measure:
    """A measure, or several that are made together.

    Attributes:
        better: ``higher`` or ``lower``; of the values it gives. Empty where neither is.
        ask: from a probe and the name of an explainer to values (N,) by name; NaN where a picture cannot be judged. A
            single number (1,) speaks of the whole set.
        needs_boxes: whether the set must know its objects.
        of: what it is for: ``any`` explainer, ``class_targeted`` ones, or the model's own ``attention``.
    """

    better: str
    ask: Callable[[Probe, str], Values]
    needs_boxes: bool = False
    of: str = "any"


def _patch_deletion(probe: Probe, name: str) -> Values:
    logit, margin = probe.drops
    maps = probe.maps(name, raw=True)
    return {
        "patch_deletion": faithfulness.patch_deletion_correlation(logit, maps),
        "patch_deletion_margin": faithfulness.patch_deletion_correlation(margin, maps),
    }


def _curve(area: Callable[..., Tensor], blurred: bool) -> Callable[[Probe, str], Tensor]:
    def ask(probe: Probe, name: str) -> Tensor:
        maps, found = probe.maps(name), []
        for images, part, classify in probe.asking(area.__name__):
            fill = _blurred(images) if blurred else 0.0
            found.append(area(probe.probability(part, classify), images, maps[part].to(images), fill=fill).cpu())
        # A flat map has no order; its pixels would go in reading order.
        return torch.cat(found).masked_fill(LF.is_flat(maps), torch.nan)

    return ask


def _blurred(images: Tensor) -> Tensor:
    """A Gaussian of a tenth of the side: colours stay, things go."""
    side = min(images.shape[-2:])
    return TF.gaussian_blur(images, [2 * (side // 4) + 1] * 2, [max(side / 10, 0.5)] * 2)


def _two_fills(area: Callable[..., Tensor]) -> Callable[[Probe, str], Values]:
    name = area.__name__
    plain, blurred = _curve(area, blurred=False), _curve(area, blurred=True)
    return lambda probe, of: {name: plain(probe, of), f"{name}_blurred": blurred(probe, of)}


def _road(probe: Probe, name: str) -> Values:
    maps, found = probe.maps(name), []
    for images, part, classify in probe.asking("imputing"):
        found.append(faithfulness.road(probe.probability(part, classify), images, maps[part].to(images)).cpu())
    return {"road": torch.cat(found).masked_fill(LF.is_flat(maps), torch.nan)}


def _average_drop(probe: Probe, name: str) -> Values:
    maps, drops, gains = probe.maps(name), [], []
    for images, part, classify in probe.asking("masking"):
        probability, of_part = probe.probability(part, classify), maps[part].to(images)
        drops.append(faithfulness.average_drop(probability, images, of_part).cpu())
        gains.append(faithfulness.average_gain(probability, images, of_part).cpu())
    return {"average_drop": torch.cat(drops), "average_gain": torch.cat(gains)}


def _adcc(probe: Probe, name: str) -> Values:
    if name == ONES:
        return {"adcc": torch.zeros(len(probe.pictures))}
    maps, found = probe.maps(name), []
    for images, part, classify in probe.asking("masking twice"):
        of_part = maps[part].to(images)
        drop = faithfulness.average_drop(probe.probability(part, classify), images, of_part)
        options = {"versus": probe.runner_up[part]} if name == VERSUS else {}
        explain = create_explainer("class_evidence" if name == VERSUS else name, probe.model, **options)
        asked = probe.predicted[part] if explain.class_targeted else None
        found.append(faithfulness.adcc(drop, of_part, explain(images * of_part, asked)).cpu())
    return {"adcc": torch.cat(found)}


def _against_boxes(measure: Callable[[Tensor, Tensor], Tensor], of_masks: bool) -> Callable[[Probe, str], Tensor]:
    """Values over the pictures that know their (first) object; NaN for the others."""

    def ask(probe: Probe, name: str) -> Tensor:
        maps, boxes = probe.maps(name, of_true=True), probe.subject.boxes[:, 0]
        masks = localization.box_masks(boxes, (maps.shape[-2], maps.shape[-1]))
        known = masks.flatten(1).any(dim=1)
        values = torch.full((len(maps),), torch.nan)
        if not known.any():
            return values
        values[known] = measure(maps[known], (masks if of_masks else boxes)[known]).float()
        return values

    return ask


def _known_boxes(probe: Probe, name: str) -> tuple[Tensor, Tensor, Tensor]:
    maps, boxes = probe.maps(name, of_true=True), probe.subject.boxes[:, 0]
    known = localization.box_masks(boxes, (maps.shape[-2], maps.shape[-1])).flatten(1).any(dim=1)
    if not known.any():
        raise InvalidInputError("data: no picture of the sample knows where its object is.")
    return maps[known], boxes[known], torch.nonzero(known).flatten()


def _tuned_box_iou(probe: Probe, name: str) -> Values:
    """Chosen on every second picture, judged on the others."""
    maps, boxes, indices = _known_boxes(probe, name)
    if len(maps) < 2:
        return {"box_iou_tuned": torch.full((1,), torch.nan)}
    threshold = localization.tuned_threshold(maps[::2], boxes[::2])
    values = torch.full((len(probe.pictures),), torch.nan)
    values[indices[1::2]] = localization.region_iou(maps[1::2], boxes[1::2], threshold)
    return {"box_iou_tuned": values}


def _max_box_acc(probe: Probe, name: str) -> Values:
    maps, boxes, _ = _known_boxes(probe, name)
    return {"max_box_acc": torch.tensor([localization.max_box_acc(maps, boxes)])}


def _pxap(probe: Probe, name: str) -> Values:
    maps, boxes, _ = _known_boxes(probe, name)
    masks = localization.box_masks(boxes, (maps.shape[-2], maps.shape[-1]))
    return {"pxap": torch.tensor([localization.pixel_average_precision(maps, masks)])}


def _grid_pointing(probe: Probe, name: str) -> Values:
    """Grids of four pictures of different classes, each class asked in turn; one value a grid."""
    grids = _grids(probe.true)
    if not grids:
        raise InvalidInputError("metrics: grid_pointing needs pictures of four classes; leave it out.")
    explainer, shares = create_explainer(name, probe.model), []
    for grid in grids:
        picture, asked = probe.side_by_side(grid), probe.true[grid]
        maps = explainer(picture.expand(len(grid), -1, -1, -1), asked.to(picture.device), raw=True).cpu()
        maps = LF.upsample(maps.relu(), (picture.shape[-2], picture.shape[-1]))
        shares.append(localization.grid_share(maps, torch.arange(len(grid)), _GRID).mean())
    return {"grid_pointing": torch.stack(shares)}


def _grids(labels: Tensor, most: int = 50) -> list[Tensor]:
    """Indices of four pictures of four classes each, the same for every model."""
    left = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    grids: list[Tensor] = []
    while len(grids) < most:
        grid: list[int] = []
        for index in left:
            if len(grid) < _GRID**2 and int(labels[index]) not in {int(labels[other]) for other in grid}:
                grid.append(index)
        if len(grid) < _GRID**2:
            break
        left = [index for index in left if index not in grid]
        grids.append(torch.tensor(grid))
    return grids


def stages_from_the_head(model: PlainClassifier) -> list[tuple[str, list[str]]]:
    """A model's parts as cascading randomisation loses them: the head, the attention's own network, the trunk."""
    named = {module: name for name, module in model.named_modules()}
    stages = [("head", [named[model.linear_head]])] if model.linear_head is not None else []
    stages += [(name, [name]) for name, _ in model.named_children() if name != "backbone"]
    trunk: nn.Module = model.backbone
    while len(children := list(trunk.children())) == 1 and list(children[0].children()):
        trunk = children[0]  # a wrapped network
    parts = [child for child in trunk.children() if child is not model.linear_head]
    with_weights = [named[part] for part in parts if next(part.parameters(), None) is not None]
    return stages + [(f"trunk's {name.rpartition('.')[2]}", [name]) for name in reversed(with_weights)]


def _sanity(probe: Probe, name: str) -> Values:
    """Rank correlation of the map with that of the model whose weights are lost, for the same class; less is better."""
    own, found, forgotten = probe.maps(name, raw=True), {}, False
    stages = stages_from_the_head(probe.model)
    for stage, lost in cascading_randomisation(probe.model, stages):
        with Probe(lost, probe.pictures) as other:
            other.predicted, other.runner_up = probe.predicted, probe.runner_up
            found[f"randomised_to_{stage}"] = rank_correlation(own, other.maps(name, raw=True))
            forgotten = not torch.equal(probe.logits, other.logits)
    if not forgotten:
        raise InvalidInputError(
            "metrics: sanity lost all weights of a copy, and its answers stayed: this model is two functions over a "
            "network outside of itself. Wrap the network and name a stage, or leave sanity out."
        )
    found["randomised"] = found.pop(f"randomised_to_{stages[-1][0]}")
    return found


def _swap(probe: Probe, _: str) -> Values:
    model = probe.model
    assert isinstance(model, LFIClassifier | ABNClassifier)
    maps = probe.subject.maps(create_explainer("attention", model), None, raw=True)
    means = probe.subject.maps(create_explainer("feature_mean", model), None, raw=True)
    right = (probe.predicted == probe.true).float()
    found = {"accuracy": right}
    for swap in SWAPS:
        put = swapped(swap, maps, shuffled(len(maps)), means)
        with torch.inference_mode():
            answers = [
                model.answer_with(images, put[part].to(images)).float().cpu()
                for images, part in probe.subject.batches(f"swapping: {swap}")
            ]
        logits = torch.cat(answers)
        found |= {
            f"agreement_with_{swap}": label_agreement(probe.logits, logits),
            f"accuracy_lost_with_{swap}": right - (logits.argmax(dim=1) == probe.true).float(),
            f"divergence_with_{swap}": divergence(probe.logits, logits),
        }
    return found


def _weighting(probe: Probe, _: str) -> Values:
    """What the weights of the own map are like, and how far it is the channel mean's."""
    found = {"iou_with_feature_mean": map_iou(probe.maps("attention"), probe.maps("feature_mean"))}
    if isinstance(probe.model, LFIClassifier):
        with torch.inference_mode():
            weights = [probe.model.explain(images).importance for images, _ in probe.subject.batches("weights")]
        found["effective_channels"] = effective_channels(
            torch.cat([part for part in weights if part is not None])
        ).cpu()
    return found


def _alone(name: str, ask: Callable[[Probe, str], Tensor]) -> Callable[[Probe, str], Values]:
    return lambda probe, of: {name: ask(probe, of)}


MEASURES: dict[str, Measure] = {
    "patch_deletion": Measure("higher", _patch_deletion),
    "insertion": Measure("higher", _two_fills(faithfulness.insertion)),
    "deletion": Measure("lower", _two_fills(faithfulness.deletion)),
    "road": Measure("higher", _road),
    "average_drop": Measure("lower", _average_drop),
    "adcc": Measure("higher", _adcc),
    "pointing": Measure("higher", _alone("pointing", _against_boxes(localization.points_into, False)), True),
    "energy": Measure("higher", _alone("energy", _against_boxes(localization.energy_share, True)), True),
    "mask_iou": Measure("higher", _alone("mask_iou", _against_boxes(localization.mask_iou, True)), True),
    "box_iou": Measure("higher", _tuned_box_iou, True),
    "max_box_acc": Measure("higher", _max_box_acc, True),
    "pxap": Measure("higher", _pxap, True),
    "grid_pointing": Measure("higher", _grid_pointing, of="class_targeted"),
    "sanity": Measure("lower", _sanity),
    "swap": Measure("higher", _swap, of="attention"),
    "weighting": Measure("", _weighting, of="attention"),
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
        low: of its 95 % interval, by resampling pictures; None for a number of the whole set.
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


def measure(
    model: PlainClassifier,
    pictures: Pictures,
    explainers: Sequence[str],
    measures: Sequence[str],
    known: Sequence[Record] = (),
) -> Iterator[list[Record]]:
    """Measure explainers on a sample of pictures: the records of one measure after the other.

    Faithfulness asks about the class that the model predicts, localisation about the true one.

    Args:
        model: trained, with its preprocessing.
        pictures: the sample.
        explainers: names of `lficam.explainers.EXPLAINERS`, and ``class_evidence_versus`` (the predicted class and not
            the second, or the true one and not the predicted) and ``ones`` (a map of ones).
        measures: names of `MEASURES`.
        known: records that are there already and are not made again.

    Raises:
        UnknownNameError: no such explainer or measure.
        InvalidInputError: a measure of boxes on a set without, or an explainer that the model cannot carry.
    """
    require_known(explainers, measures)
    _require_fit(pictures, measures)
    done = {(record.explainer, record.group) for record in known}
    with Probe(model, pictures) as probe:
        for name in dict.fromkeys(explainers):
            for group in dict.fromkeys(measures):
                if (name, group) not in done:
                    yield _records(probe, name, group)


def require_known(explainers: Sequence[str], measures: Sequence[str]) -> None:
    """Refuse names that nothing is registered under.

    Raises:
        UnknownNameError: the first of them.
    """
    for name in explainers:
        if name not in (*EXPLAINERS, VERSUS, ONES):
            raise UnknownNameError("explainer", name, [*EXPLAINERS, VERSUS, ONES])
    for group in measures:
        if group not in MEASURES:
            raise UnknownNameError("metric", group, MEASURES)


def _require_fit(pictures: Pictures, measures: Sequence[str]) -> None:
    for group in measures:
        if MEASURES[group].needs_boxes and pictures.boxes is None:
            raise InvalidInputError(f"metrics: {group} needs a set that knows its objects' boxes; leave it out.")
    if len(pictures) < 2:
        raise InvalidInputError(f"data: expected at least two pictures, got {len(pictures)}.")


def _records(probe: Probe, name: str, group: str) -> list[Record]:
    of = MEASURES[group].of
    if of == "class_targeted" and (name not in EXPLAINERS or not EXPLAINERS[name].class_targeted):
        return [Record(name, group, group, None, note="n/a: not a map of one class asked for")]
    if of == "attention" and (name != "attention" or probe.model.config.method == "plain"):
        return [Record(name, group, group, None, note="n/a: no map of this model's own")]
    return [_record(name, group, metric, values) for metric, values in MEASURES[group].ask(probe, name).items()]


def _record(name: str, group: str, metric: str, values: Tensor) -> Record:
    better = "higher" if metric == "average_gain" else "lower" if "agreement" in metric else MEASURES[group].better
    if len(values) == 1:
        alone = None if values.isnan().any() else float(values)
        return Record(name, group, metric, alone, better=better, note="" if alone is not None else "n/a")
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
) -> list[Record]:
    """`measure` with the records kept in ``RUN/evaluation/SOURCE/measures-N.jsonl`` of N pictures, and not made twice.

    The file's first line says of which weights and pictures they are; records of others are made anew. Then a line a
    measure: one that was interrupted is made again.

    Returns:
        The records asked for, in their order.
    """
    path = evaluation_directory(run, source) / f"measures-{len(pictures)}.jsonl"
    names = json.dumps([pictures.names, pictures.labels.tolist()])
    facts = {
        "schema": _SCHEMA,
        "source": source,
        "pictures": len(pictures),
        "names_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "weights_sha256": read_record(Path(run) / "config.json").get("weights_sha256"),
    }
    known = _read_records(path, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(_line(row) for row in [facts, *map(_plain, known)]))
    for records in measure(model, pictures, explainers, measures, [record for group in known for record in group]):
        with path.open("a") as file:
            file.write(_line(_plain(records)))
        known.append(records)
    return [
        record for group in known for record in group if record.explainer in explainers and record.group in measures
    ]


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
    """Records of several runs on the same pictures as one row a value, with an interval over runs and pictures."""
    by_key: dict[tuple[str, str], list[Record]] = {}
    for of_run in records.values():
        for record in of_run:
            by_key.setdefault((record.explainer, record.metric), []).append(record)
    rows = []
    for (explainer, metric), found in by_key.items():
        row: dict[str, Any] = {"explainer": explainer, "metric": metric, "better": found[0].better, "runs": len(found)}
        values = [[torch.nan if value is None else value for value in record.values] for record in found]
        judged = [record.value for record in found if record.value is not None]
        mean = bootstrap_mean(torch.tensor(values)) if all(values) else None
        if mean is not None:
            row |= {"value": mean.value, "low": mean.low, "high": mean.high, "left_out": mean.left_out}
        else:
            row |= {"value": sum(judged) / len(judged) if judged else None, "low": None, "high": None}
            row["left_out"] = 0.0 if judged else 1.0
        rows.append({**row, "note": found[0].note})
    return rows
