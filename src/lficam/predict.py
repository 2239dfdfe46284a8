"""From pictures to labels, evidence and attention in the pictures' own pixels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lficam import functional as LF
from lficam import portable
from lficam.contract import Preprocessing, TrainedClassifier, in_eval_mode
from lficam.data.images import read_image, to_pixels
from lficam.data.transforms import normalise, prepare
from lficam.errors import DataError, InvalidInputError
from lficam.explainers import create_explainer
from lficam.metrics.localization import peaks, region_boxes
from lficam.visualize import enlarge, overlay, overlay_signed, strip

Picture = str | Path | Image.Image | np.ndarray | Tensor

_OVERLAY_SIDE = 224


@dataclass
class Explanation:
    """What a model says of one picture. Pixels are the picture's own, upright.

    Attributes:
        path: of the file; empty for a picture from memory.
        size: (H, W) of the picture.
        label: name of the explained class, the predicted one unless another was asked for.
        probability: of that class.
        top: the five likeliest classes, as (name, probability), best first.
        map_name: whose peak and region are given: ``evidence``, or ``attention`` where the model has no evidence.
        peak: (x, y) of that map's maximum.
        region: (x1, y1, x2, y2) around that map's largest region above half of its maximum; the whole crop where no
            place speaks for the class.
        crop: the part of the picture that the network saw, (x1, y1, x2, y2).
        image: (3, S, S) uint8, that part as the network saw it.
        evidence: (1, h, w), signed, in logits, centred over the classes; None where the model has none.
        attention: (1, h, w) in [0, 1]; None where the model has none.
    """

    path: str
    size: tuple[int, int]
    label: str
    probability: float
    top: list[tuple[str, float]]
    map_name: str
    peak: tuple[float, float]
    region: tuple[float, float, float, float]
    crop: tuple[float, float, float, float]
    image: Tensor
    evidence: Tensor | None
    attention: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """The words and numbers, fit for JSON."""
        return {
            "path": self.path,
            "label": self.label,
            "probability": round(self.probability, 6),
            "top5": [{"label": name, "probability": round(value, 6)} for name, value in self.top],
            "map": self.map_name,
            "peak": [round(value, 2) for value in self.peak],
            "box": [round(value, 2) for value in self.region],
            "seen": [round(value, 2) for value in self.crop],
        }

    def doubts(self) -> list[str]:
        """Why this explanation may be worth little, in sentences; none is no promise that it is worth much."""
        doubts = []
        if self.probability < 0.5:
            doubts.append(f"The model is not sure: {self.label} has a probability of {self.probability:.0%}.")
        if self.evidence is not None and not (self.evidence > 0).any():
            doubts.append(f"No place of the picture speaks for {self.label}.")
        if self.attention is not None and float(self.attention.max() - self.attention.min()) < 0.05:
            doubts.append("The attention map is flat: it points nowhere.")
        if min(self.size) < min(self.image.shape[-2:]) // 4:
            doubts.append(
                f"The picture is small ({self.size[1]} x {self.size[0]} pixels); the network saw it enlarged."
            )
        return doubts

    def on_picture(self, values: Tensor) -> Tensor:
        """A map of this explanation, such as ``evidence``, at the picture's own pixels.

        Args:
            values: (1, h, w).

        Returns:
            (1, H, W) in the same unit; zero outside the part that the network saw.
        """
        height, width = self.size
        x1, y1, x2, y2 = (round(edge) for edge in self.crop)
        canvas = values.new_zeros(1, height, width)
        canvas[:, y1:y2, x1:x2] = LF.upsample(values[None], (y2 - y1, x2 - x1))[0]
        return canvas

    def picture(self) -> Tensor:
        """(3, H, W) uint8: what the network saw, its evidence (red for, blue against), its attention."""
        image = enlarge(self.image, _OVERLAY_SIDE)
        panels = [image]
        if self.evidence is not None:
            panels.append(overlay_signed(image, self.evidence))
        if self.attention is not None:
            panels.append(overlay(image, self.attention))
        return strip(panels)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are, folders as the sorted image files below them.

    Raises:
        DataError: a path that does not exist, or a folder without image files.
    """
    try:
        return portable.find_images(paths)
    except portable.PortableError as error:
        raise DataError(str(error)) from error


def explain_images(
    model: TrainedClassifier, pictures: Sequence[Picture], class_name: str | int | None = None, batch_size: int = 32
) -> Iterator[Explanation | DataError]:
    """Explain pictures one by one, as they are asked for; one that cannot be read gives its error in its place.

    Args:
        model: trained, with its preprocessing (`lficam.load`).
        pictures: paths (`lficam.predict.find_images`), PIL images, arrays (H, W) or (H, W, 3), or tensors (3, H, W);
            uint8, or floats in [0, 1].
        class_name: explain this class instead of the predicted one: a name, or a number.
        batch_size: pictures in a forward pass.

    Raises:
        InvalidInputError: a model without preprocessing, or a class it does not know.

    >>> from lficam.models.factory import create_model
    >>> model = create_model("cifar_resnet20")
    >>> model.config.preprocessing = Preprocessing(size=32, resize=32)
    >>> [explanation.crop for explanation in explain_images(model, [Image.new("RGB", (64, 32))])]
    [(16.0, 0.0, 48.0, 32.0)]
    """
    preprocessing = model.config.required_preprocessing()
    class_idx = None if class_name is None else _class_index(model, str(class_name))
    return _explain_all(model, preprocessing, pictures, class_idx, batch_size)


