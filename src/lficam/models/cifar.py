"""The trunks for 32 x 32 pixels: ResNet, SE-ResNet, ResNeXt-29 and DenseNet-BC-100, registered with timm by name.

All share one shape: a 3 x 3 stem, three stages of which the second and third halve the grid, an optional last
normalisation, global average pooling, one linear layer. Convolutions are bias-free (but for the two of squeeze-and-
excitation, which are its fully connected layers) and start from Kaiming normal, fan-out; batch norm from 1 and 0.
"""

from collections.abc import Callable
from functools import partial

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from lficam.errors import InvalidInputError
from lficam.models.blocks import (
    ResidualBlock,
    StagedNet,
    basic_block,
    bottleneck_block,
    bottleneck_branch,
    conv_bn,
    make_stages,
    register,
)

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


def cifar_resnet(
    depth: int, block: str = "basic", squeeze: bool = False, num_classes: int = 10, in_chans: int = 3
) -> StagedNet:
    """The ResNet of He et al. for CIFAR: stages of 16, 32 and 64 planes with n = (depth - 2) / 6 blocks each.

    Source: He et al. 2016, section 4.2; shortcuts are projections where the shape changes. ``bottleneck`` keeps the
    same n with expansion 4: that is what the code of ABN and LFI-CAM uses from depth 44 on. ``squeeze`` adds
    squeeze-and-excitation (Hu et al. 2018, ratio 16) to each branch.

    >>> cifar_resnet(20)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    if block not in ("basic", "bottleneck"):
        raise InvalidInputError(f"block: expected 'basic' or 'bottleneck', got {block!r}.")
    make, expansion = (basic_block, 1) if block == "basic" else (bottleneck_block, 4)
    stem = nn.Sequential(conv_bn(in_chans, 16, 3), nn.ReLU())
    stages = make_stages(
        partial(make, squeeze=squeeze), 16, (16, 32, 64), expansion, depths=[(depth - 2) // 6] * 3, strides=(1, 2, 2)
    )
    return StagedNet(stem, stages, 64 * expansion, num_classes)


def cifar_resnext(cardinality: int = 8, base_width: int = 64, num_classes: int = 10, in_chans: int = 3) -> StagedNet:
    """ResNeXt-29 for CIFAR: three stages of three blocks, 256, 512 and 1024 channels, grouped 3 x 3 convolutions.

    Source: Xie et al. 2017, section 5.2 (widen factor 4).
    """

    def block(inputs: int, planes: int, stride: int) -> ResidualBlock:
        width = cardinality * base_width * planes // 64
        branch = bottleneck_branch(inputs, width, 4 * planes, stride, groups=cardinality)
        return ResidualBlock(branch, inputs, 4 * planes, stride)

    stem = nn.Sequential(conv_bn(in_chans, 64, 3), nn.ReLU())
    return StagedNet(stem, make_stages(block, 64, (64, 128, 256), 4, (3, 3, 3), (1, 2, 2)), 1024, num_classes)


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
) -> StagedNet:
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
    return StagedNet(stem, stages, channels, num_classes, nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()))


_ENTRIES: dict[str, Callable[..., StagedNet]] = {
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


for _name, _build in _ENTRIES.items():
    register(_name, _build, __name__)
