"""Preprocessing and augmentation, each against the obvious way to do it for one picture."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lficam.contract import Preprocessing
from lficam.data.module import TrainingSet
from lficam.data.pictures import Pictures
from lficam.data.sampling import EpochSampler, Key, uniform_draws
from lficam.data.transforms import (
    hide_patch,
    normalise,
    padded_crop,
    padded_crop_flip,
    prepare,
    resized_crop_flip,
)
from lficam.errors import InvalidInputError

IMAGES = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_padded_crop_flip_is_a_window_of_the_padded_picture():
    draws = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))
    found = padded_crop_flip(IMAGES, draws)
    assert {bool(flip) for flip in draws[:, 2] < 0.5} == {True, False}
    for image, (down, right, mirror), result in zip(IMAGES, draws.tolist(), found, strict=True):
        top, left = int(9 * down), int(9 * right)
        window = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        assert torch.equal(result, window.flip(-1) if mirror < 0.5 else window)


def test_padded_crop_reaches_every_offset_and_never_mirrors():
    extremes = padded_crop(IMAGES[:2], torch.tensor([[0.0, 0.0], [0.9999, 0.9999]]))
    assert torch.equal(extremes[0, :, 4:, 4:], IMAGES[0, :, :-4, :-4])
    assert torch.equal(extremes[1, :, :-4, :-4], IMAGES[1, :, 4:, 4:])


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.lists(st.floats(0, 0.999), min_size=5, max_size=5))
def test_resized_crop_works_on_any_picture(height, width, draws):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert resized_crop_flip(image, torch.tensor(draws), 16).shape == (3, 16, 16)


def test_resized_crop_of_everything_is_the_picture():
    smooth = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    whole = resized_crop_flip(smooth, torch.tensor([0.99999, 0.5, 0.0, 0.0, 0.9]), 32)
    assert torch.equal(whole, smooth)
    mirrored = resized_crop_flip(smooth, torch.tensor([0.99999, 0.5, 0.0, 0.0, 0.1]), 32)
    assert torch.equal(mirrored, smooth.flip(-1))


def test_resized_crop_takes_8_to_100_percent_of_the_area():
    row = torch.arange(100, dtype=torch.uint8).expand(3, 100, 100)
    smallest = resized_crop_flip(row, torch.tensor([0.0, 0.5, 0.5, 0.0, 0.9]), 28)
    assert int(smallest.max()) == round(0.08**0.5 * 100) - 1


def test_prepare_resizes_the_short_side_and_cuts_the_centre():
    image = torch.zeros(3, 50, 100, dtype=torch.uint8)
    image[:, :, 50:] = 200
    prepared = prepare(image, Preprocessing(size=20, resize=25))
    assert prepared.shape == (3, 20, 20)
    assert (prepared[:, :, :9] == 0).all()
    assert (prepared[:, :, 11:] == 200).all()


def test_prepare_leaves_a_picture_of_the_right_size_alone():
    assert torch.equal(prepare(IMAGES[0], Preprocessing(32, 32)), IMAGES[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 64), st.integers(0, 20))
def test_the_crop_box_lies_in_the_picture_and_is_square_in_the_resized_one(height, width, size, more):
    preprocessing = Preprocessing(size, size + more)
    x1, y1, x2, y2 = preprocessing.crop_box(height, width)
    assert 0 <= x1 < x2 <= width + 1e-6
    assert 0 <= y1 < y2 <= height + 1e-6
    tall, wide = preprocessing.resized(height, width)
    assert (x2 - x1) * wide / width == pytest.approx(size)
    assert (y2 - y1) * tall / height == pytest.approx(size)
    assert prepare(torch.zeros(3, height, width, dtype=torch.uint8), preprocessing).shape == (3, size, size)


def test_normalise_is_mean_and_deviation():
    preprocessing = Preprocessing(32, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    found = normalise(IMAGES, preprocessing)
    for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
        expected = (IMAGES[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(found[:, channel].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "resize"), [(0, 10), (20, 10)])
def test_an_impossible_preprocessing_is_refused(size, resize):
    with pytest.raises(InvalidInputError, match="size"):
        Preprocessing(size, resize)


def test_draws_depend_on_seed_epoch_and_position_alone():
    keys = [Key(1, 5), Key(1, 6), Key(2, 5)]
    together = uniform_draws(0, keys, 4)
    for row, key in zip(together, keys, strict=True):
        assert torch.equal(uniform_draws(0, [key], 4)[0], row)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(uniform_draws(1, keys, 4), together)


def test_draws_are_uniform_and_consecutive_positions_uncorrelated():
    draws = uniform_draws(0, [Key(0, position) for position in range(4000)], 2)
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.005)
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.05
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.05


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return [key.position for key in sampler]


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own():
    sampler = EpochSampler(20, seed=3, global_batch=5)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert epoch_of(EpochSampler(20, seed=3, global_batch=5), 1) == second
    assert epoch_of(EpochSampler(20, seed=4, global_batch=5), 1) != second


def test_ranks_together_see_the_global_batches_of_one_process():
    whole = epoch_of(EpochSampler(22, seed=0, global_batch=6), 4)
    parts = [epoch_of(EpochSampler(22, seed=0, global_batch=6, rank=rank, world=2), 4) for rank in range(2)]
    assert len(whole) == 18
    assert [len(part) for part in parts] == [9, 9]
    for step in range(3):
        together = {position for part in parts for position in part[3 * step : 3 * step + 3]}
        assert together == set(whole[6 * step : 6 * step + 6])


def test_the_only_batch_is_never_dropped():
    assert len(EpochSampler(5, seed=0, global_batch=64)) == 5
    assert len(EpochSampler(5, seed=0, global_batch=64, world=2)) == 2


def test_a_patch_is_hidden_in_a_share_of_the_pictures_and_holds_the_mean_colour():
    draws = torch.tensor([[0.0, 0.99, 0.0], [0.49, 0.3, 0.6], [0.5, 0.0, 0.0], [0.99, 0.5, 0.5]])
    found = hide_patch(IMAGES[:4], draws, 0.5, (0.4, 0.0, 1.0))
    expected = IMAGES[:4].clone()
    for picture, rows, columns in ((0, slice(24, 32), slice(0, 8)), (1, slice(8, 16), slice(16, 24))):
        expected[picture, :, rows, columns] = torch.tensor([102, 0, 255], dtype=torch.uint8).view(3, 1, 1)
    assert torch.equal(found, expected)
    assert not torch.equal(found, IMAGES[:4])
    assert normalise(found[:1, :, 24:, :8], Preprocessing(32, 32, (0.4, 0.0, 1.0), (1.0, 1.0, 1.0))).abs().max() < 1e-6


def test_hidden_patches_leave_the_crops_as_they_are():
    pictures = Pictures(IMAGES, torch.arange(8), [str(n) for n in range(8)], [str(n) for n in range(8)])
    keys = [Key(3, position) for position in range(8)]
    whole, hidden = (
        TrainingSet(pictures, Preprocessing(32, 32), "crop_flip", 0, share).__getitems__(keys)[0]
        for share in (0.0, 1.0)
    )
    changed = (whole != hidden).any(dim=1).flatten(1).sum(dim=1)
    assert ((changed > 0) & (changed <= 64)).all()
