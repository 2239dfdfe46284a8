"""The trunks behind the contract: created by timm's name, and the three facts that a method needs of one."""

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from lficam.errors import InvalidInputError, UnknownNameError
from lficam.models import cifar

# An nn.Module with timm's forward_features, forward_head, num_features, feature_info and get_classifier, which
# nn.Module's own types do not know.
Backbone = Any


def known_backbones() -> list[str]:
    """The names that `create_backbone` takes."""
    return timm.list_models(module=cifar.__name__.rpartition(".")[2])


def create_backbone(name: str, num_classes: int, arguments: Mapping[str, Any] | None = None) -> Backbone:
    """A trunk by name, with ``num_classes`` outputs and random weights.

    Raises:
        UnknownNameError: no such name.
        InvalidInputError: an argument that this trunk does not take.

    >>> create_backbone("cifar_resnet20", 10).num_features
    64
    """
    if name not in known_backbones():
        raise UnknownNameError("backbone", name, known_backbones())
    try:
        return timm.create_model(name, num_classes=num_classes, **(arguments or {}))
    except TypeError as error:
        raise InvalidInputError(f"backbone_args of {name}: got {dict(arguments or {})}: {error}.") from error


def linear_head(backbone: Backbone) -> nn.Linear | None:
    """The linear layer right behind global average pooling; None where the head is anything else."""
    head = backbone.get_classifier()
    return head if isinstance(head, nn.Linear) else None


def pre_pool(backbone: Backbone) -> nn.Module:
    """What stands between the last map and pooling: DenseNet's last batch norm and ReLU, else nothing."""
    return getattr(backbone, "pre_pool", None) or nn.Identity()


def reduction(backbone: Backbone) -> int:
    """Pixels of the image to one cell of the last map's grid, along a side."""
    return backbone.feature_info[-1]["reduction"]


def split_last_stage(backbone: Backbone) -> tuple[nn.Sequential, nn.Module]:
    """The trunk up to the stage before the last, and the last stage: where ABN cuts. The parts share their weights."""
    *earlier, last = backbone.stages
    return nn.Sequential(backbone.stem, *earlier), last
