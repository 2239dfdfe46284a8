"""LFI-CAM: the steps of the paper's Figure 2, in its order."""

import torch
from torch import Tensor

from lficam import functional as LF
from lficam.models.backbones import Backbone
from lficam.models.fin import FeatureImportanceNetwork, FinName, ImportanceName
from lficam.models.plain import Attended, PlainClassifier


class LFIClassifier(PlainClassifier):
    """A CNN whose last map is amplified where a learned weighting of its own channels is high.

    Source: section 3 of the paper. Trained end to end through equation 10, with no loss of its own (section 3.4).

    Args:
        backbone: timm's interface, see `lficam.models.backbones`.
        fin: the layers of the Feature Importance Network; ``uniform`` is no network at all, w = 1/K: the baseline
            that every result is held against.
        importance: ``softmax`` or ``scores``, see `FeatureImportanceNetwork`.

    >>> import lficam
    >>> model = lficam.create_model("cifar_resnet20", method="lfi").eval()
    >>> prediction = model.explain(torch.rand(2, 3, 32, 32), class_idx=3)
    >>> prediction.attention.shape, prediction.importance.shape
    (torch.Size([2, 1, 8, 8]), torch.Size([2, 64]))
    """

    def __init__(self, backbone: Backbone, fin: FinName = "conv3x3", importance: ImportanceName = "softmax") -> None:
        super().__init__(backbone)
        uniform = fin == "uniform"
        self.fin = None if uniform else FeatureImportanceNetwork(backbone.num_features, fin, importance)

    def with_uniform_importance(self) -> "LFIClassifier":
        """The same weights with w = 1/K in place of the FIN: a control. It shares this model's trunk and its mode."""
        control = LFIClassifier(self.backbone, fin="uniform")
        control.config = self.config
        control.training = self.training
        return control

    def attend(self, features: Tensor, images: Tensor) -> Attended:
        """Equations 5 to 10: importance, attention map, amplified features."""
        importance = self._importance(features, images)
        attention = LF.min_max(LF.class_activation_map(features, importance))
        return Attended(LF.attend(features, attention), attention, importance)

    def _importance(self, features: Tensor, images: Tensor) -> Tensor:
        if self.fin is None:
            count, channels = features.shape[:2]
            dtype = torch.promote_types(features.dtype, torch.float32)
            return torch.full((count, channels), 1 / channels, device=features.device, dtype=dtype)
        grey = LF.grey_image(images, (features.shape[-2], features.shape[-1]))
        return self.fin(LF.masked_features(features, grey).to(features.dtype))
