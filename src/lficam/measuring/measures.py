"""Every measure by name: from a probe and an explainer to values of the pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from lficam import functional as LF
from lficam.errors import InvalidInputError
from lficam.evaluation import taken_from_the_mark, true_labels
from lficam.explainers import VERSUS, create_explainer
from lficam.explainers.fast import Classifier
from lficam.measuring.probe import GRID, ONES, Probe
from lficam.metrics import faithfulness, localization
from lficam.metrics.checks import require_maps
from lficam.metrics.classification import top_k_misses
from lficam.metrics.intervals import Statistic, bootstrap_statistic
from lficam.metrics.localization import shuffled
from lficam.metrics.sanity import cascading_randomisation
from lficam.metrics.stability import SPEARMAN, map_iou
from lficam.metrics.use import SWAPS, divergence, effective_channels, label_agreement, swapped
from lficam.models.backbones import count_parameters
from lficam.models.lfi import LFIClassifier
from lficam.models.plain import PlainClassifier


@dataclass(frozen=True)
class OfTheSet:
    """A number that speaks of a whole set, the share of its pictures that it had to leave out, and its interval."""

    value: float
    left_out: float
    low: float | None = None
    high: float | None = None


Values = Mapping[str, Tensor | OfTheSet]


@dataclass(frozen=True)
class Measure:
    """A measure, or several that are made together.

    Attributes:
        better: ``higher`` or ``lower``; of the values it gives. Empty where neither is.
        ask: from a probe and the name of an explainer to values (N,) by name, NaN where a picture cannot be judged; or
            one of the whole set.
        needs: what the set must know of its pictures: objects' ``boxes`` or ``masks``, ``lying_marks``, or nothing.
        of: what it is for: ``any`` explainer, ``class_targeted`` ones, or the model's own ``attention``.
    """

    better: str
    ask: Callable[[Probe, str], Values]
    needs: str = ""
    of: str = "any"


def _patch_deletion(probe: Probe, name: str) -> Values:
    logit, margin = probe.drops
    maps = probe.maps(name, raw=True)
    return {
        "patch_deletion": faithfulness.patch_deletion_correlation(logit, maps),
        "patch_deletion_margin": faithfulness.patch_deletion_correlation(margin, maps),
    }


def _top_patch(probe: Probe, name: str) -> Values:
    maps, (logit, _) = probe.maps(name, raw=True), probe.drops
    rivals = {"top_patch": maps, "top_patch_mean_map": localization.mean_map(maps)}
    return {metric: faithfulness.top_patch(logit, held) for metric, held in rivals.items()}


def _curve(area: Callable[..., Tensor], blurred: bool) -> Callable[[Probe, str], Tensor]:
    def ask(probe: Probe, name: str) -> Tensor:
        def measure(probability: Classifier, images: Tensor, maps: Tensor) -> Tensor:
            return area(probability, images, maps, fill=_blurred(images) if blurred else 0.0)

        values = _asked(probe, name, measure, area.__name__)
        # A flat map has no order; its pixels would go in reading order.
        return values.masked_fill(LF.is_flat(probe.maps(name)), torch.nan)

    return ask


def _asked(
    probe: Probe, name: str, measure: Callable[[Classifier, Tensor, Tensor], Tensor], description: str
) -> Tensor:
    """A measure of the probability of the class that the whole picture was taken for, the pictures and their maps."""
    maps = probe.maps(name)
    return torch.cat(
        [
            measure(probe.probability(part, classify), images, maps[part].to(images)).cpu()
            for images, part, classify in probe.asking(description)
        ]
    )


def _blurred(images: Tensor) -> Tensor:
    """A Gaussian of a tenth of the side: colours stay, things go. Along one side after the other, which is the same."""
    side = min(images.shape[-2:])
    taps, sigma = 2 * (side // 4) + 1, [max(side / 10, 0.5)] * 2
    return TF.gaussian_blur(TF.gaussian_blur(images, [taps, 1], sigma), [1, taps], sigma)


def _two_fills(area: Callable[..., Tensor]) -> Callable[[Probe, str], Values]:
    name = area.__name__
    plain, blurred = _curve(area, blurred=False), _curve(area, blurred=True)
    return lambda probe, of: {name: plain(probe, of), f"{name}_blurred": blurred(probe, of)}


def _road(probe: Probe, name: str) -> Values:
    values = _asked(probe, name, faithfulness.road, "imputing")
    return {"road": values.masked_fill(LF.is_flat(probe.maps(name)), torch.nan)}


def _average_drop(probe: Probe, name: str) -> Values:
    def measure(probability: Classifier, images: Tensor, maps: Tensor) -> Tensor:
        both = (faithfulness.average_drop, faithfulness.average_gain)
        return torch.stack([of_one(probability, images, maps) for of_one in both], dim=1)

    drop, gain = _asked(probe, name, measure, "masking").unbind(dim=1)
    return {"average_drop": drop, "average_gain": gain}


def _adcc(probe: Probe, name: str) -> Values:
    if name == ONES:
        return {"adcc": torch.zeros(len(probe.pictures))}
    maps, found = probe.maps(name), []
    for images, part, classify in probe.asking("masking twice"):
        of_part = maps[part].to(images)
        drop = faithfulness.average_drop(probe.probability(part, classify), images, of_part)
        # The rival of the whole picture, which need not be that of the masked one.
        options = {"versus": probe.runner_up[part]} if name == VERSUS else {}
        explain = probe.explainer(name, **options)
        asked = probe.predicted[part] if explain.class_targeted else None
        found.append(faithfulness.adcc(drop, of_part, explain(images * of_part, asked)).cpu())
    return {"adcc": torch.cat(found)}


Held = Callable[[Tensor, Tensor], Tensor | Statistic]


def _held_against(truth: str, name: str, measure: Held) -> Callable[[Probe, str], Values]:
    """The maps of the pictures that know their (first) object against it; beside it what takes no look at the picture.

    ``truth`` is its ``boxes``, the pixels in them (``filled``) or its ``masks``; or the planted ``marks`` that labels
    were taken from. Chance is another picture's map, and the mean map is the mean of all maps in the place of each.
    """

    def ask(probe: Probe, explainer: str) -> Values:
        maps, known, truths = _by_marks(probe, explainer) if truth == "marks" else _located(probe, explainer, truth)
        if len(maps) < 2:  # chance needs another picture
            return {name: torch.full((len(known),), torch.nan)}
        by_chance, mean_map = maps[shuffled(len(maps))], localization.mean_map(maps)
        rivals = {name: maps, f"{name}_chance": by_chance, f"{name}_mean_map": mean_map}
        return {metric: _spread(measure(held, truths), known) for metric, held in rivals.items()}

    return ask


def _located(probe: Probe, name: str, truth: str) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (n, 1, S, S) and objects of the pictures that know theirs, and which those are, (N,) bool."""
    maps = probe.maps(name, of_true=True)
    size = (maps.shape[-2], maps.shape[-1])
    truths = probe.subject.masks if truth == "masks" else probe.subject.boxes[:, 0]
    pixels = truths if truth == "masks" else localization.box_masks(truths, size)
    known = pixels.flatten(1).any(dim=1) & (probe.true >= 0)
    return maps[known], known, (pixels if truth == "filled" else truths)[known]


