"""Faithfulness against values worked out by hand, slow rewrites and torchcam's and grad-cam's own measures."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torchcam
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from scipy.stats import pearsonr, spearmanr
from torch import nn
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from lficam.errors import InvalidInputError
from lficam.metrics import faithfulness
from lficam.metrics.faithfulness import (
    adcc,
    average_drop,
    average_gain,
    deletion,
    impute,
    insertion,
    patch_deletion_correlation,
    patch_drops,
    road,
    top_patch,
)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def maps():
    return torch.rand(3, 1, 12, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def weights():
    return torch.randn(3, 12, 10, generator=torch.Generator().manual_seed(2))


def test_drops_of_a_linear_score_are_what_the_patches_hold(images, weights):
    drops = patch_drops(lambda pictures: (pictures * weights).sum(dim=(1, 2, 3)), images, patches=4, fill=0.5)
    contribution = ((images - 0.5) * weights).sum(dim=1)
    for row in range(4):
        for column in range(4):
            held = contribution[:, 3 * row : 3 * row + 3, column * 10 // 4 : (column + 1) * 10 // 4].sum(dim=(1, 2))
            torch.testing.assert_close(drops[:, row, column], held, rtol=1e-3, atol=1e-3)


def test_a_linear_score_is_fully_explained_by_its_terms(images, weights):
    drops = patch_drops(lambda pictures: (pictures * weights).sum(dim=(1, 2, 3)), images, patches=4)
    terms = (images * weights).sum(dim=1, keepdim=True)
    torch.testing.assert_close(patch_deletion_correlation(drops, terms), torch.ones(3))
    torch.testing.assert_close(patch_deletion_correlation(drops, -terms), -torch.ones(3))


def test_patch_deletion_correlation_is_spearmans(maps):
    drops = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3))[..., :4]
    found = patch_deletion_correlation(drops, maps)
    for n in range(3):
        sums = [
            maps[n, 0, 3 * i : 3 * i + 3, j * 10 // 4 : (j + 1) * 10 // 4].sum() for i in range(4) for j in range(4)
        ]
        assert found[n].item() == pytest.approx(spearmanr(torch.stack(sums), drops[n].flatten()).statistic, abs=1e-5)
    assert math.isnan(patch_deletion_correlation(drops[:1], torch.ones(1, 1, 12, 10)))


def test_the_top_patch_is_the_costliest_or_not(maps):
    drops = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(3))
    for n in range(3):
        sums = {
            (i, j): float(maps[n, 0, 3 * i : 3 * i + 3, j * 10 // 4 : (j + 1) * 10 // 4].sum())
            for i in range(4)
            for j in range(4)
        }
        highest = max(sums, key=sums.get)
        assert top_patch(drops[n : n + 1], maps[n : n + 1]).item() == 0  # three draws of one in sixteen
        drops[n][highest] = 5.0
        assert top_patch(drops[n : n + 1], maps[n : n + 1]).item() == 1
        drops[n].fill_(1.0)  # no patch costs most
        assert math.isnan(top_patch(drops[n : n + 1], maps[n : n + 1]))
    assert math.isnan(top_patch(torch.rand(1, 4, 4), torch.ones(1, 1, 12, 10)))
    assert math.isnan(top_patch(0.3 + 1e-9 * torch.rand(1, 4, 4, dtype=torch.float64), maps[:1]))


def test_the_top_patch_is_not_the_largest_one():
    offset, drops = torch.ones(1, 1, 10, 10), torch.zeros(1, 4, 4)  # patches of 2 and 3 pixels a side
    offset[..., :2, :2], drops[0, 0, 0] = 1.05, 1.0
    assert top_patch(drops, offset).item() == 1


def test_insertion_and_deletion_are_the_slow_curves(images, maps, weights):
    def score(pictures):
        return (pictures * weights).sum(dim=(1, 2, 3)).sigmoid()

    fill = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    for measure, start, end in ((deletion, images, fill), (insertion, fill, images)):
        found = measure(score, images, maps, steps=5, fill=fill)
        for n in range(3):
            order = maps[n].flatten().argsort(descending=True)
            values = []
            for step in range(6):
                picture = start[n].clone().flatten(1)
                moved = order[: math.ceil(step * 120 / 5)]
                picture[:, moved] = end[n].flatten(1)[:, moved]
                values.append(float((picture.view(3, 12, 10) * weights).sum().sigmoid()))
            area = sum((a + b) / 2 / 5 for a, b in pairwise(values))
            assert found[n].item() == pytest.approx(area, abs=1e-5)


def test_the_right_order_wins_and_blank_pictures_are_even(images, weights):
    def score(pictures):
        return (pictures * weights).sum(dim=(1, 2, 3))

    terms = (images * weights).sum(dim=1, keepdim=True)
    assert (deletion(score, images, terms) < deletion(score, images, -terms)).all()
    assert (insertion(score, images, terms) > insertion(score, images, -terms)).all()


class Probabilities(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, pictures):
        logit = (pictures * self.weights).mean(dim=(1, 2, 3)) * 20
        return torch.stack((logit, -logit), dim=1).softmax(dim=1)


def test_average_drop_and_gain_are_of_the_same_masked_pictures_as_grad_cams(images, maps, weights):
    """Grad-cam's drop and increase are of absolute scores; they tell where each is zero."""
    model = Probabilities(weights)
    targets = [lambda output: output[0]] * 3
    drop = average_drop(lambda pictures: model(pictures)[:, 0], images, maps)
    gain = average_gain(lambda pictures: model(pictures)[:, 0], images, maps)
    peer_drop = DropInConfidence()(images, maps[:, 0].numpy(), targets, model)
    peer_increase = IncreaseInConfidence()(images, maps[:, 0].numpy(), targets, model)
    before = model(images)[:, 0].numpy()
    assert drop.numpy() * before == pytest.approx(peer_drop, abs=1e-5)
    assert ((gain > 0).numpy() == peer_increase.astype(bool)).all()
    assert (drop[gain > 0] == 0).all()


