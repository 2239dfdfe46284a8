"""A folder looked through before training: everything that can be wrong with it has an outcome."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from lficam.cli import main
from lficam.data.folders import printable, quarantined
from lficam.data.scan import copies, scan_folder
from lficam.data.sources import load_source
from lficam.errors import DataError, LficamWarning
from lficam.evaluation import evaluate_run
from lficam.training import fit

from ..conftest import small_recipe, write_folder
from .test_folders import coco

BROKEN = "train/cat/0.png"


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "pictures")


def test_a_folder_without_faults(root, capsys):
    assert main(["scan", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == ["train: 20 (cat 10, dog 10)", "test: 20 (cat 10, dog 10)"]


def strike(root, what):
    train = root / "train" / "cat"
    match what:
        case "no numbers":
            (root / BROKEN).unlink()
            Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(root / BROKEN, format="TIFF")
        case "broken":
            (root / BROKEN).write_bytes(b"broken")
        case "empty":
            (root / BROKEN).write_bytes(b"")
        case "dangling link":
            (root / BROKEN).unlink()
            (root / BROKEN).symlink_to("nowhere.png")
        case "link to itself":
            (root / BROKEN).unlink()
            (root / BROKEN).symlink_to("0.png")
        case "cut short":
            content = (root / BROKEN).read_bytes()
            (root / BROKEN).write_bytes(content[: len(content) // 2])
    return train


STRUCK = ["broken", "empty", "dangling link", "link to itself", "cut short", "no numbers"]


@pytest.mark.parametrize("what", STRUCK)
def test_a_broken_file_is_listed_and_left_out(root, what, capsys):
    strike(root, what)
    assert list(scan_folder(root).broken) == [BROKEN]
    assert main(["scan", str(root)]) == 1
    assert "pass --quarantine true" in capsys.readouterr().err
    assert main(["scan", str(root), "--quarantine", "true"]) == 0
    assert quarantined(root) == {BROKEN}
    found = scan_folder(root)
    assert (found.broken, found.quarantined) == ({}, [BROKEN])
    source = load_source(f"folder:{root}", val_fraction=0)  # in silence: it was said before
    assert len(source.train) == 19
    assert BROKEN not in source.train.names


def test_training_leaves_broken_files_out_by_name_and_evaluation_counts_them(root, tmp_path, capsys):
    (root / BROKEN).write_bytes(b"broken")
    (root / "test" / "dog" / "3.png").write_bytes(b"broken too")
    with pytest.warns(LficamWarning, match=r"data: left out .*cat/0.png: not a picture"):
        source = load_source(f"folder:{root}", val_fraction=0)
    assert (len(source.train), len(source.test)) == (19, 19)
    for picture, name in zip(source.train.images, source.train.names, strict=True):
        label = 0 if "cat" in name else 1
        assert picture[label].float().mean() > picture[1 - label].float().mean()  # nothing slipped by one
    run = fit(small_recipe(f"folder:{root}", epochs=1), tmp_path / "run", source=source)
    listed = (run.directory / "left-out.txt").read_text().splitlines()
    assert [line.partition(": ")[0].removeprefix(f"{root}/") for line in listed] == [BROKEN, "test/dog/3.png"]
    facts = evaluate_run(run.directory, run.model, f"folder:{root}").facts
    assert (facts["pictures"], facts["broken"]) == (19, 1)
    assert main(["evaluate", str(run.directory), "--data", f"folder:{root}"]) == 0
    told = capsys.readouterr()
    assert "19 pictures (1 more are broken)" in told.out
    assert "\nlficam: data: left out " in told.err  # a sentence, not a line of code


def test_a_class_that_cannot_be_read_at_all_is_an_error(root):
    for path in (root / "train" / "cat").iterdir():
        path.write_bytes(b"broken")
    with pytest.warns(LficamWarning), pytest.raises(DataError, match="no picture of class cat can be read"):
        load_source(f"folder:{root}")


def test_copies_in_the_test_part_are_told_by_name(root, capsys):
    shutil.copy(root / "train" / "dog" / "1.png", root / "test" / "dog" / "copy.png")
    with pytest.warns(LficamWarning, match=r"dog/copy.png is also a training picture, .*dog/1.png, seen"):
        load_source(f"folder:{root}")
    assert scan_folder(root).leaks == [("train/dog/1.png", "test/dog/copy.png")]
    assert main(["scan", str(root)]) == 1
    assert "both in training and in the test: 1" in capsys.readouterr().out


def test_copies_are_told_where_the_test_is_split_off_too(tmp_path):
    root = write_folder(tmp_path, parts=("",))
    for number in range(10):
        shutil.copy(root / "cat" / "0.png", root / "cat" / f"copy{number}.png")
    with pytest.warns(LficamWarning, match="is also a training picture"):
        load_source(f"folder:{root}")


def test_one_content_several_times(root):
    shutil.copy(root / "train" / "dog" / "1.png", root / "train" / "dog" / "2.png")
    shutil.copy(root / "train" / "dog" / "3.png", root / "train" / "cat" / "3.png")
    found = scan_folder(root)
    assert found.repeated == [["train/dog/1.png", "train/dog/2.png"]]
    assert found.doubled == [["train/cat/3.png", "train/dog/3.png"]]


def test_names_that_are_no_text_and_links_that_turn_in_circles(root):
    folder = root / "train" / "cat"
    for name in (b"caf\xe9.png", b"two\nlines.png", "größe.png".encode()):
        shutil.copy(folder / "1.png", os.fsencode(folder) + b"/" + name)
    (folder / "again").symlink_to(folder)
    (root / "train" / "fox").symlink_to(folder)
    found = scan_folder(root)
    assert found.classes["train"] == {"cat": 13, "dog": 10, "fox": 13}
    (root / "train" / "fox").unlink()
    names = load_source(f"folder:{root}", val_fraction=0).train.names
    assert {r"train/cat/caf\xe9.png", r"train/cat/two\nlines.png", "train/cat/größe.png"} < set(names)
    assert all(name.encode().decode() == name and "\n" not in name for name in names)


def test_a_name_that_is_no_text_can_be_left_out(root):
    (root / "train" / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"broken")
    assert main(["scan", str(root), "--quarantine", "true"]) == 0
    assert not scan_folder(root).broken
    assert printable(os.fsdecode(b"caf\xe9.png")) in next(iter(quarantined(root)))


def test_what_is_no_picture_is_ignored_by_name(root):
    (root / "train" / "cat" / "notes.txt").touch()
    (root / "train" / "cat" / ".hidden.png").touch()
    (root / "train" / "list.csv").touch()
    (root / "train" / "cat" / "folder.png").mkdir()
    found = scan_folder(root)
    assert found.ignored == ["train/cat/.hidden.png", "train/cat/notes.txt", "train/list.csv"]
    assert not found.broken


def test_a_wrong_extension_is_no_fault(root):
    Image.new("RGB", (9, 9)).save(root / "train" / "cat" / "really-a-png.jpg", format="PNG")
    assert scan_folder(root).classes["train"]["cat"] == 11


def test_no_folder(tmp_path, capsys):
    assert main(["scan", str(tmp_path / "no")]) == 2
    assert "which is no folder" in capsys.readouterr().err


def test_copies_by_hand(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"22"), ("e", b"3")):
        (tmp_path / name).write_bytes(content)
    train, test = [tmp_path / "a", tmp_path / "b", tmp_path / "gone"], [tmp_path / name for name in "cde"]
    assert copies(train, test) == [(tmp_path / "a", tmp_path / "c")]


def test_boxes_stay_with_their_pictures_when_one_is_broken(root):
    names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(10)]
    content = coco(names)
    for number, annotation in enumerate(content["annotations"]):
        annotation["bbox"] = [number, 0, 1, 1]
    (root / "test" / "annotations.json").write_text(json.dumps(content))
    (root / "test" / "cat" / "4.png").write_bytes(b"broken")
    with pytest.warns(LficamWarning):
        test = load_source(f"folder:{root}", with_train=False).test
    assert test.boxes[:, 0, 0, 0].tolist() == [float(number) for number in range(20) if number != 4]


def test_a_table_says_what_belongs_to_the_folder(tmp_path):
    root = write_folder(tmp_path / "pictures", parts=("",))
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = ["file_name,label"]
    for kind in ("cat", "dog"):
        for path in (root / kind).iterdir():
            path.rename(flat / f"{kind}{path.name}")
            lines.append(f"{kind}{path.name},{kind}")
    (flat / "metadata.csv").write_text("\n".join(lines))
    (flat / "cat0.png").write_bytes(b"broken")
    found = scan_folder(flat)
    assert found.classes == {"": {"cat": 9, "dog": 10}}
    assert list(found.broken) == ["cat0.png"]


def test_an_empty_folder_and_a_quarantine_in_no_encoding_are_sentences(tmp_path, root, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["scan", str(tmp_path / "empty")]) == 2
    assert "no class folders" in capsys.readouterr().err
    (root / "quarantine.txt").write_bytes(b"caf\xe9.png")
    assert main(["scan", str(root)]) == 2
    assert "is not in UTF-8" in capsys.readouterr().err


def test_long_files_that_begin_alike_are_no_copies(tmp_path):
    for name, end in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(bytes(2**16) + end)
    assert copies([tmp_path / "b", tmp_path / "a"], [tmp_path / "c"]) == [(tmp_path / "a", tmp_path / "c")]
