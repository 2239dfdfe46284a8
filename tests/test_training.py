"""fit: what a run leaves, how it resumes, what it refuses; two processes reach what one does."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn

import lficam
from lficam.contract import Prediction
from lficam.errors import DataError, InvalidInputError, RunError
from lficam.recipes import ModelOptions, paper_figures, recipe_from_values, recipe_names, recipe_values
from lficam.training import classification_loss, fit, learning_rate_schedule, read_curves

from .conftest import small_recipe


def test_a_run_leaves_its_files(run):
    names = {path.name for path in run.directory.iterdir()}
    assert names >= {"config.json", "model.safetensors", "recipe.yaml", "metrics.csv", "metrics.json", "checkpoints"}
    config = json.loads((run.directory / "config.json").read_text())
    assert config["class_names"] == ["cat", "dog"]
    assert config["training"]["threads"] == torch.get_num_threads()
    rows = read_curves(run.directory)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[0]["images_per_second"]) > 0
    loaded = lficam.load(run.directory)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), run.model(images))


def test_a_finished_run_is_returned_as_it_is(run, folder):
    stamp = (run.directory / "model.safetensors").stat().st_mtime_ns
    again = fit(small_recipe(f"folder:{folder}"), run.directory)
    assert again.metrics == run.metrics
    assert (run.directory / "model.safetensors").stat().st_mtime_ns == stamp


def weights(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same_weights(one, other, **tolerance):
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip", "resized_crop_flip"])
def test_the_same_recipe_gives_the_same_weights(folder, tmp_path, augmentation):
    recipe = small_recipe(f"folder:{folder}", augmentation=augmentation, epochs=1)
    first, second = fit(recipe, tmp_path / "a"), fit(recipe, tmp_path / "b")
    assert_same_weights(weights(first), weights(second), rtol=0, atol=0)


def test_workers_change_nothing(folder, tmp_path):
    alone = fit(small_recipe(f"folder:{folder}"), tmp_path / "a")
    helped = fit(small_recipe(f"folder:{folder}", workers=2), tmp_path / "b")
    assert_same_weights(weights(alone), weights(helped), rtol=0, atol=0)


class Stop(Exception):
    pass


def test_a_stopped_run_resumes_to_the_same_weights(folder, tmp_path, monkeypatch):
    recipe = small_recipe(f"folder:{folder}", epochs=3)
    whole = fit(recipe, tmp_path / "whole")
    step, calls = lficam.training.ClassificationTask.training_step, []

    def failing(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 5:  # in the second epoch, after two full ones of two steps
            raise Stop
        return step(self, batch, batch_idx)

    monkeypatch.setattr(lficam.training.ClassificationTask, "training_step", failing)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts")
    monkeypatch.undo()
    resumed = fit(recipe, tmp_path / "parts")
    assert_same_weights(weights(whole), weights(resumed), rtol=0, atol=0)
    assert [row["epoch"] for row in read_curves(tmp_path / "parts")] == ["0", "1", "2"]
    for name in ("train_loss", "train_accuracy", "lr"):
        whole_rows, resumed_rows = read_curves(tmp_path / "whole"), read_curves(tmp_path / "parts")
        assert [row[name] for row in whole_rows] == [row[name] for row in resumed_rows]


def test_the_best_epoch_is_chosen_on_the_validation_part(folder, tmp_path):
    run = fit(small_recipe(f"folder:{folder}", val_fraction=0.3, epochs=3), tmp_path / "run")
    accuracies = [float(row["val_accuracy"]) for row in read_curves(run.directory)]
    assert run.metrics["val_accuracy"] == max(accuracies)
    assert run.metrics["chosen_epoch"] == accuracies.index(max(accuracies))
    assert "validation" in run.metrics["chosen_by"]
    assert "val_loss" in read_curves(run.directory)[0]


@pytest.mark.parametrize("model", [ModelOptions(method="plain"), ModelOptions(method="abn")], ids=lambda m: m.method)
def test_every_method_learns(folder, tmp_path, model):
    run = fit(small_recipe(f"folder:{folder}", model=model, epochs=3, precision="bf16"), tmp_path / "run")
    rows = read_curves(run.directory)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_fit_trains_in_training_mode_and_frozen_batch_norm_stays(folder, tmp_path, monkeypatch):
    seen = []
    step = lficam.training.ClassificationTask.training_step

    def looking(self, batch, batch_idx):
        seen.append((self.model.training, {m.training for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)}))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(lficam.training.ClassificationTask, "training_step", looking)
    run = fit(small_recipe(f"folder:{folder}", freeze="batch_norm", epochs=2, val_fraction=0.3), tmp_path / "run")
    assert set(map(str, seen)) == {str((True, {False}))}
    norm = run.model.backbone.stem[0][1]
    assert (norm.running_mean == 0).all()
    assert (norm.weight == 1).all()


def test_a_frozen_fin_keeps_its_random_weights_and_the_rest_learns(folder, tmp_path):
    short, longer = (
        fit(small_recipe(f"folder:{folder}", freeze="fin", epochs=epochs), tmp_path / str(epochs)).model
        for epochs in (1, 2)
    )
    for name, tensor in longer.fin.state_dict().items():
        assert torch.equal(tensor, short.fin.state_dict()[name]), name
    assert (longer.fin.layers[1].running_mean == 0).all()
    assert not torch.equal(longer.linear_head.weight, short.linear_head.weight)
    with pytest.raises(InvalidInputError, match="freeze: this model has no FIN"):
        small_recipe("folder:x", freeze="fin", model=ModelOptions(method="plain")).check()


def test_two_processes_reach_the_weights_of_one(folder, tmp_path):
    # A small rate: batch norm that never normalises lets a fresh net grow fast.
    settings = {"freeze": "batch_norm", "augmentation": "crop_flip", "epochs": 2, "batch_size": 8, "lr": 1e-4}
    settings["val_fraction"] = 0.15  # three pictures: the two shares differ, and none is padded
    alone = fit(small_recipe(f"folder:{folder}", **settings), tmp_path / "one")
    words = ["--data", f"folder:{folder}", "--out", str(tmp_path / "two"), "--devices", "2", "--device", "cpu"]
    words += ["--freeze", "batch_norm", "--augmentation", "crop_flip", "--epochs", "2", "--batch_size", "8"]
    words += ["--image_size", "16", "--lr", "1e-4", "--precision", "32", "--val_fraction", "0.15"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lficam", "train", *words]
    done = subprocess.run(command, env=environment, timeout=90, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained") == 1
    assert_same_weights(weights(alone), lficam.load(tmp_path / "two").state_dict(), rtol=0, atol=1e-6)
    rows = read_curves(tmp_path / "two")
    for one, two in zip(read_curves(tmp_path / "one"), rows, strict=True):
        assert float(two["train_loss"]) == pytest.approx(float(one["train_loss"]), abs=1e-5)
        assert float(two["val_accuracy"]) == pytest.approx(float(one["val_accuracy"]))
        assert float(two["train_accuracy"]) == pytest.approx(float(one["train_accuracy"]))


def test_the_loss_adds_the_attention_branch():
    logits, branch, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])

    def cross_entropy(scores):
        return -sum(row.softmax(0)[label].log() for row, label in zip(scores, labels, strict=True)) / 4

    torch.testing.assert_close(classification_loss(Prediction(logits), labels), cross_entropy(logits))
    both = classification_loss(Prediction(logits, attention_logits=branch), labels)
    torch.testing.assert_close(both, cross_entropy(logits) + cross_entropy(branch))


def test_the_papers_schedule_divides_by_ten_at_half_and_three_quarters(folder, tmp_path):
    run = fit(small_recipe(f"folder:{folder}", schedule="step", epochs=4, lr=0.1), tmp_path / "run")
    rates = [float(row["lr"]) for row in read_curves(run.directory)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize("schedule", ["step", "one_cycle"])
def test_every_length_has_a_schedule(schedule):
    recipe = small_recipe("folder:x", schedule=schedule, lr=1.0)
    for steps in range(1, 61):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        rates, scheduler = [], learning_rate_schedule(recipe, optimizer, steps)
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step() if len(rates) < steps else None
        assert max(rates) <= 1.0
        if schedule == "step":
            assert rates[0] == 1.0
            assert steps < 4 or rates[-1] == pytest.approx(0.01)


def test_a_diverging_run_says_so(folder, tmp_path):
    with pytest.raises(RunError, match="lower --lr"):
        fit(small_recipe(f"folder:{folder}", lr=1e30, freeze="batch_norm"), tmp_path / "run")


def test_more_processes_than_pictures_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="2 validation pictures for 4 processes"):
        fit(small_recipe(f"folder:{folder}", devices=4, val_fraction=0.1), tmp_path / "run")


def other_content(path):
    path.mkdir()
    (path / "thesis.txt").write_text("precious")


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (other_content, {}, "other content"),
        (lambda path: path.write_text("a file"), {}, "is a file"),
    ],
)
def test_a_directory_of_others_is_left_alone(folder, tmp_path, prepare, options, message):
    prepare(tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=message):
        fit(small_recipe(f"folder:{folder}"), tmp_path / "out", **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_of_another_recipe_is_left_alone(run, folder):
    with pytest.raises(RunError, match="epochs 2, not 5"):
        fit(small_recipe(f"folder:{folder}", epochs=5), run.directory)
    with pytest.raises(RunError, match="holds a run already"):
        fit(small_recipe(f"folder:{folder}"), run.directory, resume="never")
    with pytest.raises(InvalidInputError, match="resume"):
        fit(small_recipe(f"folder:{folder}"), run.directory, resume="sometimes")


def test_a_run_of_an_earlier_version_has_later_settings_at_their_defaults(run, folder, tmp_path):
    shutil.copytree(run.directory, tmp_path / "run")
    stored = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    del stored["freeze"], stored["model"]["pretrained"]
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(stored))
    assert fit(small_recipe(f"folder:{folder}"), tmp_path / "run").metrics == run.metrics
    with pytest.raises(RunError, match="holds a run with freeze none"):
        fit(small_recipe(f"folder:{folder}", freeze="batch_norm"), tmp_path / "run")


def test_nothing_is_left_of_a_run_that_could_not_start(tmp_path, folder):
    with pytest.raises(DataError):
        fit(small_recipe("folder:/absent"), tmp_path / "out")
    with pytest.raises(InvalidInputError, match="unknown backbone"):
        fit(small_recipe(f"folder:{folder}", model=ModelOptions(backbone="resnet20")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 7, "devices": 2}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"momentum": 0.0}, "momentum"),
        ({"resize": 8}, "resize"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"seed": -1}, "seed"),
        ({"data": ""}, "data"),
        ({"schedule": "cosine"}, "schedule"),
        ({"precision": "16"}, "precision"),
        ({"model": ModelOptions(method="lif")}, "method"),
    ],
)
def test_settings_out_of_range_are_named(settings, name):
    with pytest.raises(InvalidInputError, match=f"^{name}: "):
        small_recipe(**{"data": "folder:x", **settings}).check()


def test_every_shipped_recipe_is_a_valid_recipe():
    for name in recipe_names():
        recipe = recipe_from_values(recipe_values(name))
        recipe.data = recipe.data or "folder:PATH"
        recipe.init_from = "RUN" if recipe.freeze == "backbone" else ""  # named on the command line
        recipe.check()
        with torch.device("meta"):
            lficam.create_model(
                recipe.model.backbone,
                recipe.model.method,
                10,
                recipe.model.backbone_args,
                **recipe.model.method_options(),
            )


@pytest.mark.parametrize(
    "name", [name for name in paper_figures() if not re.search("cifar100|resnet(34|101|152)", name)]
)
def test_the_rows_of_tables_1_to_3_take_two_steps(folder, tmp_path, name):
    """On tiny pictures; the rows left out differ in the number of blocks or classes alone."""
    size = 8 if "cifar" in name else 32
    small = {"data": f"folder:{folder}", "epochs": 2, "image_size": size, "batch_size": 20, "workers": 0}
    small["resize"] = size + 4
    recipe = recipe_from_values({**recipe_values(name), **small, "device": "cpu"})
    run = fit(recipe, tmp_path / "run")
    assert len(read_curves(run.directory)) == 2
    assert math.isfinite(run.metrics["train_loss"])


def test_the_papers_recipe_is_the_papers():
    values = recipe_values("cifar10_resnet110_lfi")
    assert (values["epochs"], values["lr"], values["batch_size"], values["schedule"]) == (300, 0.1, 128, "step")
    assert values["weight_decay"] == 1e-4
    assert values["model"]["backbone_args"] == {"block": "bottleneck"}


def test_the_resolved_recipe_makes_the_run_again(run, tmp_path):
    values = yaml.safe_load((run.directory / "recipe.yaml").read_text())
    again = recipe_from_values({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    assert_same_weights(weights(run), weights(fit(again, tmp_path / "again")), rtol=0, atol=0)


def test_the_curves_are_a_plain_table(run):
    with (run.directory / "metrics.csv").open() as file:
        assert next(csv.reader(file))[0] == "epoch"
