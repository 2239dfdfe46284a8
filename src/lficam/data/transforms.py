"""Preprocessing and augmentation on uint8, pure functions of pictures and a few uniform numbers each."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from lficam.contract import Preprocessing

THINNEST = 4
AugmentationName = Literal["none", "crop", "crop_flip", "resized_crop_flip"]


def prepare(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Short side to ``resize`` (bilinear, antialiased), then the centre crop: (3, H, W) to (3, size, size), uint8.

    Of a picture that is more than four times as long as wide the ends are cut off first: the crop does not see them,
    and enlarged they would not fit into memory.
    """
    height, width = image.shape[-2:]
    longest = THINNEST * min(height, width)
    if max(height, width) > longest:
        top, left = (max(side - longest, 0) // 2 for side in (height, width))
        return prepare(image[:, top : top + longest, left : left + longest], preprocessing)
    resized = preprocessing.resized(height, width)
    if resized != (height, width):
        image = TF.resize(image, list(resized), antialias=True)
    top, left = (resized[0] - preprocessing.size) // 2, (resized[1] - preprocessing.size) // 2
    return image[:, top : top + preprocessing.size, left : left + preprocessing.size]


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (N, 3, H, W) in [0, 255] to float32, zero mean and unit deviation by the preprocessing's figures."""
    mean = torch.tensor(preprocessing.mean, device=images.device).mul(255).view(1, 3, 1, 1)
    scale = torch.tensor(preprocessing.std, device=images.device).mul(255).reciprocal().view(1, 3, 1, 1)
    return (images.float() - mean) * scale


def padded_crop(images: Tensor, draws: Tensor) -> Tensor:
    """Zero-pad by an eighth of the side (4 pixels at 32), crop back at a random place.

    Args:
        images: (N, 3, S, S) uint8.
        draws: (N, 2) in [0, 1): row, column.
    """
    return _gather_crop(images, draws, flip=torch.zeros(len(images), dtype=torch.bool))


def padded_crop_flip(images: Tensor, draws: Tensor) -> Tensor:
    """`padded_crop`, then mirrored where the third draw is below one half. ``draws``: (N, 3)."""
    return _gather_crop(images, draws, flip=draws[:, 2] < 0.5)


def _gather_crop(images: Tensor, draws: Tensor, flip: Tensor) -> Tensor:
    count, _, height, width = images.shape
    pad = max(height // 8, 1)
    padded = F.pad(images, (pad, pad, pad, pad))
    top, left = ((2 * pad + 1) * draws[:, :2]).long().unbind(1)
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    # One gather crops and mirrors the whole batch, so that loading stays a small share of a step.
    channels_last = padded.permute(0, 2, 3, 1)
    picked = channels_last[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def resized_crop_flip(image: Tensor, draws: Tensor, size: int) -> Tensor:
    """A crop of 8 to 100 % of the area and aspect ratio 3/4 to 4/3, resized to ``size``, mirrored half the time.

    Source: section 4.1 of the paper ("randomly resized and cropped to 224 x 224 and then horizontally mirrored"), the
    usual bounds. A crop that does not fit is cut to the picture instead of drawn again.

    Args:
        image: (3, H, W) uint8, any size.
        draws: (5,) in [0, 1): area, aspect ratio, row, column, mirror.
        size: side of the result.
    """
    area, ratio, down, right, mirror = draws.tolist()
    height, width = image.shape[-2:]
    area = (0.08 + 0.92 * area) * height * width
    ratio = math.exp((2 * ratio - 1) * math.log(4 / 3))
    tall = min(max(round(math.sqrt(area / ratio)), 1), height)
    wide = min(max(round(math.sqrt(area * ratio)), 1), width)
    top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
    crop = TF.resized_crop(image, top, left, tall, wide, [size, size], antialias=True)
    return crop.flip(-1) if mirror < 0.5 else crop


def hide_patch(images: Tensor, draws: Tensor, share: float, colour: Sequence[float]) -> Tensor:
    """One square of a grid taken out of a share of the pictures: what a patch's deletion looks like, in training.

    Source: Hesse et al. 2024 (IDSDS): a model that has seen such pictures answers to them in its own domain, so that
    what it loses without a patch is the patch's and not the hole's.

    Args:
        images: (N, 3, S, S) uint8; not changed.
        draws: (N, 3) in [0, 1): whether, row, column.
        share: of the pictures, in [0, 1].
        colour: what stands in the hole, 3 values in [0, 1]; the mean colour is zero after `normalise`.
    """
    images = images.clone()
    side, patches = images.shape[-1], min(HIDDEN_GRID, images.shape[-1])
    fill = (torch.tensor(colour) * 255).round().to(torch.uint8).view(3, 1, 1)
    for image, (whether, down, right) in zip(images, draws.tolist(), strict=True):
        if whether < share:
            row, column = int(down * patches), int(right * patches)
            top, left = row * side // patches, column * side // patches
            image[:, top : (row + 1) * side // patches, left : (column + 1) * side // patches] = fill
    return images


class BatchAugmentation(NamedTuple):
    """An augmentation of prepared pictures: how many draws a picture needs, and the function of a batch."""

    draws: int
    apply: Callable[[Tensor, Tensor], Tensor]


BATCH_AUGMENTATIONS: dict[str, BatchAugmentation] = {
    "none": BatchAugmentation(0, lambda images, _draws: images),
    "crop": BatchAugmentation(2, padded_crop),
    "crop_flip": BatchAugmentation(3, padded_crop_flip),
}
RESIZED_CROP_DRAWS = 5
HIDING_DRAWS = 3
# Along a side, in training and in the measures of patch deletion. Smaller patches take so little away that rounding
# and noise decide the ranks.
HIDDEN_GRID = 4
