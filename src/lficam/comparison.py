"""Explainers side by side on the same pictures and classes: the paper's Figures 3 and 4, with the time of each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lficam.contract import ClassIndex, Preprocessing, in_eval_mode
from lficam.data.images import read_image
from lficam.data.pictures import Pictures
from lficam.data.sampling import spread
from lficam.data.transforms import normalise, prepare
from lficam.errors import DataError, InvalidInputError, RunError, UnknownNameError
from lficam.evaluation import carried
from lficam.explainers import EXPLAINERS, VERSUS, create_explainer
from lficam.files import write_json
from lficam.models.plain import PlainClassifier
from lficam.progress import track
from lficam.visualize import enlarge, overlay, overlay_signed, save_gallery_figure, save_png, strip

COMPARISON_FILE = "comparison.json"
FIGURE_FILE = "comparison.png"
# LIME and RISE take minutes a picture on a CPU, so they are asked for by name.
DEFAULT_EXPLAINERS = ("attention", "class_evidence", "cam", "grad_cam", "grad_cam_pp", "layer_cam", "score_cam")
_SIDE = 128


@dataclass
class Question:
    """One row of the figure: a picture, and the class asked of it.

    Attributes:
        image: (3, H, W) uint8, as the network sees it.
        asked: the class; None: the predicted one.
        other: the class that a picture of two objects shows beside it; None where there is none.
        name: of the picture, for people.
    """

    image: Tensor
    asked: int | None
    other: int | None
    name: str


@dataclass
class Comparison:
    """What `compare` found.

    Attributes:
        directory: with ``comparison.json``, the figure and a strip a question.
        explainers: a row each: name, milliseconds a picture, passes through the trunk.
        rows: a row a question: file, name, class, probability, captions.
    """

    directory: Path
    explainers: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {"explainers": self.explainers, "rows": self.rows}


def questions_of_files(paths: Sequence[Path], preprocessing: Preprocessing) -> list[Question]:
    """Figure 3: every picture and the class that the model predicts for it."""
    return [Question(prepare(read_image(path), preprocessing), None, None, path.name) for path in paths]


def questions_of_set(pictures: Pictures, preprocessing: Preprocessing, count: int) -> list[Question]:
    """Figure 3, or Figure 4 where a picture shows two objects: then two rows a picture, one for each class.

    Args:
        pictures: a test set; ``count`` of it are spread over the whole.
        preprocessing: of the model.
        count: of rows.
    """
    two = pictures.object_labels is not None and pictures.object_labels.shape[1] == 2
    questions = []
    for index in spread(len(pictures), max(count // 2 if two else count, 1)).tolist():
        image, name = pictures.prepared([index], preprocessing)[0], pictures.names[index]
        if two:
            assert pictures.object_labels is not None
            one, other = pictures.object_labels[index].tolist()
            questions += [Question(image, one, other, name), Question(image, other, one, name)]
        else:
            questions.append(Question(image, None, None, name))
    return questions


def questions_of_pairs(pictures: Pictures, preprocessing: Preprocessing, count: int) -> list[Question]:
    """Figure 4: two pictures of different classes side by side, one row for each of the two classes.

    Raises:
        DataError: a set of one class.
    """
    if len(pictures.labels.unique()) < 2:
        raise DataError("data: pairs need pictures of two classes, got one.")
    questions = []
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    for first in order[: max(count // 2, 1)]:
        one = int(pictures.labels[first])
        second = next((index for index in reversed(order) if int(pictures.labels[index]) != one), None)
        if second is None or first not in order:  # all of another class are taken, or this one is
            continue
        order.remove(second)
        other = int(pictures.labels[second])
        pair = torch.cat(list(pictures.prepared([first, second], preprocessing)), dim=2)
        name = f"{pictures.names[first]} and {pictures.names[second]}"
        questions += [Question(pair, one, other, name), Question(pair, other, one, name)]
    return questions


def compare(
    model: PlainClassifier,
    questions: Sequence[Question],
    out: str | Path,
    explainers: Sequence[str] = DEFAULT_EXPLAINERS,
) -> Comparison:
    """Ask every explainer the same questions, and leave a figure: a row a question, a column an explainer.

    Every column explains the class asked, or the predicted one; maps without a class are what they are. Where a picture
    has two objects, ``class_evidence_versus`` is of the one and not the other. Times are medians over the questions,
    one picture at a time, after one that does not count.

    Args:
        model: trained, with its preprocessing.
        questions: of `questions_of_files`, `questions_of_set` or `questions_of_pairs`.
        out: a directory; made if need be.
        explainers: names of ``lficam.explainers.EXPLAINERS``; those that the model cannot carry are left out where the
            default is taken.

    Raises:
        UnknownNameError: no such explainer.
        InvalidInputError: a named explainer that the model cannot carry, or a model without preprocessing.
        RunError: ``out`` holds other content than an earlier comparison.
    """
    preprocessing = model.config.required_preprocessing()
    if not questions:
        raise InvalidInputError("count: expected at least one row, got none.")
    comparison = Comparison(Path(out))
    _clear(comparison.directory)
    device = next(model.parameters()).device
    images = [normalise(question.image[None].to(device), preprocessing) for question in questions]
    probabilities = [_ask(model, image, preprocessing) for image in images]
    asked = [
        int(of_one.argmax()) if question.asked is None else question.asked
        for question, of_one in zip(questions, probabilities, strict=True)
    ]
    columns: dict[str, list[Tensor]] = {}
    for name in track(_carried(model, explainers), "explaining", len(explainers)):
        columns[name], row = _column(model, name, images, asked)
        comparison.explainers.append(row)
    if {"class_evidence", VERSUS} & set(columns) and any(question.other is not None for question in questions):
        others = [question.other for question in questions]
        columns[VERSUS] = [
            create_explainer(VERSUS, model, versus=other)(image, this, raw=True)[0].cpu()
            for image, this, other in zip(images, asked, others, strict=True)
        ]
    for number, question in enumerate(questions):
        panels = _panels(question, {name: maps[number] for name, maps in columns.items()})
        file = f"{number:03d}.png"
        save_png(strip(panels), comparison.directory / file)
        label = model.config.label(asked[number])
        comparison.rows.append(
            {
                "file": file,
                "name": question.name,
                "class": label,
                "probability": float(probabilities[number][asked[number]]),
                "captions": [label, *columns],
            }
        )
    save_gallery_figure(comparison.directory, comparison.rows, comparison.directory / FIGURE_FILE)
    write_json(comparison.directory / COMPARISON_FILE, comparison.to_dict())
    return comparison


def _ask(model: PlainClassifier, image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Probabilities (C,) of one picture, which is wider than the model's own where two stand side by side."""
    try:
        with in_eval_mode(model), torch.inference_mode():
            return model(image)[0].softmax(dim=0).cpu()
    except RuntimeError as error:
        size, width = preprocessing.size, image.shape[-1]
        if width == size:
            raise
        raise InvalidInputError(
            f"pairs: {model.config.backbone} takes pictures of {size} x {size} only, and two side by side are "
            f"{size} x {width}; leave --pairs out. ({error})"
        ) from error


