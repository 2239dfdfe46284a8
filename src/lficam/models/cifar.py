"""The trunks for 32 x 32 pixels: ResNet, SE-ResNet, ResNeXt-29 and DenseNet-BC-100, registered with timm by name.

All share one shape: a 3 x 3 stem, three stages of which the second and third halve the grid, an optional last
normalisation, global average pooling, one linear layer. Convolutions are bias-free (but for the two of squeeze-and-
excitation, which are its fully connected layers) and start from Kaiming normal, fan-out; batch norm from 1 and 0.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from lficam.errors import InvalidInputError

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


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


class CifarNet(nn.Module):
    """Stem, stages, last normalisation, global average pooling, linear layer; timm's interface.

    Args:
        stem: images (N, 3, H, W) to the input of the first stage.
        stages: the stages in order; the last one gives the features (N, num_features, h, w).
        num_features: channels of those features.
        num_classes: rows of the linear layer.
        pre_pool: what the features pass before pooling (DenseNet); attention acts before it.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        num_features: int,
        num_classes: int,
        pre_pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.feature_info = [
            {"num_chs": num_features, "reduction": 4, "module": f"stages.{len(stages) - 1}"},
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


def _basic(inputs: int, planes: int, stride: int, squeeze: bool) -> ResidualBlock:
    branch = nn.Sequential(conv_bn(inputs, planes, 3, stride), nn.ReLU(), conv_bn(planes, planes, 3))
    return _residual(branch, inputs, planes, stride, squeeze)


def _bottleneck(inputs: int, planes: int, stride: int, squeeze: bool) -> ResidualBlock:
    width, outputs = planes, 4 * planes
    branch = _bottleneck_branch(inputs, width, outputs, stride, groups=1)
    return _residual(branch, inputs, outputs, stride, squeeze)


def _bottleneck_branch(inputs: int, width: int, outputs: int, stride: int, groups: int) -> nn.Sequential:
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


def _stages(block: Block, inputs: int, planes: Sequence[int], expansion: int, depth: int) -> list[nn.Sequential]:
    stages = []
    for number, width in enumerate(planes):
        outputs = expansion * width
        blocks = [block(inputs, width, 1 if number == 0 else 2)]
        blocks += [block(outputs, width, 1) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*blocks))
        inputs = outputs
    return stages


def cifar_resnet(
    depth: int, block: str = "basic", squeeze: bool = False, num_classes: int = 10, in_chans: int = 3
) -> CifarNet:
    """The ResNet of He et al. for CIFAR: stages of 16, 32 and 64 planes with n = (depth - 2) / 6 blocks each.

    Source: He et al. 2016, section 4.2; shortcuts are projections where the shape changes. ``bottleneck`` keeps the
    same n with expansion 4: that is what the code of ABN and LFI-CAM uses from depth 44 on. ``squeeze`` adds
    squeeze-and-excitation (Hu et al. 2018, ratio 16) to each branch.

    >>> cifar_resnet(20)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    if block not in ("basic", "bottleneck"):
        raise InvalidInputError(f"block: expected 'basic' or 'bottleneck', got {block!r}.")
    make, expansion = (_basic, 1) if block == "basic" else (_bottleneck, 4)
    stem = nn.Sequential(conv_bn(in_chans, 16, 3), nn.ReLU())
    stages = _stages(partial(make, squeeze=squeeze), 16, (16, 32, 64), expansion, depth=(depth - 2) // 6)
    return CifarNet(stem, stages, 64 * expansion, num_classes)


def cifar_resnext(cardinality: int = 8, base_width: int = 64, num_classes: int = 10, in_chans: int = 3) -> CifarNet:
    """ResNeXt-29 for CIFAR: three stages of three blocks, 256, 512 and 1024 channels, grouped 3 x 3 convolutions.

    Source: Xie et al. 2017, section 5.2 (widen factor 4).
    """

    def block(inputs: int, planes: int, stride: int) -> ResidualBlock:
        width = cardinality * base_width * planes // 64
        branch = _bottleneck_branch(inputs, width, 4 * planes, stride, groups=cardinality)
        return ResidualBlock(branch, inputs, 4 * planes, stride)

    stem = nn.Sequential(conv_bn(in_chans, 64, 3), nn.ReLU())
    return CifarNet(stem, _stages(block, 64, (64, 128, 256), 4, depth=3), 1024, num_classes)


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.branch(x)), dim=1)


def cifar_densenet(
    depth: int = 100, growth: int = 12, compression: int = 2, num_classes: int = 10, in_chans: int = 3
) -> CifarNet:
    """DenseNet-BC for CIFAR. Its last batch norm and ReLU come after the attention and before pooling.

    Source: Huang et al. 2017, section 3; each of the three dense blocks has (depth - 4) / 6 layers. A transition
    belongs to the stage that it leads into, so every stage starts with its own reduction of the grid.
    """
    channels = 2 * growth
    stem = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False)
    stages = []
    for number in range(3):
        layers: list[nn.Module] = []
        if number:
            reduced = channels // compression
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, reduced, 1, bias=False)]
            layers += [nn.AvgPool2d(2)]
            channels = reduced
        for _layer in range((depth - 4) // 6):
            layers.append(_DenseLayer(channels, growth))
            channels += growth
        stages.append(nn.Sequential(*layers))
    return CifarNet(stem, stages, channels, num_classes, nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()))


_ENTRIES: dict[str, Callable[..., CifarNet]] = {
    **{f"cifar_resnet{depth}": partial(cifar_resnet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"cifar_seresnet{depth}": partial(cifar_resnet, depth, squeeze=True) for depth in (20, 32, 44, 56, 110)},
    "cifar_resnext29_8x64d": cifar_resnext,
    "cifar_densenet100": cifar_densenet,
}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "mean": CIFAR_MEAN,
            "std": CIFAR_STD,
            "classifier": "fc",
        }
        for name in _ENTRIES
    }
)


def _register(name: str, build: Callable[..., CifarNet]) -> None:
    """Give timm an entry point of this name; it has no pretrained weights."""

    def entry(pretrained: bool = False, **kwargs: Any) -> CifarNet:
        return build_model_with_cfg(build, name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    register_model(entry)


for _name, _build in _ENTRIES.items():
    _register(_name, _build)
