"""Each equation against a slow, obvious rewrite in float64, and everywhere finite."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lficam import functional as LF
from lficam.errors import InvalidInputError

FLOATS = (torch.float32, torch.bfloat16, torch.float64)


def slow_min_max(channel):
    values = [value for row in channel for value in row]
    low, high = min(values), max(values)
    if high == low:
        return [[0.0 for _ in row] for row in channel]
    return [[(value - low) / (high - low) for value in row] for row in channel]


def slow_map(features, weights):
    """Equation 4 and 9, a loop over everything."""
    height, width = len(features[0]), len(features[0][0])
    total = [[0.0] * width for _ in range(height)]
    for channel, weight in zip(features, weights, strict=True):
        for y in range(height):
            for x in range(width):
                total[y][x] += weight * channel[y][x]
    return [[max(value, 0.0) for value in row] for row in total]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_class_activation_map_is_the_sum_of_equations_4_and_9():
    features, weights = random(3, 5, 4, 6), random(3, 5, seed=1)
    expected = [slow_map(f, w) for f, w in zip(features.tolist(), weights.tolist(), strict=True)]
    found = LF.class_activation_map(features, weights)[:, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert (found == 0).any()
    assert (found > 0).any()


def test_masked_features_is_equation_6():
    features, grey = random(2, 3, 4, 4), random(2, 1, 4, 4, seed=1)
    expected = [
        [
            [
                [g * s for g, s in zip(*rows, strict=True)]
                for rows in zip(grey_map[0], slow_min_max(channel), strict=True)
            ]
            for channel in sample
        ]
        for sample, grey_map in zip(features.tolist(), grey.tolist(), strict=True)
    ]
    torch.testing.assert_close(LF.masked_features(features, grey), torch.tensor(expected, dtype=torch.float64))


def test_grey_image_is_equation_5_on_a_grid_of_half_the_size():
    images = random(2, 3, 4, 4)
    mean = images.mean(dim=1)
    # Half the size with corners not aligned: each cell is the mean of its four pixels.
    expected = torch.stack([mean[:, y : y + 2, x : x + 2].mean(dim=(1, 2)) for y in (0, 2) for x in (0, 2)], dim=1)
    torch.testing.assert_close(LF.grey_image(images, (2, 2))[:, 0].flatten(1), expected)


def test_grey_image_does_not_antialias():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 0, 0] = 1.0
    # 8 to 2 samples pixels 1.5 and 5.5: the corner pixel is not seen at all.
    assert LF.grey_image(images, (2, 2)).abs().sum() == 0


def test_mask_images_is_equation_1():
    images, masks = random(2, 3, 4, 5), random(2, 6, 4, 5, seed=1)
    masked = LF.mask_images(images, masks)
    for n in range(2):
        for k in range(6):
            for channel in range(3):
                torch.testing.assert_close(masked[n, k, channel], images[n, channel] * masks[n, k])


def test_first_guess_importance_is_the_mean_of_centred_rows_by_probability():
    features = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for n in range(2):
        scores = [float(bias[c]) + sum(float(weight[c, k] * features[n, k].mean()) for k in range(5)) for c in range(4)]
        total = sum(math.exp(score) for score in scores)
        for k in range(5):
            centre = sum(float(weight[c, k]) for c in range(4)) / 4
            expected[n, k] = sum(math.exp(scores[c]) / total * (float(weight[c, k]) - centre) for c in range(4))
    torch.testing.assert_close(LF.first_guess_importance(features, weight, bias), expected, rtol=1e-12, atol=1e-12)


def test_attend_is_equation_10():
    features, attention = random(2, 3, 4, 4), random(2, 1, 4, 4, seed=1).sigmoid()
    for k in range(3):
        expected = features[:, k] + attention[:, 0] * features[:, k]
        torch.testing.assert_close(LF.attend(features, attention)[:, k], expected)
        product = attention[:, 0] * features[:, k]
        torch.testing.assert_close(LF.attend(features, attention, "product")[:, k], product)


def test_linear_logits_is_pooling_then_a_linear_layer():
    features, weight, bias = random(2, 3, 4, 5), random(7, 3, seed=1), random(7, seed=2)
    expected = [
        [sum(weight[c, k] * features[n, k].sum() / 20 for k in range(3)) + bias[c] for c in range(7)] for n in range(2)
    ]
    torch.testing.assert_close(LF.linear_logits(features, weight, bias), torch.tensor(expected, dtype=torch.float64))


def test_upsample_keeps_corners_unaligned():
    found = LF.upsample(torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64), (1, 4))
    assert found.flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "features",
    [torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 7.5), torch.rand(2, 3, 1, 1), torch.full((2, 3, 4, 4), -1e-30)],
    ids=["dead", "flat", "one pixel", "tiny"],
)
def test_degenerate_features_give_finite_values_and_gradients(features, dtype):
    features = features.detach().to(dtype, copy=True).requires_grad_()
    images = torch.zeros(2, 3, 8, 8, dtype=dtype, requires_grad=True)
    weights = torch.full((2, 3), 1 / 3, dtype=dtype, requires_grad=True)
    grey = LF.grey_image(images, tuple(features.shape[-2:]))
    attention = LF.min_max(LF.class_activation_map(features, weights))
    out = LF.attend(features, attention).sum() + LF.masked_features(features, grey).sum()
    out.backward()
    assert torch.isfinite(out)
    assert (attention == 0).all()
    for leaf in (features, images, weights):
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e36])
def test_min_max_gradient_stays_finite_at_every_scale(scale):
    maps = (torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    scaled = LF.min_max(maps)
    scaled.square().sum().backward()
    assert torch.isfinite(scaled).all()
    assert torch.isfinite(maps.grad).all()


def test_min_max_takes_rounding_noise_for_flat():
    maps = torch.full((1, 1, 2, 2), 1000.0)
    maps[..., 0, 0] = torch.nextafter(torch.tensor(1000.0), torch.tensor(2000.0))
    assert (LF.min_max(maps) == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=12),
    st.floats(0.01, 100),
)
def test_min_max_lies_in_the_unit_interval_and_ignores_scale(values, factor):
    maps = torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)
    scaled = LF.min_max(maps)
    assert scaled.min() == 0
    assert scaled.max() in (0.0, 1.0)
    torch.testing.assert_close(LF.min_max(maps * factor), scaled)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_the_map_is_linear_in_its_weights_before_the_relu(channels, height, width, seed):
    features, a, b = random(2, channels, height, width, seed=seed), random(2, channels), random(2, channels, seed=9)
    both = LF.weighted_sum(features, a + 2 * b)
    torch.testing.assert_close(both, LF.weighted_sum(features, a) + 2 * LF.weighted_sum(features, b))


@pytest.mark.parametrize("dtype", FLOATS)
def test_half_precision_is_widened_and_double_stays(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    features, grid = torch.rand(2, 3, 4, 4, dtype=dtype), torch.rand(2, 1, 4, 4, dtype=dtype)
    results = [
        LF.min_max(features),
        LF.class_activation_map(features, torch.rand(2, 3, dtype=dtype)),
        LF.grey_image(features, (2, 2)),
        LF.masked_features(features, grid),
        LF.attend(features, grid),
        LF.linear_logits(features, torch.rand(5, 3, dtype=dtype), None),
    ]
    assert {result.dtype for result in results} == {expected}


def test_autocast_does_not_reach_the_sum():
    features, weights = torch.rand(2, 64, 8, 8), torch.rand(2, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = LF.class_activation_map(features, weights)
        careless = torch.einsum("nk,nkhw->nhw", weights, features)
    assert torch.equal(inside, LF.class_activation_map(features, weights))
    assert careless.dtype == torch.bfloat16


def test_gradients_are_those_of_finite_differences():
    # Distinct values: at ties the minimum and the maximum have no derivative.
    features = random(1, 2, 3, 3).requires_grad_()
    weights = random(1, 2, seed=3).abs().requires_grad_()

    def attended(features, weights):
        return LF.attend(features, LF.min_max(LF.class_activation_map(features, weights)))

    assert torch.autograd.gradcheck(attended, (features, weights))


def test_grey_image_asks_for_a_batch():
    with pytest.raises(InvalidInputError, match=r"images: expected \(N, 3, H, W\), got \(3, 4, 4\)"):
        LF.grey_image(torch.zeros(3, 4, 4), (2, 2))


def test_inputs_are_left_as_they_are():
    features, weights = random(2, 3, 4, 4), random(2, 3)
    before = features.clone()
    LF.attend(features, LF.min_max(LF.class_activation_map(features, weights)))
    assert torch.equal(features, before)
    assert math.isfinite(features.sum())