def _clear(directory: Path) -> None:
    """Make the directory, or take away what an earlier comparison left in it; anything else is not touched."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not (directory / COMPARISON_FILE).is_file():
            raise RunError(f"out: {directory} holds other content; name a new directory. Nothing was changed.")
        for old in directory.glob("[0-9][0-9][0-9].png"):
            old.unlink()
    directory.mkdir(parents=True, exist_ok=True)


def _carried(model: PlainClassifier, names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in EXPLAINERS:
            raise UnknownNameError("explainer", name, EXPLAINERS)
    return carried(model, names) if tuple(names) == DEFAULT_EXPLAINERS else list(names)


def _column(
    model: PlainClassifier, name: str, images: Sequence[Tensor], asked: Sequence[int]
) -> tuple[list[Tensor], dict[str, Any]]:
    """The raw or normalised map of each picture, (1, h, w), and the explainer's time and passes."""
    explain = create_explainer(name, model)

    def explain_one(image: Tensor, class_idx: ClassIndex) -> Tensor:
        target = class_idx if explain.class_targeted else None
        return explain(image, target, raw=explain.signed)[0].cpu()

    explain_one(images[0], asked[0])
    maps, seconds = [], []
    for image, class_idx in zip(images, asked, strict=True):
        start = time.perf_counter()
        maps.append(explain_one(image, class_idx))
        seconds.append(time.perf_counter() - start)
    milliseconds = 1000 * sorted(seconds)[len(seconds) // 2]
    return maps, {"explainer": name, "milliseconds": round(milliseconds, 2), "passes": explain.passes(images[0])}


def _panels(question: Question, maps: dict[str, Tensor]) -> list[Tensor]:
    image = enlarge(question.image, _SIDE)
    signed = {name for name, explainer in EXPLAINERS.items() if explainer.signed}
    drawn = [(overlay_signed if name in signed else overlay)(image, of_one) for name, of_one in maps.items()]
    return [image, *drawn]
