"""Boxes and masks of objects: ``annotations.json`` in COCO's form beside a folder of pictures, and mask files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lficam.data.images import image_size
from lficam.data.pictures import OnDemand
from lficam.errors import DataError

ANNOTATIONS_FILE = "annotations.json"


@dataclass
class Objects:
    """Where each picture's own class is, for N pictures.

    Attributes:
        boxes: (N, 1, I, 4) float, at most I instances of the class as (x1, y1, x2, y2) in the picture's pixels; NaN
            where there are fewer.
        masks: (1, H, W) bool each, all instances together; None where the source has boxes only.
    """

    boxes: Tensor
    masks: Sequence[Tensor] | None = None


def drawn_mask(outline: tuple[list[list[float]], tuple[int, int]]) -> Tensor:
    """The mask (1, H, W) bool of some polygons [x1, y1, x2, y2, ...] and a size (H, W).

    >>> drawn_mask(([[0, 0, 1, 0, 1, 1, 0, 1]], (2, 3))).int().tolist()
    [[[1, 1, 0], [1, 1, 0]]]
    """
    polygons, (height, width) = outline
    canvas = Image.new("1", (width, height))
    for polygon in polygons:
        ImageDraw.Draw(canvas).polygon(polygon, fill=1, outline=1)
    return torch.from_numpy(np.array(canvas)).unsqueeze(0)


def mask_of_file(path: Path, values: tuple[int, ...]) -> Tensor:
    """The pixels of a one-channel picture whose value is among ``values``, (1, H, W) bool."""
    with Image.open(path) as image:
        return torch.from_numpy(np.isin(np.array(image), values)).unsqueeze(0)


def stack_boxes(of_each: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    """Lists of boxes, one a picture, to (N, 1, I, 4), padded with NaN.

    >>> stack_boxes([[(0, 0, 2, 2)], []]).shape
    torch.Size([2, 1, 1, 4])
    """
    most = max([len(boxes) for boxes in of_each] + [1])
    stacked = torch.full((len(of_each), 1, most, 4), torch.nan)
    for number, boxes in enumerate(of_each):
        if boxes:
            stacked[number, 0, : len(boxes)] = torch.tensor(boxes, dtype=torch.float32)
    return stacked


def read_annotations(file: Path, names: Sequence[str], classes: Sequence[str]) -> Objects:
    """The objects of each picture's own class, by COCO's ``images``, ``annotations`` and ``categories``.

    Args:
        file: ``annotations.json``.
        names: of N pictures, relative to its folder, as ``file_name`` gives them.
        classes: N names, the class of each; objects of other categories are left out.

    Raises:
        DataError: no JSON of that form, or one that tells of none of the pictures.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        categories = {row["id"]: row["name"] for row in content["categories"]}
        images = {row["id"]: row for row in content["images"]}
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in content["annotations"]:
            key = (images[row["image_id"]]["file_name"], categories[row["category_id"]])
            found.setdefault(key, []).append(row)
        sizes = {row["file_name"]: (int(row["height"]), int(row["width"])) for row in images.values()}
        rows = [found.get(key, []) for key in zip(names, classes, strict=True)]
        boxes = [[box for row in of_one for box in _box(row)] for of_one in rows]
        polygons = [[polygon for row in of_one for polygon in _polygons(row)] for of_one in rows]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"data: {file} is not in COCO's form: images, annotations, categories ({reason}).") from error
    if not any(boxes):
        raise DataError(
            f"data: {file} tells of no object in any of the {len(names)} pictures; its file_name must be relative to "
            "its own folder, and its categories the names of the classes."
        )
    for name in names:
        _require_upright(file.parent / name, sizes.get(name))
    outlined = all(polygons) and all(name in sizes for name in names)
    masks = OnDemand(zip(polygons, map(sizes.get, names), strict=True), drawn_mask) if outlined else None
    return Objects(stack_boxes(boxes), masks)


def _require_upright(path: Path, told: tuple[int, int] | None) -> None:
    """Refuse boxes of a picture that is turned, by its EXIF tag, or of another size than the one shown."""
    if told is not None and told != image_size(path):
        found = image_size(path)
        raise DataError(
            f"data: annotations of {path} are for {told[1]} x {told[0]} pixels, the picture (upright) has "
            f"{found[1]} x {found[0]}; make them fit."
        )


def _box(row: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    """The object's box, or the one around its outline; none where it has neither."""
    if "bbox" in row:
        x, y, width, height = row["bbox"]
        return [(x, y, x + width, y + height)]
    outline = [value for polygon in _polygons(row) for value in polygon]
    across, down = outline[::2], outline[1::2]
    return [(min(across), min(down), max(across), max(down))] if down else []


def _polygons(row: dict[str, Any]) -> list[list[float]]:
    """Run-length masks are left out: their boxes serve."""
    outline = row.get("segmentation")
    return outline if isinstance(outline, list) else []


def box_around(mask: Tensor) -> list[tuple[float, float, float, float]]:
    """The box around a mask (1, H, W); none around an empty one.

    >>> box_around(torch.eye(3, dtype=torch.bool)[None])
    [(0.0, 0.0, 3.0, 3.0)]
    """
    rows, columns = mask[0].nonzero(as_tuple=True)
    if not len(rows):
        return []
    return [(float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))]
