"""Swaps, cascading randomisation and intervals against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lficam.errors import InvalidInputError
from lficam.metrics.intervals import bootstrap_mean, bootstrap_statistic
from lficam.metrics.sanity import cascading_randomisation
from lficam.metrics.use import SWAPS, divergence, effective_channels, label_agreement, swapped

MAPS = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]], [[[1.0, 0.0], [0.0, 0.0]]]])


def test_each_swap_by_hand():
    partners = torch.tensor([1, 0])
    means = torch.tensor([[[[2.0, 4.0], [2.0, 2.0]]], [[[3.0, 3.0], [3.0, 3.0]]]])
    found = {name: swapped(name, MAPS, partners, means).tolist() for name in SWAPS}
    assert found["zero"] == torch.zeros(2, 1, 2, 2).tolist()
    assert found["constant"] == [[[[0.5, 0.5], [0.5, 0.5]]], [[[0.25, 0.25], [0.25, 0.25]]]]
    assert found["dataset_mean"] == [[[[0.5, 0.5], [0.25, 0.25]]]] * 2
    assert found["other_image"] == MAPS.flip(0).tolist()
    assert found["feature_mean"] == [[[[0.0, 1.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]
    assert found["inverted"] == (1 - MAPS).tolist()
    flat = torch.zeros(1, 1, 2, 2)
    assert torch.equal(swapped("inverted", flat, partners[:1], flat), flat)
    with pytest.raises(InvalidInputError, match="expected one of zero, constant"):
        swapped("shuffled", MAPS, partners, means)
    with pytest.raises(InvalidInputError, match="partners: expected 2 of 0 to 1"):
        swapped("other_image", MAPS, torch.tensor([5, 0]), means)


def test_effective_channels_by_hand():
    found = effective_channels(torch.tensor([[0.25] * 4, [3.0, 1.0, 0.0, 0.0], [0.0] * 4]))
    assert found[0] == pytest.approx(4)
    assert found[1] == pytest.approx(4 / 3**0.75)  # exp(-(3/4 ln 3/4 + 1/4 ln 1/4))
    assert found[2].isnan()


def test_labels_agree_by_hand_and_answers_that_are_none_are_refused():
    one, other = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]]), torch.tensor([[9.0, 1.0, 8.0], [4.0, 1.0, 3.0]])
    assert label_agreement(one, other).tolist() == [1.0, 0.0]
    broken = one.clone().fill_(torch.nan)
    for measure in (label_agreement, divergence):
        with pytest.raises(InvalidInputError, match="NaN or infinite"):
            measure(broken, broken)


def test_divergence_is_kullbacks_and_leiblers():
    one, other = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0]])
    p, q = one.softmax(1)[0].tolist(), other.softmax(1)[0].tolist()
    expected = sum(a * torch.tensor(a / b).log().item() for a, b in zip(p, q, strict=True))
    assert divergence(one, other).item() == pytest.approx(expected, rel=1e-5)
    assert divergence(one, one).item() == 0
    with pytest.raises(InvalidInputError, match=r"expected two of \(N, C\)"):
        label_agreement(one, other[:, :2])


def test_stages_are_lost_one_more_at_a_time_and_the_model_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    nn.init.constant_(model[1].running_mean, 5.0)
    state, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    stages = [("head", ["3"]), ("middle", ["2"]), ("stem", ["1", "0"])]
    copies = dict(cascading_randomisation(model, stages))
    changed = {
        stage: sorted(
            {key.split(".")[0] for key, value in lost.state_dict().items() if not torch.equal(value, state[key])}
        )
        for stage, lost in copies.items()
    }
    assert changed == {"head": ["3"], "middle": ["2", "3"], "stem": ["0", "1", "2", "3"]}
    assert copies["stem"][1].running_mean.tolist() == [0.0] * 4
    assert not copies["stem"].training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_interval_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        mean = bootstrap_mean(torch.randn(1, 60, generator=generator))
        covered += mean.low <= 0 <= mean.high
    assert 180 <= covered <= 200


def test_runs_that_differ_widen_the_interval():
    alike = torch.full((3, 50), 0.5)
    apart = alike + torch.tensor([[-0.2], [0.0], [0.2]])
    assert bootstrap_mean(alike)[:3] == (0.5, 0.5, 0.5)
    found = bootstrap_mean(apart)
    assert found.value == pytest.approx(0.5, abs=1e-6)
    assert found.high - found.low > 0.15


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=20))
def test_a_mean_lies_in_its_interval_and_missing_values_do_not_count(values):
    known = [value for value in values if not math.isnan(value)]
    found = bootstrap_mean(torch.tensor([values], dtype=torch.float64))
    if not known:
        assert found is None
        return
    assert found.value == pytest.approx(sum(known) / len(known), abs=1e-6)
    if all(value in (-1, 0, 1) for value in known):
        assert found.high == min(found.value + 3 / len(known), 1) or found.high > found.value + 3 / len(known)
        assert -1 <= found.low <= found.value <= found.high <= 1
    else:
        assert min(known) - 1e-6 <= found.low <= found.high <= max(known) + 1e-6
    assert found.left_out == pytest.approx(1 - len(known) / len(values), abs=1e-6)


def test_a_mean_as_a_number_of_the_whole_set_has_the_means_interval():
    values = torch.rand(40, generator=torch.Generator().manual_seed(0))
    found = bootstrap_statistic(lambda counts: counts @ values / counts.sum(dim=1), 40)
    assert found == pytest.approx(bootstrap_mean(values[None]), abs=1e-5)


def test_values_of_a_wrong_shape_are_refused():
    with pytest.raises(InvalidInputError, match=r"expected \(R, N\)"):
        bootstrap_mean(torch.zeros(3))


class Scaled(nn.Module):
    """A layer that does not know how to start again."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.arange(8.0))


def test_weights_of_a_layer_without_a_start_are_shuffled():
    model = nn.Sequential(Scaled())
    ((_, lost),) = cascading_randomisation(model, [("all", ["0"])])
    assert lost[0].gamma.tolist() != model[0].gamma.tolist()
    assert sorted(lost[0].gamma.tolist()) == model[0].gamma.tolist()


def test_few_runs_that_differ_make_an_interval_as_wide_as_student_says():
    values = torch.tensor([[1.5], [2.5]]).expand(2, 50)
    found = bootstrap_mean(values)
    assert found.value == pytest.approx(2.0)
    assert found.high - found.value == pytest.approx(12.7062 * 0.7071 / 2**0.5, rel=1e-3)
    assert bootstrap_mean(torch.tensor([[0.5], [torch.nan]])) is None


def test_a_rate_of_one_is_not_sure_and_stays_a_rate():
    assert bootstrap_mean(torch.ones(1, 30))[:3] == pytest.approx((1.0, 0.9, 1.0))
    assert bootstrap_mean(torch.tensor([[0.0], [1.0]]).expand(2, 50))[:3] == pytest.approx((0.5, 0.0, 1.0))
    assert bootstrap_mean(-torch.ones(1, 30))[:3] == pytest.approx((-1.0, -1.0, -0.9))


def test_the_value_is_that_of_its_interval_where_pictures_are_missing_in_some_runs():
    values = torch.tensor([[0.2, 0.9, 0.9], [0.2, torch.nan, torch.nan]])
    assert bootstrap_mean(values).value == pytest.approx((0.2 + 0.9 + 0.9) / 3)
