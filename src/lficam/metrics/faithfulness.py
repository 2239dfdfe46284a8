"""Does the model do what the map says? Pixels are taken away or shown by the map, and the model is asked again.

``score`` is a function of normalised images (n, 3, H, W) to numbers (n,): a logit, a margin or a probability of one
class. Maps are (N, 1, H, W) of the images' size. ``fill`` is what stands for "taken away": a number in the normalised
picture (0 is its mean colour), or a picture (N, 3, H, W) such as a blurred one. All values are one a picture, (N,).
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from lficam.errors import InvalidInputError
from lficam.functional import is_flat
from lficam.metrics.checks import require_maps
from lficam.metrics.stability import rank_correlation

Score = Callable[[Tensor], Tensor]
Fill = float | Tensor
ROAD_SHARES = (0.2, 0.4, 0.6, 0.8)


def patch_drops(score: Score, images: Tensor, patches: int = 8, fill: Fill = 0.0) -> Tensor:
    """How much the score falls when each square of a grid is taken away, (N, P, P); negative where it rises.

    Source: Hesse et al. 2024 (IDSDS), section 3, of any score and fill.

    Args:
        score: of the images; asked P * P + 1 times. One that gives (n, S), several numbers an image, gives
            (N, P, P, S).
        images: (N, 3, H, W), normalised.
        patches: P, squares along a side.
        fill: see the module.

    >>> patch_drops(lambda images: images.sum(dim=(1, 2, 3)), torch.ones(1, 3, 4, 4), patches=2).tolist()
    [[[12.0, 12.0], [12.0, 12.0]]]
    """
    height, width = images.shape[-2:]
    if not 1 <= patches <= min(height, width):
        raise InvalidInputError(f"patches: expected 1 to {min(height, width)}, got {patches}.")
    whole, filler = _finite(score(images)), _filler(images, fill)
    drops = []
    for row in range(patches):
        for column in range(patches):
            without = images.clone()
            place = (..., _edges(row, patches, height), _edges(column, patches, width))
            without[place] = filler[place]
            drops.append(whole - _finite(score(without)))
    return torch.stack(drops, dim=1).unflatten(1, (patches, patches))


def patch_deletion_correlation(drops: Tensor, maps: Tensor) -> Tensor:
    """Spearman's correlation of a map's patch sums and the patches' drops, in [-1, 1], higher is more faithful.

    Source: Hesse et al. 2024 (IDSDS): single patches, ranked by what their loss costs. NaN where either is
    flat.

    Args:
        drops: (N, P, P), of `patch_drops`, of a logit or of a margin.
        maps: (N, 1, H, W), H and W at least P; signed maps are taken with their signs.

    >>> drops = torch.tensor([[[1.0, 0.0], [0.5, 0.2]]])
    >>> patch_deletion_correlation(drops, torch.tensor([[[[9.0, 0.0], [3.0, 2.0]]]])).item()
    1.0
    """
    found = rank_correlation(_patch_sums(drops, maps), drops.unsqueeze(1))
    # Patches that do not divide the side differ in size, and so would the sums of a flat map.
    return found.masked_fill(is_flat(maps), torch.nan)


def top_patch(drops: Tensor, maps: Tensor) -> Tensor:
    """Whether the patch that a map puts highest is the one whose loss costs most, (N,) in [0, 1]; higher is better.

    Source: ours, the first step of `deletion`, by patches. Where one place alone decides, as a planted mark does, ranks
    of all patches hardly tell maps apart, and this does. Of patches that tie for the highest the share that costs most;
    NaN of a flat map, and where the loss of any patch costs the same. By chance one in the number of patches.

    Args:
        drops: (N, P, P), of `patch_drops`, of a logit or of a margin.
        maps: (N, 1, H, W), H and W at least P; signed maps are taken with their signs.

    Raises:
        InvalidInputError: drops that are not (N, P, P) or not finite, maps of other pictures or smaller than P.

    >>> drops = torch.tensor([[[1.0, 0.0], [0.5, 0.2]]])
    >>> top_patch(drops, torch.tensor([[[[9.0, 0.0], [3.0, 2.0]]]])).item()
    1.0
    >>> top_patch(drops, torch.tensor([[[[9.0, 9.0], [3.0, 2.0]]]])).item()
    0.5
    """
    # Means: patches that do not divide the side differ in size, and a map may have an offset.
    means = _patch_sums(drops, maps) / _patch_sums(drops, torch.ones_like(maps))
    highest, costliest = _tops(means), _tops(drops)
    found = (highest & costliest).sum(dim=1) / highest.sum(dim=1)
    return found.masked_fill(is_flat(maps) | costliest.all(dim=1), torch.nan)


def _tops(values: Tensor) -> Tensor:
    """The largest of each (N, ...), (N, M) bool; rounding does not untie them."""
    values = values.double().flatten(1)
    return values >= values.amax(dim=1, keepdim=True) - 1e-6 * values.abs().amax(dim=1, keepdim=True)


def _patch_sums(drops: Tensor, maps: Tensor) -> Tensor:
    """What a map has in each patch, (N, 1, P, P)."""
    require_maps(maps)
    if drops.ndim != 3 or drops.shape[1] != drops.shape[2] or not torch.isfinite(drops).all():
        raise InvalidInputError(f"drops: expected (N, P, P), finite, got {tuple(drops.shape)}.")
    if len(drops) != len(maps):
        raise InvalidInputError(f"maps: expected ({len(drops)}, 1, H, W), got {tuple(maps.shape)}.")
    patches = drops.shape[-1]
    if patches > min(maps.shape[-2:]):
        raise InvalidInputError(
            f"maps: expected sides of at least {patches}, a pixel a patch, got {tuple(maps.shape)}."
        )
    maps = maps.double()  # patches of the same sum, as of a symmetric map, are not to be ranked by rounding
    sums = [
        maps[..., _edges(row, patches, maps.shape[-2]), _edges(column, patches, maps.shape[-1])].sum(dim=(1, 2, 3))
        for row in range(patches)
        for column in range(patches)
    ]
    return torch.stack(sums, dim=1).view(-1, 1, patches, patches)


def deletion(score: Score, images: Tensor, maps: Tensor, steps: int = 16, fill: Fill = 0.0) -> Tensor:
    """Mean score while the highest pixels are taken away first, share by share; lower is more faithful.

    Source: Petsiuk et al. 2018, section 4.2: the area under the curve, by the trapezoid rule over ``steps`` shares; in
    [0, 1] of a probability. Of a flat map, in reading order, which says nothing.

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


