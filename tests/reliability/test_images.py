"""Every valid picture is read as it is seen; every broken one is refused by name, at once and with little memory."""

import random
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from lficam.data.images import read_image, to_pixels
from lficam.errors import DataError

from . import victims

H, W = 12, 16
_rng = np.random.default_rng(0)
RGB = _rng.integers(0, 256, (H, W, 3)).astype(np.uint8)
GREY, ALPHA = RGB[..., 0], RGB[..., 1]
SMOOTH = np.stack([np.add.outer(np.arange(H) * 6, np.arange(W) * 9) + 10 * c for c in range(3)], 2).astype(np.uint8)
DEEP = _rng.integers(0, 65536, (H, W)).astype(np.uint16)
DEEP[0, :2] = 0, 65535


def three(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def on_white(rgb, alpha):
    share = alpha[..., None] / 255
    return np.round(rgb * share + 255 * (1 - share))


def png(width, height, depth, colour, rows, *chunks):
    """A PNG file by hand: what Pillow does not write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(b"\0" + row for row in rows)
    parts = [chunk(b"IHDR", header), *(chunk(*extra) for extra in chunks), chunk(b"IDAT", zlib.compress(body))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    turns = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, 1),
    }
    return lambda path: Image.fromarray(RGB).save(path, exif=exif), turns[number]


def saved(pixels, mode=None, convert=None, **options):
    def save(path):
        image = Image.fromarray(pixels, mode) if mode else Image.fromarray(pixels)
        (image.convert(convert) if convert else image).save(path, **options)

    return save


def frames(path):
    first, second = Image.fromarray(RGB[..., 0]), Image.new("L", (W, H), 255)
    first.save(path, save_all=True, append_images=[second])


def palette(transparent=None):
    def save(path):
        image = Image.new("P", (W, H))
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(1, (0, 0, W // 2, H))
        image.save(path, **({} if transparent is None else {"transparency": transparent}))

    return save


RED_BLUE = np.zeros((H, W, 3))
RED_BLUE[:, : W // 2, 2] = RED_BLUE[:, W // 2 :, 0] = 255
RED_WHITE = np.where(RED_BLUE[..., 2:] > 0, 255, RED_BLUE)
CMYK = np.concatenate((255 - RGB, np.zeros((H, W, 1), np.uint8)), axis=2)
BITS = GREY > 127
RANGE = GREY / 255 * 4 - 2  # floats of no usual range fill black to white
STRETCHED = (RANGE - RANGE.min()) / np.ptp(RANGE) * 255
LOSSLESS, LOSSY = 1, 4

VALID = {
    **{f"orientation-{number}.png": (*oriented(number), LOSSLESS) for number in range(1, 9)},
    "rgb.png": (saved(RGB), RGB, LOSSLESS),
    "rgb.bmp": (saved(RGB), RGB, LOSSLESS),
    "rgb.ppm": (saved(RGB), RGB, LOSSLESS),
    "rgb.webp": (saved(RGB, lossless=True), RGB, LOSSLESS),
    "lzw.tiff": (saved(RGB, compression="tiff_lzw"), RGB, LOSSLESS),
    "deflate.tif": (saved(RGB, compression="tiff_adobe_deflate"), RGB, LOSSLESS),
    "smooth.jpg": (saved(SMOOTH, quality=95), SMOOTH, LOSSY),
    "progressive.jpeg": (saved(SMOOTH, quality=95, progressive=True), SMOOTH, LOSSY),
    "grey.jpg": (saved(SMOOTH[..., 0], quality=95), three(SMOOTH[..., 0]), LOSSY),
    "cmyk.jpg": (
        saved(255 - np.concatenate((SMOOTH, SMOOTH[..., :1] * 0 + 255), 2), "CMYK", quality=98),
        SMOOTH,
        LOSSY,
    ),
    "cmyk.tiff": (saved(CMYK, "CMYK"), RGB, LOSSLESS),
    "upper-case.JPG": (saved(SMOOTH, format="JPEG", quality=95), SMOOTH, LOSSY),
    "a-png-named.jpg": (saved(RGB, format="PNG"), RGB, LOSSLESS),
    "a-jpeg-named.png": (saved(SMOOTH, format="JPEG", quality=95), SMOOTH, LOSSY),
    "palette.png": (palette(), RED_BLUE, LOSSLESS),
    "palette.gif": (palette(), RED_BLUE, LOSSLESS),
    "palette.bmp": (palette(), RED_BLUE, LOSSLESS),
    "palette-transparent.png": (palette(1), RED_WHITE, LOSSLESS),
    "palette-transparent.gif": (palette(1), RED_WHITE, LOSSLESS),
    "one-bit.png": (saved(BITS), three(BITS * 255), LOSSLESS),
    "one-bit.tiff": (saved(BITS), three(BITS * 255), LOSSLESS),
    "grey.png": (saved(GREY), three(GREY), LOSSLESS),
    "grey.pgm": (saved(GREY), three(GREY), LOSSLESS),
    "grey-alpha.png": (saved(np.dstack((GREY, ALPHA))), on_white(three(GREY), ALPHA), LOSSLESS),
    "alpha.png": (saved(np.dstack((RGB, ALPHA))), on_white(RGB, ALPHA), LOSSLESS),
    "alpha.tiff": (saved(np.dstack((RGB, ALPHA))), on_white(RGB, ALPHA), LOSSLESS),
    "alpha.webp": (saved(np.dstack((RGB, ALPHA)), lossless=True, exact=True), on_white(RGB, ALPHA), LOSSLESS),
    "deep.png": (saved(DEEP), three(DEEP / 257), LOSSLESS),
    "deep.tiff": (saved(DEEP), three(DEEP / 257), LOSSLESS),
    "deep-big-endian.tiff": (saved(DEEP.astype(">u2")), three(DEEP / 257), LOSSLESS),
    "deep-dark.png": (saved(DEEP // 1024), three(DEEP // 1024 / 257), LOSSLESS),
    "deep.pgm": (saved(DEEP), three(DEEP / 257), LOSSLESS),
    "unit-float.tiff": (saved(DEEP / np.float32(65535)), three(DEEP / 257), LOSSLESS),
    "byte-float.tiff": (saved(GREY.astype(np.float32)), three(GREY), LOSSLESS),
    "any-float.tiff": (saved(RANGE.astype(np.float32)), three(STRETCHED), LOSSLESS),
    "frames.gif": (frames, three(GREY), LOSSLESS),
    "frames.tiff": (frames, three(GREY), LOSSLESS),
    "one-pixel.png": (saved(RGB[:1, :1]), RGB[:1, :1], LOSSLESS),
    "one-row.png": (saved(RGB[:1]), RGB[:1], LOSSLESS),
    "deep-rgb.png": (
        lambda path: path.write_bytes(png(W, H, 16, 2, [(row.astype(">u2") * 257).tobytes() for row in RGB])),
        RGB,
        LOSSLESS,
    ),
    "grey-transparent.png": (
        lambda path: path.write_bytes(
            png(W, H, 8, 0, [row.tobytes() for row in GREY], (b"tRNS", b"\0" + GREY[0, :1].tobytes()))
        ),
        three(np.where(GREY[0, 0] == GREY, 255, GREY)),
        LOSSLESS,
    ),
}


@pytest.mark.parametrize("name", VALID)
def test_it_is_read_as_it_is_seen(tmp_path, name):
    save, expected, tolerance = VALID[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        save(tmp_path / name)
    found = read_image(tmp_path / name).permute(1, 2, 0).numpy().astype(float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance
    # What is read from a file and what is taken from memory is one thing.
    with Image.open(tmp_path / name) as image:
        image.load()
        assert (to_pixels(ImageOps.exif_transpose(image)).permute(1, 2, 0).numpy() == found).all()


def test_mutated_files_are_read_or_refused_by_name(tmp_path, count, figure):
    times, refused, read, slowest = count(300, 3000), 0, 0, 0.0
    originals = []
    for name in ("rgb.png", "smooth.jpg", "palette.gif", "lzw.tiff", "rgb.webp", "rgb.bmp", "alpha.png", "deep.tiff"):
        VALID[name][0](tmp_path / name)
        originals.append((name, (tmp_path / name).read_bytes()))
    for number in range(times):
        draw = random.Random(number)
        name, content = originals[number % len(originals)]
        data = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            match draw.randrange(4):
                case 0:
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                case 1:
                    data[draw.randrange(len(data))] = draw.choice((0, 255, 127))
                case 2:
                    del data[max(draw.randrange(len(data)), 1) :]
                case 3:
                    at = draw.randrange(len(data))
                    data[at:at] = draw.randbytes(draw.randint(1, 9))
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            read_image(path)
        except DataError as error:
            refused += str(path) in str(error)
        else:
            read += 1
        slowest = max(slowest, time.perf_counter() - start)
        path.unlink()
    assert refused + read == times
    assert min(refused, read) > 0
    assert slowest < 5
    figure(f"{times} mutated pictures", f"{refused} refused by name, the others read; the slowest took {slowest:.2f} s")


@pytest.mark.parametrize("side", [9_460, 13_380, 65_535])  # 89.5, 179 and 4,295 million pixels
def test_bombs_are_refused_before_they_go_off(tmp_path, side, figure):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 2, [bytes(10)]))
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"bomb.png"):
        read_image(path)
    milliseconds = 1000 * (time.perf_counter() - start)
    ours, theirs = victims.CONTEXT.Pipe(duplex=False)
    victims.start(victims.refusing_a_picture, str(path), theirs).join()
    grown = ours.recv()
    assert grown < 20
    assert milliseconds < 1000  # for a machine that does other things too; what it takes stands in the table
    figure(
        f"a picture of {side**2 / 1e6:,.1f} million pixels", f"refused in {milliseconds:.0f} ms, {grown:.0f} MB more"
    )


@settings(deadline=None, max_examples=60)
@given(
    arrays.arrays(
        dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64, np.int32, np.bool_]),
        shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_any_array_is_a_picture_or_an_error(pixels):
    try:
        found = to_pixels(pixels)
    except DataError:
        return
    assert found.shape[0] == 3
    assert found.shape[1:] == pixels.shape[:2]


def test_explaining_for_ever_takes_no_more_memory(count, figure):
    ours, theirs = victims.CONTEXT.Pipe(duplex=False)
    times = count(100, 2000)
    victims.start(victims.explaining, times, theirs).join()
    grown = ours.recv()
    assert grown < count(5.0, 1.0)
    figure(f"{times} explanations in one process: memory grows", f"{grown:.2f} MB per 1,000")
