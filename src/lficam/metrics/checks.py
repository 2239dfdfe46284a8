"""What every measure of maps asks of them."""

import torch
from torch import Tensor

from lficam.errors import InvalidInputError

# What rounding may put beside a range.
_ROUNDING = 1e-6


def require_maps(maps: Tensor, like: Tensor | None = None, unit: bool = False) -> None:
    """Refuse what is no set of maps, or not one a picture.

    Args:
        maps: (N, 1, H, W), finite.
        like: pictures (N, C, H, W), or other maps, that they must fit.
        unit: whether they must be in [0, 1].

    Raises:
        InvalidInputError: another shape, another number or size than ``like``'s, NaN or infinite values, or values
            beyond [0, 1] where they must be in it.

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
    if unit and maps.numel() and (maps.amin() < -_ROUNDING or maps.amax() > 1 + _ROUNDING):
        raise InvalidInputError(f"maps: expected values in [0, 1], got {maps.amin():.3g} to {maps.amax():.3g}.")


def require_share(name: str, value: float) -> None:
    """Refuse what is no share of a whole, such as a threshold of maps in [0, 1].

    Raises:
        InvalidInputError: naming the argument.

    >>> require_share("threshold", 127)
    Traceback (most recent call last):
    ...
    lficam.errors.InvalidInputError: threshold: expected more than 0 and at most 1, got 127.
    """
    if not 0 < value <= 1:
        raise InvalidInputError(f"{name}: expected more than 0 and at most 1, got {value}.")
