"""Folders in every layout, how they are split, and what cannot be used."""

import pytest
import torch
from PIL import Image

from lficam.contract import Preprocessing
from lficam.data import pictures
from lficam.data.pictures import OnDemand
from lficam.data.sources import load_source
from lficam.errors import DataError, InvalidInputError, UnknownNameError

from ..conftest import write_folder


def load(root, **options):
    return load_source(f"folder:{root}", **options)


def test_train_and_test_folders(tmp_path):
    source = load(write_folder(tmp_path), val_fraction=0.2)
    assert source.test.class_names == ["cat", "dog"]
    assert (len(source.train), len(source.validation), len(source.test)) == (16, 4, 20)
    assert source.validation.labels.tolist() == [0, 0, 1, 1]
    assert not set(source.train.names) & set(source.validation.names)
    assert source.test.images.shape == (20, 3, 20, 24)


def test_three_folders_are_the_three_parts(tmp_path):
    source = load(write_folder(tmp_path, parts=("train", "val", "test")), val_fraction=0.2)
    assert (len(source.train), len(source.validation), len(source.test)) == (20, 20, 20)


def test_val_alone_is_the_test(tmp_path):
    source = load(write_folder(tmp_path, parts=("train", "val")), val_fraction=0)
    assert source.validation is None
    assert all(name.startswith("val/") for name in source.test.names)


def test_a_test_folder_alone_can_be_evaluated_on(tmp_path):
    write_folder(tmp_path, parts=("val", "test"))
    source = load(tmp_path, with_train=False)
    assert source.test.class_names == ["cat", "dog"]
    assert all(name.startswith("test/") for name in source.test.names)
    with pytest.raises(DataError, match="no train folder"):
        load(tmp_path)


def test_a_folder_of_classes_is_split_the_same_way_whatever_the_seed(tmp_path):
    write_folder(tmp_path, parts=(".",))
    first, second = load(tmp_path, seed=0), load(tmp_path, seed=1)
    assert first.test.names == second.test.names
    assert first.validation.names != second.validation.names
    names = [*first.train.names, *first.validation.names, *first.test.names]
    assert sorted(names) == sorted(set(names))
    assert len(names) == 20
    assert len(first.test) == 4


def test_other_files_and_hidden_ones_are_passed_over(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "train" / ".cache").mkdir()
    assert len(load(tmp_path, val_fraction=0).train) == 20


def test_pictures_of_many_sizes_and_nested_folders(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "dog" / "more").mkdir()
    Image.new("RGB", (50, 31)).save(tmp_path / "train" / "dog" / "more" / "big.JPG")
    train = load(tmp_path, val_fraction=0).train
    assert len(train) == 21
    assert "train/dog/more/big.JPG" in train.names
    assert train.prepared(range(21), Preprocessing(16, 16)).shape == (21, 3, 16, 16)


def test_a_set_too_large_for_memory_stays_on_disk(tmp_path, monkeypatch):
    write_folder(tmp_path)
    expected = load(tmp_path, val_fraction=0.2)
    monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 1000)
    source = load(tmp_path, val_fraction=0.2)
    assert isinstance(source.train.images, OnDemand)
    assert source.train.names == expected.train.names
    preprocessing = Preprocessing(16, 16)
    found = source.train.prepare_all(preprocessing).prepared([3, 1], preprocessing)
    assert torch.equal(found, expected.train.prepare_all(preprocessing).prepared([3, 1], preprocessing))


def damage(root, what):
    write_folder(root)
    match what:
        case "empty class":
            for file in (root / "train" / "cat").iterdir():
                file.unlink()
        case "one class":
            for part in ("train", "test"):
                for file in (root / part / "dog").iterdir():
                    file.unlink()
                (root / part / "dog").rmdir()
        case "no test":
            (root / "test").rename(root / "elsewhere")
        case "stranger":
            (root / "test" / "bird").mkdir()
        case "empty":
            for part in ("train", "test"):
                (root / part).rename(root.parent / part)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty class", "no image files"),
        ("one class", "at least two class folders"),
        ("no test", "no test or val folder"),
        ("stranger", "bird"),
        ("empty", "at least two class folders"),
    ],
)
def test_folders_that_cannot_be_used_say_why(tmp_path, what, message):
    root = tmp_path / "root"
    root.mkdir()
    damage(root, what)
    with pytest.raises(DataError, match=message):
        load(root)


def test_a_class_of_one_picture_cannot_be_split(tmp_path):
    write_folder(tmp_path, per_class=1)
    with pytest.raises(DataError, match="val_fraction 0"):
        load(tmp_path, val_fraction=0.1)
    assert len(load(tmp_path, val_fraction=0).train) == 2


def test_missing_folders_and_unknown_names(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        load(tmp_path / "absent")
    with pytest.raises(UnknownNameError, match="digits-in-scenes"):
        load_source("cifar11")
    with pytest.raises(InvalidInputError, match="val_fraction"):
        load_source("cifar10", val_fraction=1.0)
