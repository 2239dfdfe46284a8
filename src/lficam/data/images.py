"""One decoder for every picture that enters: any common file to (3, H, W) uint8 RGB, or a plain error."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lficam.errors import DataError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PIXEL_LIMIT = 50_000_000
_FIRST_LYING_ORIENTATION = 5  # EXIF's 5 to 8 swap height and width

# Pillow's remarks on odd metadata; real faults are raised. Once for all: a filter for the time of a call would be one
# for all threads, and may stay when two of them leave in the wrong order.
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_image_name(path: Path) -> bool:
    """Whether a file's extension is one that `read_image` takes; hidden files are none."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


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
    return torch.from_numpy(np.array(_decode(Path(path)))).permute(2, 0, 1).contiguous()


def _decode(path: Path) -> Image.Image:
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise DataError(f"{path}: {width} x {height} pixels, over the limit of {PIXEL_LIMIT:,}; shrink it.")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image), str(path))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not a picture in one of the formats {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow raises many kinds on broken files (OSError, SyntaxError, ValueError, ...)
        raise DataError(f"{path}: unreadable picture ({error}).") from error


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
    if isinstance(picture, np.ndarray):
        picture = _image_of(picture)
    if not isinstance(picture, Image.Image):
        raise DataError(f"picture: expected a path, a PIL image, an array or a tensor, got {type(picture).__name__}.")
    rgb = to_rgb(ImageOps.exif_transpose(picture), "picture")
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


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
        pixels = _to_bytes(pixels, "picture")
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and shape[2] == 1 else pixels)


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """RGB with 8 bits: alpha on white, more than 8 bits scaled (by 65535, or to the picture's own range).

    Raises:
        DataError: NaN or infinite pixels; ``name`` says where.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_bytes(np.asarray(image), name)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(pixels: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(pixels).all():
        raise DataError(f"{name}: NaN or infinite pixels; mend or remove it.")
    values = pixels.astype(np.float64)
    if pixels.dtype == np.uint16 or (values.min() >= 0 and 255 < values.max() <= 65535):
        low, high = 0.0, 65535.0
    elif values.min() >= 0 and values.max() <= 1:
        low, high = 0.0, 1.0
    elif values.min() >= 0 and values.max() <= 255:
        low, high = 0.0, 255.0
    else:
        low, high = values.min(), values.max()
    # A picture of one value, of no usual range, is black.
    return np.round((values - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
