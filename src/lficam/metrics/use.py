"""Does the label use the map? Another map is put in its place, and the model is asked again.

The swap test of this project: no paper's. A map that could be any other without a label changing is not what the labels
come from, however well it points.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lficam.errors import InvalidInputError
from lficam.functional import is_flat, min_max

SWAPS = ("zero", "constant", "dataset_mean", "other_image", "feature_mean", "inverted")


def swapped(name: str, maps: Tensor, partners: Tensor, feature_means: Tensor) -> Tensor:
    """The maps to put in place of a model's own, (N, 1, h, w) in [0, 1].

    - ``zero``: nothing is amplified. ``constant``: each map's own mean everywhere.
    - ``dataset_mean``: the mean of all the maps. ``other_image``: another picture's map.
    - ``feature_mean``: the mean over the channels of what is amplified or comes of it, min-max: needs no learning.
    - ``inverted``: 1 - map; a flat map stays as it is, it has nothing to invert.

    Args:
        name: one of ``SWAPS``.
        maps: (N, 1, h, w) in [0, 1], the model's own.
        partners: (N,) int64, for each picture another one.
        feature_means: (N, 1, h', w'); resized where its grid is another.

    Raises:
        InvalidInputError: another name, or partners that are no other pictures' numbers.

    >>> swapped("inverted", torch.tensor([[[[0.0, 1.0]]]]), torch.zeros(1, dtype=torch.int64), None).tolist()
    [[[[1.0, 0.0]]]]
    """
    match name:
        case "zero":
            return torch.zeros_like(maps)
        case "constant":
            return maps.mean(dim=(2, 3), keepdim=True).expand_as(maps)
        case "dataset_mean":
            return maps.mean(dim=0, keepdim=True).expand_as(maps)
        case "other_image":
            if partners.shape != (len(maps),) or not ((partners >= 0) & (partners < len(maps))).all():
                raise InvalidInputError(
                    f"partners: expected {len(maps)} of 0 to {len(maps) - 1}, got {partners.tolist()}."
                )
            return maps[partners]
        case "feature_mean":
            resized = F.interpolate(feature_means, maps.shape[-2:], mode="bilinear", align_corners=False)
            return min_max(resized)
        case "inverted":
            return torch.where(is_flat(maps).view(-1, 1, 1, 1), maps, 1 - maps)
    raise InvalidInputError(f"swap: expected one of {', '.join(SWAPS)}, got {name!r}.")


def effective_channels(importance: Tensor) -> Tensor:
    """How many channels an attention map is made of, (N,) in [1, K]: the exponential of the weights' entropy.

    K where all weigh the same, which needs no network; 1 where one does; NaN where none does. Neither is better.

    Source: Hill 1973, the number of order 1.

    Args:
        importance: (N, K); a weight counts by its magnitude.

    >>> effective_channels(torch.tensor([[0.5, 0.5, 0.0], [0.0, -2.0, 0.0]])).tolist()
    [2.0, 1.0]
    """
    shares = importance.abs().double()
    shares = shares / shares.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1).exp().float()


def label_agreement(logits: Tensor, others: Tensor) -> Tensor:
    """Whether two answers name one class, (N,) of 0 and 1; a high mean says that the swap does not matter.

    Source: the swap test, ours.

    >>> label_agreement(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    _require_alike([logits, others])
    return (logits.argmax(dim=1) == others.argmax(dim=1)).float()


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Kullback and Leibler's divergence of the second answer from the first, (N,) in nats, 0 where they are the same.

    Source: Kullback and Leibler 1951. The higher, the more the swap matters.

    >>> divergence(torch.zeros(1, 2), torch.tensor([[0.0, 3.0]]).log_softmax(dim=1)).item() > 0
    True
    """
    _require_alike([logits, others])
    one, other = logits.log_softmax(dim=1), others.log_softmax(dim=1)
    return F.kl_div(other, one, reduction="none", log_target=True).sum(dim=1).clamp(min=0)


def _require_alike(answers: Sequence[Tensor]) -> None:
    shapes = [tuple(logits.shape) for logits in answers]
    if not all(torch.isfinite(logits).all() for logits in answers):
        raise InvalidInputError("logits: got NaN or infinite values; such answers agree on nothing.")
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise InvalidInputError(f"logits: expected two of (N, C) for the same pictures, got {shapes}.")
