"""A trained model on a test set: error, calibration, size, and where its maps point, each beside its chance rate."""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lficam.contract import Preprocessing, in_eval_mode
from lficam.data.pictures import Pictures
from lficam.data.sampling import spread
from lficam.data.sources import load_source
from lficam.data.transforms import normalise
from lficam.errors import DataError, InvalidInputError
from lficam.explainers import VERSUS, create_explainer
from lficam.explainers.base import Explainer
from lficam.files import write_json
from lficam.metrics.classification import calibration_error, per_class, rate, rate_over_pictures, top_k_misses
from lficam.metrics.localization import mean_map, points_into, region_iou, shuffled, widened
from lficam.models.abn import ABNClassifier
from lficam.models.backbones import count_parameters
from lficam.models.lfi import LFIClassifier
from lficam.models.plain import PlainClassifier
from lficam.progress import progress_bar
from lficam.visualize import draw_box, enlarge, overlay, overlay_signed, save_png, strip

EVALUATION_FILE = "evaluation.json"
GALLERY_SIDE = 160
UNIFORM = "uniform (w = 1/K for the FIN)"
_GALLERY_SIZE = 12
_ALIKE = ("class_names", "preprocessing", "method", "backbone", "backbone_args")


@dataclass
class Evaluation:
    """The figures of one model on one test set, as they are written to ``evaluation.json``.

    Attributes:
        facts: source, number of pictures, of broken files beside them, of classes, of parameters, of multiply-adds.
        classification: rates with their 95 % intervals, and the calibration error.
        classes: the per-class table.
        localization: a row a map: pointing game and box IoU beside chance; empty where the set knows no boxes.
        shortcut: what became of a planted mark; empty where there is none.
        gallery: one row a picture strip.
    """

    facts: dict[str, Any]
    classification: dict[str, Any]
    classes: list[dict[str, Any]]
    localization: list[dict[str, Any]] = field(default_factory=list)
    shortcut: dict[str, Any] = field(default_factory=dict)
    gallery: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return dict(vars(self))


@dataclass
class Subject:
    """A model on a test set, normalised a batch at a time on the model's device."""

    model: PlainClassifier
    pictures: Pictures
    preprocessing: Preprocessing
    batch_size: int
    progress: Progress

    @cached_property
    def boxes(self) -> Tensor:
        """The objects' boxes in the pixels of the network's input, where the maps are."""
        assert self.pictures.boxes is not None
        return self.pictures.seen_boxes(self.pictures.boxes, self.preprocessing)

    @cached_property
    def masks(self) -> Tensor:
        """The first objects' masks, likewise, (N, 1, S, S) bool."""
        return self.pictures.seen_masks(self.preprocessing)

    @cached_property
    def marks(self) -> Tensor:
        """The planted marks' boxes, likewise."""
        assert self.pictures.mark_boxes is not None
        return self.pictures.seen_boxes(self.pictures.mark_boxes, self.preprocessing)

    @cached_property
    def near_marks(self) -> Tensor:
        """The marks with an eighth of the side around, for a network may read a mark's place from cells beside it."""
        return widened(self.marks, self.preprocessing.size / 8)

    def batches(self, description: str) -> Iterator[tuple[Tensor, slice]]:
        """Normalised batches in order, each with the slice of the set that it is, under a progress bar."""
        device = next(self.model.parameters()).device
        task = self.progress.add_task(description, total=len(self.pictures))
        for images, part in self.pictures.batches(self.preprocessing, self.batch_size):
            yield normalise(images.to(device), self.preprocessing), part
            self.progress.advance(task, len(images))
        self.progress.remove_task(task)

    def logits(self, model: nn.Module, description: str) -> Tensor:
        """(N, C) float32 on the CPU, of this model or another one."""
        return self._answers(lambda images, _: model(images), description)

    def logits_with(self, maps: Tensor, description: str) -> Tensor:
        """`logits` of the model with these maps (N, 1, h, w) in place of its own."""
        assert isinstance(self.model, LFIClassifier | ABNClassifier)
        with_map = self.model.answer_with
        return self._answers(lambda images, part: with_map(images, maps[part].to(images)), description)

    @torch.inference_mode()
    def _answers(self, answer: Callable[[Tensor, slice], Tensor], description: str) -> Tensor:
        return torch.cat([answer(images, part).float().cpu() for images, part in self.batches(description)])

    def require_answers(self, logits: Tensor) -> Tensor:
        """The logits (N, C), of which something can be said.

        Raises:
            InvalidInputError: NaN or infinite ones.
        """
        broken = ~torch.isfinite(logits).all(dim=1)
        if broken.any():
            first = self.pictures.names[int(broken.int().argmax())]
            raise InvalidInputError(
                f"model: answers NaN or infinity to {int(broken.sum())} of {len(logits)} pictures, first to {first}; "
                "train it anew, or in float32."
            )
        return logits

    def maps(
        self, explainer: Explainer, class_idx: Tensor | None, versus: Tensor | None = None, raw: bool = False
    ) -> Tensor:
        """(N, 1, S, S) on the CPU, or ``raw`` on the grid; a map without a class is the same whatever is asked."""
        found = []
        for images, part in self.batches(explainer.name):
            asked = class_idx[part] if class_idx is not None and explainer.class_targeted else None
            if versus is not None:
                explainer = create_explainer(explainer.name, self.model, versus=versus[part])
            found.append(explainer(images, asked, raw).cpu())
        return torch.cat(found)


