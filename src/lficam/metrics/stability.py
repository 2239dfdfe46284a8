"""How alike the maps of two models are for the same pictures, and how alike they would be by chance.

Maps are (N, 1, H, W), min-max in [0, 1], of the same pictures in the same order. All values are one a picture, (N,);
NaN where a picture cannot be compared: the caller leaves it out and counts it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lficam.functional import is_flat
from lficam.metrics.checks import require_maps, require_share

PAPER_THRESHOLD = 127 / 255
# Maps whose windows are compared at a time: they take fifty times the memory of the maps.
_AT_ONCE = 16


@dataclass(frozen=True)
class Likeness:
    """A measure in two steps, so that who holds many sets of maps against each other prepares each set once.

    Attributes:
        prepare: from maps (N, 1, H, W) to what is compared, (N, ...).
        compare: from two of these to values (N,).
        unit: whether the maps must be in [0, 1].

    >>> maps = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    >>> SPEARMAN(maps, maps).item()
    1.0
    """

    prepare: Callable[[Tensor], Tensor]
    compare: Callable[[Tensor, Tensor], Tensor]
    unit: bool = False

    def __call__(self, maps: Tensor, others: Tensor) -> Tensor:
        """The values (N,) of maps (N, 1, H, W) and others of the same pictures."""
        require_maps(maps, unit=self.unit)
        require_maps(others, maps, unit=self.unit)
        return self.compare(self.prepare(maps), self.prepare(others))


def map_iou(maps: Tensor, others: Tensor, threshold: float = PAPER_THRESHOLD) -> Tensor:
    """Intersection over union of the pixels at or above a threshold, in [0, 1], higher is more alike.

    Source: section 4.4 of the paper (maps of 0 to 255, at 127 or more). NaN where both regions are empty: the union
    is, and to call that perfect would reward flat maps.

    Raises:
        InvalidInputError: maps of other pictures, values beyond [0, 1], or a threshold that is not in (0, 1].

    >>> map_iou(torch.tensor([[[[1.0, 0.6, 0.0]]]]), torch.tensor([[[[1.0, 0.2, 0.8]]]])).item()
    0.3333333432674408
    """
    return thresholded(threshold)(maps, others)


def thresholded(threshold: float) -> Likeness:
    """`map_iou` at a threshold."""
    require_share("threshold", threshold)
    return Likeness(lambda maps: maps >= threshold, _overlap, unit=True)


def area_matched_iou(maps: Tensor, others: Tensor, share: float) -> Tensor:
    """`map_iou` of the same number of pixels of each map, its highest, in [0, 1], higher is more alike.

    Source: ours. A threshold marks as many pixels as the map's shape has it, and two large regions meet by chance; here
    size does not count, place does.

    Args:
        maps: (N, 1, H, W).
        others: likewise.
        share: of the pixels, in (0, 1]; at least one is taken. Of equal values the first in reading order are.

    Returns:
        (N,); NaN where a part of a map's lowest pixels would be among its highest, as of a flat one: which would be for
        the reading order to say.

    >>> area_matched_iou(torch.tensor([[[[1.0, 0.6, 0.5, 0.0]]]]), torch.tensor([[[[1.0, 0.2, 0.3, 0.0]]]]), 0.5).item()
    0.3333333432674408
    """
    return highest(share)(maps, others)


def highest(share: float) -> Likeness:
    """`area_matched_iou` of a share of the pixels."""
    require_share("share", share)
    return Likeness(lambda maps: _highest(maps, share), _overlap_of_marked)


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation of the pixels' values, in [-1, 1], higher is more alike; NaN where a map is flat.

    Source: Spearman 1904, on maps as in Adebayo et al. 2018.

    >>> rank_correlation(torch.tensor([[[[0.0, 0.5, 1.0]]]]), torch.tensor([[[[0.0, 0.1, 1.0]]]])).item()
    1.0
    """
    return SPEARMAN(maps, others)


