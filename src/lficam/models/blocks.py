"""What our own trunks are made of: bias-free convolutions, residual blocks, and a net that is a row of stages."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation


def init_weights(module: nn.Module) -> None:
    """Kaiming normal, fan-out, for every convolution in ``module``; 1 and 0 for every batch norm."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A bias-free convolution that keeps the grid (at stride 1), and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class StagedNet(nn.Module):
    """Stem, stages, last normalisation, global average pooling, linear layer; timm's interface.

    Args:
        stem: images (N, 3, H, W) to the input of the first stage.
        stages: the stages in order; the last one gives the features (N, num_features, h, w).
        num_features: channels of those features.
        num_classes: rows of the linear layer.
        pre_pool: what the features pass before pooling (DenseNet); attention acts before it.
        reduction: pixels of the image to one cell of the grid, along a side.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        num_features: int,
        num_classes: int,
        pre_pool: nn.Module | None = None,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.feature_info = [
            {"num_chs": num_features, "reduction": reduction, "module": f"stages.{len(stages) - 1}"},
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.pre_pool = pre_pool or nn.Identity()
        self.fc = nn.Linear(num_features, num_classes)
        init_weights(self)

    def get_classifier(self) -> nn.Linear:
        """The linear layer (timm's name for it)."""
        return self.fc

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the last map before normalisation and pooling, (N, K, h, w)."""
        return self.stages(self.stem(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features (N, K, h, w) to logits (N, C), or to the pooled (N, K) with ``pre_logits``."""
        pooled = self.pre_pool(features).mean(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, C)."""
        return self.forward_head(self.forward_features(images))


class ResidualBlock(nn.Module):
    """ReLU(branch(x) + shortcut(x)), the shortcut a 1 x 1 projection where the shape changes."""

    def __init__(self, branch: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h / stride, w / stride)."""
        return F.relu(self.branch(x) + self.shortcut(x))


def basic_block(inputs: int, planes: int, stride: int, squeeze: bool = False) -> ResidualBlock:
    """Two 3 x 3 convolutions (He et al. 2016, figure 5 left)."""
    branch = nn.Sequential(conv_bn(inputs, planes, 3, stride), nn.ReLU(), conv_bn(planes, planes, 3))
    return _residual(branch, inputs, planes, stride, squeeze)


def bottleneck_block(inputs: int, planes: int, stride: int, squeeze: bool = False) -> ResidualBlock:
    """1 x 1, 3 x 3 and 1 x 1 convolutions, expansion 4 (He et al. 2016, figure 5 right); the stride is in the 3 x 3."""
    width, outputs = planes, 4 * planes
    branch = bottleneck_branch(inputs, width, outputs, stride, groups=1)
    return _residual(branch, inputs, outputs, stride, squeeze)


def bottleneck_branch(inputs: int, width: int, outputs: int, stride: int, groups: int) -> nn.Sequential:
    """The branch of a bottleneck block, its 3 x 3 convolution in groups."""
    return nn.Sequential(
        conv_bn(inputs, width, 1),
        nn.ReLU(),
        conv_bn(width, width, 3, stride, groups),
        nn.ReLU(),
        conv_bn(width, outputs, 1),
    )


def _residual(branch: nn.Sequential, inputs: int, outputs: int, stride: int, squeeze: bool) -> ResidualBlock:
    if squeeze:
        branch.append(SqueezeExcitation(outputs, max(outputs // 16, 1)))
    return ResidualBlock(branch, inputs, outputs, stride)


Block = Callable[[int, int, int], ResidualBlock]


def make_stages(
    block: Block, inputs: int, planes: Sequence[int], expansion: int, depths: Sequence[int], strides: Sequence[int]
) -> list[nn.Sequential]:
    """A stage for each of ``planes``: so many blocks, the first of them with the stage's stride."""
    stages = []
    for width, depth, stride in zip(planes, depths, strides, strict=True):
        outputs = expansion * width
        blocks = [block(inputs, width, stride)]
        blocks += [block(outputs, width, 1) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*blocks))
        inputs = outputs
    return stages


def register(name: str, build: Callable[..., StagedNet], module: str) -> None:
    """Give timm an entry point of this name; it has no pretrained weights."""

    def entry(pretrained: bool = False, **kwargs: Any) -> StagedNet:
        return build_model_with_cfg(build, name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = module
    register_model(entry)
