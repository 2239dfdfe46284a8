"""Energy, masks, tuned thresholds, average precision and grids against values worked out by hand and scikit-learn."""

import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import binary_average_precision

from lficam.errors import InvalidInputError
from lficam.measuring.measures import _tuned
from lficam.metrics import localization
from lficam.metrics.localization import (
    any_region_found,
    box_masks,
    energy_share,
    grid_share,
    largest_region_found,
    mask_iou,
    max_box_acc,
    max_box_acc_v2,
    mean_map,
    pixel_average_precision,
    pixels_found,
    region_boxes,
    region_iou,
    tuned_threshold,
)


@pytest.fixture(scope="module")
def maps():
    return torch.rand(4, 1, 6, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def boxes():
    return torch.tensor([[0.0, 0.0, 4.0, 3.0], [2.0, 1.0, 8.0, 6.0], [5.0, 5.0, 6.0, 6.0], [0.0, 0.0, 8.0, 6.0]])


def test_box_masks_hold_the_pixels_of_their_boxes(boxes):
    masks = box_masks(boxes, (6, 8))
    assert masks.sum(dim=(1, 2, 3)).tolist() == [12, 30, 1, 48]
    assert masks[2, 0, 5, 5]
    several = box_masks(torch.stack((boxes[0], torch.full((4,), torch.nan)))[None], (6, 8))
    assert torch.equal(several[0], masks[0])
    assert not box_masks(torch.full((1, 4), torch.nan), (6, 8)).any()


def test_energy_of_a_map_of_ones_is_the_objects_share_of_the_picture(maps, boxes):
    masks = box_masks(boxes, (6, 8))
    ones = energy_share(torch.ones(4, 1, 6, 8), masks)
    assert ones.tolist() == pytest.approx([12 / 48, 30 / 48, 1 / 48, 1.0])
    for n in range(4):
        inside = sum(float(maps[n, 0, y, x]) for y in range(6) for x in range(8) if masks[n, 0, y, x])
        assert float(energy_share(maps, masks)[n]) == pytest.approx(inside / float(maps[n].sum()), rel=1e-5)
    assert energy_share(torch.zeros(4, 1, 6, 8), masks).tolist() == [0.0] * 4


def test_mask_iou_by_hand(maps, boxes):
    masks = box_masks(boxes, (6, 8))
    for n in range(4):
        high = maps[n, 0] >= 0.5
        expected = (high & masks[n, 0]).sum() / (high | masks[n, 0]).sum()
        assert float(mask_iou(maps, masks)[n]) == pytest.approx(float(expected))


def test_max_box_acc_takes_the_best_threshold_for_each_overlap(maps, boxes):
    ious = [region_iou(maps, boxes, number / 20) for number in range(1, 20)]
    expected = sum(max(float((iou >= delta).float().mean()) for iou in ious) for delta in (0.3, 0.5, 0.7)) / 3
    assert max_box_acc(maps, boxes) == pytest.approx(expected)


def regions_by_flooding(high):
    """The boxes of connected pixels, one region after the other."""
    left, boxes = {(y, x) for y in range(high.shape[0]) for x in range(high.shape[1]) if high[y, x]}, []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            near = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & left
            left -= near
            edge += near
        rows, columns = [y for y, _ in region], [x for _, x in region]
        boxes.append((min(columns), min(rows), max(columns) + 1, max(rows) + 1))
    return boxes


def overlap(one, other):
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def test_max_box_acc_v2_takes_the_best_of_all_regions(maps, boxes):
    two = torch.stack((boxes, torch.full((4, 4), torch.nan)), dim=1)
    two[0, 1] = torch.tensor([6.0, 2.0, 8.0, 4.0])
    shares = []
    for delta in (0.3, 0.5, 0.7):
        best = 0.0
        for step in range(1, 100):
            found = 0
            for picture, boxes_of_one in zip(maps[:, 0], two, strict=True):
                regions = regions_by_flooding(picture >= step / 100)
                known = [box for box in boxes_of_one.tolist() if box[0] == box[0]]
                best_here = max((overlap(a, b) for a in regions for b in known), default=0.0)
                if not regions:  # the whole picture
                    best_here = max(overlap((0, 0, 8, 6), b) for b in known)
                found += best_here >= delta
            best = max(best, found / 4)
        shares.append(best)
    assert max_box_acc_v2(maps, two) == pytest.approx(sum(shares) / 3)
    assert max_box_acc_v2(maps, boxes) >= max_box_acc(maps, boxes)


def test_regions_of_many_maps_are_those_of_each(maps, boxes, monkeypatch):
    maps = torch.cat((maps, torch.zeros(1, 1, 6, 8), torch.ones(1, 1, 6, 8)))
    alone = torch.cat([region_boxes(one[None], 0.4) for one in maps])
    monkeypatch.setattr(localization, "_AT_ONCE", 4)
    assert torch.equal(region_boxes(maps, 0.4), alone)
    assert region_boxes(maps[:0]).shape == (0, 4)
    assert region_iou(maps[:0], boxes[:0]).shape == (0,)


def test_values_that_say_nothing_are_refused_by_name(maps, boxes):
    masks = box_masks(boxes, (6, 8))
    refused = {
        "maps: expected values in": lambda: region_boxes(255 * maps),
        "threshold: expected more than 0": lambda: region_boxes(maps, 127),
        "threshold: ": lambda: mask_iou(maps, masks, 0.0),
        "steps: expected at least 2": lambda: max_box_acc(maps, boxes, steps=1),
        "deltas: expected at least one": lambda: max_box_acc_v2(maps, boxes, deltas=()),
        "cells: expected 4 of 0 to 3": lambda: grid_share(maps, torch.tensor([0, 1, 2, 4])),
    }
    for message, ask in refused.items():
        with pytest.raises(InvalidInputError, match=message):
            ask()


def test_the_tuned_threshold_is_the_best_one(maps, boxes):
    means = {number / 20: float(region_iou(maps, boxes, number / 20).mean()) for number in range(1, 20)}
    assert means[tuned_threshold(maps, boxes)] == max(means.values())


def test_the_pictures_that_a_threshold_is_chosen_on_are_not_judged():
    """Every second picture wants its right pixel alone, which takes a threshold above 0.8; the others want both."""
    maps = torch.tensor([[[[0.8, 1.0]]], [[[0.1, 1.0]]]] * 2)
    boxes = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 0.0, 2.0, 1.0]] * 2)
    values = _tuned(region_iou)(maps, boxes)
    assert values.isnan().tolist() == [True, False, True, False]
    assert values[1::2].tolist() == [0.5, 0.5]
    assert tuned_threshold(maps[1::2], boxes[1::2]) < 0.2


