"""How sure a mean is: intervals that resample pictures, and widen by what runs differ."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lficam.errors import InvalidInputError

RESAMPLES = 1000
# Of how often each of N pictures is in a set, (R, N), to a number of each of the R sets, (R,).
Statistic = Callable[[Tensor], Tensor]


class Mean(NamedTuple):
    """A mean with its 95 % interval; ``left_out`` is the share of values that were NaN."""

    value: float
    low: float
    high: float
    left_out: float


def bootstrap_mean(values: Tensor, seed: int = 0) -> Mean | None:
    """The mean of (R, N) values of R runs on the same N pictures, and its interval.

    The mean is that of the pictures, each the mean of the runs that can judge it. Pictures are resampled with
    replacement (percentile bootstrap). Runs are too few to be resampled: their means add Student's margin with R - 1
    degrees of freedom, root of squares summed. One run says nothing of other runs; its interval is that of pictures
    alone. A rate's 0 and 1, or their differences, get at least 3 / N to each side (what N pictures did not show may
    still be one in N / 3) and stay in their range.

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
    of_pictures = values.nanmean(dim=0)
    value = float(of_pictures.nanmean())
    low, high = percentiles(resampled_means(of_pictures[~of_pictures.isnan()], seed))
    between = between_runs(values.nanmean(dim=1))
    below, above = (((value - edge) ** 2 + between**2) ** 0.5 for edge in (low, high))
    low, high, known = value - below, value + above, values[~missing]
    if torch.equal(known, known.round()) and known.abs().max() <= 1:
        least, lowest = 3 / int((~of_pictures.isnan()).sum()), -1.0 if known.min() < 0 else 0.0
        low, high = max(min(low, value - least), lowest), min(max(high, value + least), 1.0)
    return Mean(value, low, high, float(missing.float().mean()))


def bootstrap_statistic(statistic: Statistic, pictures: int, seed: int = 0) -> Mean:
    """A number of a whole set, which is no mean of its pictures', and its interval by resampling them.

    Args:
        statistic: the number, of sets that hold each picture so many times.
        pictures: N.
        seed: of the drawing.

    >>> values = torch.tensor([0.0, 1.0, 1.0, 2.0])
    >>> bootstrap_statistic(lambda counts: counts @ values / counts.sum(dim=1), 4).value
    1.0
    """
    counts = torch.zeros(RESAMPLES, pictures).scatter_add_(1, _drawn(pictures, seed), torch.ones(RESAMPLES, pictures))
    low, high = percentiles(statistic(counts).double())
    return Mean(float(statistic(torch.ones(1, pictures))), low, high, 0.0)


def resampled_means(values: Tensor, seed: int = 0) -> Tensor:
    """Means (..., RESAMPLES) of values (..., N) over pictures drawn with replacement; NaN is left out.

    >>> resampled_means(torch.ones(2, 5)).unique().tolist()
    [1.0]
    """
    return values[..., _drawn(values.shape[-1], seed)].nanmean(dim=-1)


def _drawn(count: int, seed: int) -> Tensor:
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))


def percentiles(values: Tensor) -> tuple[float, float]:
    """Between which 95 % of the values (M,) lie.

    >>> percentiles(torch.arange(1001.0))
    (25.0, 975.0)
    """
    low, high = torch.quantile(values, values.new_tensor([0.025, 0.975])).tolist()
    return low, high


def between_runs(means: Tensor) -> float:
    """Student's margin of the mean of runs (R,), half of its 95 % interval; 0 of a single one, which says nothing.

    >>> round(between_runs(torch.tensor([1.0, 2.0, 3.0])), 3)
    2.484
    """
    runs = len(means)
    return students_margin(float(means.std()) / runs**0.5, runs) if runs > 1 else 0.0


def jackknife_margin(without: Sequence[float]) -> float:
    """Half of the 95 % interval of a value of all runs, from what it is without each of them.

    Source: Arvesen 1969, on the jackknife of U-statistics, such as means over pairs of runs: pairs share runs and are
    no independent sample; runs are.

    >>> round(jackknife_margin([1.0, 2.0, 3.0]), 3)
    4.968
    """
    runs = len(without)
    return students_margin((runs - 1) ** 0.5 * float(np.std(without)), runs)


def students_margin(error: float, runs: int) -> float:
    """Half of the 95 % interval of a value with this standard error, found of so many runs.

    >>> round(students_margin(1.0, 3), 3)
    4.303
    """
    return float(stats.t.ppf(0.975, runs - 1)) * error
