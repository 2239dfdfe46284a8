"""One door to every model: `create_model` for a new one, `load` for a trained one."""

import warnings
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

_METHODS: dict[str, Callable[[Backbone, ModelConfig], PlainClassifier]] = {
    "plain": lambda backbone, config: PlainClassifier(backbone, **config.options),
    "lfi": lambda backbone, config: LFIClassifier(backbone, **config.options),
    "abn": lambda backbone, config: ABNClassifier(backbone, config.num_classes, **config.options),
}


def build(config: ModelConfig, pretrained: bool = False) -> PlainClassifier:
    """A model from its configuration, which stays with it as ``model.config``; random weights unless ``pretrained``."""
    if config.method not in _METHODS:
        raise UnknownNameError("method", config.method, _METHODS)
    if config.num_classes < 2:
        raise InvalidInputError(f"num_classes: expected at least 2, got {config.num_classes}.")
    try:
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
    added, trunk = (sum(parameter.numel() for parameter in part.parameters()) for part in (fin, model.backbone))
    # The paper's own nets stay silent: its largest conv3x3 FIN, on ResNeXt-29, adds 38M to 34M.
    if added > max(2 * trunk, 50_000_000) and model.config.options.get("fin") != "pointwise":
        warnings.warn(
            f"fin: {model.config.options.get('fin', 'conv3x3')} adds {added / 1e6:.0f}M parameters to the "
            f"{trunk / 1e6:.0f}M of {model.config.backbone}; fin='pointwise' adds a quarter of that.",
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
        backbone: name of the trunk: any of timm's convolutional networks, or one that lficam adds to them.
        method: ``plain``, ``lfi`` or ``abn``.
        num_classes: C, at least 2.
        backbone_args: arguments of the trunk, such as ``{"block": "bottleneck"}``, or ``{"output_stride": 16}`` for a
            14 x 14 grid at 224 pixels.
        pretrained: the trunk starts from timm's weights, which are downloaded; what the method adds is random.
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
        ),
        pretrained,
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
