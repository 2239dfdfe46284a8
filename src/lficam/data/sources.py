"""Data sources by name: ``folder:PATH``, ``cifar10``, ``cifar100``, ``stl10`` and the embedded scenes."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor

from lficam.data.images import is_image_name
from lficam.data.pictures import Pictures, read_files
from lficam.data.scenes import SCENE_NAMES, load_scenes
from lficam.errors import DataError, InvalidInputError, UnknownNameError

_FOLDER = "folder:"
_TEST_SHARE = 0.2
_SPLIT_SEED = 0


@dataclass
class Source:
    """A data set in parts. ``train`` and ``validation`` are None where they were not asked for or do not exist."""

    name: str
    test: Pictures
    train: Pictures | None = None
    validation: Pictures | None = None


def data_root() -> Path:
    """Where downloads go: ``$LFICAM_DATA``, else ``~/.cache/lficam``."""
    return Path(os.environ.get("LFICAM_DATA") or Path.home() / ".cache" / "lficam")


def known_sources() -> list[str]:
    """The forms of a source's name."""
    return ["folder:PATH", *_NAMED, *SCENE_NAMES]


def load_source(
    name: str,
    image_size: int = 32,
    val_fraction: float = 0.1,
    seed: int = 0,
    with_train: bool = True,
) -> Source:
    """A data set by name. The test part chooses nothing: validation is a seeded, stratified share of the training part.

    Args:
        name: ``folder:PATH`` with a folder per class, inside ``train`` and ``test`` (or ``val``, or all three) or
            straight in PATH (then a fifth is split off for the test, the same one whatever the seed); ``cifar10``,
            ``cifar100`` or ``stl10`` (downloaded by torchvision to `data_root`); or one of the embedded scenes.
        image_size: side in pixels at which the embedded scenes are drawn; others come in their own size.
        val_fraction: share of the training part, in [0, 1); 0: no validation part.
        seed: of the validation split.
        with_train: False loads the test part alone.

    Raises:
        UnknownNameError: no such source.
        DataError: missing, empty or unreadable data, one class only, a failed download.

    >>> load_source("digits-in-scenes", image_size=32, with_train=False).test.images.shape
    torch.Size([1000, 3, 32, 32])
    """
    if not 0 <= val_fraction < 1:
        raise InvalidInputError(f"val_fraction: expected at least 0 and below 1, got {val_fraction}.")
    if name.startswith(_FOLDER):
        return _load_folder(name, Path(name[len(_FOLDER) :]).expanduser(), val_fraction, seed, with_train)
    if name in SCENE_NAMES:
        load_part = lambda part: load_scenes(name, part, image_size)  # noqa: E731
    elif name in _NAMED:
        load_part = _NAMED[name]
    else:
        raise UnknownNameError("data source", name, known_sources())
    source = Source(name, test=_required(load_part("test"), name, "test"))
    if with_train:
        train = _required(load_part("train"), name, "training")
        source.train, source.validation = _split(train, val_fraction, seed)
    return source


def _required(pictures: Pictures | None, name: str, part: str) -> Pictures:
    if pictures is None:
        raise DataError(f"data: {name} has no {part} pictures; it is a test set, train on another source.")
    return pictures


def _cifar(kind: type[torchvision.datasets.CIFAR10], part: str) -> Pictures:
    try:
        data = kind(data_root(), train=part == "train", download=True)
    except (OSError, URLError, RuntimeError) as error:
        raise _no_download(kind.__name__, error) from error
    return Pictures(
        images=torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor(data.targets),
        class_names=list(data.classes),
        names=[f"{kind.__name__.lower()}/{part}/{number:05d}" for number in range(len(data))],
    )


def _stl10(part: str) -> Pictures:
    try:
        data = torchvision.datasets.STL10(data_root(), split=part, download=True)
    except (OSError, URLError, RuntimeError) as error:
        raise _no_download("STL10", error) from error
    return Pictures(
        images=torch.from_numpy(data.data),
        labels=torch.from_numpy(data.labels).long(),
        class_names=list(data.classes),
        names=[f"stl10/{part}/{number:05d}" for number in range(len(data))],
    )


def _no_download(name: str, error: Exception) -> DataError:
    return DataError(
        f"data: {name} is not in {data_root()} and could not be downloaded ({error}); "
        "set LFICAM_DATA to a folder that has it, or use folder:PATH."
    )


