"""One door to every model: `create_model` for a new one, `load` for a trained one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lficam.contract import ModelConfig
from lficam.errors import InvalidInputError, RunError, UnknownNameError
from lficam.models import hub
from lficam.models.abn import ABNClassifier
from lficam.models.backbones import Backbone, create_backbone
from lficam.models.lfi import LFIClassifier
from lficam.models.plain import PlainClassifier

_METHODS: dict[str, Callable[[ModelConfig], PlainClassifier]] = {
    "plain": lambda config: PlainClassifier(_backbone(config), **config.options),
    "lfi": lambda config: LFIClassifier(_backbone(config), **config.options),
    "abn": lambda config: ABNClassifier(_backbone(config), config.num_classes, **config.options),
}


def _backbone(config: ModelConfig) -> Backbone:
    return create_backbone(config.backbone, config.num_classes, config.backbone_args)


def build(config: ModelConfig) -> PlainClassifier:
    """A model with random weights from its configuration, which stays with it as ``model.config``."""
    if config.method not in _METHODS:
        raise UnknownNameError("method", config.method, _METHODS)
    if config.num_classes < 2:
        raise InvalidInputError(f"num_classes: expected at least 2, got {config.num_classes}.")
    try:
        model = _METHODS[config.method](config)
    except TypeError as error:
        options = ", ".join(config.options)
        raise InvalidInputError(f"options of method {config.method!r}: got {options}: {error}.") from error
    model.config = config
    return model


def create_model(
    backbone: str,
    method: str = "lfi",
    num_classes: int = 10,
    backbone_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> PlainClassifier:
    """A classifier that explains itself, with random weights, in training mode (as every new `torch.nn.Module`).

    Args:
        backbone: name of the trunk, see `lficam.models.backbones.known_backbones`.
        method: ``plain``, ``lfi`` or ``abn``.
        num_classes: C, at least 2.
        backbone_args: arguments of the trunk, such as ``{"block": "bottleneck"}``.
        options: of the method; ``lfi`` takes ``fin`` and ``importance``.

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
        )
    )


def load(directory: str | Path) -> PlainClassifier:
    """A trained model from its run directory or from what `save_pretrained` wrote, on the CPU, in eval mode.

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
        model = build(ModelConfig.from_dict(values))
        model.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"run: {directory} holds weights or settings of another model: {error}.") from error
    return model.eval()
