"""Score-CAM: each channel's weight is the model's answer to the picture seen through that channel."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lficam import functional as LF
from lficam.contract import ExplainableClassifier, Target, in_eval_mode, target_scores
from lficam.errors import UnknownNameError
from lficam.explainers.base import Explainer
from lficam.explainers.fast import Precision, fast_classifier
from lficam.explainers.masking import class_scores, fixed_target, logits_under_masks

Variant = Literal["lfi_cam", "score_cam", "grad_cam_package"]


class ScoreCAM(Explainer):
    """ReLU(sum_k w_k A_k), w_k the score of the picture masked by channel k.

    Source: equations 1 to 4 of the LFI-CAM paper, and Wang et al. 2020. The variants differ in the mask and in what
    becomes of the score:

    - ``lfi_cam`` (equations 1 to 4): a channel is upsampled, then scaled to [0, 1]; w_k is the probability of the
      class, softmax over the classes.
    - ``score_cam`` (its own paper's equations 3 and 4, as torchcam has it): a channel is scaled to [0, 1], then
      upsampled; w_k is the softmax over the channels of the logit's increase over the whole picture's, which is the
      softmax of the logit, because the whole picture's is the same for all channels and cancels.
    - ``grad_cam_package`` (as pytorch-grad-cam has it): upsampled with corners aligned, then scaled; the softmax over
      the channels of the logit.

    One forward pass a channel that is not flat, and one for all that are. The logits of all classes come from the same
    passes: `for_targets` answers for several at the cost of one.

    Args:
        model: anything of the contract.
        variant: see above.
        batch_size: masked pictures in a forward pass; few are fastest on a CPU, 64 and more on a GPU.
        precision: ``auto`` is bfloat16 where the device has it natively: three times as fast, ranks kept but for near
            ties; ``32`` is the images' own.
    """

    name = "score_cam"

    def __init__(
        self,
        model: ExplainableClassifier,
        variant: Variant = "lfi_cam",
        batch_size: int = 16,
        precision: Precision = "32",
    ) -> None:
        super().__init__(model)
        if variant not in get_args(Variant):
            raise UnknownNameError("variant", variant, get_args(Variant))
        self.variant, self.batch_size, self.precision = variant, batch_size, precision

    def passes(self, images: Tensor) -> int:
        """The whole picture, nothing, and a channel each at most."""
        with in_eval_mode(self.model), torch.no_grad():
            return 2 + self.model.forward_features(images[:1]).shape[1]

    def raw_maps(self, images: Tensor, class_idx: Target) -> Tensor:
        """(N, 1, h, w), zero or more, in the features' unit."""
        return self.raw_maps_for(images, [class_idx])[0]

    def raw_maps_for(self, images: Tensor, targets: Sequence[Target]) -> list[Tensor]:
        """`raw_maps` of each target, from the same passes."""
        features = self.model.forward_features(images)
        logits = self.model.classify(features, images)
        masked = self._masked_logits(images, features)
        return [LF.class_activation_map(features, self._weights(masked, logits, target)) for target in targets]

    def _weights(self, masked: Tensor, logits: Tensor, target: Target) -> Tensor:
        """(N, K) from the logits (N, K, C) under the masks and those (N, C) of the whole pictures."""
        count, channels = masked.shape[:2]
        of_each, flat = fixed_target(target, logits, channels), masked.flatten(0, 1)
        if self.variant == "lfi_cam":
            return class_scores(of_each, flat).view(count, channels)
        return target_scores(of_each, flat).view(count, channels).softmax(dim=1)

    def _masked_logits(self, images: Tensor, features: Tensor) -> Tensor:
        """(N, K, C); flat channels mask everything and share one pass."""
        count, channels = features.shape[:2]
        planes = features.reshape(count * channels, 1, *features.shape[-2:])
        chosen = (~LF.is_flat(planes)).nonzero().flatten()
        owner = torch.div(chosen, channels, rounding_mode="floor")
        with fast_classifier(self.model, images, self.precision) as classify:
            nothing = classify(torch.zeros_like(images[:1])).to(torch.promote_types(images.dtype, torch.float32))
            logits = nothing.repeat(count * channels, 1)
            if len(chosen):
                found = logits_under_masks(
                    classify,
                    images,
                    owner,
                    lambda part: self._mask(planes[chosen[part]], (images.shape[-2], images.shape[-1])),
                    self.batch_size,
                )
                logits[chosen] = found
        return logits.view(count, channels, -1)

    def _mask(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        """(b, 1, h, w) to (b, 1, H, W) in [0, 1]."""
        if self.variant == "score_cam":
            return LF.upsample(LF.min_max(planes), size)
        if self.variant == "grad_cam_package":
            return LF.min_max(F.interpolate(planes, size, mode="bilinear", align_corners=True))
        return LF.min_max(LF.upsample(planes, size))
