"""Does the model do what the map says? Pixels are taken away or shown by the map, and the model is asked again.

``score`` is a function of normalised images (n, 3, H, W) to numbers (n,): a logit, a margin or a probability of one
class. Maps are (N, 1, H, W) of the images' size. ``fill`` is what stands for "taken away": a number in the normalised
picture (0 is its mean colour), or a picture (N, 3, H, W) such as a blurred one. All values are one a picture, (N,).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lficam.errors import InvalidInputError
from lficam.functional import is_flat
from lficam.metrics.stability import rank_correlation

Score = Callable[[Tensor], Tensor]
Fill = float | Tensor


def patch_drops(score: Score, images: Tensor, patches: int = 8, fill: Fill = 0.0) -> Tensor:
    """How much the score falls when each square of a grid is taken away, (N, P, P); negative where it rises.

    Args:
        score: of the images; asked P * P + 1 times.
        images: (N, 3, H, W), normalised.
        patches: P, squares along a side.
        fill: see the module.

    >>> patch_drops(lambda images: images.sum(dim=(1, 2, 3)), torch.ones(1, 3, 4, 4), patches=2).tolist()
    [[[12.0, 12.0], [12.0, 12.0]]]
    """
    height, width = images.shape[-2:]
    if not 1 <= patches <= min(height, width):
        raise InvalidInputError(f"patches: expected 1 to {min(height, width)}, got {patches}.")
    whole, filler = score(images), _filler(images, fill)
    drops = []
    for row in range(patches):
        for column in range(patches):
            without = images.clone()
            place = (..., _edges(row, patches, height), _edges(column, patches, width))
            without[place] = filler[place]
            drops.append(whole - score(without))
    return torch.stack(drops, dim=1).view(len(images), patches, patches)


def patch_deletion_correlation(drops: Tensor, maps: Tensor) -> Tensor:
    """Spearman's correlation of a map's patch sums and the patches' drops, in [-1, 1], higher is more faithful.

    NaN where either is flat.

    Args:
        drops: (N, P, P), of `patch_drops`, of a logit or of a margin.
        maps: (N, 1, H, W); signed maps are taken with their signs.

    >>> drops = torch.tensor([[[1.0, 0.0], [0.5, 0.2]]])
    >>> patch_deletion_correlation(drops, torch.tensor([[[[9.0, 0.0], [3.0, 2.0]]]])).item()
    1.0
    """
    if len(drops) != len(maps) or maps.ndim != 4 or maps.shape[1] != 1:
        raise InvalidInputError(f"maps: expected ({len(drops)}, 1, H, W), got {tuple(maps.shape)}.")
    patches = drops.shape[-1]
    sums = [
        maps[..., _edges(row, patches, maps.shape[-2]), _edges(column, patches, maps.shape[-1])].sum(dim=(1, 2, 3))
        for row in range(patches)
        for column in range(patches)
    ]
    found = rank_correlation(torch.stack(sums, dim=1).view(-1, 1, patches, patches), drops.unsqueeze(1))
    # Patches that do not divide the side differ in size, and so would the sums of a flat map.
    return found.masked_fill(is_flat(maps), torch.nan)


def deletion(score: Score, images: Tensor, maps: Tensor, steps: int = 16, fill: Fill = 0.0) -> Tensor:
    """Mean score while the highest pixels are taken away first, share by share; lower is more faithful.

    Source: Petsiuk et al. 2018, section 4.2: the area under the curve, by the trapezoid rule over ``steps`` shares.

    >>> image = torch.tensor([[[[1.0, 0.0]]]]).expand(1, 3, 1, 2)
    >>> deletion(lambda images: images[:, 0].sum(dim=(1, 2)), image, torch.tensor([[[[1.0, 0.0]]]]), steps=2).item()
    0.25
    """
    return _area(score, maps, steps, images, _filler(images, fill))


def insertion(score: Score, images: Tensor, maps: Tensor, steps: int = 16, fill: Fill = 0.0) -> Tensor:
    """Mean score while the highest pixels are shown first, from nothing to all; higher is more faithful.

    Source: as `deletion`.

    >>> image = torch.tensor([[[[1.0, 0.0]]]]).expand(1, 3, 1, 2)
    >>> insertion(lambda images: images[:, 0].sum(dim=(1, 2)), image, torch.tensor([[[[1.0, 0.0]]]]), steps=2).item()
    0.75
    """
    return _area(score, maps, steps, _filler(images, fill), images)


def average_drop(probability: Score, images: Tensor, maps: Tensor) -> Tensor:
    """The share of its probability that a class loses when the picture is multiplied by the map, in [0, 1].

    Source: Chattopadhyay et al. 2018, section 4.1; lower is better. A map of ones loses nothing, so this stands never
    alone: see `average_gain`.

    >>> images, maps = torch.ones(1, 3, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    >>> average_drop(lambda images: images.mean(dim=(1, 2, 3)), images, maps).item()
    0.5
    """
    before, after = probability(images), probability(images * maps)
    return ((before - after).clamp(min=0) / before.clamp(min=torch.finfo(before.dtype).tiny)).clamp(max=1)


def average_gain(probability: Score, images: Tensor, maps: Tensor) -> Tensor:
    """The share of what is missing to certainty that a class gains when the picture is multiplied by the map.

    Source: Zhang et al. 2023 (Opti-CAM), section 4.3; in [0, 1], higher is better. A map of ones gains nothing.

    >>> images, maps = torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    >>> average_gain(lambda images: 1 - images.mean(dim=(1, 2, 3)), images, maps).item()
    1.0
    """
    before, after = probability(images), probability(images * maps)
    return ((after - before).clamp(min=0) / (1 - before).clamp(min=torch.finfo(before.dtype).eps)).clamp(max=1)


def adcc(drop: Tensor, maps: Tensor, maps_of_masked: Tensor) -> Tensor:
    """Harmonic mean of coherency, 1 - complexity and 1 - average drop, in [0, 1]; higher is better.

    Source: Poppi et al. 2021, equations 4 to 8. Coherency is Pearson's correlation of the map with the map of the
    picture multiplied by it, moved to [0, 1]; complexity the map's mean. A map of ones has complexity 1 and scores 0.

    Args:
        drop: (N,), of `average_drop`.
        maps: (N, 1, H, W) in [0, 1].
        maps_of_masked: (N, 1, H, W), of ``images * maps`` by the same explainer.

    >>> adcc(torch.zeros(1), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item()
    0.0
    """
    parts = torch.stack((_coherency(maps, maps_of_masked), 1 - maps.mean(dim=(1, 2, 3)), 1 - drop))
    return torch.where(
        (parts <= 0).any(dim=0), 0.0, 3 / parts.clamp(min=torch.finfo(parts.dtype).eps).reciprocal().sum(0)
    )


def _coherency(maps: Tensor, others: Tensor) -> Tensor:
    one, other = (values.flatten(1) - values.flatten(1).mean(dim=1, keepdim=True) for values in (maps, others))
    cosine = F.cosine_similarity(one, other, dim=1)  # 0 where one of them is flat
    return (1 + cosine) / 2


def _filler(images: Tensor, fill: Fill) -> Tensor:
    if isinstance(fill, Tensor):
        if fill.shape != images.shape:
            raise InvalidInputError(f"fill: expected a number or {tuple(images.shape)}, got {tuple(fill.shape)}.")
        return fill
    return torch.full_like(images, fill)


def _edges(index: int, count: int, length: int) -> slice:
    return slice(index * length // count, (index + 1) * length // count)


def _area(score: Score, maps: Tensor, steps: int, start: Tensor, end: Tensor) -> Tensor:
    """Area under the score from ``start`` to ``end``, the highest pixels of the map going over first."""
    if steps < 1:
        raise InvalidInputError(f"steps: expected at least 1, got {steps}.")
    flat = maps.flatten(1)
    place = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(maps)
    count = flat.shape[1]
    scores = torch.stack([score(torch.where(place < step * count / steps, end, start)) for step in range(steps + 1)])
    return torch.trapezoid(scores, dx=1 / steps, dim=0)
