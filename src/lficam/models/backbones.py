"""The trunks behind the contract: created by timm's name, and the facts that a method needs of one."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from lficam.contract import in_eval_mode
from lficam.errors import InvalidInputError, UnknownNameError
from lficam.models import cifar, paper_resnet
from lficam.models.cut import Cut
from lficam.models.wrapped import WrappedBackbone, is_factory_name, wrapped_factory

# An nn.Module with timm's forward_features, forward_head, num_features, feature_info and get_classifier, which
# nn.Module's own types do not know.
Backbone = Any

# Arguments by which timm would read files or addresses: a run's configuration must not make it.
_READS_FILES = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_PASSES_THROUGH = (nn.Identity, nn.Flatten, nn.Dropout)
_TIMM_STAGES = ("layer1", "layer2", "layer3", "layer4")


def own_backbones() -> list[str]:
    """The trunks that lficam adds to timm's."""
    rooms = (room.__name__.rpartition(".")[2] for room in (cifar, paper_resnet))
    return [name for room in rooms for name in timm.list_models(module=room)]


def create_backbone(
    name: str, num_classes: int, arguments: Mapping[str, Any] | None = None, pretrained: bool = False
) -> Backbone:
    """A trunk by timm's name, with ``num_classes`` outputs.

    Args:
        name: of our own, any of timm's convolutional networks, or ``module:factory`` for one of the user's, whose
            arguments may hold ``features``, its last stage, and ``image_size``.
        num_classes: C.
        arguments: of the trunk, such as ``{"output_stride": 16}`` for a 14 x 14 grid at 224 pixels.
        pretrained: timm's weights, downloaded from its hub.

    Raises:
        UnknownNameError: no such name; the nearest are listed.
        InvalidInputError: an argument that this trunk does not take, or weights that cannot be had.

    >>> create_backbone("cifar_resnet20", 10).num_features, create_backbone("resnet18", 10).num_features
    (64, 512)
    """
    reading = [key for key in _READS_FILES if key in (arguments or {})]
    if reading:
        raise InvalidInputError(
            f"backbone_args: {reading[0]} is not taken; load weights with --init-from or pretrained."
        )
    if is_factory_name(name):
        if pretrained:
            raise InvalidInputError(f"pretrained: {name} is the user's own; let it load its weights itself.")
        return wrapped_factory(name, num_classes, arguments or {})
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise UnknownNameError("backbone", name, [*nearest, *own_backbones()])
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **(arguments or {}))
    except (TypeError, NotImplementedError) as error:
        raise InvalidInputError(f"backbone_args of {name}: got {dict(arguments or {})}: {error}.") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0]
        raise InvalidInputError(f"pretrained: no weights of {name} could be had ({reason}); pass False.") from error


def linear_head(backbone: Backbone) -> nn.Linear | None:
    """The linear layer right behind global average pooling; None where the head is anything else.

    Asked of the trunk itself: on random features its head must be the mean over the grid and that layer, no more.
    """
    head = backbone.get_classifier()
    if not isinstance(head, nn.Linear) or head.weight.is_meta:
        return head if isinstance(head, nn.Linear) else None
    if head.in_features != backbone.num_features:
        return None
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, backbone.num_features, 3, 2, generator=generator).to(head.weight)
    with torch.no_grad(), in_eval_mode(backbone):
        expected = head(pre_pool(backbone)(features).mean(dim=(2, 3)))
        try:
            found = backbone.forward_head(features)
        except RuntimeError:  # a head that takes no (N, K, h, w), such as a transformer's
            return None
    return head if torch.allclose(found, expected, rtol=1e-3, atol=1e-4) else None


def layers_before_logits(backbone: Backbone) -> list[str]:
    """What stands between the last map and the logits, by name, for an error that says why there is no evidence."""
    passed: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, _output, name=name: passed.append(name))
        for name, layer in backbone.named_modules()
        if not list(layer.children()) and not isinstance(layer, _PASSES_THROUGH)
    ]
    size = getattr(backbone, "image_size", 2 * reduction(backbone))
    weight = next(backbone.parameters())
    try:
        with torch.no_grad(), in_eval_mode(backbone):
            features = backbone.forward_features(torch.zeros(1, 3, size, size).to(weight))
            passed.clear()
            backbone.forward_head(features)
    finally:
        for hook in hooks:
            hook.remove()
    return passed


def pre_pool(backbone: Backbone) -> nn.Module:
    """What stands between the attention and pooling: the last batch norm and ReLU of our DenseNet, else nothing."""
    return getattr(backbone, "pre_pool", None) or nn.Identity()


def count_parameters(module: nn.Module) -> int:
    """The number of weights that training changes; a batch norm's running statistics are none."""
    return sum(parameter.numel() for parameter in module.parameters())


def reduction(backbone: Backbone) -> int:
    """Pixels of the image to one cell of the last map's grid, along a side."""
    return backbone.feature_info[-1]["reduction"]


def cut_at(backbone: Backbone, stage: str) -> Cut:
    """The way from images to the last map in two parts, cut behind a stage; `cut_network` is what it runs on.

    Raises:
        UnknownNameError: no such stage; those that exist are listed.
        InvalidInputError: a trunk that `torch.fx` cannot cut there.
    """
    if isinstance(backbone, WrappedBackbone):
        return backbone.cut_at(stage)
    return Cut(backbone, stage, method="forward_features")


def cut_network(backbone: Backbone) -> nn.Module:
    """The network that the parts of `cut_at` take."""
    return backbone.network if isinstance(backbone, WrappedBackbone) else backbone


def split_last_stage(backbone: Backbone) -> tuple[nn.Sequential, nn.Module]:
    """The trunk up to the stage before the last, and the last stage: where ABN cuts. The parts share their weights.

    Raises:
        InvalidInputError: a trunk that is no row of stages (ours, and timm's ResNets, ResNeXts and SENets are).
    """
    if hasattr(backbone, "stem") and isinstance(getattr(backbone, "stages", None), nn.Sequential):
        *earlier, last = backbone.stages
        return nn.Sequential(backbone.stem, *earlier), last
    if isinstance(backbone, timm.models.resnet.ResNet):
        stem = (backbone.conv1, backbone.bn1, backbone.act1, backbone.maxpool)
        *earlier, last = (getattr(backbone, name) for name in _TIMM_STAGES)
        return nn.Sequential(*stem, *earlier), last
    raise InvalidInputError(
        f"method: abn needs a trunk of stages, which {type(backbone).__name__} is not; use a ResNet, ResNeXt or SENet, "
        "or method lfi."
    )