def test_average_gain_by_hand():
    """From 0.4 to 0.7 of what is missing to 1, from 0.8 down to 0.7, and from 0.4 to 0.4."""
    images, answers = torch.zeros(3, 3, 2, 2), [torch.tensor([0.4, 0.8, 0.4]), torch.tensor([0.7, 0.7, 0.4])]
    found = average_gain(lambda _: answers.pop(0), images, torch.zeros(3, 1, 2, 2))
    assert found.tolist() == pytest.approx([0.5, 0.0, 0.0])


def test_a_map_of_ones_neither_drops_nor_gains_and_adcc_is_not_fooled(images, weights):
    ones = torch.ones(3, 1, 12, 10)
    model = Probabilities(weights)

    def probability(pictures):
        return model(pictures)[:, 0]

    assert (average_drop(probability, images, ones) == 0).all()
    assert (average_gain(probability, images, ones) == 0).all()
    assert (adcc(torch.zeros(3), ones, ones) == 0).all()


def test_adcc_by_hand(maps):
    other = torch.rand(3, 1, 12, 10, generator=torch.Generator().manual_seed(5))
    drop = torch.tensor([0.1, 0.5, 1.0])
    found = adcc(drop, maps, other)
    for n in range(2):
        coherency = (1 + pearsonr(maps[n].flatten(), other[n].flatten()).statistic) / 2
        complexity = maps[n].mean().item()
        expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop[n].item()))
        assert found[n].item() == pytest.approx(expected, abs=1e-5)
    assert found[2] == 0


def test_what_does_not_fit_is_refused(images, maps):
    def score(pictures):
        return pictures.sum(dim=(1, 2, 3))

    with pytest.raises(InvalidInputError, match="patches: expected 1 to 10, got 11"):
        patch_drops(score, images, patches=11)
    with pytest.raises(InvalidInputError, match="fill"):
        deletion(score, images, maps, fill=torch.zeros(1, 3, 2, 2))
    with pytest.raises(InvalidInputError, match="steps"):
        insertion(score, images, maps, steps=0)
    with pytest.raises(InvalidInputError, match="maps"):
        patch_deletion_correlation(torch.zeros(2, 4, 4), maps)
    with pytest.raises(InvalidInputError, match="sides of at least 12"):
        patch_deletion_correlation(torch.rand(3, 12, 12), maps)
    for drops in (torch.rand(3, 4, 3), torch.rand(3, 4, 4, 2), torch.full((3, 4, 4), torch.nan)):
        with pytest.raises(InvalidInputError, match="drops: expected"):
            top_patch(drops, maps)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_imputation_is_grad_cams(images, share):
    removed = torch.rand(3, 1, 12, 10, generator=torch.Generator().manual_seed(4)) < share
    found = impute(images, removed, noise=0.0)
    for picture, gone, image in zip(found, removed[:, 0], images, strict=True):
        expected = NoisyLinearImputer(noise=0.0)(image, (~gone).float())
        torch.testing.assert_close(picture, expected, rtol=1e-4, atol=1e-5)


def test_imputation_adds_noise_where_pixels_went_and_survives_losing_all(images):
    removed = torch.zeros(3, 1, 12, 10, dtype=torch.bool)
    removed[0, 0, :6] = True
    removed[1] = True
    filled, without = impute(images, removed, seed=3), impute(images, removed, seed=3, noise=0.0)
    assert torch.equal(filled, impute(images, removed, seed=3))
    assert torch.equal(filled[2], images[2])
    assert torch.equal(filled[0, :, 6:], images[0, :, 6:])
    assert 0.005 < float((filled - without)[removed.expand(-1, 3, -1, -1)].std()) < 0.02
    assert torch.equal(without[1], torch.zeros(3, 12, 10))