def structural_similarity(maps: Tensor, others: Tensor) -> Tensor:
    """SSIM of the window around each pixel, its mean, in [-1, 1], higher is more alike.

    Source: Wang et al. 2004, equation 13, by torchmetrics (borders mirrored). NaN where a map is flat, and for maps of
    a side below the window's 11.

    >>> maps = torch.arange(256.0).view(1, 1, 16, 16) / 255
    >>> structural_similarity(maps, maps).tolist()
    [1.0]
    """
    return SSIM(maps, others)


def _structural_similarity(maps: Tensor, others: Tensor) -> Tensor:
    if min(maps.shape[-2:]) < 11:
        return torch.full((len(maps),), torch.nan, device=maps.device)
    found = []
    for one, other in zip(maps.split(_AT_ONCE), others.split(_AT_ONCE), strict=True):
        of_part = structural_similarity_index_measure(one, other, data_range=1.0, reduction="none")
        assert isinstance(of_part, Tensor)
        found.append(of_part.view(len(one)))
    return torch.cat(found).masked_fill(is_flat(maps) | is_flat(others), torch.nan)


def chance_corrected(value: Tensor, by_chance: Tensor) -> Tensor:
    """(value - chance) / (1 - chance): 0 is no better than other pictures of the class, 1 is perfect.

    Source: Cohen 1960 (kappa), with the likeness of other pictures of the class as chance.

    NaN where chance itself is perfect, as it is for a map that never looks at the picture.

    >>> chance_corrected(torch.tensor(0.75), torch.tensor(0.5)).item()
    0.5
    """
    room = 1 - by_chance
    perfect = room <= torch.finfo(room.dtype).eps
    return ((value - by_chance) / room.masked_fill(perfect, 1.0)).masked_fill(perfect, torch.nan)


def partners_of_one_class(labels: Tensor, seed: int = 0) -> Tensor:
    """For each picture another one of its class, (N,) int64; -1 where it is the only one.

    With maps of these in place of its own, a measure says how alike maps are that share a class and no picture.

    >>> partners_of_one_class(torch.tensor([0, 1, 0])).tolist()
    [2, -1, 0]
    """
    generator = torch.Generator().manual_seed(seed)
    partners = torch.full_like(labels, -1)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        if len(members) > 1:
            order = members[torch.randperm(len(members), generator=generator)]
            partners[order] = order.roll(1)
    return partners


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    shared, union = (pixels.flatten(1).sum(dim=1) for pixels in (one & other, one | other))
    return torch.where(union > 0, shared / union.clamp(min=1), torch.nan)


def _overlap_of_marked(one: Tensor, other: Tensor) -> Tensor:
    marked = one.any(dim=1) & other.any(dim=1)
    return _overlap(one, other).masked_fill(~marked, torch.nan)


def _highest(maps: Tensor, share: float) -> Tensor:
    """The highest pixels, (N, H * W) bool; none where a part of the lowest would be among them."""
    flat = maps.flatten(1)
    count = max(round(share * flat.shape[1]), 1)
    values, order = flat.sort(dim=1, descending=True, stable=True)
    told = (values[:, count - 1] > values[:, -1]) | (count == flat.shape[1])
    return (
        torch.zeros_like(flat, dtype=torch.bool).scatter(1, order[:, :count], True) & (told & ~is_flat(maps))[:, None]
    )


def _centred_ranks(maps: Tensor) -> Tensor:
    """Ranks (N, H * W) less their mean: halves of whole numbers, so that float32 holds them exactly."""
    maps = maps.detach().float() if maps.dtype == torch.bfloat16 else maps.detach()  # which NumPy does not have
    ranks = torch.from_numpy(rankdata(maps.flatten(1).cpu().numpy(), axis=1)).to(maps.device)
    return (ranks - (ranks.shape[1] + 1) / 2).float()


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Of values whose mean is 0; NaN where all of one are."""
    one, other = one.double(), other.double()
    scale = (one.square().sum(dim=1) * other.square().sum(dim=1)).sqrt()
    return ((one * other).sum(dim=1) / scale).float()


SPEARMAN = Likeness(_centred_ranks, _correlation)
SSIM = Likeness(lambda maps: maps, _structural_similarity)
