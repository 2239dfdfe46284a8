"""What makes a run: a typed recipe, and the recipes of the paper and of the short experiments, found by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from lficam.errors import InvalidInputError, UnknownNameError
from lficam.fields import require_types


@dataclass
class ModelOptions:
    """Which model.

    Args:
        backbone: name of the trunk, or module:factory for one of your own.
        method: plain CNN, LFI-CAM or Attention Branch Network.
        fin: layers of LFI-CAM's Feature Importance Network; uniform is none, w = 1/K; first_guess none either, weights
            from the classifier's own rows.
        importance: LFI-CAM's weights: softmax of the FIN's scores, or the scores.
        attend_at: the stage that LFI-CAM's map amplifies, such as layer3; empty is the last map.
        grey_mask: LFI-CAM's FIN sees the features under the grey image, as in the paper.
        mechanism: residual is the paper's F' = (1 + L) F, product F' = L F.
        temperature: of LFI-CAM's softmax; below 1 the weights differ more.
        pretrained: start the trunk from timm's weights, which are downloaded.
        backbone_args: arguments of the trunk, such as {block: bottleneck}, {output_stride: 16} or, for your own,
            {features: layer4}.
    """

    backbone: str = "cifar_resnet20"
    method: Literal["plain", "lfi", "abn"] = "lfi"
    fin: Literal["conv3x3", "conv3x3_relu", "pointwise", "uniform", "first_guess"] = "conv3x3"
    importance: Literal["softmax", "scores"] = "softmax"
    attend_at: str = ""
    grey_mask: bool = True
    mechanism: Literal["residual", "product"] = "residual"
    temperature: float = 1.0
    pretrained: bool = False
    backbone_args: dict = field(default_factory=dict)

    def method_options(self) -> dict[str, Any]:
        """The options that the chosen method takes."""
        if self.method != "lfi":
            return {}
        defaults = ModelOptions()
        rare = ("attend_at", "grey_mask", "mechanism", "temperature")
        changed = {name: getattr(self, name) for name in rare if getattr(self, name) != getattr(defaults, name)}
        return {"fin": self.fin, "importance": self.importance, **changed}


@dataclass
class Recipe:
    """Everything that makes a run again, but where it goes.

    Args:
        data: source, such as folder:PATH, cifar10 or digits-in-scenes.
        model: which model.
        epochs: passes over the training part.
        seed: of weights, order, augmentation and validation split.
        batch_size: pictures in a step, over all processes together.
        image_size: side of the network's input in pixels.
        resize: short side of a picture before the centre crop in pixels; 0 means image_size.
        augmentation: of the training pictures.
        hidden_patch: share of the training pictures that lose one square of a 4 x 4 grid, so that patch deletion later
            asks the model about pictures such as it has seen.
        mean: of the pixels, per channel, in [0, 1].
        std: of the pixels, per channel, in [0, 1].
        val_fraction: share of the training part kept for choosing the best epoch; 0 means the last is the best.
        schedule: divide the rate by 10 at 50 and 75 percent of the epochs (the paper's), or one cycle.
        lr: learning rate; the peak of one_cycle.
        warmup: share of the steps in which the rate of one_cycle rises, in [0, 1).
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        weight_decay: of SGD.
        label_smoothing: of the cross-entropy, in [0, 1).
        init_from: a run whose trunk and head the training starts from, and with the same method all its weights;
            empty is random weights.
        freeze: batch_norm keeps every batch norm as it is, in evaluation mode; backbone all of the trunk but its last
            linear layer; fin the Feature Importance Network, as a control with random weights.
        precision: auto is bfloat16 autocast where the machine has it natively, else float32.
        device: auto, cpu, cuda or mps.
        devices: processes, each on a device of its own.
        workers: loading processes; 0 suits sets in memory.
        worker_timeout: seconds that a batch may take a loading process, beyond three times what it takes alone, before
            the process counts as hung; 0 waits for ever.
        checkpoint_minutes: between checkpoints inside an epoch, beside the one after each; 0: none there.
    """

    data: str = ""
    model: ModelOptions = field(default_factory=ModelOptions)
    epochs: int = 30
    seed: int = 0
    batch_size: int = 128
    image_size: int = 32
    resize: int = 0
    augmentation: Literal["none", "crop", "crop_flip", "resized_crop_flip"] = "crop_flip"
    hidden_patch: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    val_fraction: float = 0.1
    schedule: Literal["step", "one_cycle"] = "one_cycle"
    lr: float = 0.1
    warmup: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    init_from: str = ""
    freeze: Literal["none", "batch_norm", "backbone", "fin"] = "none"
    precision: Literal["auto", "32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    workers: int = 0
    worker_timeout: float = 15.0
    checkpoint_minutes: float = 10.0

    def check(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            InvalidInputError: a value out of its range; the message names it.
        """
        require_types(self)
        bounds = {
            "epochs": self.epochs >= 1,
            "seed": 0 <= self.seed < 2**32,
            "batch_size": self.batch_size >= max(self.devices, 1) and self.batch_size % max(self.devices, 1) == 0,
            "image_size": self.image_size >= 1,
            "resize": self.resize == 0 or self.resize >= self.image_size,
            "val_fraction": 0 <= self.val_fraction < 1,
            "hidden_patch": 0 <= self.hidden_patch <= 1,
            "lr": self.lr > 0,
            "warmup": 0 <= self.warmup < 1,
            "momentum": 0 <= self.momentum < 1 and (self.momentum > 0 or not self.nesterov),
            "weight_decay": self.weight_decay >= 0,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "devices": self.devices >= 1,
            "workers": self.workers >= 0,
            "worker_timeout": self.worker_timeout >= 0,
            "checkpoint_minutes": self.checkpoint_minutes >= 0,
            "std": min(self.std) > 0,
            "temperature": self.model.temperature > 0,
        }
        given = vars(self.model) | vars(self)
        for name, holds in bounds.items():
            if not holds:
                raise InvalidInputError(f"{name}: got {given[name]}, out of range; see lficam train --help.")
        own = ":" in self.model.backbone  # the user's factory may load weights itself
        if self.freeze == "backbone" and not (self.init_from or self.model.pretrained or own):
            raise InvalidInputError("freeze: backbone would keep random weights; give --init-from RUN or --pretrained.")
        if self.freeze == "fin" and (self.model.method != "lfi" or self.model.fin in ("uniform", "first_guess")):
            raise InvalidInputError("freeze: this model has no FIN to freeze; choose method lfi and a fin with layers.")
        if not self.data:
            raise InvalidInputError("data: no source given; pass --data, such as --data folder:PATH.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for YAML."""
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load(resources.files(__name__).joinpath(name).read_text())


def recipe_names() -> list[str]:
    """The recipes that ship with lficam."""
    return list(_read("rows.yaml"))


def paper_figures() -> dict[str, dict[str, float]]:
    """What the paper reports for a recipe, where it does: ``top1_error`` in percent, ``millions`` of parameters.

    >>> paper_figures()["imagenet_resnet18_lfi"]
    {'top1_error': 27.75, 'millions': 17.47}
    """
    return {name: row["paper"] for name, row in _read("rows.yaml").items() if "paper" in row}


def recipe_from_values(values: Mapping[str, Any]) -> Recipe:
    """The typed recipe of some settings, as `recipe_values` gives them; the rest is at its defaults.

    >>> recipe_from_values(recipe_values("cifar10_resnet110_lfi")).model.backbone
    'cifar_resnet110'
    """
    try:
        recipe = Recipe(**{**values, "model": ModelOptions(**values.get("model", {}))})
        require_types(recipe)
        return recipe
    except TypeError as error:
        raise InvalidInputError(f"config: settings that no recipe has ({error}).") from error


def recipe_values(name_or_path: str) -> dict[str, Any]:
    """The settings of a recipe: a shipped one by name (its row over its base), or a YAML file such as a run's own.

    Raises:
        UnknownNameError: neither a shipped name nor a file.
        InvalidInputError: a file that is no YAML mapping.

    >>> recipe_values("cifar10_resnet110_lfi")["epochs"]
    300
    """
    if name_or_path in recipe_names():
        row = {key: value for key, value in _read("rows.yaml")[name_or_path].items() if key != "paper"}
        return merge(_read(f"{row.pop('base')}.yaml"), row)
    path = Path(name_or_path)
    if not path.is_file():
        raise UnknownNameError("recipe (nor is it a file)", name_or_path, recipe_names())
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"config: {path} is no YAML file ({reason}).") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"config: expected a YAML mapping of settings in {path}, got {type(values).__name__}.")
    return values


def merge(base: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over others; mappings such as ``model`` are merged too.

    >>> merge({"epochs": 1, "model": {"fin": "uniform"}}, {"model": {"method": "abn"}})
    {'epochs': 1, 'model': {'fin': 'uniform', 'method': 'abn'}}
    """
    merged = dict(base)
    for key, value in row.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged
