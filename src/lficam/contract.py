"""What an explainer, a metric and a report know of a model: a prediction, and how to ask for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lficam.errors import InvalidInputError
from lficam.fields import require_types

ClassIndex = int | Sequence[int] | Tensor | None
# A class, or what a head without classes (regression, a margin, several labels) is asked for: logits (N, C) to (N,).
Target = ClassIndex | Callable[[Tensor], Tensor]


class Prediction(NamedTuple):
    """What one forward pass says. N images, C classes, K feature channels, an h x w grid.

    Attributes:
        logits: (N, C).
        attention: (N, 1, h, w) in [0, 1], where the model amplifies its features; None for a plain classifier.
        evidence: (N, 1, h, w), signed, in logits, of the class asked for: its spatial mean plus that class's bias is
            that class's logit. None where anything but global average pooling stands between the last map and one
            linear layer.
        importance: (N, K), the weight of each feature channel in the attention map; None where there is none.
        attention_logits: (N, C), the attention branch's own answer (ABN); None elsewhere.
    """

    logits: Tensor
    attention: Tensor | None = None
    evidence: Tensor | None = None
    importance: Tensor | None = None
    attention_logits: Tensor | None = None

    def cpu(self) -> "Prediction":
        """The same on the CPU."""
        return Prediction(self.logits.cpu(), *(None if part is None else part.cpu() for part in self[1:]))


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input: short side to ``resize``, centre crop of ``size``, normalisation.

    Attributes:
        size: side of the square network input, in pixels.
        resize: length of the picture's short side before the centre crop, in pixels; at least ``size``.
        mean: per channel, for values in [0, 1].
        std: per channel, for values in [0, 1].

    >>> Preprocessing(size=224, resize=256).crop_box(height=512, width=1024)
    (288.0, 32.0, 736.0, 480.0)
    """

    size: int
    resize: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize:
            raise InvalidInputError(
                f"preprocessing: expected 0 < size <= resize, got size {self.size}, resize {self.resize}."
            )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of a picture after its short side became ``resize``."""
        scale = self.resize / min(height, width)
        return max(round(height * scale), self.resize), max(round(width * scale), self.resize)

    def crop_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of a picture that the network sees, as (x1, y1, x2, y2) in the picture's own pixels."""
        tall, wide = self.resized(height, width)
        top, left = (tall - self.size) // 2, (wide - self.size) // 2
        y_scale, x_scale = height / tall, width / wide
        return left * x_scale, top * y_scale, (left + self.size) * x_scale, (top + self.size) * y_scale


