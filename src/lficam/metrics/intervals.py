"""How sure a mean is: intervals that resample pictures, and widen by what runs differ."""

from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from lficam.errors import InvalidInputError

RESAMPLES = 1000


class Mean(NamedTuple):
    """A mean with its 95 % interval; ``left_out`` is the share of values that were NaN."""

    value: float
    low: float
    high: float
    left_out: float


def bootstrap_mean(values: Tensor, seed: int = 0) -> Mean | None:
    """The mean of (R, N) values of R runs on the same N pictures, and its interval.

    Pictures are resampled with replacement (percentile bootstrap). Runs are too few to be resampled: their means add
    Student's margin with R - 1 degrees of freedom, root of squares summed. One run says nothing of other runs; its
    interval is that of pictures alone.

    Returns:
        None where all values of some run are NaN.

    Raises:
        InvalidInputError: not (R, N).

    >>> bootstrap_mean(torch.tensor([[0.5, 0.5, torch.nan]]))
    Mean(value=0.5, low=0.5, high=0.5, left_out=0.3333333432674408)
    """
    if values.ndim != 2 or values.numel() == 0:
        raise InvalidInputError(f"values: expected (R, N) of R runs and N pictures, got {tuple(values.shape)}.")
    values = values.double()
    missing = values.isnan()
    if missing.all(dim=1).any():
        return None
    value = values.nanmean()
    low, high = _over_pictures(values.nanmean(dim=0), seed)
    between = _between_runs(values.nanmean(dim=1))
    below, above = (((value - edge) ** 2 + between**2) ** 0.5 for edge in (low, high))
    return Mean(float(value), float(value - below), float(value + above), float(missing.float().mean()))


def _over_pictures(values: Tensor, seed: int) -> tuple[float, float]:
    """The percentiles of the mean of resampled pictures."""
    known = values[~values.isnan()]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(known), (RESAMPLES, len(known)), generator=generator)
    means = known[drawn].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def _between_runs(means: Tensor) -> float:
    """Student's margin of the mean of runs; none of a single one."""
    runs = len(means)
    return float(stats.t.ppf(0.975, runs - 1) * means.std() / runs**0.5) if runs > 1 else 0.0
