"""Data sets by name, downloaded where their publishers allow it: CIFAR, STL-10, pets, cats and dogs, ImageNet."""

import os
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torchvision.datasets.utils import download_and_extract_archive

from lficam.data.annotations import box_around, mask_of_file, stack_boxes
from lficam.data.folders import Listing, list_folder
from lficam.data.pictures import OnDemand, Pictures, read_files
from lficam.errors import DataError
from lficam.progress import track

CATS_AND_DOGS_URL = (
    "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip"
)
# Two files of the published archive are empty.
_EMPTY_IN_CATS_AND_DOGS = ("Cat/666.jpg", "Dog/11702.jpg")
_PET_INSIDE = (1, 3)  # the trimap's foreground and its border


def data_root() -> Path:
    """Where downloads go: ``$LFICAM_DATA``, else ``~/.cache/lficam``."""
    return Path(os.environ.get("LFICAM_DATA") or Path.home() / ".cache" / "lficam")


def cifar(kind: type[torchvision.datasets.CIFAR10], part: str) -> Pictures:
    """CIFAR-10 or CIFAR-100, by torchvision."""
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


def stl10(part: str) -> Pictures:
    """STL-10, by torchvision: 5,000 and 8,000 pictures of 96 pixels."""
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


def imagenet(part: str) -> Pictures:
    """ImageNet 2012, by torchvision from ``imagenet/`` in `data_root`: its archives, or the folders made of them.

    It may not be downloaded without an account; the archives come from image-net.org.
    """
    root = data_root() / "imagenet"
    try:
        data = torchvision.datasets.ImageNet(root, split="train" if part == "train" else "val")
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"data: imagenet is not in {root} ({' '.join(str(error).split())}); put ILSVRC2012_devkit_t12.tar.gz and "
            "the train and val archives of image-net.org there, or use folder:PATH."
        ) from error
    paths = [Path(path) for path, _ in data.samples]
    names = [str(path.relative_to(root)) for path in paths]
    # Two names stand for two classes each ("crane", "maillot"): those are told apart by all their words.
    first = Counter(words[0] for words in data.classes)
    class_names = [words[0] if first[words[0]] == 1 else ", ".join(words) for words in data.classes]
    return Pictures(read_files(paths, "imagenet"), torch.tensor(data.targets), class_names, names)


def oxford_pets(part: str) -> Pictures:
    """Oxford-IIIT Pet, by torchvision: 37 breeds with masks; a box is the one around the mask."""
    split = "trainval" if part == "train" else "test"
    try:
        torchvision.datasets.OxfordIIITPet(data_root(), split=split, download=True)
    except (OSError, URLError, RuntimeError) as error:
        raise _no_download("OxfordIIITPet", error) from error
    root = data_root() / "oxford-iiit-pet"
    rows = [line.split() for line in (root / "annotations" / f"{split}.txt").read_text().splitlines()]
    stems, labels = [row[0] for row in rows], torch.tensor([int(row[1]) - 1 for row in rows])
    breeds = {int(row[1]) - 1: row[0].rpartition("_")[0].replace("_", " ").lower() for row in rows}
    trimaps = [root / "annotations" / "trimaps" / f"{stem}.png" for stem in stems]
    masks = OnDemand(trimaps, partial(mask_of_file, values=_PET_INSIDE))
    boxes = stack_boxes([box_around(mask) for mask in track(masks, "reading masks", len(masks))])
    return Pictures(
        read_files([root / "images" / f"{stem}.jpg" for stem in stems], "oxford-pets"),
        labels,
        [breeds[label] for label in sorted(breeds)],
        [f"oxford-pets/{stem}" for stem in stems],
        boxes=boxes,
        masks=masks,
        object_labels=labels.unsqueeze(1),
    )


def cats_and_dogs() -> Listing:
    """The 25,000 pictures of the Asirra set (Kaggle's "Dogs vs. Cats"), without two empty files; it has no parts."""
    root = data_root() / "cats-and-dogs"
    if not (root / "PetImages").is_dir():
        try:
            # Beside, and renamed once whole: an interrupted extraction is not taken for the set.
            download_and_extract_archive(CATS_AND_DOGS_URL, root, root / "unpacking", remove_finished=True)
        except (OSError, URLError, RuntimeError, zipfile.BadZipFile) as error:
            raise _no_download("cats-and-dogs", error) from error
        (root / "unpacking" / "PetImages").rename(root / "PetImages")
    for name in _EMPTY_IN_CATS_AND_DOGS:
        (root / "PetImages" / name).unlink(missing_ok=True)
    return list_folder(root / "PetImages", root / "PetImages")


def _no_download(name: str, error: Exception) -> DataError:
    return DataError(
        f"data: {name} is not in {data_root()} and could not be downloaded ({error}); "
        "set LFICAM_DATA to a folder that has it, or use folder:PATH."
    )


# Sets that come in two parts.
NAMED: dict[str, Callable[[str], Pictures]] = {
    "cifar10": lambda part: cifar(torchvision.datasets.CIFAR10, part),
    "cifar100": lambda part: cifar(torchvision.datasets.CIFAR100, part),
    "stl10": stl10,
    "imagenet": imagenet,
    "oxford-pets": oxford_pets,
}
# Sets that are split here.
UNSPLIT: dict[str, Callable[[], Listing]] = {"cats-and-dogs": cats_and_dogs}