@dataclass
class ModelConfig:
    """What makes a model again, and what people must know of it; the content of ``config.json``.

    Attributes:
        backbone: name of the trunk.
        backbone_args: its arguments.
        method: ``plain``, ``lfi`` or ``abn``.
        options: the method's own options.
        num_classes: C.
        class_names: C names, or empty.
        preprocessing: what the pictures must pass before the model; None for a model made by hand.
        training: facts of the training run.
    """

    backbone: str
    backbone_args: dict[str, Any] = field(default_factory=dict)
    method: str = "lfi"
    options: dict[str, Any] = field(default_factory=dict)
    num_classes: int = 10
    class_names: list[str] = field(default_factory=list)
    preprocessing: Preprocessing | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`.

        Raises:
            InvalidInputError: a value of another type than its field.
        """
        values = dict(values)
        pictures = values.get("preprocessing")
        if pictures is not None:
            mean, std = tuple(pictures["mean"]), tuple(pictures["std"])
            values["preprocessing"] = Preprocessing(pictures["size"], pictures["resize"], mean, std)
        config = cls(**values)
        require_types(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def required_preprocessing(self) -> Preprocessing:
        """What pictures must pass before the model.

        Raises:
            InvalidInputError: a model made by hand, which has none.
        """
        if self.preprocessing is None:
            raise InvalidInputError(
                "model: it has no preprocessing; load a trained one with lficam.load, or set it in model.config."
            )
        return self.preprocessing

    def label(self, class_idx: int) -> str:
        """The name of a class, or its number where the model knows no names."""
        return self.class_names[class_idx] if self.class_names else str(class_idx)


@runtime_checkable
class ExplainableClassifier(Protocol):
    """All that an explainer knows of a model. Images are (N, 3, H, W), normalised; features are (N, K, h, w)."""

    training: bool

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C) logits."""

    def explain(self, images: Tensor, class_idx: ClassIndex = None) -> Prediction:
        """Logits, attention and evidence of ``class_idx`` (None: the predicted class) in one pass."""

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, K, h, w), the last map before pooling."""

    def classify(self, features: Tensor, images: Tensor) -> Tensor:
        """(N, C) logits from the map of `forward_features`."""

    def pooled_features(self, features: Tensor, images: Tensor) -> Tensor:
        """(N, K, h, w), exactly the map that global pooling receives."""

    @property
    def linear_head(self) -> nn.Linear | None:
        """The linear layer behind global average pooling; None where anything else stands between."""

    def train(self, mode: bool = True) -> nn.Module:
        """Set training mode, as `torch.nn.Module` does."""

    def modules(self) -> Iterator[nn.Module]:
        """All layers, as `torch.nn.Module` gives them."""


@runtime_checkable
class TrainedClassifier(ExplainableClassifier, Protocol):
    """An explainable classifier that knows its classes and what pictures must pass before it."""

    config: ModelConfig

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights, as `torch.nn.Module` gives them."""


@contextmanager
def in_eval_mode(model: ExplainableClassifier) -> Iterator[None]:
    """Eval mode inside; afterwards every layer has the mode it had, also when something raises."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_images(images: Tensor) -> None:
    """Refuse anything but a floating-point (N, 3, H, W) batch, saying what to do.

    >>> check_images(torch.zeros(3, 32, 32))
    Traceback (most recent call last):
    ...
    lficam.errors.InvalidInputError: images: expected (N, 3, H, W), got (3, 32, 32); add a batch axis with unsqueeze(0).
    """
    got = tuple(images.shape)
    if images.ndim != 4:
        hint = "add a batch axis with unsqueeze(0)" if images.ndim == 3 else "pass a batch of images"
        raise InvalidInputError(f"images: expected (N, 3, H, W), got {got}; {hint}.")
    if images.shape[1] != 3:
        raise InvalidInputError(f"images: expected 3 channels on axis 1, got {got}; convert to RGB, channels first.")
    if not images.is_floating_point():
        raise InvalidInputError(
            f"images: expected normalised floating-point values, got {images.dtype}; apply the model's preprocessing."
        )


def resolve_class_idx(class_idx: ClassIndex, logits: Tensor, read_values: bool = False) -> Tensor:
    """One class index per image, (N,) int64: the predicted class where None, one class for all where an integer.

    A tensor's values are checked only with ``read_values``: reading them would stop `torch.export`.

    Raises:
        InvalidInputError: an index out of range, or not one index per image.

    >>> resolve_class_idx(None, torch.tensor([[0.0, 1.0], [2.0, 1.0]])).tolist()
    [1, 0]
    >>> resolve_class_idx(1, torch.zeros(2, 3)).tolist()
    [1, 1]
    """
    count, classes = logits.shape
    if class_idx is None:
        return logits.argmax(dim=1)
    if isinstance(class_idx, Tensor) and class_idx.is_floating_point():
        raise InvalidInputError(f"class_idx: expected integers, got {class_idx.dtype}.")
    if isinstance(class_idx, Tensor) and read_values:
        class_idx = class_idx.tolist()
    if isinstance(class_idx, int | Integral):
        class_idx = [int(class_idx)] * count
    if not isinstance(class_idx, Tensor):
        outside = [i for i in class_idx if not 0 <= i < classes]
        if outside:
            raise InvalidInputError(f"class_idx: expected 0 to {classes - 1} ({classes} classes), got {outside[0]}.")
        class_idx = torch.tensor(list(class_idx), dtype=torch.int64, device=logits.device)
    if tuple(class_idx.shape) != (count,):
        raise InvalidInputError(
            f"class_idx: expected one index per image, shape ({count},), got {tuple(class_idx.shape)}."
        )
    return class_idx.to(logits.device, torch.int64)


def target_scores(target: Target, logits: Tensor, answers: Tensor | None = None) -> Tensor:
    """The number (N,) that a target reads off the logits (N, C): a class's logit, or what a callable says.

    Args:
        target: None is the predicted class.
        logits: (N, C).
        answers: (N, C), whose values are read in place of the logits where the target is a class, such as
            probabilities.

    Raises:
        InvalidInputError: a class out of range, or a callable that does not give one number per image.

    >>> target_scores(lambda logits: logits[:, 0] - logits[:, 1], torch.tensor([[3.0, 1.0]])).item()
    2.0
    """
    if callable(target):
        scores = target(logits)
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        if shape != (len(logits),):
            raise InvalidInputError(f"class_idx: expected a function of logits (N, C) that gives (N,), got {shape}.")
        return scores
    asked = resolve_class_idx(target, logits, read_values=True).unsqueeze(1)
    return (logits if answers is None else answers).gather(1, asked).squeeze(1)