def road(score: Score, images: Tensor, maps: Tensor, shares: Sequence[float] = ROAD_SHARES, seed: int = 0) -> Tensor:
    """How much more the score falls when the highest pixels go than when the lowest do; higher is more faithful.

    Source: Rong et al. 2022 (ROAD): removed pixels are imputed (`impute`), so that their shape tells the model nothing.
    The mean over shares of half the difference of the score without the lowest and without the highest pixels, as
    pytorch-grad-cam combines the two orders; of a probability in [-1/2, 1/2]. 0 for a map that ranks no better than
    chance; of a flat map, in reading order, which says nothing.

    Args:
        score: of the images; asked twice a share.
        images: (N, 3, H, W), normalised.
        maps: (N, 1, H, W).
        shares: of the pixels that are removed, in (0, 1).
        seed: of the noise.

    >>> image = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]]).expand(1, 3, 2, 2)
    >>> road(lambda images: images.sum(dim=(1, 2, 3)), image, image[:, :1], shares=[0.25]).item() > 0
    True
    """
    require_maps(maps, images)
    place, count = _places(maps), maps[0].numel()
    halves = []
    for share in shares:
        if not 0 < share < 1:
            raise InvalidInputError(f"shares: expected more than 0 and less than 1, got {share}.")
        number = round(share * count)
        lowest, highest = (impute(images, gone, seed) for gone in (place >= count - number, place < number))
        halves.append((_finite(score(lowest)) - _finite(score(highest))) / 2)
    return torch.stack(halves).mean(dim=0)


def impute(images: Tensor, removed: Tensor, seed: int = 0, noise: float = 0.01) -> Tensor:
    """Pictures whose removed pixels are a weighted mean of their neighbours, with a little noise.

    Source: Rong et al. 2022, section 4 ("noisy linear imputation"): weights 1/6 for the four nearest neighbours, 1/12
    for the four diagonal ones, those inside the picture, solved for all removed pixels at once.

    Args:
        images: (N, 3, H, W).
        removed: (N, 1, H, W) bool; where all of a picture's are, it is zero (the mean colour) and noise.
        seed: of the noise, the same for every picture.
        noise: its standard deviation.

    >>> image = torch.tensor([[[[1.0, 9.0, 3.0]]]]).expand(1, 3, 1, 3)
    >>> impute(image, torch.tensor([[[[False, True, False]]]]), noise=0.0)[0, 0].tolist()
    [[1.0, 2.0, 3.0]]
    """
    filled = images.clone()
    generator = torch.Generator().manual_seed(seed)
    jitter = noise * torch.randn(images.shape[1:], generator=generator).to(images)
    for picture, gone in zip(filled, removed[:, 0], strict=True):
        if gone.all():
            picture.zero_()
        elif gone.any():
            picture[:, gone] = torch.from_numpy(_solve(picture.cpu().double().numpy(), gone.cpu().numpy())).to(images)
    return filled + jitter * removed


