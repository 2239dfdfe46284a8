"""A labelled set of pictures, in memory or on disk, with the objects it knows of."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lficam.contract import Preprocessing
from lficam.data.images import image_size, read_image
from lficam.data.transforms import prepare
from lficam.errors import DataError, InvalidInputError
from lficam.progress import track

IN_MEMORY_BYTES = 2 * 2**30
_PROGRESS_FROM = 2_000


class OnDemand(Sequence[Tensor]):
    """Tensors made from items each time they are asked for, such as pictures of a set too large for memory.

    >>> len(OnDemand([Path("a.png")], read_image))
    1
    """

    def __init__(self, items: Iterable[Any], make: Callable[[Any], Tensor]) -> None:
        self.items, self.make = list(items), make

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.make(self.items[index])

    def select(self, indices: Sequence[int]) -> "OnDemand":
        """Those at ``indices``, in that order."""
        return OnDemand([self.items[i] for i in indices], self.make)


@dataclass
class Pictures:
    """A labelled set of pictures.

    Attributes:
        images: (3, H, W) uint8 each: a tensor (N, 3, H, W) where all have one size, else a sequence.
        labels: (N,) int64.
        class_names: C names.
        names: one name a picture, for people.
        boxes: (N, D, 4) float, the D objects of each picture as (x1, y1, x2, y2) in its own pixels, x2 and y2
            exclusive; or (N, D, I, 4) where an object may have I instances. NaN where one is missing. None where the
            set knows no objects.
        masks: (D, H, W) bool each, the objects' pixels; None where the set knows none.
        object_labels: (N, D) int64, -1 where an object is missing.
        mark_boxes: (N, 4) float, a planted mark that is no object, NaN where it is missing; None where there are none.
        mark_labels: (N,) int64, the class that the mark's place stands for, -1 where it is missing.
        groups: (N,) int64; pictures of one group stay on one side of every split.
        broken: files that belong to the set and could not be read: name and reason. They are none of the N.
    """

    images: Sequence[Tensor] | Tensor
    labels: Tensor
    class_names: list[str]
    names: list[str]
    boxes: Tensor | None = None
    masks: Sequence[Tensor] | Tensor | None = None
    object_labels: Tensor | None = None
    mark_boxes: Tensor | None = None
    mark_labels: Tensor | None = None
    groups: Tensor | None = None
    broken: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lying_marks(self) -> Tensor | None:
        """Which planted marks are of another class than the picture's, (N,) bool; None where none is."""
        if self.mark_labels is None:
            return None
        lying = (self.mark_labels >= 0) & (self.mark_labels != self.labels)
        return lying if lying.any() else None

    @property
    def listing_sha256(self) -> str:
        """Of the classes, names and labels, the same wherever the pictures lie; it knows nothing of their pixels."""
        listing = [self.class_names, self.names, self.labels.tolist()]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def select(self, indices: Tensor) -> "Pictures":
        """The pictures at ``indices``, in that order."""
        chosen = indices.tolist()
        of_each: dict[str, Any] = {
            field: None if getattr(self, field) is None else _chosen(getattr(self, field), indices)
            for field in ("masks", "boxes", "object_labels", "mark_boxes", "mark_labels", "groups")
        }
        names = [self.names[i] for i in chosen]
        return Pictures(
            _chosen(self.images, indices), self.labels[indices], self.class_names, names, **of_each, broken=self.broken
        )

    def sample(self, limit: int) -> "Pictures":
        """At most ``limit`` of the pictures, drawn from the whole set with a fixed seed.

        Raises:
            InvalidInputError: fewer than two asked for.
        """
        if limit < 2:
            raise InvalidInputError(f"limit: expected at least 2 pictures, got {limit}.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return self.select(order[:limit].sort().values)

    def seen_boxes(self, boxes: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Boxes (N, ..., 4) in the pictures' own pixels to those of the network's input.

        What the centre crop cuts away is cut away; NaN where nothing is left.
        """
        crops = torch.tensor([preprocessing.crop_box(*self.size(i)) for i in range(len(self))])
        corner, opposite = crops.view(len(self), *[1] * (boxes.ndim - 2), 4).split(2, dim=-1)
        scale = preprocessing.size / (opposite - corner)
        seen = ((boxes - torch.cat((corner, corner), dim=-1)) * torch.cat((scale, scale), dim=-1)).clamp(
            0, preprocessing.size
        )
        empty = (seen[..., 2:] <= seen[..., :2]).any(dim=-1, keepdim=True)
        return seen.masked_fill(empty, torch.nan)

    def seen_masks(self, preprocessing: Preprocessing) -> Tensor:
        """The first objects' masks as the network's input shows them, (N, 1, size, size) bool, by the nearest pixel."""
        assert self.masks is not None
        seen, centres = [], (torch.arange(preprocessing.size) + 0.5) / preprocessing.size
        for index in range(len(self)):
            x1, y1, x2, y2 = preprocessing.crop_box(*self.size(index))
            rows, columns = (y1 + centres * (y2 - y1)).long(), (x1 + centres * (x2 - x1)).long()
            seen.append(torch.as_tensor(self.masks[index])[:1, rows][:, :, columns])
        return torch.stack(seen)

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of a picture in its own pixels."""
        if isinstance(self.images, OnDemand):
            return image_size(self.images.items[index])
        height, width = self.images[index].shape[-2:]
        return height, width

    def prepared(self, indices: Sequence[int], preprocessing: Preprocessing) -> Tensor:
        """Some pictures as the network sees them but for normalisation, (n, 3, size, size) uint8."""
        side = (preprocessing.size, preprocessing.size)
        if isinstance(self.images, Tensor) and tuple(self.images.shape[-2:]) == side == (preprocessing.resize,) * 2:
            return self.images[torch.as_tensor(indices, dtype=torch.int64)]
        return torch.stack([prepare(self.images[i], preprocessing) for i in indices])

    def prepare_all(self, preprocessing: Preprocessing) -> "Pictures":
        """The same set with every picture prepared once and kept, for training; one too large for memory stays on disk.

        Boxes and masks would not fit any more, and are left out.
        """
        if isinstance(self.images, OnDemand):
            return self
        return Pictures(
            self.prepared(range(len(self)), preprocessing),
            self.labels,
            self.class_names,
            self.names,
            groups=self.groups,
            broken=self.broken,
        )

    def batches(self, preprocessing: Preprocessing, size: int) -> Iterator[tuple[Tensor, slice]]:
        """Prepared batches in order, each with the slice of the set that it is."""
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield self.prepared(range(part.start, part.stop), preprocessing), part


def _chosen(values: Sequence[Tensor] | Tensor, indices: Tensor) -> Sequence[Tensor] | Tensor:
    if isinstance(values, Tensor):
        return values[indices]
    chosen = indices.tolist()
    return values.select(chosen) if isinstance(values, OnDemand) else [values[i] for i in chosen]


def read_files(paths: Sequence[Path], description: str) -> Sequence[Tensor] | Tensor:
    """As `read_whole_files`, of a set that has no broken file.

    Raises:
        DataError: unreadable files; the first one is named.
    """
    images, broken = read_whole_files(paths, description)
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise DataError(f"data: {next(iter(broken.values()))}{more} Mend or remove the file.")
    return images


def read_whole_files(paths: Sequence[Path], description: str) -> tuple[Sequence[Tensor] | Tensor, dict[int, DataError]]:
    """Decode files once into memory, in parallel; leave them on disk where they would take more than 2 GiB.

    Returns:
        The pictures that could be read, and by its place among the paths why another could not. What stays on disk is
        not tried.
    """
    if _decoded_bytes(paths) > IN_MEMORY_BYTES:
        return OnDemand(paths, read_image), {}
    with ThreadPoolExecutor() as pool:
        reading: Iterable[Tensor | DataError] = pool.map(_read_or_error, paths)
        if len(paths) >= _PROGRESS_FROM:
            reading = track(reading, f"reading {description}", len(paths))
        results = list(reading)
    images = [result for result in results if isinstance(result, Tensor)]
    broken = {place: result for place, result in enumerate(results) if isinstance(result, DataError)}
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images, broken


def _read_or_error(path: Path) -> Tensor | DataError:
    try:
        return read_image(path)
    except DataError as error:
        return error


def _decoded_bytes(paths: Sequence[Path]) -> float:
    """The set's size in memory, from the headers of at most 200 files spread over it."""
    sample = paths[:: max(len(paths) // 200, 1)]
    pixels = []
    for path in sample:
        try:
            with Image.open(path) as image:
                pixels.append(image.width * image.height)
        except Exception:  # unreadable files are reported where they are read
            continue
    return 3 * len(paths) * sum(pixels) / max(len(pixels), 1)
