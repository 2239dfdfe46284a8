"""Stability against values worked out by hand, scipy, and what holds for every pair of maps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lficam.errors import InvalidInputError
from lficam.metrics.stability import (
    PAPER_THRESHOLD,
    area_matched_iou,
    chance_corrected,
    map_iou,
    partners_of_one_class,
    rank_correlation,
    structural_similarity,
)


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None, None, :]


def random_maps(seed, count=3, side=12):
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


def test_map_iou_by_hand():
    maps = rows([1.0, 0.5, 0.4, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0])
    others = rows([1.0, 0.3, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0])
    found = map_iou(maps, others)
    assert found[:2].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert math.isnan(found[2])
    assert found[3] == 0
    assert map_iou(rows([PAPER_THRESHOLD]), rows([1.0])).item() == 1


def test_area_matched_iou_by_hand():
    maps, others = rows([0.9, 0.8, 0.1, 0.0], [0.5, 0.5, 0.5, 0.5]), rows([0.2, 0.1, 0.9, 0.0], [1.0, 0.0, 0.0, 0.0])
    half = area_matched_iou(maps, others, 0.5)
    assert half[0].item() == pytest.approx(1 / 3)  # the first two against the first and third
    assert math.isnan(half[1])
    assert area_matched_iou(maps, others, 1.0)[0] == 1
    assert area_matched_iou(maps, others, 0.01)[0] == 0  # one pixel each


def test_rank_correlation_is_scipys():
    maps, others = random_maps(0), random_maps(1).round(decimals=1)  # with ties
    for one, other, found in zip(maps, others, rank_correlation(maps, others), strict=True):
        assert found.item() == pytest.approx(spearmanr(one.flatten(), other.flatten()).statistic, abs=1e-6)
    assert math.isnan(rank_correlation(torch.ones(1, 1, 2, 2), random_maps(0, 1, 2)))


def test_structural_similarity_of_one_picture_at_a_time():
    maps, others = random_maps(0), random_maps(1)
    found = structural_similarity(maps, others)
    assert found.shape == (3,)
    assert structural_similarity(maps, maps).tolist() == pytest.approx([1.0] * 3)
    alone = torch.cat([structural_similarity(a[None], b[None]) for a, b in zip(maps, others, strict=True)])
    torch.testing.assert_close(found, alone)


def test_structural_similarity_by_the_book():
    """Wang et al. 2004, equation 13, around each pixel: 11 pixels, a Gaussian of 1.5, the borders mirrored."""
    maps, others = (random_maps(seed).double() for seed in (0, 1))
    place = torch.arange(11.0).double() - 5
    bell = torch.exp(-(place**2) / (2 * 1.5**2))
    window = bell[:, None] * bell / (bell[:, None] * bell).sum()
    wide = [torch.nn.functional.pad(whole, (5, 5, 5, 5), mode="reflect")[:, 0] for whole in (maps, others)]
    for found, one, other in zip(structural_similarity(maps, others), *wide, strict=True):
        values = []
        for y in range(12):
            for x in range(12):
                a, b = (whole[y : y + 11, x : x + 11] for whole in (one, other))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                both = (window * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = 0.01**2, 0.03**2
                shape = (2 * both + c2) / (var_a + var_b + c2)
                values.append((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * shape)
        assert found.item() == pytest.approx(float(sum(values) / 144), abs=1e-5)


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.3, 0.5]))
def test_they_are_symmetric_and_perfect_for_itself(seed, share):
    maps, others = random_maps(seed), random_maps(seed + 1)
    for measure in (map_iou, lambda a, b: area_matched_iou(a, b, share), rank_correlation, structural_similarity):
        torch.testing.assert_close(measure(maps, others), measure(others, maps), rtol=1e-4, atol=1e-5)
        assert measure(maps, maps).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    # Any monotone change of a map leaves its order as it was.
    torch.testing.assert_close(area_matched_iou(maps.square(), others, share), area_matched_iou(maps, others, share))
    torch.testing.assert_close(rank_correlation(maps.square(), others), rank_correlation(maps, others))


def test_chance_is_taken_off():
    found = chance_corrected(torch.tensor([0.7, 0.4, 1.0, 0.5]), torch.tensor([0.4, 0.4, 0.2, 1.0]))
    assert found[:3].tolist() == pytest.approx([0.5, 0.0, 1.0])
    assert math.isnan(found[3])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 5))
def test_partners_share_a_class_and_no_picture(labels, seed):
    labels = torch.tensor(labels)
    partners = partners_of_one_class(labels, seed)
    for index, partner in enumerate(partners.tolist()):
        if partner < 0:
            assert (labels == labels[index]).sum() == 1
        else:
            assert partner != index
            assert labels[partner] == labels[index]
    assert len(set(partners[partners >= 0].tolist())) == int((partners >= 0).sum())


@pytest.mark.parametrize("measure", [map_iou, rank_correlation, structural_similarity])
def test_maps_that_do_not_fit_are_refused(measure):
    with pytest.raises(InvalidInputError, match="one a picture"):
        measure(torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4))
    with pytest.raises(InvalidInputError, match="finite"):
        measure(torch.full((1, 1, 12, 12), torch.nan), torch.zeros(1, 1, 12, 12))
    with pytest.raises(InvalidInputError, match="share: expected more than 0"):
        area_matched_iou(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0)


def test_maps_and_thresholds_of_another_unit_are_refused():
    with pytest.raises(InvalidInputError, match=r"maps: expected values in \[0, 1\], got 0 to 255"):
        map_iou(torch.tensor([[[[0.0, 255.0]]]]), torch.zeros(1, 1, 1, 2))
    with pytest.raises(InvalidInputError, match="threshold: expected more than 0 and at most 1, got 127"):
        map_iou(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), threshold=127)


def test_a_map_with_too_few_pixels_above_its_lowest_has_no_highest_share():
    one, other = torch.zeros(1, 1, 10, 10), torch.zeros(1, 1, 10, 10)
    one[..., 0, 0] = other[..., 9, 9] = 1.0
    assert area_matched_iou(one, other, 0.01).tolist() == [0.0]
    assert area_matched_iou(one, other, 0.1).isnan().all()


def test_maps_that_are_learned_or_narrow_have_ranks():
    maps = random_maps(0)
    expected = rank_correlation(maps, random_maps(1))
    torch.testing.assert_close(rank_correlation(maps.requires_grad_(), random_maps(1)), expected)
    narrow = maps.detach().bfloat16()
    assert rank_correlation(narrow, narrow).tolist() == [1.0] * 3
