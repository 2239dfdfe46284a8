"""What every measure of maps asks of them."""

import torch
from torch import Tensor

from lficam.errors import InvalidInputError


def require_maps(maps: Tensor, like: Tensor | None = None) -> None:
    """Refuse what is no set of maps, or not one a picture.

    Args:
        maps: (N, 1, H, W), finite.
        like: pictures (N, C, H, W), or other maps, that they must fit.

    Raises:
        InvalidInputError: another shape, another number or size than ``like``'s, NaN or infinite values.

    >>> require_maps(torch.zeros(2, 1, 4, 4), like=torch.zeros(3, 3, 4, 4))
    Traceback (most recent call last):
    ...
    lficam.errors.InvalidInputError: maps: expected (3, 1, 4, 4), one a picture, got (2, 1, 4, 4).
    """
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise InvalidInputError(f"maps: expected (N, 1, H, W), got {tuple(maps.shape)}.")
    if like is not None and (len(maps) != len(like) or maps.shape[-2:] != like.shape[-2:]):
        expected = (len(like), 1, *like.shape[-2:])
        raise InvalidInputError(f"maps: expected {expected}, one a picture, got {tuple(maps.shape)}.")
    if not torch.isfinite(maps).all():
        raise InvalidInputError("maps: got NaN or infinite values; a map must be finite.")
