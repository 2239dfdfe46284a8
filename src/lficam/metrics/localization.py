"""Where a map points, held against boxes: pointing game, box IoU, and the chance rates beside them.

Boxes are (x1, y1, x2, y2) in pixels, x2 and y2 exclusive. All rates are in [0, 1], higher is better.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lficam.errors import InvalidInputError
from lficam.functional import is_flat


def peaks(maps: Tensor) -> Tensor:
    """The pixel of each map's maximum (the first in reading order), (N, 2) as (x, y).

    Args:
        maps: (N, 1, H, W).

    >>> peaks(torch.tensor([[[[0.0, 0.2], [0.9, 0.1]]]])).tolist()
    [[0, 1]]
    """
    _check_maps(maps)
    flat = maps.flatten(1).argmax(dim=1)
    width = maps.shape[-1]
    return torch.stack((flat % width, flat // width), dim=1)


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

    >>> region_boxes(torch.tensor([[[[0.0, 0.6], [0.0, 1.0]]]])).tolist()
    [[1.0, 0.0, 2.0, 2.0]]
    """
    _check_maps(maps)
    height, width = maps.shape[-2:]
    boxes = []
    for array in maps[:, 0].detach().float().cpu().numpy():
        labelled, count = ndimage.label(array >= threshold)
        if count == 0:
            boxes.append((0, 0, width, height))
            continue
        largest = 1 + int(np.argmax(np.bincount(labelled.ravel())[1:]))
        rows, columns = ndimage.find_objects(labelled)[largest - 1]
        boxes.append((columns.start, rows.start, columns.stop, rows.stop))
    return torch.tensor(boxes, dtype=torch.float32)


def region_iou(maps: Tensor, boxes: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of each map's `region_boxes` and its box, (N,); 0 where the box is missing (NaN).

    Of boxes (N, I, 4) the one that fits best counts.

    >>> region_iou(torch.tensor([[[[0.0, 0.6], [0.0, 1.0]]]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])).tolist()
    [0.5]
    """
    boxes = _check_boxes(boxes, maps)
    found = region_boxes(maps, threshold).to(boxes).unsqueeze(1)
    corner, opposite = torch.maximum(found[..., :2], boxes[..., :2]), torch.minimum(found[..., 2:], boxes[..., 2:])
    shared = (opposite - corner).clamp(min=0).prod(dim=2)
    union = _area(found) + _area(boxes) - shared
    return (shared / union).nan_to_num(0.0).amax(dim=1)


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


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise InvalidInputError(f"maps: expected (N, 1, H, W), got {tuple(maps.shape)}.")
    if not torch.isfinite(maps).all():
        raise InvalidInputError("maps: got NaN or infinite values; a map must be finite.")


def _check_boxes(boxes: Tensor, maps: Tensor) -> Tensor:
    """(N, I, 4)."""
    if boxes.ndim not in (2, 3) or len(boxes) != len(maps) or boxes.shape[-1] != 4:
        raise InvalidInputError(
            f"boxes: expected ({len(maps)}, 4) or ({len(maps)}, I, 4), one or some a map, got {tuple(boxes.shape)}."
        )
    return boxes.to(maps.device, torch.float32).view(len(maps), -1, 4)