def _solve(picture: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Values (C, M) of the M removed pixels."""
    height, width = gone.shape
    number = np.full(gone.shape, -1)
    number[gone] = np.arange(gone.sum())
    rows, columns = np.nonzero(gone)
    here = number[gone]
    weights, found = np.zeros(len(here)), np.zeros((picture.shape[0], len(here)))
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        if down == right == 0:
            continue
        weight = 1 / 12 if down and right else 1 / 6
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        weights += weight * inside
        y, x, of_these = y[inside], x[inside], here[inside]
        known = ~gone[y, x]
        found[:, of_these[known]] += weight * picture[:, y[known], x[known]]  # a pixel occurs once in a direction
        entries.append((of_these[~known], number[y[~known], x[~known]], np.full((~known).sum(), -weight)))
    entries.append((here, here, weights))
    at, of, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    system = sparse.csc_matrix((values, (at, of)), shape=(len(here), len(here)))
    return splu(system).solve(found.T).T


def average_drop(probability: Score, images: Tensor, maps: Tensor) -> Tensor:
    """The share of its probability that a class loses when the picture is multiplied by the map, in [0, 1].

    Source: Chattopadhyay et al. 2018, section 4.1; lower is better. A map of ones loses nothing, so this stands never
    alone: see `average_gain`.

    >>> images, maps = torch.ones(1, 3, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    >>> average_drop(lambda images: images.mean(dim=(1, 2, 3)), images, maps).item()
    0.5
    """
    before, after = _seen_through(probability, images, maps)
    return ((before - after).clamp(min=0) / before.clamp(min=torch.finfo(before.dtype).tiny)).clamp(max=1)


def average_gain(probability: Score, images: Tensor, maps: Tensor) -> Tensor:
    """The share of what is missing to certainty that a class gains when the picture is multiplied by the map.

    Source: Zhang et al. 2023 (Opti-CAM), section 4.3; in [0, 1], higher is better. A map of ones gains nothing.

    >>> images, maps = torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    >>> average_gain(lambda images: 1 - images.mean(dim=(1, 2, 3)), images, maps).item()
    1.0
    """
    before, after = _seen_through(probability, images, maps)
    return ((after - before).clamp(min=0) / (1 - before).clamp(min=torch.finfo(before.dtype).eps)).clamp(max=1)


def _seen_through(probability: Score, images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The answers to the pictures, and to them multiplied by their maps."""
    require_maps(maps, images, unit=True)
    return _finite(probability(images)), _finite(probability(images * maps))


def adcc(drop: Tensor, maps: Tensor, maps_of_masked: Tensor) -> Tensor:
    """Harmonic mean of coherency, 1 - complexity and 1 - average drop, in [0, 1]; higher is better.

    Source: Poppi et al. 2021, equations 4 to 8. Coherency is Pearson's correlation of the map with the map of the
    picture multiplied by it, moved to [0, 1]; complexity the map's mean. A map of ones has complexity 1 and scores
    0, as does any flat map: it has no correlation.

    Args:
        drop: (N,), of `average_drop`.
        maps: (N, 1, H, W) in [0, 1].
        maps_of_masked: (N, 1, H, W), of ``images * maps`` by the same explainer.

    >>> adcc(torch.zeros(1), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item()
    0.0
    """
    require_maps(maps, unit=True)
    require_maps(maps_of_masked, maps)
    if drop.shape != (len(maps),):
        raise InvalidInputError(f"drop: expected ({len(maps)},), one a map, got {tuple(drop.shape)}.")
    parts = torch.stack((_coherency(maps, maps_of_masked), 1 - maps.mean(dim=(1, 2, 3)), 1 - drop))
    return torch.where(
        (parts <= 0).any(dim=0), 0.0, 3 / parts.clamp(min=torch.finfo(parts.dtype).eps).reciprocal().sum(0)
    )


def _coherency(maps: Tensor, others: Tensor) -> Tensor:
    one, other = (values.flatten(1) - values.flatten(1).mean(dim=1, keepdim=True) for values in (maps, others))
    coherency = (1 + F.cosine_similarity(one, other, dim=1)) / 2
    # A flat map has no correlation; half of the score for saying nothing would be too much.
    return coherency.masked_fill(is_flat(maps) | is_flat(others), 0.0)


def _finite(scores: Tensor) -> Tensor:
    """The answers, of which something can be said."""
    if not torch.isfinite(scores).all():
        raise InvalidInputError("score: answers NaN or infinity to a picture that pixels were taken from.")
    return scores


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
    require_maps(maps, start)
    if steps < 1:
        raise InvalidInputError(f"steps: expected at least 1, got {steps}.")
    place, count = _places(maps), maps[0].numel()
    shown = (torch.where(place < step * count / steps, end, start) for step in range(steps + 1))
    scores = torch.stack([_finite(score(images)) for images in shown])
    return torch.trapezoid(scores, dx=1 / steps, dim=0)


def _places(maps: Tensor) -> Tensor:
    """Each pixel's place in its map's order, from 0 for the highest; of equal ones the first in reading order first."""
    return maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(maps)
