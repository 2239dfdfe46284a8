"""The trunk of the paper's Table 3, ``paper_resnet18`` to ``152``, registered with timm by name."""

from collections.abc import Callable
from functools import partial

from timm.models import generate_default_cfgs
from torch import nn

from lficam.models.blocks import StagedNet, basic_block, bottleneck_block, conv_bn, make_stages, register

# Depth: block, expansion, and the blocks of the usual four stages.
_DEPTHS = {
    18: (basic_block, 1, (2, 2, 2, 2)),
    34: (basic_block, 1, (3, 4, 6, 3)),
    50: (bottleneck_block, 4, (3, 4, 6, 3)),
    101: (bottleneck_block, 4, (3, 4, 23, 3)),
    152: (bottleneck_block, 4, (3, 8, 36, 3)),
}


def paper_resnet(depth: int, num_classes: int = 1000, in_chans: int = 3) -> StagedNet:
    """A ResNet with a 14 x 14 grid at 224 pixels: the usual stem and stages 1 to 3, then three more at stride 1.

    Source: the released code that gives the sizes of the paper's Table 3. The three stages have 256, 512 and 256
    planes, each as many blocks as the usual stage 4. They are why a comparison with the plain ResNet of that table
    measures more than the attention.

    >>> import torch
    >>> paper_resnet(18).forward_features(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 256, 4, 4])
    """
    block, expansion, usual = _DEPTHS[depth]
    stem = nn.Sequential(conv_bn(in_chans, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
    planes, strides = (64, 128, 256, 256, 512, 256), (1, 2, 2, 1, 1, 1)
    depths = (*usual[:3], *[usual[3]] * 3)
    stages = make_stages(block, 64, planes, expansion, depths, strides)
    return StagedNet(stem, stages, 256 * expansion, num_classes, reduction=16)


_ENTRIES: dict[str, Callable[..., StagedNet]] = {
    f"paper_resnet{depth}": partial(paper_resnet, depth) for depth in _DEPTHS
}

default_cfgs = generate_default_cfgs(
    {name: {"num_classes": 1000, "input_size": (3, 224, 224), "classifier": "fc"} for name in _ENTRIES}
)

for _name, _build in _ENTRIES.items():
    register(_name, _build, __name__)
