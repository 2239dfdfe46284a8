"""What the methods that look at masked pictures share: many pictures through the model in full batches."""

from collections.abc import Callable

import torch
from torch import Tensor

from lficam import functional as LF
from lficam.contract import Target, resolve_class_idx, target_scores
from lficam.explainers.fast import Classifier


def logits_under_masks(
    classify: Classifier, images: Tensor, owner: Tensor, masks: Callable[[slice], Tensor], batch_size: int
) -> Tensor:
    """Logits of masked pictures, in full batches across images.

    Args:
        classify: of `fast_classifier`.
        images: (N, 3, H, W).
        owner: (M,) int64, the image of each of M masked pictures.
        masks: from a slice of the M to their masks (b, 1, H, W).
        batch_size: pictures in a forward pass; no more of them exist at a time.

    Returns:
        (M, C), of at least float32.
    """
    found = []
    for start in range(0, len(owner), batch_size):
        part = slice(start, min(start + batch_size, len(owner)))
        masked = LF.mask_images(images[owner[part]], masks(part)).squeeze(1)
        logits = classify(masked.contiguous(memory_format=torch.channels_last))
        found.append(logits.to(torch.promote_types(images.dtype, torch.float32)))
    return torch.cat(found)


def fixed_target(target: Target, logits: Tensor, times: int = 1) -> Tensor | Callable[[Tensor], Tensor]:
    """A target of N images as that of their masked pictures, ``times`` of each in a row: classes (N * times,).

    The predicted class is the whole picture's, whatever the masked ones are taken for. A callable stays what it is.
    """
    if callable(target):
        return target
    return resolve_class_idx(target, logits, read_values=True).repeat_interleave(times)


def class_scores(target: Target, logits: Tensor) -> Tensor:
    """What the masking methods weigh with, (N,): the probability of the class, or what a callable says of the logits.

    The probability is the softmax over the classes; of a single logit, the log-odds of one class, the sigmoid.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return target_scores(target, logits, logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1))
