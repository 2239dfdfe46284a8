"""An exported model without PyTorch: pictures in, labels, evidence and attention out.

This one file needs onnxruntime, numpy and Pillow, and nothing else of lficam. The rest of lficam takes its decoder and
its colours from here, so that both see the same picture.

    lficam predict MODEL.onnx PICTURES/ --out explained
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PIXEL_LIMIT = 50_000_000
METADATA = "lficam"
FOR, AGAINST = (214.0, 39.0, 40.0), (31.0, 119.0, 180.0)
_BATCH = 16
_THINNEST = 4
_SIDE = 224

# Pillow's remarks on odd metadata; real faults are raised. Once for all: a filter for the time of a call would be one
# for all threads, and may stay when two of them leave in the wrong order.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PortableError(ValueError):
    """A picture that cannot be read, or a file that is no exported model; the message names it."""


def is_image_name(path: Path) -> bool:
    """Whether a file's extension is one that `decode` takes; hidden files are none."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def decode(source: Path | BinaryIO, name: str = "") -> Image.Image:
    """A picture as people see it: upright, first frame, transparency on white, 16 bit and float scaled to 8; RGB.

    Args:
        source: a file's path, or an open file.
        name: what errors call it; the path unless given.

    Raises:
        PortableError: missing, unreadable, truncated, not a picture, over 50 million pixels (checked before decoding),
            or with NaN or infinite pixels.
    """
    name = name or str(source)
    if isinstance(source, Path) and not source.is_file():
        raise PortableError(f"{name}: no such file.")
    try:
        with Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise PortableError(f"{name}: {width} x {height} pixels, over the limit of {PIXEL_LIMIT:,}; shrink it.")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image), name)
    except PortableError:
        raise
    except UnidentifiedImageError as error:
        raise PortableError(f"{name}: not a picture in one of the formats {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow raises many kinds on broken files (OSError, SyntaxError, ValueError, ...)
        raise PortableError(f"{name}: unreadable picture ({error}).") from error


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """RGB with 8 bits: alpha on white, more than 8 bits scaled (by 65535, or to the picture's own range).

    Raises:
        PortableError: NaN or infinite pixels; ``name`` says where.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(to_bytes(np.asarray(image), name)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_bytes(pixels: np.ndarray, name: str) -> np.ndarray:
    """Numbers of any kind as uint8; see `to_rgb`."""
    if not np.isfinite(pixels).all():
        raise PortableError(f"{name}: NaN or infinite pixels; mend or remove it.")
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


def resize_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, corners not aligned, as `lficam.functional.upsample`: (h, w) to (height, width), float64.

    >>> resize_map(np.array([[0.0, 1.0]]), 1, 4).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    rows, columns = _interpolation(values.shape[0], height), _interpolation(values.shape[1], width)
    return rows @ values.astype(np.float64) @ columns.T


def _interpolation(count: int, wanted: int) -> np.ndarray:
    """(wanted, count): what each wanted position takes of each that there is."""
    places = np.clip((np.arange(wanted) + 0.5) * count / wanted - 0.5, 0, count - 1)
    below = np.minimum(places.astype(int), max(count - 2, 0))
    matrix = np.zeros((wanted, count))
    matrix[np.arange(wanted), below] = 1 - (places - below)
    matrix[np.arange(wanted), np.minimum(below + 1, count - 1)] += places - below
    return matrix


def draw_heat(image: np.ndarray, heat: np.ndarray, colours: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """A map in [0, 1] over a picture.

    Args:
        image: (H, W, 3) uint8.
        heat: (h, w).
        colours: (256, 3) uint8, from 0 to 1.
        opacity: of the colours.
    """
    values = resize_map(heat, *image.shape[:2])
    return _blend(image, colours[np.clip(values * 256, 0, 255).astype(int)], opacity)


def draw_evidence(
    image: np.ndarray, evidence: np.ndarray, scale: float | None = None, opacity: float = 0.85
) -> np.ndarray:
    """Signed evidence over a dimmed picture: red speaks for, blue against; strength is the share of ``scale``.

    Args:
        image: (H, W, 3) uint8.
        evidence: (h, w), signed, any unit.
        scale: the value of full colour; None: the largest magnitude in this map.
        opacity: of full colour.
    """
    values = resize_map(evidence, *image.shape[:2])
    top = np.abs(values).max() if scale is None else scale
    strength = np.clip(values / top, -1, 1)[..., None] if top > 0 else np.zeros((*values.shape, 1))
    grey = image.mean(axis=2, keepdims=True)
    return _blend(0.5 * image + 0.5 * grey, np.where(strength >= 0, FOR, AGAINST), np.abs(strength) * opacity)


def _blend(image: np.ndarray, colours: np.ndarray, opacity: Any) -> np.ndarray:
    return np.clip(np.round(opacity * colours + (1 - opacity) * image), 0, 255).astype(np.uint8)


@dataclass
class Predicted:
    """What an exported model says of a picture.

    Attributes:
        row: the words and numbers, as `lficam.predict.Explanation.to_dict` gives them.
        image: (S, S, 3) uint8, what the network saw.
        evidence: (h, w) of the likeliest class; None where the model has none.
        attention: (h, w) in [0, 1]; None where the model has none.
    """

    row: dict[str, Any]
    image: np.ndarray
    evidence: np.ndarray | None
    attention: np.ndarray | None


class PortableModel:
    """A graph that ``lficam export`` wrote, run by ONNX Runtime on the CPU.

    Args:
        path: of the file.
        threads: of ONNX Runtime; 0: as many as it likes.

    Raises:
        PortableError: no such file, no exported model, or no onnxruntime.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        try:
            import onnxruntime  # noqa: PLC0415 - the decoder and the colours of this file need none
        except ImportError as error:
            raise PortableError(f"onnxruntime is not installed ({error}); pip install onnxruntime.") from error
        if not Path(path).is_file():
            raise PortableError(f"model: no such file, {path}; lficam export writes one.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split())[:200]
            raise PortableError(f"model: {path} is no graph that ONNX Runtime can run ({reason}).") from error
        facts = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if facts is None:
            raise PortableError(f"model: {path} was not written by lficam export; it does not say what it needs.")
        self.facts: dict[str, Any] = json.loads(facts)
        self.names = [output.name for output in self.session.get_outputs()]

    @property
    def colours(self) -> np.ndarray:
        """(256, 3) uint8, of maps from 0 to 1."""
        return np.frombuffer(bytes.fromhex(self.facts["heat_colours"]), np.uint8).reshape(256, 3)

    def predict(self, paths: Sequence[Path]) -> Iterator[Predicted | PortableError]:
        """Explain pictures in batches, in order; one that cannot be read gives its error in its place."""
        for start in range(0, len(paths), _BATCH):
            batch = [_decoded(path) for path in paths[start : start + _BATCH]]
            pictures = [picture for picture in batch if isinstance(picture, Image.Image)]
            outputs = self._run(np.stack([self._seen(picture) for picture in pictures])) if pictures else {}
            number = 0
            for path, picture in zip(paths[start : start + _BATCH], batch, strict=True):
                if isinstance(picture, PortableError):
                    yield picture
                    continue
                yield self._predicted(path, picture, {name: values[number] for name, values in outputs.items()})
                number += 1

    def _seen(self, picture: Image.Image) -> np.ndarray:
        """(S, S, 3) uint8: short side to ``resize``, then the centre crop."""
        longest = _THINNEST * min(picture.size)
        if max(picture.size) > longest:  # the crop does not see the ends, which enlarged would not fit into memory
            left, top = (max(side - longest, 0) // 2 for side in picture.size)
            right, bottom = (min(start + longest, side) for start, side in zip((left, top), picture.size, strict=True))
            picture = picture.crop((left, top, right, bottom))
        size, (width, height) = self.facts["size"], self._resized(picture)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(picture.crop((left, top, left + size, top + size)))

    def _resized(self, picture: Image.Image) -> tuple[int, int]:
        resize = self.facts["resize"]
        width, height = (max(round(side * resize / min(picture.size)), resize) for side in picture.size)
        return width, height

    def _run(self, seen: np.ndarray) -> dict[str, np.ndarray]:
        images = seen.transpose(0, 3, 1, 2)
        if not self.facts["pixels"]:
            mean, std = (255 * np.array(self.facts[name], np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
            images = (images.astype(np.float32) - mean) / std
        values = self.session.run(None, {"images": np.ascontiguousarray(images)})
        return {"seen": seen, **dict(zip(self.names, values, strict=True))}

    def _predicted(self, path: Path, picture: Image.Image, found: dict[str, np.ndarray]) -> Predicted:
        size, names = self.facts["size"], self.facts["class_names"]
        scores = np.exp(found["logits"].astype(np.float64) - found["logits"].max())
        probabilities = scores / scores.sum()
        best = np.argsort(-probabilities, kind="stable")[:5]
        evidence = found["evidence"][0] if "evidence" in found else None
        attention = found["attention"][0] if "attention" in found else None
        map_name, values = ("attention", attention) if evidence is None else ("evidence", evidence)
        assert values is not None
        heat = resize_map(values, size, size)
        crop = self._crop(picture)
        scale = ((crop[2] - crop[0]) / size, (crop[3] - crop[1]) / size)

        def in_picture(*places: float) -> list[float]:
            return [round(crop[at % 2] + place * scale[at % 2], 2) for at, place in enumerate(places)]

        facts = {
            "path": str(path),
            "label": names[best[0]],
            "probability": round(float(probabilities[best[0]]), 6),
            "top5": [{"label": names[i], "probability": round(float(probabilities[i]), 6)} for i in best],
            "map": map_name,
            "peak": in_picture(*peak(heat)),
            "box": in_picture(*region(np.maximum(heat, 0))),
            "seen": [round(value, 2) for value in crop],
        }
        return Predicted(facts, found["seen"], evidence, attention)

    def _crop(self, picture: Image.Image) -> tuple[float, float, float, float]:
        """The part of the picture that the network saw, in the picture's own pixels."""
        size, (width, height) = self.facts["size"], self._resized(picture)
        left, top = (width - size) // 2, (height - size) // 2
        x, y = picture.width / width, picture.height / height
        return left * x, top * y, (left + size) * x, (top + size) * y

    def draw(self, predicted: Predicted) -> Image.Image:
        """What the network saw, its evidence and its attention side by side."""
        factor = max(_SIDE // min(predicted.image.shape[:2]), 1)
        image = predicted.image.repeat(factor, axis=0).repeat(factor, axis=1)
        panels = [image]
        if predicted.evidence is not None:
            panels.append(draw_evidence(image, predicted.evidence))
        if predicted.attention is not None:
            panels.append(draw_heat(image, predicted.attention, self.colours))
        white = np.full((image.shape[0], 4, 3), 255, np.uint8)
        parts = [part for panel in panels for part in (panel, white)]
        return Image.fromarray(np.concatenate(parts[:-1], axis=1))


def _decoded(path: Path) -> Image.Image | PortableError:
    try:
        return decode(path)
    except PortableError as error:
        return error


def peak(heat: np.ndarray) -> tuple[float, float]:
    """(x, y) of the middle of the highest region, the first in reading order; an enlarged map is level at its top.

    >>> peak(np.array([[0.0, 0.2, 0.2], [0.9, 0.9, 0.1]]))
    (1.0, 1.5)
    """
    runs, parents = _connected_runs(heat >= heat.max() - 1e-6 * np.ptp(heat))
    of_first = [run for number, run in enumerate(runs) if _root(parents, number) == _root(parents, 0)]
    count = sum(stop - start for _, start, stop in of_first)
    x = sum((stop - start) * (start + stop) / 2 for _, start, stop in of_first) / count
    y = sum((stop - start) * (row + 0.5) for row, start, stop in of_first) / count
    return float(x), float(y)


def region(heat: np.ndarray) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) around the largest connected region at or above half of the maximum; all of a flat map.

    >>> region(np.array([[0.0, 0.6, 0.0], [0.9, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    (2, 1, 3, 3)
    """
    height, width = heat.shape
    span = heat.max() - heat.min()
    if not span > 0:
        return 0, 0, width, height
    runs, parents = _connected_runs((heat - heat.min()) / span >= 0.5)
    regions: dict[int, list[tuple[int, int, int]]] = {}
    for number, run in enumerate(runs):
        regions.setdefault(_root(parents, number), []).append(run)
    largest = max(regions.values(), key=lambda members: sum(stop - start for _, start, stop in members))
    rows, starts, stops = zip(*largest, strict=True)
    return min(starts), min(rows), max(stops), max(rows) + 1


def _connected_runs(mask: np.ndarray) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The runs (row, start, stop) of a mask in reading order, and for each an earlier one it hangs together with."""
    runs: list[tuple[int, int, int]] = []
    parents: list[int] = []
    above: range = range(0)
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(line, prepend=False, append=False)).tolist()
        first = len(runs)
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            parents.append(len(runs))
            for other in above:
                if runs[other][1] < stop and start < runs[other][2]:
                    one, two = sorted((_root(parents, other), _root(parents, len(runs))))
                    parents[two] = one
            runs.append((row, start, stop))
        above = range(first, len(runs))
    return runs, parents


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        number = parents[number]
    return number


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are, folders as the sorted image files below them.

    Raises:
        PortableError: a path that does not exist, or a folder without image files.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and is_image_name(file))
            if not inside:
                raise PortableError(f"{path}: no image files in this folder.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise PortableError(f"{path}: no such file or folder.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Explain image files with an exported model, without PyTorch: a picture each and explanations.jsonl."""
    parser = argparse.ArgumentParser(prog="lficam predict", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL.onnx", help="what lficam export wrote")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files and folders")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty directory")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: as many as it likes")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    try:
        return _predict(options)
    except PortableError as error:
        print(f"lficam: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"lficam: {told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lficam: interrupted.", file=sys.stderr)
        return 130


def told(error: OSError) -> str:
    """What the system refused, as a sentence."""
    return f"{error.strerror or error}: {error.filename or 'no file named'}."


def require_new(out: Path) -> None:
    """Refuse a directory for results that holds something.

    Raises:
        PortableError: it does, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PortableError(f"out: {out} exists and is not empty; name a new directory. Nothing was changed.")


def file_name(number: int, path: str) -> str:
    """The picture of an explanation: a number, and as much of the picture's own name as every file system takes."""
    return f"{number:05d}-{Path(path).stem[:60]}.png"


def _predict(options: argparse.Namespace) -> int:
    out = Path(options.out)
    require_new(out)
    model, paths, failed = PortableModel(options.model, options.threads), find_images(options.paths), []
    for number, result in enumerate(model.predict(paths)):
        if isinstance(result, PortableError):
            failed.append(str(result))
            continue
        out.mkdir(parents=True, exist_ok=True)
        picture = file_name(number, result.row["path"])
        model.draw(result).save(out / picture)
        with (out / "explanations.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**result.row, "picture": picture}) + "\n")
    print(f"{len(paths) - len(failed)} explained, in {out}")
    if failed:
        raise PortableError(f"{len(failed)} of {len(paths)} files could not be explained: {' '.join(failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