_NAMED: dict[str, Callable[[str], Pictures | None]] = {
    "cifar10": lambda part: _cifar(torchvision.datasets.CIFAR10, part),
    "cifar100": lambda part: _cifar(torchvision.datasets.CIFAR100, part),
    "stl10": _stl10,
}


def _load_folder(name: str, root: Path, val_fraction: float, seed: int, with_train: bool) -> Source:
    if not root.is_dir():
        raise DataError(f"data: expected a folder of images, got {root}, which is no folder.")
    parts = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if not parts:
        return _split_folder(name, root, val_fraction, seed, with_train)
    test_root = parts.get("test", parts.get("val"))
    if test_root is None:
        raise DataError(f"data: {root} has a train folder but no test or val folder beside it; add one.")
    if with_train and "train" not in parts:
        raise DataError(f"data: {root} has no train folder beside {test_root.name}; add one, or evaluate on it only.")
    class_names = _class_names(parts.get("train", test_root))
    source = Source(name, test=_read(root, *_list(test_root, class_names), class_names))
    if with_train and "val" in parts and "test" in parts:
        source.train = _read(root, *_list(parts["train"], class_names), class_names)
        source.validation = _read(root, *_list(parts["val"], class_names), class_names)
    elif with_train:
        train = _read(root, *_list(parts["train"], class_names), class_names)
        source.train, source.validation = _split(train, val_fraction, seed)
    return source


def _split_folder(name: str, root: Path, val_fraction: float, seed: int, with_train: bool) -> Source:
    """A folder without parts: the test share is drawn from the list, before anything is decoded."""
    class_names = _class_names(root)
    paths, labels = _list(root, class_names)
    rest, test = _stratified(labels, None, _TEST_SHARE, _SPLIT_SEED, "a test folder")

    def read(indices: Tensor) -> Pictures:
        return _read(root, [paths[i] for i in indices.tolist()], labels[indices], class_names)

    source = Source(name, test=read(test))
    if with_train:
        source.train, source.validation = _split(read(rest), val_fraction, seed)
    return source


def _class_names(folder: Path) -> list[str]:
    names = _visible_folders(folder)
    if len(names) < 2:
        found = f"one folder ({names[0]})" if names else "none"
        raise DataError(f"data: expected at least two class folders in {folder}, got {found}.")
    return names


def _visible_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list(folder: Path, class_names: Sequence[str]) -> tuple[list[Path], Tensor]:
    """The image files below each class folder, sorted, and their labels."""
    strangers = sorted(set(_visible_folders(folder)) - set(class_names))
    if strangers:
        raise DataError(f"data: {folder} has classes that the training folder does not: {', '.join(strangers)}.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        within = folder / class_name
        files = sorted(path for path in within.rglob("*") if path.is_file() and is_image_name(path))
        if not files:
            raise DataError(f"data: no image files in {within}; add some, or remove the class everywhere.")
        paths += files
        labels += [label] * len(files)
    return paths, torch.tensor(labels)


def _read(root: Path, paths: Sequence[Path], labels: Tensor, class_names: list[str]) -> Pictures:
    names = [str(path.relative_to(root)) for path in paths]
    return Pictures(read_files(paths, root.name), labels, class_names, names)


def _split(pictures: Pictures, fraction: float, seed: int) -> tuple[Pictures, Pictures | None]:
    if fraction == 0:
        return pictures, None
    rest, held = _stratified(pictures.labels, pictures.groups, fraction, seed, "val_fraction 0")
    return pictures.select(rest), pictures.select(held)


def _stratified(
    labels: Tensor, groups: Tensor | None, fraction: float, seed: int, remedy: str
) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of the share held out, both in order: of every class, at least one group on each side."""
    groups = torch.arange(len(labels)) if groups is None else groups
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = groups[labels == label].unique()
        count = min(max(math.floor(fraction * len(members) + 0.5), 1), len(members) - 1)
        if count < 1:
            raise DataError(
                f"data: class {int(label)} has one picture and cannot be split; add pictures, or give {remedy}."
            )
        drawn = members[torch.randperm(len(members), generator=generator)[:count]]
        held |= torch.isin(groups, drawn) & (labels == label)
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()