def evaluate(
    model: PlainClassifier, pictures: Pictures, source: str, out: Path | None = None, batch_size: int = 128
) -> Evaluation:
    """Measure a trained model on a test set.

    Args:
        model: with its preprocessing; asked in eval mode, in float32, on the device where it is.
        pictures: the test part of a source; its classes must be the model's.
        source: its name, for the record.
        out: where ``evaluation.json`` and the gallery's pictures go; None: nowhere.
        batch_size: pictures in a forward pass.

    Returns:
        The figures.

    Raises:
        DataError: other classes than the model's.
        InvalidInputError: a model without preprocessing.

    >>> from lficam.models.factory import create_model
    >>> model = create_model("cifar_resnet20", num_classes=2)
    >>> model.config.class_names, model.config.preprocessing = ["cat", "dog"], Preprocessing(size=16, resize=16)
    >>> images, labels = torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.tensor([0, 1, 1])
    >>> pictures = Pictures(images, labels, ["cat", "dog"], names=["a", "b", "c"])
    >>> evaluate(model, pictures, "three black pictures").facts["parameters"]
    419922
    """
    preprocessing = model.config.required_preprocessing()
    require_same_classes(model, pictures, source)
    with in_eval_mode(model), progress_bar() as progress:
        subject = Subject(model, pictures, preprocessing, batch_size, progress)
        logits = subject.require_answers(subject.logits(model, "classifying"))
        evaluation = Evaluation(
            facts={
                "source": source,
                "pictures": len(pictures),
                "broken": len(pictures.broken),
                "classes": len(pictures.class_names),
                "backbone": model.config.backbone,
                "method": model.config.method,
                **model_size(model, preprocessing.size),
            },
            classification=_classification(logits, pictures),
            classes=_classes(logits, pictures),
        )
        if pictures.boxes is not None:
            evaluation.localization = _localization(subject)
        if isinstance(model, LFIClassifier) and model.fin_name != "uniform":
            control = subject.require_answers(subject.logits(model.with_uniform_importance(), "without the FIN"))
            evaluation.classification["top1_error_uniform"] = _error(control, pictures, 1)
        if pictures.mark_boxes is not None:
            evaluation.shortcut = _shortcut(subject, logits)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            evaluation.gallery = _gallery(subject, logits, out)
            write_json(out / EVALUATION_FILE, evaluation.to_dict())
    return evaluation


def top1_error(model: PlainClassifier, pictures: Pictures, batch_size: int = 128) -> dict[str, float]:
    """A model's top-1 error on a set: value and 95 % interval (``low``, ``high``); asked in eval mode."""
    with in_eval_mode(model), progress_bar() as progress:
        subject = Subject(model, pictures, model.config.required_preprocessing(), batch_size, progress)
        return _error(subject.require_answers(subject.logits(model, "classifying")), pictures, 1)


def evaluate_run(run: str | Path, model: PlainClassifier, source: str) -> Evaluation:
    """`evaluate` on a source by name; the records go to ``RUN/evaluation/SOURCE``."""
    pictures = load_source(source, model.config.required_preprocessing().size, with_train=False).test
    return evaluate(model, pictures, source, evaluation_directory(run, source))


def evaluation_directory(run: str | Path, source: str) -> Path:
    """Where the records of a source go.

    >>> evaluation_directory("run", "two-digits").as_posix()
    'run/evaluation/two-digits'
    >>> evaluation_directory("run", "folder:/data/pets").as_posix()
    'run/evaluation/folder-data-pets-215894b5'
    """
    return Path(run) / "evaluation" / name_for_files(source)


