"""How sure a mean is: intervals that resample pictures, and runs where there are several."""

from typing import NamedTuple

import torch
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
    """The mean of (R, N) values of R runs on the same N pictures, and the percentile interval of its bootstrap.

    Each resample draws runs and pictures with replacement, the same pictures for every run: both are samples of what
    might have been. One run says nothing of other runs; its interval is that of pictures alone.

    Returns:
        None where all values are NaN.

    Raises:
        InvalidInputError: not (R, N).

    >>> bootstrap_mean(torch.tensor([[0.5, 0.5, torch.nan]]))
    Mean(value=0.5, low=0.5, high=0.5, left_out=0.3333333432674408)
    """
    if values.ndim != 2 or values.numel() == 0:
        raise InvalidInputError(f"values: expected (R, N) of R runs and N pictures, got {tuple(values.shape)}.")
    values = values.double()
    missing = values.isnan()
    if missing.all():
        return None
    runs, pictures = values.shape
    generator = torch.Generator().manual_seed(seed)
    # How often each run and each picture was drawn; the mean of a resample is then a ratio of two matrix products.
    run_weights = _draws(runs, generator)
    picture_weights = _draws(pictures, generator)
    sums = (run_weights @ values.nan_to_num(0.0) * picture_weights).sum(dim=1)
    counts = (run_weights @ (~missing).double() * picture_weights).sum(dim=1)
    means = (sums / counts)[counts > 0]
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Mean(float(values.nanmean()), low, high, float(missing.float().mean()))


def _draws(count: int, generator: torch.Generator) -> Tensor:
    """(RESAMPLES, count): how often each is drawn."""
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    return torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(RESAMPLES, count, dtype=torch.float64)
    )
