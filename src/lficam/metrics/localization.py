"""Where a map points, held against boxes: pointing game, box IoU, and the chance rates beside them.

Boxes are (x1, y1, x2, y2) in pixels, x2 and y2 exclusive. All rates are in [0, 1], higher is better.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lficam.errors import InvalidInputError
from lficam.functional import is_flat, min_max
from lficam.metrics.checks import require_maps, require_share
from lficam.metrics.intervals import Statistic

# Of a map's range: what rounding in its enlargement may make of a level top.
_LEVEL = 1e-6
# Maps whose pixels are counted or labelled at a time: that takes several times the memory of the maps.
_AT_ONCE = 256
# Cells that meet at a corner only are two regions, and so are those of two maps.
_NEIGHBOURS = np.pad(ndimage.generate_binary_structure(2, 1)[None], ((1, 1), (0, 0), (0, 0)))

Numbers = np.ndarray[Any, Any]


def peaks(maps: Tensor) -> Tensor:
    """The place of each map's maximum, (N, 2) as (x, y): a pixel's centre is half a pixel from its edges.

    Enlarged maps are level around their border cells, so the middle of the level top is taken, and a mirrored map has a
    mirrored peak. Of several tops the first in reading order counts.

    Args:
        maps: (N, 1, H, W).

    >>> peaks(torch.tensor([[[[0.0, 0.2], [0.9, 0.1]]]])).tolist()
    [[0.5, 1.5]]
    """
    require_maps(maps)
    found = []
    for array in maps[:, 0].detach().float().cpu().numpy():
        top = array >= array.max() - _LEVEL * (array.max() - array.min())
        labelled, _ = ndimage.label(top)
        rows, columns = np.nonzero(labelled == labelled.flat[int(np.argmax(top))])
        found.append((columns.mean() + 0.5, rows.mean() + 0.5))
    return torch.tensor(found, dtype=torch.float32, device=maps.device).view(-1, 2)


def points_into(maps: Tensor, boxes: Tensor) -> Tensor:
    """The pointing game: whether each map's peak lies in its box, (N,) bool. A flat map has no peak and misses.

    Source: Zhang et al. 2018, section 5.2, without its tolerance of 15 pixels. A missing box (NaN) is missed.

    Args:
        maps: (N, 1, H, W).
        boxes: (N, 4) in the maps' pixels, or (N, I, 4): the peak may lie in any of I.

    >>> points_into(torch.tensor([[[[0.0, 0.2], [0.9, 0.1]]]]), torch.tensor([[0.0, 1.0, 1.0, 2.0]])).tolist()
    [True]
    """
    x, y = peaks(maps).unsqueeze(1).unbind(2)
    x1, y1, x2, y2 = _check_boxes(boxes, maps).unbind(2)
    inside = ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).any(dim=1)
    return inside & ~is_flat(maps)


def region_boxes(maps: Tensor, threshold: float = 0.5) -> Tensor:
    """The box around the largest connected region at or above a threshold, (N, 4); of a flat map the whole picture.

    Source: Zhou et al. 2016, section 3.2 (they take a fifth of the maximum; half is what the paper's stability uses).

    Args:
        maps: (N, 1, H, W), each min-max in [0, 1].
        threshold: in (0, 1].

    Raises:
        InvalidInputError: values beyond [0, 1], or another threshold.

    >>> region_boxes(torch.tensor([[[[0.0, 0.6], [0.0, 1.0]]]])).tolist()
    [[1.0, 0.0, 2.0, 2.0]]
    """
    require_maps(maps, unit=True)
    require_share("threshold", threshold)
    owner, boxes, sizes = _regions(maps, threshold)
    by_size = np.lexsort((-sizes, owner))  # stable: of two as large the first
    _, largest = np.unique(owner[by_size], return_index=True)
    return torch.tensor(boxes[by_size[largest]], dtype=torch.float32, device=maps.device)


def _regions(maps: Tensor, threshold: float) -> tuple[Numbers, Numbers, Numbers]:
    """Of all regions at or above a threshold whose map, (R,), the box, (R, 4), and the size, (R,).

    A map without any has one: the whole picture.
    """
    height, width = maps.shape[-2:]
    found: list[tuple[int, int, int, int, int, int]] = []
    for start in range(0, len(maps), _AT_ONCE):
        above = (maps[start : start + _AT_ONCE, 0].detach().float() >= threshold).cpu().numpy()
        labelled, _ = ndimage.label(above, _NEIGHBOURS)
        sizes = np.bincount(labelled.ravel())[1:].tolist()
        for (of, rows, columns), size in zip(ndimage.find_objects(labelled), sizes, strict=True):
            found.append((start + of.start, columns.start, rows.start, columns.stop, rows.stop, size))
        for bare in np.flatnonzero(~above.any(axis=(1, 2))).tolist():
            found.append((start + bare, 0, 0, width, height, width * height))
    owner, *box, size = np.array(found, dtype=np.int64).reshape(-1, 6).T
    return owner, np.stack(box, axis=1), size


def region_iou(maps: Tensor, boxes: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of each map's `region_boxes` and its box, (N,); 0 where the box is missing (NaN).

    Of boxes (N, I, 4) the one that fits best counts.

    >>> region_iou(torch.tensor([[[[0.0, 0.6], [0.0, 1.0]]]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])).tolist()
    [0.5]
    """
    return _best_overlap(region_boxes(maps, threshold), _check_boxes(boxes, maps))


def _best_overlap(found: Tensor, boxes: Tensor) -> Tensor:
    """Of a box each, (N, 4), with any of some, (N, I, 4), (N,); 0 where they are missing (NaN)."""
    found = found.unsqueeze(1)
    corner, opposite = torch.maximum(found[..., :2], boxes[..., :2]), torch.minimum(found[..., 2:], boxes[..., 2:])
    shared = (opposite - corner).clamp(min=0).prod(dim=2)
    union = _area(found) + _area(boxes) - shared
    return (shared / union).nan_to_num(0.0).amax(dim=1)


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels whose centre lies in a box, (N, 1, H, W) bool; of boxes (N, I, 4) in any of I, in none that is NaN.

    >>> box_masks(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), (1, 2)).tolist()
    [[[[True, False]]]]
    """
    height, width = size
    y = torch.arange(height, device=boxes.device).view(1, 1, -1, 1) + 0.5
    x = torch.arange(width, device=boxes.device).view(1, 1, 1, -1) + 0.5
    x1, y1, x2, y2 = (edge[..., None, None] for edge in boxes.view(len(boxes), -1, 4).unbind(2))
    return ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(dim=1, keepdim=True)


def energy_share(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of a map's sum that lies in its object, (N,); higher is better. A flat zero map has none: 0.

    Source: Wang et al. 2020 (Score-CAM), section 4.3, "energy-based pointing game". A map of ones scores the object's
    share of the picture.

    Args:
        maps: (N, 1, H, W), zero or more; what is below zero counts as zero.
        masks: (N, 1, H, W) bool.

    Raises:
        InvalidInputError: masks of another shape, or empty ones.

    >>> energy_share(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[False, True]]]])).item()
    0.75
    """
    _check_masks(masks, maps)
    maps = maps.relu()
    total = maps.sum(dim=(1, 2, 3))
    return (maps * masks).sum(dim=(1, 2, 3)) / total.masked_fill(total == 0, 1.0)


