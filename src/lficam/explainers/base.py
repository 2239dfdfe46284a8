"""What all explainers share: one call, images in, maps out, the model left as it was found."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lficam import functional as LF
from lficam.contract import ExplainableClassifier, Target, check_images, in_eval_mode, resolve_class_idx
from lficam.errors import InvalidInputError


class Explainer(ABC):
    """Images in, maps out. A method says only what its raw map is.

    Args:
        model: anything of the contract; it is asked in eval mode and left in the mode it had.

    Attributes:
        name: as `lficam.create_explainer` knows it.
        class_targeted: whether the map depends on the class asked for.
        signed: whether the raw map speaks against the class too; the normalised one keeps what speaks for it.
    """

    name: ClassVar[str]
    class_targeted: ClassVar[bool] = True
    signed: ClassVar[bool] = False

    def __init__(self, model: ExplainableClassifier) -> None:
        self.model = model

    @abstractmethod
    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, h, w) on the grid of the features, unnormalised; the method's unit."""

    def __call__(self, images: Tensor, class_idx: Target = None, raw: bool = False) -> Tensor:
        """Explain a batch.

        Args:
            images: (N, 3, H, W), normalised.
            class_idx: one class for all, or one per image; None: the predicted class. Or a function of logits (N, C)
                to the number (N,) that is to be explained, for margins, regression and several labels.
            raw: the unnormalised map on the grid instead.

        Returns:
            (N, 1, H, W) at input size, each map min-max in [0, 1] (a flat map is all zeros); with ``raw`` (N, 1, h, w).

        Raises:
            InvalidInputError: a class asked of a map that has none, an index out of range, images of a wrong shape.
        """
        return self.for_targets(images, [class_idx], raw)[0]

    def for_targets(self, images: Tensor, targets: Sequence[Target], raw: bool = False) -> list[Tensor]:
        """``__call__`` for several targets; the methods that mask pictures answer all of them from the same passes."""
        check_images(images)
        for target in targets:
            if target is not None and not self.class_targeted:
                raise InvalidInputError(
                    f"class_idx: got {target}, but {self.name} has one map whatever the class; "
                    "leave class_idx out, or use class_evidence."
                )
        if len(images) == 0:
            return [images.new_zeros(0, 1, *images.shape[-2:]) for _ in targets]
        with in_eval_mode(self.model), torch.no_grad():
            maps = self.raw_maps_for(images, targets)
        return maps if raw else [self._normalised(of_one, (images.shape[-2], images.shape[-1])) for of_one in maps]

    def passes(self, images: Tensor) -> int:
        """Pictures that go through the trunk to explain one of ``images``."""
        return 1

    def raw_maps_for(self, images: Tensor, targets: Sequence[Target]) -> list[Tensor]:
        """`raw_maps` of each target; a method that can share work between targets does it here."""
        return [self.raw_maps(images, target) for target in targets]

    def _normalised(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        return LF.min_max(LF.upsample(maps.relu() if self.signed else maps, size))


def require_linear_head(model: ExplainableClassifier, name: str) -> nn.Linear:
    """The linear layer right behind global average pooling, which makes CAM and evidence exact.

    Raises:
        InvalidInputError: the model has something else there.
    """
    if model.linear_head is None:
        between: list[str] = getattr(model, "layers_before_logits", list)()
        named = f" ({', '.join(between)})" if between else ""
        raise InvalidInputError(
            f"{name}: expected a model with global average pooling and one linear layer, got one with more between "
            f"its last map and its logits{named}; use grad_cam."
        )
    return model.linear_head


def asked_class(class_idx: Target, logits: Tensor, name: str) -> Tensor:
    """The class of each image, (N,) int64, whose row of the linear layer is its map's weights.

    Raises:
        InvalidInputError: a callable, which has no row, or a class out of range.
    """
    if callable(class_idx):
        raise InvalidInputError(f"class_idx: {name} reads the row of a class and takes no function; use grad_cam.")
    return resolve_class_idx(class_idx, logits, read_values=True)


def pool_and_classify(model: ExplainableClassifier, images: Tensor, name: str) -> tuple[nn.Linear, Tensor, Tensor]:
    """The linear head, the map (N, K, h, w) that pooling receives, and the logits (N, C), in one pass."""
    head = require_linear_head(model, name)
    pooled = model.pooled_features(model.forward_features(images), images)
    return head, pooled, LF.linear_logits(pooled, head.weight, head.bias)
