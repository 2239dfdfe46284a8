"""Data sources by name: ``folder:PATH``, public sets and the embedded scenes; and how they are split."""

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lficam.data.folders import Listing, list_folder, part_folders, printable
from lficam.data.named import NAMED, UNSPLIT
from lficam.data.pictures import Pictures
from lficam.data.scan import copies
from lficam.data.scenes import SCENE_NAMES, load_scenes
from lficam.errors import DataError, InvalidInputError, LficamWarning, UnknownNameError

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

    @property
    def training_listing_sha256(self) -> str:
        """Of the names and labels of all pictures to train and to choose on, wherever they lie and however split.

        It knows nothing of their pixels.
        """
        parts = [part for part in (self.train, self.validation) if part is not None]
        pictures = sorted(pair for part in parts for pair in zip(part.names, part.labels.tolist(), strict=True))
        name = "" if self.name.startswith(_FOLDER) else self.name
        return hashlib.sha256(json.dumps([name, self.test.class_names, pictures]).encode()).hexdigest()


def shown_source(name: str) -> str:
    """A source as files that leave the machine name it: where a folder lies is nobody's business but its owner's.

    >>> shown_source("folder:/home/me/secret/pets")
    'folder:pets'
    """
    return f"{_FOLDER}{Path(name[len(_FOLDER) :]).name}" if name.startswith(_FOLDER) else name


def known_sources() -> list[str]:
    """The forms of a source's name."""
    return ["folder:PATH", *NAMED, *UNSPLIT, *SCENE_NAMES]


def require_source(name: str) -> None:
    """Refuse a name that no data set has, before anything is loaded.

    Raises:
        UnknownNameError: with the nearest one that exists.
    """
    if not name.startswith(_FOLDER) and name not in (*NAMED, *UNSPLIT, *SCENE_NAMES):
        raise UnknownNameError("data source", name, known_sources())


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
            straight in PATH (then a fifth is split off for the test, the same one whatever the seed); a
            ``metadata.csv`` or ``metadata.jsonl`` of ``file_name`` and ``label`` takes the place of class folders, an
            ``annotations.json`` in COCO's form adds boxes. ``cifar10``, ``cifar100``, ``stl10``, ``oxford-pets`` (with
            masks) and ``cats-and-dogs`` are downloaded to `lficam.data.named.data_root`, where ``imagenet`` must lie
            already. Or one of the embedded scenes.
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
    require_source(name)
    if not 0 <= val_fraction < 1:
        raise InvalidInputError(f"val_fraction: expected at least 0 and below 1, got {val_fraction}.")
    if name.startswith(_FOLDER):
        return _load_folder(name, Path(name[len(_FOLDER) :]).expanduser(), val_fraction, seed, with_train)
    if name in UNSPLIT:
        return _split_listing(name, UNSPLIT[name](), val_fraction, seed, with_train)
    load_part = (lambda part: load_scenes(name, part, image_size)) if name in SCENE_NAMES else NAMED[name]
    source = Source(name, test=_required(load_part("test"), name, "test"))
    if with_train:
        train = _required(load_part("train"), name, "training")
        source.train, source.validation = _split(train, val_fraction, seed)
    return source


def _required(pictures: Pictures | None, name: str, part: str) -> Pictures:
    if pictures is None:
        raise DataError(f"data: {name} has no {part} pictures; it is a test set, train on another source.")
    return pictures


def _load_folder(name: str, root: Path, val_fraction: float, seed: int, with_train: bool) -> Source:
    if not root.is_dir():
        raise DataError(f"data: expected a folder of images, got {root}, which is no folder.")
    parts = part_folders(root)
    if not parts:
        return _split_listing(name, list_folder(root, root), val_fraction, seed, with_train)
    test_root = parts.get("test", parts.get("val"))
    if test_root is None:
        raise DataError(f"data: {root} has a train folder but no test or val folder beside it; add one.")
    if with_train and "train" not in parts:
        raise DataError(f"data: {root} has no train folder beside {test_root.name}; add one, or evaluate on it only.")
    train = list_folder(root, parts["train"]) if "train" in parts else None
    class_names = train.class_names if train else None
    tested = list_folder(root, test_root, class_names)
    if train and with_train:
        _warn_of_leakage(train.paths, tested.paths)
    source = Source(name, test=tested.read(with_objects=True))
    if train and with_train and "val" in parts and "test" in parts:
        source.train, source.validation = train.read(), list_folder(root, parts["val"], class_names).read()
    elif train and with_train:
        source.train, source.validation = _split(train.read(), val_fraction, seed)
    return source


def _split_listing(name: str, listing: Listing, val_fraction: float, seed: int, with_train: bool) -> Source:
    """A set without parts: the test share is drawn from the list, before anything is decoded."""
    rest, test = _stratified(listing.labels, None, _TEST_SHARE, _SPLIT_SEED, "a test folder")
    if with_train:
        _warn_of_leakage([listing.paths[i] for i in rest.tolist()], [listing.paths[i] for i in test.tolist()])
    source = Source(name, test=listing.read(test, with_objects=True))
    if with_train:
        source.train, source.validation = _split(listing.read(rest), val_fraction, seed)
    return source


def _warn_of_leakage(train: Sequence[Path], test: Sequence[Path]) -> None:
    pairs = copies(train, test)
    if pairs:
        one, other = pairs[0]
        more = f", and {len(pairs) - 1} more are" if len(pairs) > 1 else ","
        warnings.warn(
            f"data: the test picture {printable(other)} is also a training picture, {printable(one)}{more} seen in "
            "training: the test error is too low. lficam scan lists them.",
            LficamWarning,
            stacklevel=4,
        )


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
