"""How well a model classifies: error with interval, per-class table, calibration."""

from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from lficam.errors import InvalidInputError


class Rate(NamedTuple):
    """A share in [0, 1] of ``cases`` cases, with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    cases: int


def rate(hits: Tensor) -> Rate:
    """The share of True in (N,) bool, with Wilson's 95 % interval.

    Raises:
        InvalidInputError: no case at all.

    >>> rate(torch.tensor([True, True, True, False])).value
    0.75
    """
    count = hits.numel()
    if count == 0:
        raise InvalidInputError("hits: expected at least one case, got none.")
    test = binomtest(int(hits.sum()), count)
    interval = test.proportion_ci(method="wilson")
    return Rate(int(hits.sum()) / count, float(interval.low), float(interval.high), count)


def rate_over_pictures(hits: Tensor) -> Rate:
    """`rate` of (N, D) hits, D objects in each of N pictures.

    Objects of one picture are not independent (one peak cannot lie in two boxes), so with D > 1 the interval is that
    of the mean over pictures, 1.96 standard errors to each side.

    >>> rate_over_pictures(torch.tensor([[True, False], [False, True]]))
    Rate(value=0.5, low=0.5, high=0.5, cases=2)
    """
    if hits.shape[1] == 1:
        return rate(hits[:, 0])
    of_each = hits.double().mean(dim=1)
    error = 1.96 * float(of_each.std(correction=0)) / len(of_each) ** 0.5
    value = float(of_each.mean())
    return Rate(value, max(value - error, 0.0), min(value + error, 1.0), len(of_each))


def top_k_misses(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether no true label is among the k highest logits, (N,) bool; lower share is better.

    Args:
        logits: (N, C).
        labels: (N,), or (N, D) where a picture shows D objects and each of their labels is right.
        k: at most C.

    >>> top_k_misses(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]), k=1).tolist()
    [True]
    """
    chosen = logits.topk(k, dim=1).indices
    return ~(chosen.unsqueeze(2) == labels.view(len(labels), 1, -1)).any(dim=(1, 2))


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal bins, in [0, 1], lower is better.

    Source: Guo et al. 2017, equation 3; torchmetrics computes it.
    """
    return multiclass_calibration_error(logits.softmax(dim=1), labels, logits.shape[1], n_bins=bins).item()


class ClassRow(NamedTuple):
    """One class in the table: recall and precision are in [0, 1]; precision is None where it was never predicted."""

    name: str
    pictures: int
    recall: float
    precision: float | None
    confused_with: str | None


def per_class(logits: Tensor, labels: Tensor, class_names: list[str]) -> list[ClassRow]:
    """Recall, precision and the most frequent confusion of every class that occurs.

    >>> per_class(torch.eye(2), torch.tensor([0, 1]), ["cat", "dog"])[0]
    ClassRow(name='cat', pictures=1, recall=1.0, precision=1.0, confused_with=None)
    """
    classes = len(class_names)
    predicted = logits.argmax(dim=1)
    counts = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    rows = []
    for index, name in enumerate(class_names):
        pictures, chosen, right = int(counts[index].sum()), int(counts[:, index].sum()), int(counts[index, index])
        if pictures == 0:
            continue
        wrong = counts[index].clone()
        wrong[index] = 0
        confused = class_names[int(wrong.argmax())] if wrong.any() else None
        rows.append(ClassRow(name, pictures, right / pictures, right / chosen if chosen else None, confused))
    return rows
