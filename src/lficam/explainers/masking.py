"""What the methods that look at masked pictures share: many pictures through the model in full batches."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from lficam import functional as LF
from lficam.contract import ExplainableClassifier, Target, resolve_class_idx, target_scores
from lficam.device import native_bfloat16
from lficam.errors import UnknownNameError

Precision = Literal["32", "auto"]
Classifier = Callable[[Tensor], Tensor]


@contextmanager
def fast_classifier(model: ExplainableClassifier, precision: Precision) -> Iterator[Classifier]:
    """The model as a function of channels-last images to logits, for thousands of pictures.

    A copy in channels-last layout, because the model is left as it is; what cannot be copied runs as it is. With
    ``auto`` in bfloat16 where the device has it natively.

    Raises:
        UnknownNameError: another precision.
    """
    if precision not in ("32", "auto"):
        raise UnknownNameError("precision", precision, ["32", "auto"])
    runner = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    if isinstance(runner, nn.Module):
        runner.to(memory_format=torch.channels_last)
        device = next(runner.parameters()).device.type
    else:
        device = "cpu"
    narrow: AbstractContextManager = nullcontext()
    if precision == "auto" and native_bfloat16(device):
        narrow = torch.autocast(device, torch.bfloat16)

    def classify(images: Tensor) -> Tensor:
        with narrow:
            return runner(images)

    with torch.inference_mode():
        yield classify


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
