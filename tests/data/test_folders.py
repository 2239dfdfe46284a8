"""Tables of file names in place of class folders, and boxes and masks beside pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lficam.data.images import image_size, read_image
from lficam.data.sources import load_source
from lficam.errors import DataError

from ..conftest import write_folder


def write_flat(folder, rows):
    """Pictures without class folders, 20 x 24 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _ in rows:
        Image.new("RGB", (24, 20), "red").save(folder / name)


ROWS = [(f"{number}.png", "dog" if number % 2 else "cat") for number in range(6)]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_takes_the_place_of_class_folders(tmp_path, form):
    for part in ("train", "validation", "test"):
        write_flat(tmp_path / part, ROWS)
        if form == "csv":
            lines = ["file_name,label,note", *(f"{name},{label},x" for name, label in ROWS)]
        else:
            lines = [json.dumps({"file_name": name, "label": label}) for name, label in ROWS]
        (tmp_path / part / f"metadata.{form}").write_text("\n".join(lines) + "\n")
    source = load_source(f"folder:{tmp_path}")
    assert source.test.class_names == ["cat", "dog"]
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.train.names[3] == "train/1.png"
    assert len(source.validation) == 6


def test_a_table_without_labels_leaves_them_to_the_folders(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,caption\ncat/0.png,a cat\n")
    assert load_source(f"folder:{tmp_path}", val_fraction=0).train.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("metadata.csv:file_name,label\nabsent.png,cat\n", "names absent.png, which is not there"),
        ("metadata.csv:path,label\n0.png,cat\n", "needs a column file_name"),
        ("metadata.jsonl:{oops", "no readable table"),
        ("metadata.csv:file_name,label\n0.png,cat\n", r"got one \(cat\)"),
    ],
)
def test_a_broken_table_says_why(tmp_path, table, message):
    write_flat(tmp_path, ROWS)
    name, _, content = table.partition(":")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_source(f"folder:{tmp_path}")


def coco(names, categories=("cat", "dog"), **changes):
    """A box and a triangle a picture, of the category of its folder."""
    content = {
        "images": [{"id": 10 + i, "file_name": name, "width": 24, "height": 20} for i, name in enumerate(names)],
        "categories": [{"id": 3 + i, "name": name} for i, name in enumerate(categories)],
        "annotations": [
            {
                "id": i,
                "image_id": 10 + i,
                "category_id": 3 + categories.index(name.split("/")[-2]),
                "bbox": [2, 4, 6, 8],
                "segmentation": [[2, 4, 8, 4, 8, 12]],
            }
            for i, name in enumerate(names)
        ],
    }
    return {**content, **changes}


@pytest.mark.parametrize("where", [".", "test"])
def test_annotations_beside_a_folder_give_boxes_and_masks(tmp_path, where):
    write_folder(tmp_path)
    names = [f"{'' if where == 'test' else 'test/'}{label}/{i}.png" for label in ("cat", "dog") for i in range(10)]
    content = coco(names)
    # A second cat in the first picture, and a dog in it, which is not its class.
    content["annotations"] += [
        {"id": 90, "image_id": 10, "category_id": 3, "bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {"id": 91, "image_id": 10, "category_id": 4, "bbox": [5, 5, 1, 1], "segmentation": [[5, 5, 6, 5, 6, 6]]},
    ]
    (tmp_path / where / "annotations.json").write_text(json.dumps(content))
    test = load_source(f"folder:{tmp_path}", with_train=False).test
    assert test.boxes.shape == (20, 1, 2, 4)
    assert test.boxes[0, 0].tolist() == [[2, 4, 8, 12], [0, 0, 1, 1]]
    assert test.boxes[1, 0, 0].tolist() == [2, 4, 8, 12]
    assert test.boxes[1, 0, 1].isnan().all()
    assert test.object_labels.flatten().tolist() == test.labels.tolist()
    mask = test.masks[1]
    assert mask.shape == (1, 20, 24)
    assert mask[0, 4, 7]
    assert not mask[0, 11, 3]


def test_run_length_masks_leave_their_boxes(tmp_path):
    write_folder(tmp_path)
    content = coco([f"test/{label}/{i}.png" for label in ("cat", "dog") for i in range(10)])
    content["annotations"][0]["segmentation"] = {"counts": [1], "size": [20, 24]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    test = load_source(f"folder:{tmp_path}", with_train=False).test
    assert test.masks is None
    assert test.boxes[0, 0, 0].tolist() == [2, 4, 8, 12]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not in COCO's form"),
        ('{"images": []}', "not in COCO's form: .*KeyError"),
        (json.dumps(coco(["elsewhere/cat/0.png"])), "no object in any of the 20 pictures"),
    ],
)
def test_annotations_that_do_not_fit_say_why(tmp_path, content, message):
    write_folder(tmp_path)
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_source(f"folder:{tmp_path}", with_train=False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_from_the_header_is_that_of_the_picture(tmp_path, orientation):
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == tuple(read_image(tmp_path / "a.jpg").shape[1:])
    with pytest.raises(DataError):
        image_size(tmp_path / "absent.jpg")
    assert torch.equal(read_image(tmp_path / "a.jpg"), torch.zeros_like(read_image(tmp_path / "a.jpg")))


def test_annotations_of_the_test_part_leave_training_alone(tmp_path):
    write_folder(tmp_path)
    names = [f"test/{label}/{i}.png" for label in ("cat", "dog") for i in range(10)]
    (tmp_path / "annotations.json").write_text(json.dumps(coco(names)))
    source = load_source(f"folder:{tmp_path}", val_fraction=0)
    assert source.train.boxes is None
    assert source.test.boxes is not None


def test_annotations_of_a_turned_picture_are_refused(tmp_path):
    write_folder(tmp_path, parts=("test",))
    image = Image.fromarray(np.zeros((20, 24, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "test" / "cat" / "0.png", exif=exif)
    names = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(10)]
    (tmp_path / "test" / "annotations.json").write_text(json.dumps(coco(names)))
    with pytest.raises(DataError, match=r"for 24 x 20 pixels, the picture \(upright\) has 20 x 24"):
        load_source(f"folder:{tmp_path}", with_train=False)


def test_an_object_without_box_and_outline_is_no_object(tmp_path):
    write_folder(tmp_path)
    content = coco([f"test/{label}/{i}.png" for label in ("cat", "dog") for i in range(10)])
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = {"counts": [1], "size": [20, 24]}
    del content["annotations"][1]["bbox"]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    boxes = load_source(f"folder:{tmp_path}", with_train=False).test.boxes
    assert boxes[0].isnan().all()
    assert boxes[1, 0, 0].tolist() == [2, 4, 8, 12]  # around its outline


def test_an_annotations_file_inside_a_class_folder_is_none(tmp_path):
    write_folder(tmp_path, parts=(".",))
    (tmp_path / "cat" / "annotations.json").write_text("{}")
    assert load_source(f"folder:{tmp_path}").test.boxes is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,label\n0.png,cat\n1.png,\n", "1.png without a label"),
        ("file_name,label\n0.png,cat\n/etc/hosts,dog\n", "/etc/hosts outside its folder"),
    ],
)
def test_rows_that_do_not_say_enough_are_named(tmp_path, table, message):
    write_flat(tmp_path, ROWS)
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        load_source(f"folder:{tmp_path}")


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    write_flat(tmp_path, ROWS)
    rows = "".join(f"{name},{label}\n" for name, label in ROWS)
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + rows, encoding="utf-8-sig")
    assert load_source(f"folder:{tmp_path}", val_fraction=0).test.class_names == ["cat", "dog"]