def test_road_is_grad_cams(images, maps, weights, monkeypatch):
    """Half of what it scores without the lowest pixels above what it scores without the highest, without its noise."""
    model, targets = Probabilities(weights), [lambda output: output[0]] * 3
    parts = []
    for percentile in (20, 40, 60, 80):
        without_highest, without_lowest = (
            PerturbationConfidenceMetric(order(percentile, NoisyLinearImputer(noise=0.0)))(
                images, maps[:, 0].numpy(), targets, model
            )
            for order in (RemoveMostRelevantFirst, RemoveLeastRelevantFirst)
        )
        parts.append((without_lowest - without_highest) / 2)
    monkeypatch.setattr(faithfulness, "impute", lambda pictures, gone, seed: impute(pictures, gone, seed, noise=0.0))
    found = road(lambda pictures: model(pictures)[:, 0], images, maps)
    assert found.abs().min() > 1e-3
    assert found.numpy() == pytest.approx(sum(parts) / 4, abs=1e-5)


def test_road_rewards_the_right_order_and_its_opposite_costs_as_much(images, weights):
    def score(pictures):
        return (pictures * weights).sum(dim=(1, 2, 3))

    terms = ((images - images.mean(dim=(2, 3), keepdim=True)) * weights).sum(dim=1, keepdim=True)
    right = road(score, images, terms)
    assert (right > 0).all()
    torch.testing.assert_close(road(score, images, -terms), -right, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="more than 0 and less than 1"):
        road(score, images, terms, shares=[1.0])


def test_drops_of_several_numbers_at_once_are_those_of_each(images, weights):
    def score(pictures):
        return (pictures * weights).sum(dim=(1, 2, 3))

    both = patch_drops(lambda pictures: torch.stack((score(pictures), -score(pictures)), dim=1), images, patches=3)
    torch.testing.assert_close(both[..., 0], patch_drops(score, images, patches=3))
    torch.testing.assert_close(both[..., 1], -both[..., 0])


PEERS = (ClassificationMetric, partial(DeletionInsertionMetric, steps=18))


def test_average_drop_insertion_and_deletion_are_torchcams():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()
    nn.init.normal_(model[4].weight, std=3.0)  # answers that masking changes
    images, maps = 2 * torch.randn(5, 3, 12, 12), []
    with torchcam.methods.CAM(model, target_layer="1", fc_layer="4", input_shape=(3, 12, 12)) as extractor:
        peers = [peer(extractor, lambda logits: logits.softmax(dim=1)) for peer in PEERS]
        for image in images:
            for peer in peers:
                peer.update(image[None])
            scores = model(image[None])
            maps.append(extractor(scores.argmax().item(), scores)[0].detach())
        expected = {name: value for peer in peers for name, value in peer.summary().items()}
    with torch.no_grad():
        asked, maps = model(images).argmax(dim=1), torch.stack(maps)

        def probability(pictures):
            return model(pictures).softmax(dim=1).gather(1, asked[:, None])[:, 0]

        drop = average_drop(probability, images, maps)
        areas = [measure(probability, images, maps, steps=18) for measure in (deletion, insertion)]
    assert expected["avg_drop"] > 0.01
    assert float(drop.mean()) == pytest.approx(expected["avg_drop"], abs=1e-5)
    for area, name in zip(areas, ("deletion_auc", "insertion_auc"), strict=True):
        assert float(area.mean()) == pytest.approx(expected[name], abs=1e-5)


def test_patches_of_a_symmetric_map_are_not_ranked_by_rounding():
    y, x = torch.meshgrid(torch.arange(36.0), torch.arange(36.0), indexing="ij")
    gaussian = torch.exp(-((x - 17.5) ** 2 + (y - 17.5) ** 2) / (2 * 9.0**2))[None, None]
    drops = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    by_hand = [[0, 1, 1, 0], [1, 2, 2, 1], [1, 2, 2, 1], [0, 1, 1, 0]]  # corners, edges, the middle
    expected = spearmanr([value for row in by_hand for value in row], drops.flatten()).statistic
    assert float(patch_deletion_correlation(drops, gaussian)) == pytest.approx(expected, abs=1e-6)
    drops[0, 2, 1] = 5.0
    assert top_patch(drops, gaussian).item() == 1 / 4  # of the four in the middle


@pytest.mark.parametrize("measure", [average_drop, average_gain, deletion, insertion, road])
def test_answers_that_are_none_are_refused(measure, images, maps):
    def broken(pictures):
        return pictures.sum(dim=(1, 2, 3)) * torch.nan

    with pytest.raises(InvalidInputError, match="score: answers NaN"):
        measure(broken, images, maps)
    with pytest.raises(InvalidInputError, match="score: answers NaN"):
        patch_drops(broken, images, patches=2)


@pytest.mark.parametrize("measure", [average_drop, average_gain])
def test_a_picture_is_seen_through_a_map_of_zero_to_one(measure, images, maps):
    with pytest.raises(InvalidInputError, match="maps: expected values in"):
        measure(lambda pictures: pictures.sum(dim=(1, 2, 3)), images, 255 * maps)


@pytest.mark.parametrize("measure", [average_drop, average_gain, deletion, insertion, road])
def test_maps_that_are_not_one_a_picture_or_not_finite_are_refused(measure, images, maps):
    for wrong, message in (
        (maps[:1], "one a picture"),
        (maps[..., :-1], "one a picture"),
        (maps.masked_fill(maps > 0.9, torch.nan), "finite"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            measure(lambda pictures: pictures.sum(dim=(1, 2, 3)), images, wrong)
