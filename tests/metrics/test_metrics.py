"""Every measure against a value worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lficam.errors import InvalidInputError
from lficam.metrics.classification import calibration_error, per_class, rate, rate_over_pictures, top_k_misses
from lficam.metrics.localization import peaks, points_into, region_boxes, region_iou, shuffled

#   0   .2  .6  .1
#   .1  .3 1.0  .2     above half: (2,0), (2,1) and, apart, (0,3)
#   0   0   .2  .1
#   .9  0   0   0
MAP = torch.tensor([[0, 0.2, 0.6, 0.1], [0.1, 0.3, 1.0, 0.2], [0, 0, 0.2, 0.1], [0.9, 0, 0, 0]]).view(1, 1, 4, 4)


def box(*corners):
    return torch.tensor([corners], dtype=torch.float32)


def test_the_peak_is_the_middle_of_the_pixel_of_the_maximum():
    assert peaks(MAP).tolist() == [[2.5, 1.5]]


def test_of_equal_peaks_the_first_counts():
    assert peaks(torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])).tolist() == [[1.5, 0.5]]


def test_a_mirrored_map_has_a_mirrored_peak():
    small = torch.rand(20, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    maps = torch.nn.functional.interpolate(small, (224, 224), mode="bilinear", align_corners=False)
    found, mirrored = peaks(maps), peaks(maps.flip(2, 3))
    torch.testing.assert_close(mirrored, 224 - found, rtol=0, atol=0.51)
    corner = torch.zeros(1, 1, 7, 7)
    corner[..., 0, 0] = 1
    enlarged = torch.nn.functional.interpolate(corner, (224, 224), mode="bilinear", align_corners=False)
    assert peaks(enlarged).tolist() == [[8.0, 8.0]]  # the level corner is 16 pixels wide


@pytest.mark.parametrize(
    ("corners", "hit"),
    [
        ((2, 1, 3, 2), True),
        ((0, 0, 4, 4), True),
        ((0, 0, 2, 4), False),  # x2 is exclusive
        ((2, 0, 4, 1), False),  # y2 is exclusive
        ((float("nan"),) * 4, False),
    ],
)
def test_the_pointing_game(corners, hit):
    assert points_into(MAP, box(*corners)).tolist() == [hit]


def test_a_flat_map_has_no_peak():
    assert points_into(torch.zeros(1, 1, 4, 4), box(0, 0, 4, 4)).tolist() == [False]


def test_the_region_is_the_largest_connected_one_above_half():
    assert region_boxes(MAP).tolist() == [[2, 0, 3, 2]]
    assert region_boxes(MAP, threshold=0.95).tolist() == [[2, 1, 3, 2]]
    assert region_boxes(torch.zeros(1, 1, 4, 4)).tolist() == [[0, 0, 4, 4]]


def test_diagonal_pixels_are_not_connected():
    assert region_boxes(torch.eye(3).view(1, 1, 3, 3)).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("corners", "expected"),
    [((2, 0, 3, 2), 1.0), ((2, 0, 4, 2), 0.5), ((0, 0, 3, 2), 1 / 3), ((0, 2, 2, 4), 0.0), ((float("nan"),) * 4, 0.0)],
)
def test_region_iou(corners, expected):
    assert region_iou(MAP, box(*corners)).item() == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 200), st.integers(0, 99))
def test_shuffled_pairs_everybody_with_somebody_else_once(count, seed):
    partners = shuffled(count, seed)
    assert sorted(partners.tolist()) == list(range(count))
    assert not (partners == torch.arange(count)).any()


def test_a_rate_has_wilsons_interval():
    # Wilson, z = 1.959964: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = 0.8, n = 10
    found = rate(torch.tensor([True] * 8 + [False] * 2))
    assert found.value == 0.8
    assert found.low == pytest.approx(0.490162, abs=1e-5)
    assert found.high == pytest.approx(0.943318, abs=1e-5)
    assert found.cases == 10


def test_a_rate_over_pictures_counts_pictures():
    # Means per picture 1, 0.5, 0.5, 0: mean 0.5, deviation sqrt(0.125), error 1.96 * sqrt(0.125 / 4)
    found = rate_over_pictures(torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=torch.bool))
    assert found.value == 0.5
    assert found.high - 0.5 == pytest.approx(1.96 * (0.125 / 4) ** 0.5)
    assert found.cases == 4
    assert rate_over_pictures(torch.tensor([[True], [False]])) == rate(torch.tensor([True, False]))


def test_top_k_misses():
    logits = torch.tensor([[5.0, 4, 3], [5.0, 4, 3], [1.0, 2, 3]])
    labels = torch.tensor([0, 1, 0])
    assert top_k_misses(logits, labels, 1).tolist() == [False, True, True]
    assert top_k_misses(logits, labels, 2).tolist() == [False, False, True]


def test_the_calibration_error_is_the_mean_gap_over_bins():
    # Two predictions of probability 0.9, one right: gap 0.4. Two of 0.6, both right: gap 0.4. Mean 0.4.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert calibration_error(probabilities.log(), torch.tensor([0, 1, 0, 0])) == pytest.approx(0.4, abs=1e-5)


def test_the_per_class_table():
    predicted = torch.tensor([0, 0, 1, 1, 0])
    labels = torch.tensor([0, 0, 0, 1, 1])
    rows = per_class(torch.eye(3)[predicted], labels, ["a", "b", "c"])
    assert [row.name for row in rows] == ["a", "b"]
    assert rows[0].recall == pytest.approx(2 / 3)
    assert rows[0].precision == pytest.approx(2 / 3)
    assert rows[0].confused_with == "b"
    assert rows[1] == ("b", 2, 0.5, 0.5, "a")


def test_a_class_never_predicted_has_no_precision():
    rows = per_class(torch.eye(2)[[0, 0]], torch.tensor([0, 1]), ["a", "b"])
    assert rows[1].precision is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: peaks(torch.zeros(4, 4)), r"expected \(N, 1, H, W\)"),
        (lambda: peaks(torch.full((1, 1, 2, 2), float("nan"))), "NaN"),
        (lambda: points_into(MAP, torch.zeros(2, 4)), r"expected \(1, 4\)"),
        (lambda: shuffled(1), "at least 2"),
        (lambda: rate(torch.zeros(0, dtype=torch.bool)), "at least one case"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
