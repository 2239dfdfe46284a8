"""Colours mean what the captions say."""

import pytest
import torch
from PIL import Image

from lficam import visualize
from lficam.errors import InvalidInputError

GREY = torch.full((3, 8, 8), 128, dtype=torch.uint8)


def test_red_speaks_for_and_blue_against():
    evidence = torch.tensor([[[1.0, -1.0]]]).expand(1, 2, 2)
    found = visualize.overlay_signed(GREY, evidence).int()
    assert (found[0, :, 0] > found[2, :, 0]).all()
    assert (found[2, :, -1] > found[0, :, -1]).all()


def test_no_evidence_changes_no_colour():
    assert torch.equal(visualize.overlay_signed(GREY, torch.zeros(1, 2, 2)), GREY)


def test_heat_runs_from_blue_to_red():
    found = visualize.overlay(GREY, torch.tensor([[[0.0, 0.85]]]).expand(1, 2, 2)).int()
    assert (found[2, :, 0] > found[0, :, 0]).all()
    assert (found[0, :, -1] > found[2, :, -1]).all()


def test_a_box_is_its_frame():
    framed = visualize.draw_box(GREY, (2, 1, 6, 5))
    changed = (framed != GREY).any(dim=0)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:5, 2:6] = True
    expected[2:4, 3:5] = False
    assert torch.equal(changed, expected)
    assert (visualize.draw_box(GREY, (-3, -3, 20, 20)) != GREY).any()


def test_strips_and_files(tmp_path):
    joined = visualize.strip([GREY, GREY[:, :, :4]], gap=2)
    assert joined.shape == (3, 8, 14)
    visualize.save_png(joined, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (14, 8)
    assert visualize.enlarge(GREY, 20).shape == (3, 16, 16)
    assert torch.equal(visualize.enlarge(GREY, 4), GREY)
    visualize.save_gallery_figure(tmp_path, [{"file": "a.png", "captions": ["x", "y"]}], tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").size[0] > 14


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: visualize.overlay(GREY, torch.zeros(2, 1, 4, 4)), "one map at a time"),
        (lambda: visualize.strip([GREY, GREY[:, :4]]), "one height"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