def name_for_files(source: str) -> str:
    """A source's name as that of a folder.

    >>> name_for_files("two-digits")
    'two-digits'
    """
    name = re.sub(r"[^A-Za-z0-9._]+", "-", source).strip("-.")
    if name != source:  # two folders may read alike once their path is a name
        name += "-" + hashlib.sha256(source.encode()).hexdigest()[:8]
    return name


def model_size(model: nn.Module, size: int) -> dict[str, int]:
    """Parameters, and multiply-adds of one picture of ``size`` pixels (convolutions and matrix products)."""
    parameter = next(model.parameters())
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    return {
        "parameters": count_parameters(model),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def carried(model: PlainClassifier, explainers: Sequence[str]) -> list[str]:
    """Those explainers that a model can carry: attention where it has a map, CAM and evidence where they are exact."""
    missing = {"attention"} if model.config.method == "plain" else set()
    if model.linear_head is None:
        missing |= {"class_evidence", VERSUS, "cam"}
    return [name for name in explainers if name not in missing]


def require_comparable(models: Mapping[str, PlainClassifier]) -> None:
    """Refuse models of other classes, preprocessing, methods, backbones or training data: alike but for their training.

    Raises:
        InvalidInputError: the first that differs from the first.
    """
    (first_name, first), *others = models.items()
    for name, model in others:
        ours, theirs = first.config, model.config
        pairs = {field_name: (getattr(ours, field_name), getattr(theirs, field_name)) for field_name in _ALIKE}
        pairs["options"] = _options(first), _options(model)
        pairs["training data"] = _training_data(ours.training, theirs.training)
        if None not in (knows_holes(first), knows_holes(model)):
            pairs["hidden patches in training"] = knows_holes(first), knows_holes(model)
        for what, (one, other) in pairs.items():
            if one != other:
                raise InvalidInputError(f"runs: {first_name} and {name} have different {what}; compare runs alike.")


def _options(model: PlainClassifier) -> dict[str, Any]:
    """Of the model's method, those too that were left as they are."""
    known = inspect.signature(type(model)).parameters.values()
    return {
        option.name: option.default for option in known if option.default is not option.empty
    } | model.config.options


def _training_data(training: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What two models learned from: by the digests of the listings, where the trainings of both wrote one down."""
    key = "listing_sha256" if "listing_sha256" in training and "listing_sha256" in other else "data"
    return training.get(key), other.get(key)


def knows_holes(model: PlainClassifier) -> bool | None:
    """Whether the model was trained with patches hidden: taking patches away then asks it in its own domain (IDSDS).

    None where its training was not recorded.
    """
    share = model.config.training.get("hidden_patch")
    return None if share is None else share > 0


def require_same_classes(model: PlainClassifier, pictures: Pictures, source: str) -> None:
    """Refuse a test set of other classes than the model's.

    Raises:
        DataError: saying which.
    """
    known, found = model.config.class_names, pictures.class_names
    if known == found:
        return
    missing, extra = sorted(set(known) - set(found)), sorted(set(found) - set(known))
    difference = "; ".join(
        f"{word} {', '.join(names[:5])}" for word, names in (("missing:", missing), ("unknown:", extra)) if names
    )
    raise DataError(
        f"data: {source} has {len(found)} classes, the model knows {len(known)} ({difference or 'reordered'}); "
        "evaluate it on a source with its own classes."
    )


def _objects(pictures: Pictures) -> int:
    return 1 if pictures.boxes is None else pictures.boxes.shape[1]


def true_labels(pictures: Pictures) -> Tensor:
    """(N, D): the label, or where a picture shows several objects, each of theirs: any of them is a right answer."""
    several = _objects(pictures) > 1 and pictures.object_labels is not None
    return pictures.object_labels if several else pictures.labels.unsqueeze(1)  # type: ignore[return-value]


def _error(logits: Tensor, pictures: Pictures, k: int) -> dict[str, float]:
    return rate(top_k_misses(logits, true_labels(pictures), k))._asdict()


def _classification(logits: Tensor, pictures: Pictures) -> dict[str, Any]:
    figures: dict[str, Any] = {"top1_error": _error(logits, pictures, 1)}
    if len(pictures.class_names) > 5:
        figures["top5_error"] = _error(logits, pictures, 5)
    if _objects(pictures) == 1:
        figures["calibration_error"] = calibration_error(logits, pictures.labels)
    return figures


def _classes(logits: Tensor, pictures: Pictures) -> list[dict[str, Any]]:
    """The per-class table; a picture of several objects has no one class to be a row of."""
    if _objects(pictures) > 1:
        return []
    return [row._asdict() for row in per_class(logits, pictures.labels, pictures.class_names)]


def _explainers(model: PlainClassifier) -> dict[str, Explainer]:
    """The rows of the localisation table that this model can fill, baselines last."""
    names = ["class_evidence", "cam", "grad_cam"] if model.linear_head is not None else ["grad_cam"]
    if model.config.method != "plain":
        names.insert(0, "attention")
    rows = {name: create_explainer(name, model) for name in names}
    if isinstance(model, LFIClassifier) and model.fin_name != "uniform":
        rows[UNIFORM] = create_explainer("attention", model.with_uniform_importance())
    return rows | {name: create_explainer(name, model) for name in ("feature_mean", "centre")}


def _localization(subject: Subject) -> list[dict[str, Any]]:
    """Every object of every picture is asked for; a map without a class is held against each of them."""
    pictures = subject.pictures
    assert pictures.object_labels is not None
    objects, known = _objects(pictures), pictures.object_labels >= 0
    boxes = subject.boxes.masked_fill(~known.view(*known.shape, *[1] * (subject.boxes.ndim - 2)), torch.nan)
    labels = pictures.object_labels.clamp(min=0)  # an object without a label is asked for as any, and left out
    if _known(boxes).sum() < 2:  # chance needs another picture
        return []
    rows = []
    for name, explainer in _explainers(subject.model).items():
        asked = labels.unbind(1) if explainer.class_targeted else [None]
        maps = [subject.maps(explainer, class_idx) for class_idx in asked]
        maps = maps if len(maps) == objects else maps * objects
        rows.append({"map": name, "class_targeted": explainer.class_targeted, **_held_against(maps, boxes)})
    if objects == 2 and subject.model.linear_head is not None:
        explainer = create_explainer(VERSUS, subject.model)
        pairs = [(labels[:, d], labels[:, 1 - d]) for d in range(2)]
        maps = [subject.maps(explainer, asked, versus) for asked, versus in pairs]
        rows.insert(2, {"map": VERSUS, "class_targeted": True, **_held_against(maps, boxes)})
    return rows


def _known(boxes: Tensor) -> Tensor:
    """The pictures that know a box of each of their objects, (N,) bool."""
    return ~boxes.isnan().flatten(2).all(dim=2).any(dim=1)


def _held_against(maps: list[Tensor], all_boxes: Tensor) -> dict[str, Any]:
    """Rates over the objects of pictures that know them all; beside them what takes no look at the picture.

    Chance is the maps held against the boxes of others; ``mean_map`` is the mean of all the maps in place of each.
    """
    known = _known(all_boxes)
    boxes = all_boxes[known].unbind(1)
    maps = [of_object[known] for of_object in maps]
    other = shuffled(int(known.sum()))
    of_others = [of_object[other] for of_object in boxes]
    hits = [points_into(m, b) for m, b in zip(maps, boxes, strict=True)]
    figures: dict[str, Any] = {"pointing": rate_over_pictures(torch.stack(hits, dim=1))._asdict()}
    figures["box_iou"] = _mean_of(region_iou, maps, boxes)
    for control, (held, against) in {
        "chance": (maps, of_others),
        "mean_map": (list(mean_map(torch.cat(maps)).chunk(len(maps))), boxes),
    }.items():
        figures[f"pointing_{control}"] = _mean_of(points_into, held, against)
        figures[f"box_iou_{control}"] = _mean_of(region_iou, held, against)
    return figures


def _mean_of(measure: Callable[[Tensor, Tensor], Tensor], maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> float:
    return float(torch.cat([measure(m, b) for m, b in zip(maps, boxes, strict=True)]).float().mean())


def taken_from_the_mark(pictures: Pictures, predicted: Tensor) -> Tensor:
    """Whose predicted class (N,) is a lying mark's, (N,) bool: of a network that reads marks, their cause is known.

    Of another network none: where all classes are as likely, one wrong label in C - 1 is a mark's by chance, and only a
    share that is above it with Wilson's whole interval tells that marks are read. Of two classes none does.
    """
    none = torch.zeros(len(pictures), dtype=torch.bool)
    if pictures.lying_marks is None:
        return none
    wrong = pictures.lying_marks & (predicted != pictures.labels)
    taken = wrong & (predicted == pictures.mark_labels)
    by_chance = 1 / max(len(pictures.class_names) - 1, 1)
    reads_marks = bool(wrong.any()) and rate(taken[wrong]).low > by_chance
    return taken if reads_marks else none


def _shortcut(subject: Subject, logits: Tensor) -> dict[str, Any]:
    """How often the label is the mark's, and where each map's peak lies then.

    Chance is the same maps held against the marks of other pictures.
    """
    pictures = subject.pictures
    assert pictures.mark_labels is not None
    predicted = logits.argmax(dim=1)
    marked, taken = pictures.mark_labels >= 0, taken_from_the_mark(pictures, predicted)
    figures: dict[str, Any] = {"label_is_the_marks": rate((predicted == pictures.mark_labels)[marked])._asdict()}
    figures["label_taken_from_the_mark"] = int(taken.sum())
    if not taken.any():
        return figures
    figures["peaks"] = []
    for name, explainer in _explainers(subject.model).items():
        maps = subject.maps(explainer, predicted)[taken]
        marks, near, digits = (boxes[taken] for boxes in (subject.marks, subject.near_marks, subject.boxes[:, 0]))
        row: dict[str, Any] = {
            "map": name,
            "on_the_mark": rate(points_into(maps, marks))._asdict(),
            "near_the_mark": rate(points_into(maps, near))._asdict(),
            "on_the_digit": rate(points_into(maps, digits))._asdict(),
        }
        if len(maps) > 1:
            row["near_the_mark_chance"] = float(points_into(maps, near[shuffled(len(maps))]).float().mean())
        figures["peaks"].append(row)
    return figures


def _gallery(subject: Subject, logits: Tensor, out: Path) -> list[dict[str, Any]]:
    """Strips of right and wrong pictures, spread over the whole set."""
    predicted = logits.argmax(dim=1)
    labels = true_labels(subject.pictures)
    right = (predicted.unsqueeze(1) == labels).any(dim=1)
    two_objects = _objects(subject.pictures) == 2
    rows = []
    for chosen in (torch.nonzero(right).flatten(), torch.nonzero(~right).flatten()):
        for index in chosen[spread(len(chosen), _GALLERY_SIZE)].tolist():
            panels, captions = _two_object_panels(subject, index) if two_objects else _panels(subject, index)
            file = f"{index:06d}.png"
            save_png(strip(panels), out / file)
            names = subject.pictures.class_names
            rows.append(
                {
                    "file": file,
                    "name": subject.pictures.names[index],
                    "captions": captions,
                    "true": " and ".join(names[label] for label in labels[index].tolist()),
                    "predicted": names[int(predicted[index])],
                    "probability": float(logits[index].softmax(dim=0).max()),
                    "right": bool(right[index]),
                }
            )
    return rows


def _panels(subject: Subject, index: int) -> tuple[list[Tensor], list[str]]:
    """Image, evidence of the predicted class, attention."""
    image, images = _one(subject, index)
    image = enlarge(image, GALLERY_SIDE)
    panels, captions = [image], ["image"]
    if subject.model.linear_head is not None:
        evidence = create_explainer("class_evidence", subject.model)(images, raw=True)
        panels.append(overlay_signed(image, evidence[0].cpu()))
        captions.append("evidence")
    if subject.model.config.method != "plain":
        panels.append(overlay(image, create_explainer("attention", subject.model)(images, raw=True)[0].cpu()))
        captions.append("attention")
    return panels, captions


def _two_object_panels(subject: Subject, index: int) -> tuple[list[Tensor], list[str]]:
    """Image, attention, then a column for each object, its evidence against the other's, where there is such."""
    pictures = subject.pictures
    assert pictures.object_labels is not None
    image, images = _one(subject, index)
    shown = enlarge(image, GALLERY_SIDE)
    factor = shown.shape[-1] // image.shape[-1]
    panels, captions = [shown], ["image"]
    if subject.model.config.method != "plain":
        panels.append(overlay(shown, create_explainer("attention", subject.model)(images, raw=True)[0].cpu()))
        captions.append("attention")
    if subject.model.linear_head is None:
        return panels, captions
    asked = pictures.object_labels[index].tolist()
    for number, (this, that) in enumerate((asked, asked[::-1])):
        evidence = create_explainer(VERSUS, subject.model, versus=[that])(images, [this], raw=True)
        panel, box = overlay_signed(shown, evidence[0].cpu()), subject.boxes[index, number] * factor
        panels.append(panel if box.isnan().any() else draw_box(panel, box.tolist()))
        captions.append(f"{pictures.class_names[this]}, not {pictures.class_names[that]}")
    return panels, captions


def _one(subject: Subject, index: int) -> tuple[Tensor, Tensor]:
    """A prepared picture (3, S, S) uint8, and the batch of one that the model takes."""
    prepared = subject.pictures.prepared([index], subject.preprocessing)
    device = next(subject.model.parameters()).device
    return prepared[0], normalise(prepared.to(device), subject.preprocessing)
