"""Maps as pictures: colour, overlays, strips. uint8 in and out, channels first."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lficam import portable
from lficam.errors import InvalidInputError


def overlay(image: Tensor, heat: Tensor, opacity: float = 0.55) -> Tensor:
    """A map in [0, 1] over a picture, blue (0) to red (1).

    Args:
        image: (3, H, W) uint8.
        heat: (1, h, w) in [0, 1], resized to the picture.
        opacity: of the colours, in [0, 1].

    Returns:
        (3, H, W) uint8.

    >>> overlay(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 4, 4)).shape
    torch.Size([3, 8, 8])
    """
    return _drawn(portable.draw_heat(_pixels(image), _values(heat), heat_colours(), opacity))


def heat_colours() -> np.ndarray:
    """The colours of a map from 0 to 1, (256, 3) uint8.

    >>> heat_colours().shape
    (256, 3)
    """
    return mpl.colormaps["turbo"](np.arange(256), bytes=True)[:, :3]


def overlay_signed(image: Tensor, evidence: Tensor, scale: float | None = None, opacity: float = 0.85) -> Tensor:
    """Signed evidence over a dimmed picture: red speaks for, blue against; strength is the share of ``scale``.

    Args:
        image: (3, H, W) uint8.
        evidence: (1, h, w), signed, any unit.
        scale: the value of full colour; None: the largest magnitude in this map.
        opacity: of full colour, in [0, 1].

    Returns:
        (3, H, W) uint8; the dimmed picture where the evidence is zero everywhere.

    >>> black = torch.zeros(3, 1, 1, dtype=torch.uint8)
    >>> overlay_signed(black, torch.ones(1, 1, 1)).flatten().tolist()
    [182, 33, 34]
    """
    return _drawn(portable.draw_evidence(_pixels(image), _values(evidence), scale, opacity))


def draw_box(image: Tensor, box: Sequence[float], colour: tuple[int, int, int] = (255, 255, 255)) -> Tensor:
    """A one-pixel frame around (x1, y1, x2, y2), cut to the picture."""
    framed = image.clone()
    height, width = image.shape[-2:]
    left, top = max(round(box[0]), 0), max(round(box[1]), 0)
    right, bottom = min(round(box[2]), width) - 1, min(round(box[3]), height) - 1
    line = torch.tensor(colour, dtype=torch.uint8)
    framed[:, top, left : right + 1] = framed[:, bottom, left : right + 1] = line[:, None]
    framed[:, top : bottom + 1, left] = framed[:, top : bottom + 1, right] = line[:, None]
    return framed


def enlarge(image: Tensor, side: int) -> Tensor:
    """Repeat pixels, so that the shorter side has about ``side``; a picture that is large enough stays as it is."""
    factor = max(side // min(image.shape[-2:]), 1)
    return image.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def strip(images: Sequence[Tensor], gap: int = 4) -> Tensor:
    """Pictures of one height side by side on white."""
    if len({image.shape[1] for image in images}) != 1:
        raise InvalidInputError(f"images: expected one height, got {sorted({image.shape[1] for image in images})}.")
    white = torch.full((3, images[0].shape[1], gap), 255, dtype=torch.uint8)
    parts = [part for image in images for part in (image, white)]
    return torch.cat(parts[:-1], dim=2)


def save_png(image: Tensor, path: Path) -> None:
    """Write (3, H, W) uint8 as a PNG file."""
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(path, format="PNG")


def save_gallery_figure(directory: Path, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Strips of an evaluation's gallery below each other, each panel under its caption, as one PNG file.

    Args:
        directory: where the strips are.
        rows: of the gallery: ``file``, and ``captions``, one a panel.
        path: of the figure.
    """
    strips = [torch.from_numpy(np.array(Image.open(directory / row["file"]))).permute(2, 0, 1) for row in rows]
    save_strips(strips, [row["captions"] for row in rows], path)


def save_strips(strips: Sequence[Tensor], captions: Sequence[Sequence[str]], path: Path) -> None:
    """Strips (3, H, W) uint8 of one size below each other as a PNG file, each panel under its caption."""
    height, width = strips[0].shape[1:]
    captions = [[_in_lines(caption) for caption in row] for row in captions]
    lines = max(caption.count("\n") + 1 for row in captions for caption in row)
    room = 16 + 14 * lines
    figure = Figure(figsize=(width / 100, len(strips) * (height + room) / 100), dpi=130, layout="constrained")
    for axes, pixels, row in zip(figure.subplots(len(strips), 1, squeeze=False)[:, 0], strips, captions, strict=True):
        axes.imshow(pixels.permute(1, 2, 0).numpy())
        axes.set_axis_off()
        for number, caption in enumerate(row):
            axes.text((number + 0.5) * width / len(row), -6, caption, ha="center", va="bottom", fontsize=9)
    figure.savefig(path)


def _in_lines(caption: str) -> str:
    """As wide as a panel at most: a name that runs into its neighbour's cannot be read."""
    return "\n".join(wrapped for line in caption.split("\n") for wrapped in textwrap.wrap(line.replace("_", " "), 18))


def _values(of_map: Tensor) -> np.ndarray:
    if of_map.ndim != 3 or of_map.shape[0] != 1:
        raise InvalidInputError(f"map: expected (1, h, w), got {tuple(of_map.shape)}; pass one map at a time.")
    return of_map[0].detach().float().cpu().numpy()


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _drawn(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
