"""Any picture becomes the RGB that people see, or a plain error."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from lficam import portable
from lficam.data.images import read_image
from lficam.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def save(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def pixels(path):
    return read_image(path).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tiff", "a.webp"])
def test_lossless_formats_are_exact(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert (pixels(save(tmp_path, Image.fromarray(RGB), name, **options)) == RGB).all()


def test_jpeg_is_near(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 8).astype(np.uint8), (6, 1))
    path = save(tmp_path, Image.fromarray(smooth).convert("RGB"), "a.jpg", quality=95)
    assert np.abs(pixels(path).astype(int) - smooth[..., None]).max() <= 4


def test_grey_and_one_bit_and_palette(tmp_path):
    grey = Image.fromarray(RGB[..., 0])
    assert (pixels(save(tmp_path, grey)) == RGB[..., :1]).all()
    assert (pixels(save(tmp_path, grey.point(lambda v: 255 * (v > 127), "1"))) == 255 * (RGB[..., :1] > 127)).all()
    palette = Image.fromarray(RGB).quantize(16)
    assert (pixels(save(tmp_path, palette)) == np.asarray(palette.convert("RGB"))).all()


def test_alpha_is_composited_on_white(tmp_path):
    alpha = np.zeros((6, 8, 1), np.uint8)
    alpha[:3] = 255
    found = pixels(save(tmp_path, Image.fromarray(np.concatenate((RGB, alpha), axis=2))))
    assert (found[:3] == RGB[:3]).all()
    assert (found[3:] == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to stand upright
    path = save(tmp_path, Image.fromarray(RGB), exif=exif)
    assert (pixels(path) == np.rot90(RGB, -1)).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert pixels(save(tmp_path, Image.fromarray(deep)))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 51.0, 255.0], [0, 51, 255]), ([-1.0, 0.0, 1.0], [0, 128, 255])],
)
def test_float_pictures_are_scaled(tmp_path, values, expected):
    path = save(tmp_path, Image.fromarray(np.array([values], np.float32)), "a.tiff")
    assert pixels(path)[0, :, 0].tolist() == expected


def test_a_constant_float_picture_is_readable(tmp_path):
    path = save(tmp_path, Image.fromarray(np.full((2, 2), -3.0, np.float32)), "a.tiff")
    assert pixels(path).shape == (2, 2, 3)


def test_the_first_frame_of_an_animation(tmp_path):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    path = save(tmp_path, first, "a.gif", save_all=True, append_images=[second])
    assert pixels(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinite_pixels_are_refused(tmp_path, bad):
    path = save(tmp_path, Image.fromarray(np.array([[0.0, bad]], np.float32)), "a.tiff")
    with pytest.raises(DataError, match="NaN or infinite"):
        read_image(path)


def test_broken_files_are_named(tmp_path):
    whole = save(tmp_path, Image.fromarray(RGB))
    cases = {
        "text.png": b"not a picture",
        "empty.png": b"",
        "cut.png": whole.read_bytes()[:60],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "absent.png")


def test_the_pixel_limit_holds_before_decoding(tmp_path, monkeypatch):
    path = save(tmp_path, Image.fromarray(RGB))
    monkeypatch.setattr(portable, "PIXEL_LIMIT", 47)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="over the limit"):
        read_image(path)


def test_the_result_is_rgb_bytes_channels_first(tmp_path):
    found = read_image(save(tmp_path, Image.fromarray(RGB)))
    assert found.dtype == torch.uint8
    assert found.shape == (3, 6, 8)


def test_reading_in_threads_leaves_the_filters_of_warnings_alone(tmp_path):
    path = save(tmp_path, Image.fromarray(RGB))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_image, [path] * 200))
    assert warnings.filters == before
