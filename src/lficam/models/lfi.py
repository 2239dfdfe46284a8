"""LFI-CAM: the steps of the paper's Figure 2, in its order."""

from typing import get_args

import torch
from torch import Tensor, nn

from lficam import functional as LF
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.models.backbones import Backbone, cut_at, cut_network
from lficam.models.fin import FeatureImportanceNetwork, FinName, ImportanceName
from lficam.models.plain import Attended, PlainClassifier


class LFIClassifier(PlainClassifier):
    """A CNN whose last map is amplified where a learned weighting of its own channels is high.

    Source: section 3 of the paper. Trained end to end through equation 10, with no loss of its own (section 3.4).

    Args:
        backbone: timm's interface, see `lficam.models.backbones`.
        fin: the layers of the Feature Importance Network; ``uniform`` is no network at all, w = 1/K: the baseline
            that every result is held against; ``first_guess`` takes the weights from the classifier's own rows
            (`lficam.functional.first_guess_importance`), so that the attention is that of a class.
        importance: ``softmax`` or ``scores``, see `FeatureImportanceNetwork`.
        attend_at: the stage whose features the map amplifies (section 3.3: "can be applied to the feature map from any
            convolutional layer"), such as ``layer3``; None: the last map, from which the attention always comes. What
            lies behind the stage then runs twice, first without and then with the attention: it costs as much again,
            and in training its batch norms see both passes, so that their running statistics are a mean of the two.
        grey_mask: whether the FIN sees the features under the grey image (equation 6) or the features alone.
        mechanism: ``residual`` (equation 10) or ``product``, see `lficam.functional.attend`.
        temperature: of the softmax, see `FeatureImportanceNetwork`.

    >>> import lficam
    >>> model = lficam.create_model("cifar_resnet20", method="lfi").eval()
    >>> prediction = model.explain(torch.rand(2, 3, 32, 32), class_idx=3)
    >>> prediction.attention.shape, prediction.importance.shape
    (torch.Size([2, 1, 8, 8]), torch.Size([2, 64]))
    """

    def __init__(
        self,
        backbone: Backbone,
        fin: FinName = "conv3x3",
        importance: ImportanceName = "softmax",
        attend_at: str | None = None,
        grey_mask: bool = True,
        mechanism: LF.Mechanism = "residual",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(backbone)
        if mechanism not in get_args(LF.Mechanism):
            raise UnknownNameError("mechanism", mechanism, get_args(LF.Mechanism))
        self._grey_mask = grey_mask
        self._mechanism = mechanism
        self._attend_at = attend_at
        self._cut = cut_at(backbone, attend_at) if attend_at else None
        self.fin_name = fin
        without = fin in ("uniform", "first_guess")
        self.fin = None if without else FeatureImportanceNetwork(backbone.num_features, fin, importance, temperature)
        if fin == "first_guess" and self.linear_head is None:
            raise InvalidInputError(
                "fin: first_guess reads the rows of one linear layer behind global average pooling, and this trunk has "
                f"more there ({', '.join(self.layers_before_logits())}); take conv3x3 or pointwise."
            )

    def with_uniform_importance(self) -> "LFIClassifier":
        """The same weights with w = 1/K in place of the FIN: a control. It shares this model's trunk and its mode."""
        control = LFIClassifier(self.backbone, fin="uniform", attend_at=self._attend_at, mechanism=self._mechanism)
        control.config = self.config
        control.training = self.training
        return control

    def attend(self, features: Tensor, images: Tensor) -> Attended:
        """Equations 5 to 10: importance, attention map, amplified features; nothing more to do behind ``attend_at``."""
        if self._cut is not None:
            return Attended(features)
        attention, importance = self._attention(features, images)
        return Attended(LF.attend(features, attention, self._mechanism), attention, importance)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the last map (N, K, h, w); with ``attend_at`` attended on the way."""
        return super().forward_features(images) if self._cut is None else self.perceive(images).features

    def perceive(self, images: Tensor) -> Attended:
        """As `PlainClassifier.perceive`; the attention lies on the grid of the last map, wherever it acts.

        Section 3.3: the map of the last layer, resized, on an earlier one; then the rest of the trunk again.
        """
        if self._cut is None:
            return super().perceive(images)
        self.check_images(images)
        network = cut_network(self.backbone)
        early = self._cut.run(0, network, images)
        attention, importance = self._attention(self._cut.run(1, network, early), images)
        return Attended(self._resume(network, early, attention), attention, importance)

    def answer_with(self, images: Tensor, attention: Tensor) -> Tensor:
        """Logits (N, C) with another map (N, 1, h, w) in place of the model's own: what a swap test asks."""
        if self._cut is None:
            attended = LF.attend(self.forward_features(images), attention, self._mechanism)
            return self._head(self._pre_pool(attended))
        network = cut_network(self.backbone)
        return self._head(self._pre_pool(self._resume(network, self._cut.run(0, network, images), attention)))

    def _resume(self, network: nn.Module, early: Tensor, attention: Tensor) -> Tensor:
        """The early map (N, K', h', w'), amplified by the map of the last, through the rest of the trunk."""
        assert self._cut is not None
        resized = LF.upsample(attention, (early.shape[-2], early.shape[-1]))
        return self._cut.run(1, network, LF.attend(early, resized, self._mechanism).to(early.dtype))

    def _attention(self, features: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Equations 5 to 9: the map (N, 1, h, w), min-max normalised, and the weights (N, K) that made it."""
        importance = self._importance(features, images)
        return LF.attention_map(features, importance), importance

    def _importance(self, features: Tensor, images: Tensor) -> Tensor:
        if self.fin_name == "first_guess":
            head = self.linear_head
            assert head is not None
            return LF.first_guess_importance(self._pre_pool(features), head.weight, head.bias)
        if self.fin is None:
            count, channels = features.shape[:2]
            dtype = torch.promote_types(features.dtype, torch.float32)
            return torch.full((count, channels), 1 / channels, device=features.device, dtype=dtype)
        return self.fin(LF.fin_input(images, features, self._grey_mask).to(features.dtype))