def test_a_set_that_holds_pictures_several_times_is_measured_as_it_stands(maps, boxes):
    chosen, masks = torch.tensor([0, 0, 2, 3, 3, 3]), box_masks(boxes, (6, 8))
    found = pixels_found(maps, masks)(torch.tensor([[2.0, 0.0, 1.0, 3.0]]))
    assert found.item() == pytest.approx(pixel_average_precision(maps[chosen], masks[chosen]), abs=1e-6)
    many = maps.repeat(100, 1, 1, 1), masks.repeat(100, 1, 1, 1)  # more than are counted at a time
    assert pixel_average_precision(*many) == pytest.approx(pixel_average_precision(maps, masks), abs=1e-6)
    for dtype in (torch.float64, torch.bfloat16):
        assert 0 < pixel_average_precision(maps.to(dtype), masks) < 1


def test_what_each_picture_adds_to_the_boxes_found():
    """Found at 0.3 and 0.5 by its left pixels; at all three by its left pixel, which another threshold takes."""
    maps = torch.tensor([[[[1.0, 0.4, 0.4, 0.0]]], [[[1.0, 0.4, 0.0, 0.0]]]])
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 2.0, 1.0]])
    for found in (largest_region_found(maps, boxes), any_region_found(maps, boxes)):
        assert found.tolist() == pytest.approx([2 / 3, 1.0])
    assert max_box_acc(maps, boxes) == pytest.approx(5 / 6)


def test_the_mean_of_flat_maps_stays_what_it_is(maps):
    assert torch.equal(mean_map(torch.ones(2, 1, 3, 3)), torch.ones(2, 1, 3, 3))
    found = mean_map(maps)
    mean = sum(maps) / 4
    torch.testing.assert_close(found[2], (mean - mean.min()) / (mean.max() - mean.min()))


def test_pixel_average_precision_is_scikit_learns(maps, boxes):
    masks = box_masks(boxes, (6, 8))
    at_the_same_levels = binary_average_precision(maps.flatten(), masks.flatten().long(), thresholds=1000)
    assert pixel_average_precision(maps, masks) == pytest.approx(float(at_the_same_levels), abs=1e-6)
    with pytest.raises(InvalidInputError, match=r"values in \[0, 1\], got 0"):
        pixel_average_precision(255 * maps, masks)
    expected = average_precision_score(masks.flatten().numpy(), maps.flatten().numpy())
    assert pixel_average_precision(maps, masks) == pytest.approx(expected, abs=2e-3)  # 1,000 thresholds
    assert pixel_average_precision(torch.ones(4, 1, 6, 8), masks) == pytest.approx(91 / 192, abs=1e-6)


def test_grid_share_counts_what_speaks_for_the_class_only():
    maps = torch.tensor([[[[1.0, 1.0, 0.0, 3.0], [1.0, -9.0, 0.0, 3.0]]], [[[-1.0, -1.0, -1.0, -1.0]] * 2]])
    assert grid_share(maps, torch.tensor([1, 0]), side=2).tolist() == [pytest.approx(3 / 9), 0.0]
    with pytest.raises(InvalidInputError, match="sides that 2 divides"):
        grid_share(torch.zeros(1, 1, 3, 4), torch.tensor([0]))


def test_empty_and_misshapen_masks_are_refused(maps, boxes):
    masks = box_masks(boxes, (6, 8))
    with pytest.raises(InvalidInputError, match="empty one"):
        energy_share(maps, masks & False)
    with pytest.raises(InvalidInputError, match=r"expected \(4, 1, 6, 8\) bool"):
        mask_iou(maps, masks[..., :4])
    with pytest.raises(InvalidInputError, match="finite"):
        energy_share(maps.clone().fill_(torch.nan), masks)
