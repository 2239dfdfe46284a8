"""ABN, the Attention Branch Network (Fukui et al., CVPR 2019): what the paper compares LFI-CAM with."""

import copy

import torch
from torch import Tensor, nn

from lficam import functional as LF
from lficam.models.backbones import Backbone, split_last_stage
from lficam.models.blocks import conv_bn, init_weights
from lficam.models.plain import Attended, PlainClassifier


def _at_stride_one(stage: nn.Module) -> nn.Module:
    """A copy of a stage with weights of its own that keeps its input's grid."""
    stage = copy.deepcopy(stage)
    for name, layer in list(stage.named_modules()):
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        elif isinstance(layer, nn.AvgPool2d):
            stage.set_submodule(name, nn.Identity())
    init_weights(stage)
    return stage


class AttentionBranch(nn.Module):
    """Extractor features to an attention map and to logits of its own.

    Source: Fukui et al., section 3.2, and their public code: the last stage at stride 1, batch norm, 1 x 1 convolution
    to the C classes, batch norm, ReLU; from there the map (3 x 3 convolution to one channel, batch norm, sigmoid) and
    the logits (1 x 1 convolution, global average pooling). Bias-free.

    Args:
        last_stage: the trunk's last stage, copied with new weights.
        num_features: its output channels.
        num_classes: C.
    """

    def __init__(self, last_stage: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.stage = _at_stride_one(last_stage)
        self.norm = nn.BatchNorm2d(num_features)
        self.per_class = nn.Sequential(conv_bn(num_features, num_classes, 1), nn.ReLU())
        self.to_map = conv_bn(num_classes, 1, 3)
        self.to_logits = nn.Conv2d(num_classes, num_classes, 1, bias=False)
        for new in (self.per_class, self.to_map, self.to_logits):
            init_weights(new)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K', h, w) to the map (N, 1, h, w) in [0, 1] and the logits (N, C), both of at least float32."""
        per_class = self.per_class(self.norm(self.stage(features)))
        wide = torch.promote_types(features.dtype, torch.float32)
        logits = self.to_logits(per_class).mean(dim=(2, 3), dtype=wide)
        return self.to_map(per_class).to(wide).sigmoid(), logits


class ABNClassifier(PlainClassifier):
    """A CNN with an attention branch before its last stage; trained on the sum of both branches' cross-entropy.

    Its map is the sigmoid's output as it is, not min-max normalised: that is what multiplies the features.

    Args:
        backbone: timm's interface, with ``stem`` and ``stages``.
        num_classes: C.

    >>> import lficam
    >>> model = lficam.create_model("cifar_resnet20", method="abn").eval()
    >>> prediction = model.explain(torch.rand(2, 3, 32, 32))
    >>> prediction.attention.shape, prediction.attention_logits.shape
    (torch.Size([2, 1, 16, 16]), torch.Size([2, 10]))
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone)
        _, last_stage = split_last_stage(backbone)
        self.attention_branch = AttentionBranch(last_stage, backbone.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the last map, (N, K, h, w), attended on the way."""
        return self.perceive(images).features

    def answer_with(self, images: Tensor, attention: Tensor) -> Tensor:
        """Logits (N, C) with another map (N, 1, h, w) in place of the model's own: what a swap test asks."""
        self.check_images(images)
        extractor, last_stage = split_last_stage(self.backbone)
        extracted = extractor(images)
        return self._head(self._pre_pool(last_stage(LF.attend(extracted, attention).to(extracted.dtype))))

    def perceive(self, images: Tensor) -> Attended:
        """As `PlainClassifier.perceive`; the attention lies on the grid of the stage before the last."""
        self.check_images(images)
        extractor, last_stage = split_last_stage(self.backbone)
        extracted = extractor(images)
        attention, attention_logits = self.attention_branch(extracted)
        attended = LF.attend(extracted, attention).to(extracted.dtype)
        return Attended(last_stage(attended), attention, attention_logits=attention_logits)