def predict(
    model: TrainedClassifier,
    pictures: Picture | Sequence[Picture],
    class_name: str | int | None = None,
    batch_size: int = 32,
) -> Explanation | list[Explanation]:
    """Label, probabilities and maps of one picture or a list: `explain_images` for people. See there.

    Returns:
        One `Explanation` for one picture, a list for a list.

    Raises:
        DataError: a picture that cannot be read; the message names it.
        InvalidInputError: as `explain_images`.
    """
    alone = isinstance(pictures, Picture)
    results = explain_images(model, [pictures] if alone else list(pictures), class_name, batch_size)  # type: ignore[list-item, arg-type]
    explained = []
    for result in results:
        if isinstance(result, DataError):
            raise result
        explained.append(result)
    return explained[0] if alone else explained


def _explain_all(
    model: TrainedClassifier,
    preprocessing: Preprocessing,
    pictures: Sequence[Picture],
    class_idx: int | None,
    batch_size: int,
) -> Iterator[Explanation | DataError]:
    for start in range(0, len(pictures), batch_size):
        batch = [_read(picture) for picture in pictures[start : start + batch_size]]
        readable = [pixels for pixels in batch if isinstance(pixels, Tensor)]
        explained = iter(_explain(model, preprocessing, readable, class_idx)) if readable else iter(())
        for picture, pixels in zip(pictures[start : start + batch_size], batch, strict=True):
            if isinstance(pixels, DataError):
                yield pixels
            else:
                explanation = next(explained)
                explanation.path = str(picture) if isinstance(picture, str | Path) else ""
                yield explanation


def _class_index(model: TrainedClassifier, name: str) -> int:
    names = model.config.class_names or [str(number) for number in range(model.config.num_classes)]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise InvalidInputError(f"class: the model knows no class {name!r}; it knows {', '.join(names)}.")


def _read(picture: Picture) -> Tensor | DataError:
    try:
        return read_image(picture) if isinstance(picture, str | Path) else to_pixels(picture)
    except DataError as error:
        return error


def _explain(
    model: TrainedClassifier, preprocessing: Preprocessing, pictures: list[Tensor], class_idx: int | None
) -> list[Explanation]:
    seen = torch.stack([prepare(picture, preprocessing) for picture in pictures])
    images = normalise(seen.to(next(model.parameters()).device), preprocessing)
    with in_eval_mode(model), torch.inference_mode():
        prediction = model.explain(images, class_idx).cpu()
    attention, evidence = prediction.attention, None
    if model.linear_head is not None:
        # Centred over the classes, as evaluate measures it: a share common to all classes explains none.
        evidence = create_explainer("class_evidence", model)(images, class_idx, raw=True).cpu()
    map_name, maps = ("attention", attention) if evidence is None else ("evidence", evidence)
    if maps is None:
        raise InvalidInputError("model: it has neither evidence nor attention; use an explainer such as grad_cam.")
    maps = LF.upsample(maps, (preprocessing.size, preprocessing.size))
    points, regions = peaks(maps), region_boxes(LF.min_max(maps.relu()))
    results = []
    for number, picture in enumerate(pictures):
        probabilities = prediction.logits[number].softmax(dim=0)
        explained = int(probabilities.argmax()) if class_idx is None else class_idx
        best = probabilities.topk(min(5, len(probabilities)))
        height, width = picture.shape[-2:]
        crop = preprocessing.crop_box(height, width)
        scale = ((crop[2] - crop[0]) / preprocessing.size, (crop[3] - crop[1]) / preprocessing.size)
        x, y = points[number].tolist()
        x1, y1, x2, y2 = regions[number].tolist()
        results.append(
            Explanation(
                path="",
                size=(height, width),
                label=model.config.label(explained),
                probability=float(probabilities[explained]),
                top=[(model.config.label(int(i)), float(p)) for p, i in zip(best.values, best.indices, strict=True)],
                map_name=map_name,
                peak=(crop[0] + x * scale[0], crop[1] + y * scale[1]),
                region=(
                    crop[0] + x1 * scale[0],
                    crop[1] + y1 * scale[1],
                    crop[0] + x2 * scale[0],
                    crop[1] + y2 * scale[1],
                ),
                crop=crop,
                image=seen[number],
                evidence=None if evidence is None else evidence[number],
                attention=None if attention is None else attention[number],
            )
        )
    return results