def _by_marks(probe: Probe, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """As `_located`, of the pictures whose label was taken from a mark: the maps of that label, and near the marks."""
    seen = ~probe.subject.near_marks.isnan().any(dim=1)  # by the crop
    taken = taken_from_the_mark(probe.pictures, probe.predicted) & seen
    return probe.maps(name)[taken], taken, probe.subject.near_marks[taken]


def _spread(values: Tensor | Statistic, known: Tensor) -> Tensor | OfTheSet:
    """Values of the known pictures at their places among all, NaN at the others'."""
    if not isinstance(values, Tensor):
        of_known = bootstrap_statistic(values, int(known.sum()))
        return OfTheSet(of_known.value, 1 - float(known.float().mean()), of_known.low, of_known.high)
    return torch.full((len(known),), torch.nan).masked_scatter(known, values.float())


def _tuned(iou: Callable[[Tensor, Tensor, float], Tensor]) -> Held:
    """With the threshold of every second picture, judged on the others: NaN for those that it is chosen on."""

    def measure(maps: Tensor, truths: Tensor) -> Tensor:
        threshold = localization.tuned_threshold(maps[::2], truths[::2], iou)
        values = iou(maps, truths, threshold).float()
        values[::2] = torch.nan
        return values

    return measure


def _grid_pointing(probe: Probe, name: str) -> Values:
    """Grids of four pictures of different classes, each class asked in turn; one value a grid."""
    grids = _grids(probe.true)
    if not grids:
        raise InvalidInputError("metrics: grid_pointing needs pictures of four classes; leave it out.")
    explainer, cells = probe.explainer(name), torch.arange(GRID**2)
    shares = []
    for grid in grids:
        picture, asked = probe.side_by_side(grid), probe.true[grid]
        maps = torch.cat(explainer.for_targets(picture, asked.view(-1, 1).to(picture.device).unbind(), raw=True)).cpu()
        maps = LF.upsample(maps.relu(), (picture.shape[-2], picture.shape[-1]))
        # By chance: the maps of the other classes, held against the cell of this one.
        other = maps[cells.roll(1)]
        shares.append(torch.stack([localization.grid_share(of, cells, GRID).mean() for of in (maps, other)]))
    found = dict(zip(("grid_pointing", "grid_pointing_chance"), torch.stack(shares, dim=1), strict=True))
    if len(grids) > 1:
        return found
    return {metric: OfTheSet(float(value), left_out=0.0) for metric, value in found.items()}  # no interval of one


def _grids(labels: Tensor, most: int = 50) -> list[Tensor]:
    """Indices of four pictures of four known classes each, the same for every model."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    left = order[labels[order] >= 0].tolist()
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
    names = [named[part] for part in _parts(trunk) if part is not model.linear_head]
    return stages + [(f"trunk's {name.removeprefix(f'{named[trunk]}.')}", [name]) for name in reversed(names)]


def _parts(network: nn.Module) -> list[nn.Module]:
    """A network's parts with weights, in order; one that holds nearly all of them is taken apart in turn.

    One with weights of its own, beside those of its layers, stays whole.
    """
    total, parts = count_parameters(network), []
    for child in network.children():
        weights = count_parameters(child)
        whole = next(child.parameters(recurse=False), None) is not None
        if weights > 0.9 * total and list(child.children()) and not whole:
            parts += _parts(child)
        elif weights:
            parts.append(child)
    return parts


def _sanity(probe: Probe, name: str) -> Values:
    """Rank correlation of the map with that of the model whose weights are lost, for the same class; less is better."""
    own, found, forgotten = probe.maps(name, raw=True), {}, False
    ranks = SPEARMAN.prepare(own)
    stages = stages_from_the_head(probe.model)
    for stage, lost in cascading_randomisation(probe.model, stages):
        with Probe(lost, probe.pictures, probe.precision) as other:
            other.predicted, other.runner_up = probe.predicted, probe.runner_up
            maps = other.maps(name, raw=True)
            require_maps(maps, own)
            found[f"randomised_to_{stage}"] = SPEARMAN.compare(ranks, SPEARMAN.prepare(maps))
            forgotten = not torch.equal(probe.logits, other.subject.logits(lost, "classifying"))
    if not forgotten:
        raise InvalidInputError(
            "metrics: sanity lost all weights of a copy, and its answers stayed: this model is two functions over a "
            "network outside of itself. Wrap the network and name a stage, or leave sanity out."
        )
    found["randomised"] = found.pop(f"randomised_to_{stages[-1][0]}")
    return found


def _swap(probe: Probe, _: str) -> Values:
    model = probe.model
    maps = probe.subject.maps(create_explainer("attention", model), None, raw=True)
    means = probe.subject.maps(create_explainer("feature_mean", model), None, raw=True)
    right = _right(probe, probe.logits)
    found = {"accuracy": right}
    for swap in SWAPS:
        put = swapped(swap, maps, shuffled(len(maps)), means)
        logits = probe.subject.logits_with(put, f"swapping: {swap}")
        found |= {
            f"agreement_with_{swap}": label_agreement(probe.logits, logits),
            f"accuracy_lost_with_{swap}": right - _right(probe, logits),
            f"divergence_with_{swap}": divergence(probe.logits, logits),
        }
    return found


def _right(probe: Probe, logits: Tensor) -> Tensor:
    """Whether the label is one of what the picture shows, (N,) of 0 and 1."""
    return (~top_k_misses(logits, true_labels(probe.pictures), 1)).float()


def _weighting(probe: Probe, _: str) -> Values:
    """What the weights of the own map are like, and how far it is the channel mean's."""
    found = {"iou_with_feature_mean": map_iou(probe.maps("attention"), probe.maps("feature_mean"))}
    if isinstance(probe.model, LFIClassifier):
        with torch.inference_mode():
            weights = [probe.model.explain(images).importance for images, _ in probe.subject.batches("weights")]
        found["effective_channels"] = effective_channels(
            torch.cat([part.cpu() for part in weights if part is not None])
        )
    return found


MEASURES: dict[str, Measure] = {
    "patch_deletion": Measure("higher", _patch_deletion),
    "top_patch": Measure("higher", _top_patch),
    "insertion": Measure("higher", _two_fills(faithfulness.insertion)),
    "deletion": Measure("lower", _two_fills(faithfulness.deletion)),
    "road": Measure("higher", _road),
    "average_drop": Measure("lower", _average_drop),
    "adcc": Measure("higher", _adcc),
    "pointing": Measure("higher", _held_against("boxes", "pointing", localization.points_into), "boxes"),
    "energy": Measure("higher", _held_against("filled", "energy", localization.energy_share), "boxes"),
    "box_iou": Measure("higher", _held_against("boxes", "box_iou_tuned", _tuned(localization.region_iou)), "boxes"),
    "max_box_acc": Measure("higher", _held_against("boxes", "max_box_acc", localization.largest_region_found), "boxes"),
    "max_box_acc_v2": Measure(
        "higher", _held_against("boxes", "max_box_acc_v2", localization.any_region_found), "boxes"
    ),
    "mask_iou": Measure("higher", _held_against("masks", "mask_iou_tuned", _tuned(localization.mask_iou)), "masks"),
    "pxap": Measure("higher", _held_against("masks", "pxap", localization.pixels_found), "masks"),
    "mark_pointing": Measure(
        "higher", _held_against("marks", "mark_pointing", localization.points_into), "lying_marks"
    ),
    "grid_pointing": Measure("higher", _grid_pointing, of="class_targeted"),
    "sanity": Measure("lower", _sanity),
    "swap": Measure("higher", _swap, of="attention"),
    "weighting": Measure("", _weighting, of="attention"),
}
