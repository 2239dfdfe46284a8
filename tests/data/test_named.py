"""Public sets from files in their publishers' own form, behind their own downloads."""

import hashlib
import io
import pickle
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lficam.contract import Preprocessing
from lficam.data import named
from lficam.data.sources import load_source
from lficam.errors import DataError


def archive(folder, monkeypatch):
    """A CIFAR-10 archive of 20 pictures a batch, behind torchvision's own download and its checksums."""
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    rng = np.random.default_rng(0)
    dataset = torchvision.datasets.CIFAR10

    def store(name, content):
        data = pickle.dumps(content)
        (inside / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch():
        return {"data": rng.integers(0, 256, (20, 3072)).astype(np.uint8), "labels": [i % 10 for i in range(20)]}

    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    monkeypatch.setattr(dataset, "train_list", [store(name, batch()) for name, _ in dataset.train_list])
    monkeypatch.setattr(dataset, "test_list", [store(name, batch()) for name, _ in dataset.test_list])
    filename, md5 = store("batches.meta", {"label_names": names})
    monkeypatch.setattr(dataset, "meta", {"filename": filename, "key": "label_names", "md5": md5})
    packed = folder / "cifar.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(inside, inside.name)
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())


@contextmanager
def served(folder):
    """The folder over HTTP on this machine; gives the address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_cifar10_is_downloaded_once(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    archive(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("LFICAM_DATA", str(tmp_path / "cache"))
    with served(tmp_path / "site") as address:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{address}/cifar.tar.gz")
        source = load_source("cifar10", val_fraction=0.1)
    assert (len(source.train), len(source.validation), len(source.test)) == (90, 10, 20)
    assert source.test.class_names[3] == "cat"
    assert source.test.images.shape == (20, 3, 32, 32)
    # The server is gone: this comes from the folder.
    assert torch.equal(load_source("cifar10").test.images, source.test.images)


def test_stl10_is_read_from_its_binary_files(tmp_path, monkeypatch):
    inside = tmp_path / "stl10_binary"
    inside.mkdir()
    rng = np.random.default_rng(0)
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (inside / "class_names.txt").write_text("\n".join(names))
    (inside / "fold_indices.txt").write_text("0")
    dataset = torchvision.datasets.STL10
    lists = {"train_list": [], "test_list": []}
    for part, count in (("train", 20), ("test", 10)):
        pixels = rng.integers(0, 256, count * 3 * 96 * 96).astype(np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)
        for name, content in ((f"{part}_X.bin", pixels), (f"{part}_y.bin", labels)):
            (inside / name).write_bytes(content.tobytes())
            lists[f"{part}_list"].append([name, hashlib.md5(content.tobytes()).hexdigest()])
    for name, entries in lists.items():
        monkeypatch.setattr(dataset, name, entries)
    monkeypatch.setenv("LFICAM_DATA", str(tmp_path))
    source = load_source("stl10", val_fraction=0)
    assert source.train.images.shape == (20, 3, 96, 96)
    assert source.test.labels.tolist() == list(range(10))
    assert source.test.class_names[9] == "truck"


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LFICAM_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "http://127.0.0.1:1/cifar.tar.gz")
    with pytest.raises(DataError, match="LFICAM_DATA"):
        load_source("cifar100")


def picture(size=(20, 24), colour="red", form="JPEG"):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, form)
    return data.getvalue()


def test_cats_and_dogs_are_unpacked_without_the_empty_files_and_split(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    with zipfile.ZipFile(tmp_path / "site" / "pets.zip", "w") as packed:
        for folder, broken in (("Cat", 666), ("Dog", 11702)):
            for number in range(10):
                packed.writestr(f"PetImages/{folder}/{number}.jpg", picture())
            packed.writestr(f"PetImages/{folder}/{broken}.jpg", b"")
            packed.writestr(f"PetImages/{folder}/Thumbs.db", b"x")
    monkeypatch.setenv("LFICAM_DATA", str(tmp_path / "cache"))
    with served(tmp_path / "site") as address:
        monkeypatch.setattr(named, "CATS_AND_DOGS_URL", f"{address}/pets.zip")
        source = load_source("cats-and-dogs", val_fraction=0)
    assert source.test.class_names == ["Cat", "Dog"]
    assert (len(source.train), len(source.test)) == (16, 4)
    again = load_source("cats-and-dogs", with_train=False)
    assert again.test.names == source.test.names


def test_pets_have_masks_and_boxes_around_them(tmp_path, monkeypatch):
    root = tmp_path / "oxford-iiit-pet"
    (root / "annotations" / "trimaps").mkdir(parents=True)
    (root / "images").mkdir()
    stems = {"trainval": ["Abyssinian_1", "great_pyrenees_2"], "test": ["Abyssinian_3", "great_pyrenees_4"]}
    for split, names in stems.items():
        lines = [f"{name} {number + 1} 1 1" for number, name in enumerate(names)]
        (root / "annotations" / f"{split}.txt").write_text("\n".join(lines))
        for name in names:
            (root / "images" / f"{name}.jpg").write_bytes(picture((40, 30)))
            trimap = np.full((30, 40), 2, np.uint8)
            trimap[10:20, 5:15], trimap[12:18, 7:13] = 3, 1
            Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
    monkeypatch.setattr(torchvision.datasets.OxfordIIITPet, "_download", lambda self: None)
    monkeypatch.setenv("LFICAM_DATA", str(tmp_path))
    test = load_source("oxford-pets", val_fraction=0).test
    assert test.class_names == ["abyssinian", "great pyrenees"]
    assert test.labels.tolist() == [0, 1]
    assert test.boxes.tolist() == [[[[5, 10, 15, 20]]]] * 2
    assert test.masks[1].shape == (1, 30, 40)
    assert int(test.masks[1].sum()) == 100
    chosen = test.select(torch.tensor([1]))
    assert len(chosen.masks) == 1
    # Short side 30 to 15, the middle 15 x 15 of 20 x 15 is seen.
    assert test.seen_boxes(test.boxes, Preprocessing(15, 15))[0, 0, 0].tolist() == [0.5, 5, 5.5, 10]


def test_imagenet_is_read_from_its_folders_and_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("LFICAM_DATA", str(tmp_path))
    with pytest.raises(DataError, match="image-net"):
        load_source("imagenet")
    root = tmp_path / "imagenet"
    words = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish", "Carassius auratus")}
    for part in ("train", "val"):
        for wnid in words:
            (root / part / wnid).mkdir(parents=True)
            (root / part / wnid / "1.JPEG").write_bytes(picture())
            (root / part / wnid / "2.JPEG").write_bytes(picture())
    torch.save((words, ["n01440764"]), root / "meta.bin")
    source = load_source("imagenet", val_fraction=0)
    assert source.test.class_names == ["tench", "goldfish"]
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert source.test.names[0] == "val/n01440764/1.JPEG"


def test_pets_and_cats_that_cannot_be_had_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LFICAM_DATA", str(tmp_path))
    monkeypatch.setattr(named, "CATS_AND_DOGS_URL", "http://127.0.0.1:1/pets.zip")
    with pytest.raises(DataError, match="LFICAM_DATA"):
        load_source("cats-and-dogs")
