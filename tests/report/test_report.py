"""A page from records alone, made by hand: no model, no image set."""

import json
import shutil

import pytest
import torch
import yaml

from lficam.errors import RunError
from lficam.report import MARKER, write_report
from lficam.visualize import save_png

RATE = {"value": 0.25, "low": 0.2, "high": 0.3, "cases": 100}


@pytest.fixture
def run(tmp_path):
    """A run whose class name is a piece of HTML."""
    evil = "<script>alert(1)</script>"
    training = {"data": "folder:x", "device": "cpu", "threads": 2, "precision": "32", "seed": 7}
    config = {
        "lficam_version": "0",
        "method": "lfi",
        "backbone": "cifar_resnet20",
        "num_classes": 2,
        "training": training,
    }
    metrics = {
        "epochs": 2,
        "chosen_epoch": 1,
        "chosen_by": "last epoch",
        "val_accuracy": None,
        "train_accuracy": 0.5,
        "training_seconds": 3.0,
        "seconds_per_epoch": 1.5,
    }
    row = {"map": "cam", "class_targeted": True, "pointing": RATE, "pointing_chance": 0.1, "box_iou": 0.42}
    peak = {"map": "cam", "on_the_mark": RATE, "near_the_mark": RATE, "on_the_digit": RATE}
    picture = {"file": "0.png", "name": "a", "captions": ["image", "evidence"], "true": evil, "predicted": "dog"}
    evaluation = {
        "facts": {"source": "folder:x", "pictures": 100, "parameters": 272474, "multiply_adds": 41000000},
        "classification": {"top1_error": RATE, "calibration_error": 0.031},
        "classes": [{"name": evil, "pictures": 50, "recall": 0.5, "precision": None, "confused_with": None}],
        "localization": [{**row, "box_iou_chance": 0.05}],
        "shortcut": {"label_is_the_marks": RATE, "label_taken_from_the_mark": 25, "peaks": [peak]},
        "gallery": [{**picture, "probability": 0.9, "right": right} for right in (True, False)],
    }
    directory = tmp_path / "run"
    records = directory / "evaluation" / "x"
    records.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "metrics.json").write_text(json.dumps(metrics))
    (directory / "recipe.yaml").write_text(yaml.safe_dump({"data": "folder:x"}))
    columns = "epoch,train_loss,train_accuracy,val_loss,val_accuracy\n"
    (directory / "metrics.csv").write_text(columns + "0,2.0,0.3,,\n1,1.0,0.5,,\n")
    (records / "evaluation.json").write_text(json.dumps(evaluation))
    save_png(torch.zeros(3, 8, 16, dtype=torch.uint8), records / "0.png")
    return directory


def test_the_figures_are_on_the_page(run):
    page = write_report(run).read_text()
    assert page.startswith(MARKER)
    for figure in ("25.0 %", "20.0 % to 30.0 %", "272,474", "41,000,000", "0.42", "3.1 %", "never predicted", "<svg"):
        assert figure in page
    assert page.count("data:image/png;base64,") == 2


def test_names_are_text_not_html(run):
    page = write_report(run).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_page_is_made_again_and_other_files_are_kept(run, tmp_path):
    assert write_report(run) == write_report(run)
    thesis = tmp_path / "thesis.html"
    thesis.write_text("precious")
    with pytest.raises(RunError, match="no lficam report"):
        write_report(run, thesis)
    assert thesis.read_text() == "precious"


def test_a_run_that_was_not_evaluated_says_so(run):
    shutil.rmtree(run / "evaluation")
    assert "Not evaluated yet" in write_report(run).read_text()


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "metrics.csv", "recipe.yaml"])
def test_a_missing_record_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(RunError, match=name):
        write_report(run)


def test_a_damaged_record_is_named(run):
    (run / "metrics.json").write_text("")
    with pytest.raises(RunError, match=r"metrics\.json is damaged"):
        write_report(run)


def test_records_without_what_the_page_shows_are_a_sentence(run):
    (run / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="its records lack what the page shows"):
        write_report(run)
