"""Every measure by name: from a probe and an explainer to values of the pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from lficam import functional as LF
from lficam.errors import InvalidInputError
from lficam.explainers import VERSUS, create_explainer
from lficam.measuring.probe import GRID, ONES, Probe
from lficam.metrics import faithfulness, localization
from lficam.metrics.localization import shuffled
from lficam.metrics.sanity import cascading_randomisation
from lficam.metrics.stability import map_iou, rank_correlation
from lficam.metrics.use import SWAPS, divergence, effective_channels, label_agreement, swapped
from lficam.models.abn import ABNClassifier
from lficam.models.lfi import LFIClassifier
from lficam.models.plain import PlainClassifier

Values = dict[str, Tensor]


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


def _of_all_boxes(measure: Callable[[Tensor, Tensor], float]) -> Callable[[Probe, str], Values]:
    def ask(probe: Probe, name: str) -> Values:
        maps, boxes, _ = _known_boxes(probe, name)
        return {measure.__name__: torch.tensor([measure(maps, boxes)])}

    return ask


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
        shares.append(localization.grid_share(maps, torch.arange(len(grid)), GRID).mean())
    return {"grid_pointing": torch.stack(shares)}


def _grids(labels: Tensor, most: int = 50) -> list[Tensor]:
    """Indices of four pictures of four classes each, the same for every model."""
    left = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    grids: list[Tensor] = []
    while len(grids) < most:
        grid: list[int] = []
        for index in left:
            if len(grid) < GRID**2 and int(labels[index]) not in {int(labels[other]) for other in grid}:
                grid.append(index)
        if len(grid) < GRID**2:
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
    "max_box_acc": Measure("higher", _of_all_boxes(localization.max_box_acc), True),
    "max_box_acc_v2": Measure("higher", _of_all_boxes(localization.max_box_acc_v2), True),
    "pxap": Measure("higher", _pxap, True),
    "grid_pointing": Measure("higher", _grid_pointing, of="class_targeted"),
    "sanity": Measure("lower", _sanity),
    "swap": Measure("higher", _swap, of="attention"),
    "weighting": Measure("", _weighting, of="attention"),
}
