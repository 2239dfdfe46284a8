"""One decoder for every picture that enters: any common file to (3, H, W) uint8 RGB, or a plain error.

What it does is in `lficam.portable`, which an exported model brings along.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from lficam import portable
from lficam.errors import DataError
from lficam.portable import FORMATS

_FIRST_LYING_ORIENTATION = 5  # EXIF's 5 to 8 swap height and width


def read_image(path: str | Path) -> Tensor:
    """Decode a picture as people see it: upright, first frame, transparency on white, 16 bit and float scaled to 8.

    Args:
        path: a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file.

    Returns:
        (3, H, W) uint8, RGB.

    Raises:
        DataError: missing, unreadable, truncated, not a picture, over 50 million pixels (checked before decoding), or
            with NaN or infinite pixels.

    >>> read_image("no-such-file.png")
    Traceback (most recent call last):
    ...
    lficam.errors.DataError: no-such-file.png: no such file.
    """
    try:
        return _to_tensor(portable.decode(Path(path)))
    except portable.PortableError as error:
        raise DataError(str(error)) from error


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of the picture that `read_image` gives, from the file's header alone.

    Raises:
        DataError: a header that cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            lying = image.getexif().get(ExifTags.Base.Orientation, 1) >= _FIRST_LYING_ORIENTATION
            return (image.width, image.height) if lying else (image.height, image.width)
    except Exception as error:  # Pillow raises many kinds on broken files
        raise DataError(f"{path}: unreadable picture ({error}).") from error


def to_pixels(picture: Image.Image | np.ndarray | Tensor) -> Tensor:
    """A picture from memory as `read_image` gives one from a file.

    Args:
        picture: a PIL image; an array (H, W) or (H, W, 3 or 4), channels last; or a tensor (1 or 3, H, W), channels
            first. uint8, uint16, or floats in [0, 1].

    Returns:
        (3, H, W) uint8, RGB.

    Raises:
        DataError: another shape or type, NaN or infinite pixels.

    >>> to_pixels(np.ones((2, 2))).unique().tolist()
    [255]
    """
    if isinstance(picture, Tensor):
        values = picture.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
        picture = (values.movedim(0, -1) if values.ndim == 3 else values).numpy()
    if not isinstance(picture, np.ndarray | Image.Image):
        raise DataError(f"picture: expected a path, a PIL image, an array or a tensor, got {type(picture).__name__}.")
    try:
        picture = _image_of(picture) if isinstance(picture, np.ndarray) else picture
        return _to_tensor(portable.to_rgb(ImageOps.exif_transpose(picture), "picture"))
    except portable.PortableError as error:
        raise DataError(str(error)) from error


def _image_of(pixels: np.ndarray) -> Image.Image:
    shape = pixels.shape
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise DataError(f"picture: expected an array (H, W) or (H, W, 3) or a tensor (3, H, W), got {shape}.")
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.number):
            raise DataError(f"picture: expected numbers, got {pixels.dtype}.")
        finite = pixels[np.isfinite(pixels)]
        if np.issubdtype(pixels.dtype, np.floating) and finite.size and not 0 <= finite.min() <= finite.max() <= 1:
            raise DataError("picture: expected floats in [0, 1]; undo any normalisation, or pass uint8.")
        pixels = portable.to_bytes(pixels, "picture")
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and shape[2] == 1 else pixels)