def mask_iou(maps: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of the pixels at or above a threshold and the object's, (N,) in [0, 1]; 0 of a zero map.

    Source: Jaccard's index, of each picture; a map of ones scores the object's share of the picture.

    >>> mask_iou(torch.tensor([[[[1.0, 0.6, 0.0]]]]), torch.tensor([[[[True, False, False]]]])).item()
    0.5
    """
    _check_masks(masks, maps, unit=True)
    require_share("threshold", threshold)
    high = maps >= threshold
    return (high & masks).sum(dim=(1, 2, 3)) / (high | masks).sum(dim=(1, 2, 3))


def max_box_acc(maps: Tensor, boxes: Tensor, deltas: Sequence[float] = (0.3, 0.5, 0.7), steps: int = 20) -> float:
    """For each overlap asked for, the share of boxes found at the threshold that finds most; their mean.

    Source: Choe et al. 2020, section 4.1, MaxBoxAcc: a threshold gives one box, that of the largest region. Its one
    overlap of a half is here the three of `max_box_acc_v2`, and cells that meet at a corner only are two regions, where
    contours are traced through corners. Thresholds are chosen on the very pictures that are scored,
    as its authors do: an upper bound; `tuned_threshold` chooses elsewhere.

    Args:
        maps: (N, 1, H, W) in [0, 1].
        boxes: (N, 4) or (N, I, 4).
        deltas: overlaps that count as found.
        steps: thresholds tried between 0 and 1.

    >>> max_box_acc(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    1.0
    """
    return float(largest_region_found(maps, boxes, deltas, steps).mean())


def largest_region_found(
    maps: Tensor, boxes: Tensor, deltas: Sequence[float] = (0.3, 0.5, 0.7), steps: int = 20
) -> Tensor:
    """What each picture adds to `max_box_acc`, (N,) in [0, 1]: the share of overlaps it has at their thresholds."""
    return _found_at_the_best([region_iou(maps, boxes, threshold) for threshold in _thresholds(steps)], deltas)


def max_box_acc_v2(maps: Tensor, boxes: Tensor, deltas: Sequence[float] = (0.3, 0.5, 0.7), steps: int = 100) -> float:
    """As `max_box_acc`, but a picture counts as found where the box of any region overlaps any of its boxes enough.

    Source: Choe et al. 2022 (TPAMI, "Evaluation for Weakly Supervised Object Localization"), MaxBoxAccV2. The more
    regions a map falls into, the more guesses it has: read it beside `max_box_acc`.

    Args:
        maps: (N, 1, H, W) in [0, 1].
        boxes: (N, 4) or (N, I, 4).
        deltas: overlaps that count as found.
        steps: thresholds tried between 0 and 1.

    >>> two_regions = torch.tensor([[[[1.0, 1.0, 0.0, 0.9]]]])
    >>> max_box_acc_v2(two_regions, torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
    1.0
    >>> max_box_acc(two_regions, torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
    0.0
    """
    return float(any_region_found(maps, boxes, deltas, steps).mean())


def any_region_found(
    maps: Tensor, boxes: Tensor, deltas: Sequence[float] = (0.3, 0.5, 0.7), steps: int = 100
) -> Tensor:
    """What each picture adds to `max_box_acc_v2`, (N,) in [0, 1]."""
    require_maps(maps, unit=True)
    boxes = _check_boxes(boxes, maps).cpu()
    return _found_at_the_best([_best_of_any_region(maps, boxes, threshold) for threshold in _thresholds(steps)], deltas)


def _best_of_any_region(maps: Tensor, boxes: Tensor, threshold: float) -> Tensor:
    """The overlap of any of a map's regions' boxes with any of its boxes, (N,)."""
    owner, found, _ = (torch.from_numpy(numbers) for numbers in _regions(maps, threshold))
    return torch.zeros(len(maps)).scatter_reduce(0, owner, _best_overlap(found.float(), boxes[owner]), "amax")


def _found_at_the_best(ious: Sequence[Tensor], deltas: Sequence[float]) -> Tensor:
    """Of overlaps (N,), one a threshold: what is found at the threshold that finds most, a mean over the deltas."""
    if not deltas:
        raise InvalidInputError("deltas: expected at least one overlap that counts as found, got none.")
    found = [torch.stack([iou >= delta for iou in ious]).float() for delta in deltas]  # (thresholds, N) each
    return torch.stack([at[int(at.sum(dim=1).argmax())] for at in found]).mean(dim=0)


def tuned_threshold(
    maps: Tensor, truth: Tensor, iou: Callable[[Tensor, Tensor, float], Tensor] = region_iou, steps: int = 20
) -> float:
    """The threshold of the best mean `region_iou`, or `mask_iou`: to be chosen on other pictures than it is judged on.

    Source: Choe et al. 2020: what is chosen on the test pictures is no localisation without boxes.

    >>> tuned_threshold(torch.tensor([[[[1.0, 0.6, 0.2]]]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
    0.25
    """
    return max(_thresholds(steps), key=lambda threshold: float(iou(maps, truth, threshold).mean()))


def pixel_average_precision(maps: Tensor, masks: Tensor) -> float:
    """PxAP: the average precision of all pixels of all pictures, ranked by their maps' values, in [0, 1].

    Source: Choe et al. 2020, section 4.1; the ranks are a thousand levels. A map of ones scores the objects' share of
    the pixels.

    Args:
        maps: (N, 1, H, W) in [0, 1].
        masks: (N, 1, H, W) bool.

    Raises:
        InvalidInputError: values out of [0, 1], masks of another shape, or empty ones.

    >>> pixel_average_precision(torch.tensor([[[[1.0, 0.2]]]]), torch.tensor([[[[True, False]]]]))
    1.0
    """
    return float(pixels_found(maps, masks)(torch.ones(1, len(maps))))


def pixels_found(maps: Tensor, masks: Tensor, levels: int = 1000) -> Statistic:
    """`pixel_average_precision` of sets that hold each picture so many times.

    Each picture is counted into levels once, which a library's curve of all pixels would do again for each set.
    """
    _check_masks(masks, maps, unit=True)
    parts = zip(maps.float().split(_AT_ONCE), masks.split(_AT_ONCE), strict=True)
    pixels, of_objects = (
        torch.cat(counts) for counts in zip(*(_counted(*part, levels) for part in parts), strict=True)
    )

    def average_precision(counts: Tensor) -> Tensor:
        shown, right = counts.double() @ pixels, counts.double() @ of_objects
        recall = right / right[:, -1:]
        return (recall.diff(dim=1, prepend=recall.new_zeros(len(recall), 1)) * right / shown.clamp(min=1)).sum(dim=1)

    return average_precision


def _counted(maps: Tensor, masks: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """How many pixels of each map are at a level or above it, (N, levels), from the highest; and of its object's."""
    edges = torch.linspace(0, 1, levels, device=maps.device)
    level = (torch.searchsorted(edges, maps.flatten(1).contiguous(), right=True) - 1).clamp(min=0)
    none = torch.zeros(len(maps), levels, device=maps.device)
    pixels, of_objects = (
        none.scatter_add(1, level, weight.flatten(1)).flip(1).cumsum(1).cpu().double()
        for weight in (torch.ones_like(maps), masks.to(maps))
    )
    return pixels, of_objects


def grid_share(maps: Tensor, cells: Tensor, side: int = 2) -> Tensor:
    """The grid pointing game: the share of what a map says for a class that lies in the cell of that class, (N,).

    Source: Boehle et al. 2021, section 4: pictures of different classes side by side, positive evidence only. Chance is
    1 / side ** 2; 0 where a map has no positive value.

    Args:
        maps: (N, 1, H, W), signed or not, of grids of ``side`` x ``side`` pictures.
        cells: (N,) int64, the cell asked for, in reading order.
        side: pictures along a side.

    >>> grid_share(torch.tensor([[[[3.0, 1.0], [-5.0, 0.0]]]]), torch.tensor([0])).item()
    0.75
    """
    require_maps(maps)
    height, width = maps.shape[-2:]
    if height % side or width % side:
        raise InvalidInputError(f"maps: expected sides that {side} divides, got {height} x {width}.")
    if cells.shape != (len(maps),) or not ((cells >= 0) & (cells < side**2)).all():
        raise InvalidInputError(f"cells: expected {len(maps)} of 0 to {side**2 - 1}, one a map, got {cells.tolist()}.")
    parts = maps.relu().view(len(maps), side, height // side, side, width // side).sum(dim=(2, 4)).flatten(1)
    total = parts.sum(dim=1)
    return parts.gather(1, cells.view(-1, 1))[:, 0] / total.masked_fill(total == 0, 1.0)


def mean_map(maps: Tensor) -> Tensor:
    """The mean of all maps in the place of each, min-max in [0, 1]: what takes no look at the picture.

    A mean that is flat, as of maps of ones, stays as it is.

    >>> mean_map(torch.tensor([[[[1.0, 0.0]]], [[[1.0, 0.5]]]])).tolist()
    [[[[1.0, 0.0]]], [[[1.0, 0.0]]]]
    """
    mean = maps.mean(dim=0, keepdim=True)
    return (mean if is_flat(mean) else min_max(mean)).expand_as(maps)


def _thresholds(steps: int) -> list[float]:
    if steps < 2:
        raise InvalidInputError(f"steps: expected at least 2, got {steps}.")
    return [number / steps for number in range(1, steps)]


def _check_masks(masks: Tensor, maps: Tensor, unit: bool = False) -> None:
    require_maps(maps, unit=unit)
    if masks.shape != maps.shape or masks.dtype != torch.bool:
        raise InvalidInputError(f"masks: expected {tuple(maps.shape)} bool, got {tuple(masks.shape)} {masks.dtype}.")
    if not masks.flatten(1).any(dim=1).all():
        raise InvalidInputError("masks: got an empty one; leave out the pictures whose object is not in view.")


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def widened(boxes: Tensor, margin: float) -> Tensor:
    """Boxes (..., 4) with ``margin`` pixels more on every side; they may leave the picture.

    >>> widened(torch.tensor([[4.0, 4.0, 6.0, 6.0]]), 2).tolist()
    [[2.0, 2.0, 8.0, 8.0]]
    """
    return boxes + boxes.new_tensor([-margin, -margin, margin, margin])


def shuffled(count: int, seed: int = 0) -> Tensor:
    """A pairing of each picture with another one, (N,): for chance rates, the map of another picture.

    >>> bool((shuffled(5) == torch.arange(5)).any())
    False
    """
    if count < 2:
        raise InvalidInputError(f"count: expected at least 2 pictures to pair with others, got {count}.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def _check_boxes(boxes: Tensor, maps: Tensor) -> Tensor:
    """(N, I, 4)."""
    if boxes.ndim not in (2, 3) or len(boxes) != len(maps) or boxes.shape[-1] != 4:
        raise InvalidInputError(
            f"boxes: expected ({len(maps)}, 4) or ({len(maps)}, I, 4), one or some a map, got {tuple(boxes.shape)}."
        )
    return boxes.to(maps.device, torch.float32).view(len(maps), 1 if boxes.ndim == 2 else boxes.shape[1], 4)
