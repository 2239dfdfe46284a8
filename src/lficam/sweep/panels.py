"""Pictures beside the maps of several variants and runs: the paper's Figures 1, 5, 7 and 8 to 12."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lficam.data.pictures import Pictures
from lficam.data.sampling import spread
from lficam.data.sources import load_source
from lficam.errors import RunError
from lficam.explainers import EXPLAINERS
from lficam.recipes import Recipe, recipe_from_values
from lficam.sweep.plan import Sweep
from lficam.sweep.records import maps_file, shown_maps
from lficam.training import preprocessing_of
from lficam.visualize import enlarge, overlay, overlay_signed, save_strips, strip

_SIDE = 128


def draw_panels(sweep: Sweep) -> None:
    """Draw the sweep's panels, a PNG file each beside its file, from the pictures and the kept maps, without weights.

    Raises:
        RunError: maps that were not kept yet.
    """
    if not sweep.panels:
        return
    recipe = recipe_from_values(sweep.values(next(iter(sweep.variants)), 0))
    test = load_source(recipe.data, recipe.image_size, with_train=False).test
    pictures = test.sample(sweep.stability["pictures"])
    for name, panel in sweep.panels.items():
        _draw(sweep, name, panel, pictures, recipe)


def _draw(sweep: Sweep, name: str, panel: Mapping[str, Any], pictures: Pictures, recipe: Recipe) -> None:
    rows = spread(len(pictures), panel["pictures"]).tolist()
    images = [enlarge(image, _SIDE) for image in pictures.prepared(rows, preprocessing_of(recipe))]
    columns = [_overlays(sweep, column, rows, images) for column in panel["columns"]]
    titles = [_title(column) for column in panel["columns"]]
    strips = [strip(row) for row in zip(images, *columns, strict=True)]
    captions = [[pictures.class_names[pictures.labels[row]], *titles] for row in rows]
    save_strips(strips, captions, sweep.path.parent / f"{name}.png")


def _title(column: Mapping[str, Any]) -> str:
    run = f", run {column['run'] + 1}" if "run" in column else ""
    return f"{column['variant']}{run}\n{column['map']}"


def _overlays(sweep: Sweep, column: Mapping[str, Any], rows: list[int], images: list[Tensor]) -> list[Tensor]:
    path, name = maps_file(sweep, column["variant"], column.get("run", 0)), column["map"]
    kept = np.load(path) if path.is_file() else {}
    if name not in kept:
        raise RunError(f"sweep: a panel shows {name} of {column['variant']}, and {path} has no such maps.")
    maps = torch.from_numpy(kept[name][rows]).float()
    if EXPLAINERS[name].signed:
        return [overlay_signed(image, of_one) for image, of_one in zip(images, maps, strict=True)]
    return [
        overlay(image, shown_maps(of_one[None], name, min(image.shape[-2:]))[0])
        for image, of_one in zip(images, maps, strict=True)
    ]
