"""One door to every model: `create_model` for a new one, `load` for a trained one."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lficam.contract import ModelConfig, Preprocessing
from lficam.errors import InvalidInputError, LficamWarning, RunError, UnknownNameError
from lficam.models import hub
from lficam.models.abn import ABNClassifier
from lficam.models.backbones import Backbone, count_parameters, create_backbone
from lficam.models.lfi import LFIClassifier
from lficam.models.plain import PlainClassifier
from lficam.models.wrapped import Function, WrappedBackbone, call_factory, factory_arguments, is_factory_name, wrapped

_METHODS: dict[str, Callable[[Backbone, ModelConfig], PlainClassifier]] = {
    "plain": lambda backbone, config: PlainClassifier(backbone, **config.options),
    "lfi": lambda backbone, config: LFIClassifier(backbone, **config.options),
    "abn": lambda backbone, config: ABNClassifier(backbone, config.num_classes, **config.options),
}


def build(config: ModelConfig, pretrained: bool = False, backbone: Backbone | None = None) -> PlainClassifier:
    """A model from its configuration, which stays with it as ``model.config``; random weights unless ``pretrained``.

    A ``backbone`` that exists already is taken as it is, one with a single logit too.
    """
    if config.method not in _METHODS:
        raise UnknownNameError("method", config.method, _METHODS)
    if config.num_classes < 2 and backbone is None:
        raise InvalidInputError(f"num_classes: expected at least 2, got {config.num_classes}.")
    try:
        if backbone is None:
            backbone = create_backbone(config.backbone, config.num_classes, config.backbone_args, pretrained)
        model = _METHODS[config.method](backbone, config)
    except TypeError as error:
        options = ", ".join(config.options)
        raise InvalidInputError(f"options of method {config.method!r}: got {options}: {error}.") from error
    model.config = config
    _warn_of_large_fin(model)
    return model


def _warn_of_large_fin(model: PlainClassifier) -> None:
    fin = getattr(model, "fin", None)
    if fin is None:
        return
    added, trunk = count_parameters(fin), count_parameters(model.backbone)
    # The paper's own nets stay silent: its largest conv3x3 FIN, on ResNeXt-29, adds 38M to 34M.
    if added > max(2 * trunk, 50_000_000) and model.config.options.get("fin") != "pointwise":
        warnings.warn(
            f"fin: {model.config.options.get('fin', 'conv3x3')} adds {added / 1e6:.0f}M parameters to the "
            f"{trunk / 1e6:.0f}M of {model.config.backbone}; fin='pointwise' adds a quarter of that.",
            LficamWarning,
            stacklevel=3,
        )


def create_model(
    backbone: str,
    method: str = "lfi",
    num_classes: int = 10,
    backbone_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    **options: Any,
) -> PlainClassifier:
    """A classifier that explains itself, in training mode (as every new `torch.nn.Module`).

    Args:
        backbone: name of the trunk: any of timm's convolutional networks, one that lficam adds to them, or
            ``module:factory`` for one of the user's own.
        method: ``plain``, ``lfi`` or ``abn``.
        num_classes: C, at least 2.
        backbone_args: arguments of the trunk, such as ``{"block": "bottleneck"}``, or ``{"output_stride": 16}`` for a
            14 x 14 grid at 224 pixels.
        pretrained: the trunk starts from timm's weights, which are downloaded; what the method adds is random.
        options: of the method; ``lfi`` takes those of `LFIClassifier`.

    Raises:
        UnknownNameError: no such backbone, method, fin or importance.
        InvalidInputError: an option that the method or the trunk does not have.

    >>> model = create_model("cifar_resnet20", method="lfi", num_classes=10)
    >>> sum(parameter.numel() for parameter in model.parameters())
    420442
    """
    return build(
        ModelConfig(
            backbone=backbone,
            backbone_args=dict(backbone_args or {}),
            method=method,
            options=options,
            num_classes=num_classes,
        ),
        pretrained,
    )


def wrap(
    classifier: nn.Module,
    features: str | Function,
    head: Function | None = None,
    method: str = "plain",
    image_size: int = 224,
    class_names: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> PlainClassifier:
    """A classifier of one's own behind the contract; with method ``plain`` its answers stay what they were to the bit.

    Evidence, CAM and Grad-CAM are there at once. ``lfi`` adds a Feature Importance Network with random weights, which
    wants training. The classifier itself is not copied, and keeps the mode of each of its layers.

    Args:
        classifier: images (N, 3, H, W) to logits (N, C).
        features: the stage that gives the last map before pooling, such as ``layer4``: a layer of ``named_modules`` or
            a step of the forward function, cut with `torch.fx`; or a function from images to that map (N, K, h, w): a
            method of the classifier follows a deep copy, a closure keeps the original's weights.
        head: with a function for ``features``, the one from that map to the logits.
        method: ``plain`` or ``lfi`` (``abn`` copies the last stage of a ResNet that timm or lficam made).
        image_size: side in pixels of a picture that the classifier takes.
        class_names: C names, or none.
        preprocessing: what pictures pass before the classifier; `lficam.explain_images` needs it.
        options: of the method.

    Raises:
        UnknownNameError: no such stage; those that exist are listed.
        InvalidInputError: what cannot be cut (two functions are asked for instead), an output that is not (N, C).

    >>> import torch, torchvision
    >>> classifier = torchvision.models.resnet18(num_classes=5).eval()
    >>> model, images = wrap(classifier, features="layer4", image_size=64), torch.rand(2, 3, 64, 64)
    >>> torch.equal(model(images), classifier(images)), model.explain(images, class_idx=3).evidence.shape
    (True, torch.Size([2, 1, 2, 2]))
    """
    backbone = WrappedBackbone(classifier, features, head, image_size)
    if class_names and len(class_names) != backbone.num_classes:
        raise InvalidInputError(f"class_names: expected {backbone.num_classes} names, got {len(class_names)}.")
    stage = {"features": features} if isinstance(features, str) else {}
    kind = type(classifier)
    config = ModelConfig(
        backbone=f"{kind.__module__}:{kind.__qualname__}",
        backbone_args={**stage, "image_size": image_size},
        method=method,
        options=options,
        num_classes=backbone.num_classes,
        class_names=list(class_names),
        preprocessing=preprocessing,
    )
    model = build(config, backbone=backbone)
    weight = next(classifier.parameters(), torch.empty(0))
    for name, part in model.named_children():
        if name != "backbone":
            part.to(weight.device, weight.dtype)
    for module in set(model.modules()) - set(classifier.modules()):
        module.training = classifier.training
    return model


def load(
    directory: str | Path,
    model: nn.Module | str | None = None,
    features: Function | None = None,
    head: Function | None = None,
) -> PlainClassifier:
    """A trained model from its run directory or from what `save_pretrained` wrote, on the CPU, in eval mode.

    Args:
        directory: of the run.
        model: where the run's trunk is the user's own code, a network of that kind (its weights are overwritten), or
            ``module:factory``, which is imported and run. Never taken from the run itself: loading runs no code that
            the caller did not name.
        features: the function that it was wrapped with, if it was one.
        head: likewise.

    Raises:
        RunError: no run there, a damaged file, or weights that do not match their checksum or their configuration.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = create_model("cifar_resnet20", method="plain").save_pretrained(folder)
    ...     load(folder).config.backbone
    'cifar_resnet20'
    """
    values, state = hub.read(directory)
    try:
        config = ModelConfig.from_dict(values)
        loaded = build(config, backbone=_given_backbone(config, model, features, head))
        loaded.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        hint = hub.newer_version(directory)
        raise RunError(f"run: {directory} holds weights or settings of another model: {error}.{hint}") from error
    return loaded.eval()


def from_pretrained(name: str | Path, **options: Any) -> PlainClassifier:
    """A model from Hugging Face's hub or from a directory, as `load`.

    Args:
        name: ``user/name``, or the directory.
        options: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` of the hub; ``model``, ``features`` and
            ``head`` of `load`.

    Raises:
        RunError: nothing there, no network, or a damaged file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = create_model("cifar_resnet20", method="plain").save_pretrained(folder)
    ...     from_pretrained(folder).config.backbone
    'cifar_resnet20'
    """
    with hub.plain_errors(str(name)):
        return PlainClassifier.from_pretrained(name, **options)


def _given_backbone(
    config: ModelConfig, model: nn.Module | str | None, features: Function | None, head: Function | None
) -> Backbone | None:
    """The trunk that only the caller can give; None where lficam makes it."""
    if not is_factory_name(config.backbone):
        if model is not None:
            raise InvalidInputError(
                f"model: the run's trunk is {config.backbone}, which lficam makes itself; give none."
            )
        return None
    if model is None:
        raise RunError(
            f"run: its trunk is code of its author, {config.backbone}, which is not run unasked; give it as model= "
            "(on the command line --model MODULE:FACTORY)."
        )
    if isinstance(model, str):
        model = call_factory(model, config.num_classes, factory_arguments(config.backbone_args))
    backbone = wrapped(model, config.backbone_args, features, head)
    if backbone.num_classes != config.num_classes:
        raise InvalidInputError(f"model: it has {backbone.num_classes} classes, the run {config.num_classes}.")
    return backbone
