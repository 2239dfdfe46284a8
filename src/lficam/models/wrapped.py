"""Anyone's classifier behind timm's interface, cut at a stage or into two functions."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lficam.errors import InvalidInputError
from lficam.models.cut import Cut, untouched

Function = Callable[[Tensor], Tensor]


class WrappedBackbone(nn.Module):
    """A network of one's own with timm's ``forward_features``, ``forward_head``, ``num_features``, ``get_classifier``.

    Args:
        network: images (N, 3, H, W) to logits (N, C).
        features: the stage that gives the last map (N, K, h, w), see `lficam.models.cut.Cut`; or a function of images.
        head: with a function for ``features``, the one from that map to the logits.
        image_size: side in pixels of a picture that the network takes; one forward pass finds K, C and the grid.

    Raises:
        UnknownNameError: no such stage.
        InvalidInputError: what cannot be cut, a stage without a map, an output that is not (N, C), or two functions
            that are not the network.
    """

    def __init__(
        self, network: nn.Module, features: str | Function, head: Function | None = None, image_size: int = 224
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise InvalidInputError(f"classifier: expected a torch.nn.Module, got {type(network).__name__}.")
        if isinstance(features, str) != (head is None):
            raise InvalidInputError("head: expected a function exactly where features is one, from its map to logits.")
        self.network = network
        self.cut = Cut(network, features) if isinstance(features, str) else None
        # A tuple, because a module among them would be registered and own its weights a second time.
        self._functions: tuple[Function, ...] = () if isinstance(features, str) or head is None else (features, head)
        self.image_size = image_size
        self._probe(image_size)

    def _probe(self, image_size: int) -> None:
        """Learn the shapes from one picture, and refuse parts that are not the whole."""
        weight = next(self.network.parameters(), torch.empty(0))
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, 3, image_size, image_size, generator=generator).to(weight)
        try:
            with untouched(self.network), torch.no_grad():
                self.network.eval()
                logits, features = self.network(images), self.forward_features(images)
        except (RuntimeError, ValueError) as error:
            raise InvalidInputError(
                f"classifier: {type(self.network).__name__} did not take {image_size} x {image_size} pixels "
                f"({(str(error).splitlines() or [''])[0]}); give its image_size."
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidInputError(
                f"classifier: expected logits (N, C), got {found}; wrap what gives one tensor of them."
            )
        if not isinstance(features, Tensor) or features.ndim != 4:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InvalidInputError(f"features: expected a map (N, K, h, w), got {found}; name an earlier stage.")
        self.num_features, self.num_classes = features.shape[1], logits.shape[1]
        self.feature_info = [{"num_chs": self.num_features, "reduction": max(image_size // features.shape[-1], 1)}]
        if self.cut is not None:
            self.cut.require_exact(self.network, images)
            return
        with untouched(self.network), torch.no_grad():
            self.network.eval()
            answer = self.forward_head(features)
        if not torch.equal(answer, logits):
            raise InvalidInputError("head: features and head in a row do not give what the classifier gives.")

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the last map (N, K, h, w)."""
        return self.cut.run(0, self.network, images) if self.cut else self._functions[0](images)

    def forward_head(self, features: Tensor) -> Tensor:
        """That map to logits (N, C)."""
        return self.cut.run(1, self.network, features) if self.cut else self._functions[1](features.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits, as the network alone."""
        return self.network(images)

    def get_classifier(self) -> nn.Module:
        """The last linear layer from K channels to C classes; what stands around it is not known here."""
        shape = (self.num_features, self.num_classes)
        linear = [layer for layer in self.network.modules() if isinstance(layer, nn.Linear)]
        fitting = [layer for layer in linear if (layer.in_features, layer.out_features) == shape]
        return fitting[-1] if fitting else nn.Identity()

    def cut_at(self, stage: str) -> Cut:
        """The way to the last map in two parts, cut behind an earlier stage; the third is the head.

        Raises:
            InvalidInputError: a network of two functions has no stages.
        """
        if self.cut is None:
            raise InvalidInputError("attend_at: a network given as two functions has no stages; name one as features.")
        return Cut(self.network, stage, *self.cut.stages)


def is_factory_name(name: str) -> bool:
    """Whether a backbone's name stands for code of the user's own, ``module:factory``."""
    return ":" in name


def call_factory(name: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that ``module:factory`` makes with ``num_classes`` and other arguments; imports run its code.

    The module is looked for in the working directory too.

    Raises:
        InvalidInputError: no such module or factory, or one that gives no network.

    >>> call_factory("torch.nn:Identity", 10, {})
    Identity()
    """
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInputError(f"backbone: {name!r} cannot be imported ({error}); write it module:factory.") from error
    finally:
        sys.path.remove("")
    if not callable(factory):
        raise InvalidInputError(f"backbone: {name!r} is a {type(factory).__name__}, not a factory of networks.")
    try:
        network = factory(num_classes=num_classes, **arguments)
    except TypeError as error:
        raise InvalidInputError(f"backbone: {name} did not take num_classes and backbone_args ({error}).") from error
    if not isinstance(network, nn.Module):
        raise InvalidInputError(f"backbone: {name} gave a {type(network).__name__}, not a torch.nn.Module.")
    return network


def factory_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``backbone_args`` that a factory gets: not where its network is cut, and at what size that is tried."""
    return {key: value for key, value in arguments.items() if key not in ("features", "image_size")}


def wrapped_factory(name: str, num_classes: int, arguments: Mapping[str, Any]) -> WrappedBackbone:
    """A network of the user's own as a trunk, by its factory's name.

    Raises:
        InvalidInputError: as `call_factory` and `wrapped`, or a network with another number of classes.
    """
    backbone = wrapped(call_factory(name, num_classes, factory_arguments(arguments)), arguments)
    if backbone.num_classes != num_classes:
        raise InvalidInputError(f"backbone: {name} gives {backbone.num_classes} classes, asked for {num_classes}.")
    return backbone


def wrapped(
    network: Any, arguments: Mapping[str, Any], features: Function | None = None, head: Function | None = None
) -> WrappedBackbone:
    """A network cut at ``features`` of its arguments, into two functions, or at its own ``forward_features``.

    Raises:
        InvalidInputError: a network that says none of them.
    """
    image_size = arguments.get("image_size", 224)
    if "features" in arguments:
        return WrappedBackbone(network, arguments["features"], image_size=image_size)
    if features is not None:
        return WrappedBackbone(network, features, head, image_size)
    if hasattr(network, "forward_features") and hasattr(network, "forward_head"):
        return WrappedBackbone(network, network.forward_features, network.forward_head, image_size)
    raise InvalidInputError(
        f"backbone: {type(network).__name__} has no forward_features and forward_head; name its last stage in "
        "backbone_args, such as {features: layer4}, or give features= and head= as two functions."
    )
