"""A training that is killed, asked to end, or loses a helper goes on to the same weights, to the bit."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lficam
from lficam.cli import main
from lficam.errors import DataError, LficamWarning, RunError
from lficam.recipes import ModelOptions
from lficam.training import ClassificationTask, fit, read_curves

from ..conftest import small_recipe, write_folder
from . import victims

EVERY_STEP = 1e-9  # minutes
# Dropout, two loading processes, bfloat16, an augmentation of single pictures.
HARD = {
    "model": ModelOptions(backbone="test_resnet", backbone_args={"drop_rate": 0.3}),
    "image_size": 32,
    "augmentation": "resized_crop_flip",
    "precision": "bf16",
    "workers": 2,
    "val_fraction": 0.2,
    "epochs": 3,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return f"folder:{write_folder(tmp_path_factory.mktemp('data'), per_class=12)}"


@pytest.fixture(scope="module")
def hard(pictures, tmp_path_factory):
    """The recipe, and the weights and steps of the undisturbed run."""
    recipe = small_recipe(pictures, **HARD)
    run = fit(recipe, tmp_path_factory.mktemp("runs") / "undisturbed")
    return recipe, run.model.state_dict(), 3 * (20 // 4)


def assert_same(directory, weights):
    for name, tensor in lficam.load(directory).state_dict().items():
        assert torch.equal(tensor, weights[name]), name


class Stop(Exception):
    pass


def test_every_step_is_one_to_go_on_from(pictures, tmp_path, monkeypatch):
    recipe = small_recipe(pictures, epochs=2, val_fraction=0.2, batch_size=4)
    whole = fit(recipe, tmp_path / "whole")
    step = ClassificationTask.training_step
    recipe.checkpoint_minutes = EVERY_STEP
    for stop in range(1, 10):

        def stopping(self, batch, batch_idx, stop=stop):
            if self.global_step == stop:
                raise Stop
            return step(self, batch, batch_idx)

        monkeypatch.setattr(ClassificationTask, "training_step", stopping)
        with pytest.raises(Stop):
            fit(recipe, tmp_path / str(stop))
        seen = []

        def watched(self, batch, batch_idx, seen=seen):
            seen.append(self.global_step)
            return step(self, batch, batch_idx)

        monkeypatch.setattr(ClassificationTask, "training_step", watched)
        fit(recipe, tmp_path / str(stop))
        assert seen[0] == stop  # nothing is done twice
        assert_same(tmp_path / str(stop), whole.model.state_dict())
        for name in ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            rows, expected = read_curves(tmp_path / str(stop)), read_curves(tmp_path / "whole")
            assert [row[name] for row in rows] == [row[name] for row in expected], name


def test_killed_at_random_steps_and_gone_on(hard, tmp_path, count, figure):
    recipe, weights, steps = hard
    recipe.checkpoint_minutes = EVERY_STEP
    kills = count(3, 20)
    for number in range(kills):
        at = random.Random(number).randrange(1, steps)
        victim = victims.start(victims.training, recipe, str(tmp_path / str(number)), at)
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        fit(recipe, tmp_path / str(number))
        assert_same(tmp_path / str(number), weights)
    figure(
        f"training killed at {kills} random steps (dropout, 2 workers, bfloat16), gone on", f"{kills} equal to the bit"
    )


def test_a_run_that_was_moved_goes_on_with_its_best_weights(hard, tmp_path):
    recipe, weights, steps = hard
    victim = victims.start(victims.training, recipe, str(tmp_path / "here"), steps - 2)
    victim.join()
    (tmp_path / "here").rename(tmp_path / "there")
    fit(recipe, tmp_path / "there")
    assert_same(tmp_path / "there", weights)


def test_threads_are_those_it_began_with(pictures, tmp_path):
    recipe = small_recipe(pictures, epochs=2, checkpoint_minutes=EVERY_STEP)
    victim = victims.start(victims.training, recipe, str(tmp_path / "run"), 3, "kill", 2)
    victim.join()
    own = torch.get_num_threads()
    run = fit(recipe, tmp_path / "run")
    assert run.model.config.training["threads"] == 2 != own
    assert torch.get_num_threads() == own


def test_asked_to_end_it_saves_and_ends(hard, tmp_path, figure):
    recipe, weights, _ = hard
    recipe.checkpoint_minutes = 0.0  # so that what was saved was saved because it was asked
    marker = tmp_path / "marker"
    victim = victims.start(victims.training, recipe, str(tmp_path / "run"), None, "kill", 1, str(marker))
    wait_for(marker)
    asked = time.monotonic()
    os.kill(victim.pid, signal.SIGTERM)
    victim.join(20)
    seconds = time.monotonic() - asked
    assert victim.exitcode == 128 + signal.SIGTERM
    assert seconds < 5
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    fit(recipe, tmp_path / "run")
    assert_same(tmp_path / "run", weights)
    figure("SIGTERM: saved and ended, exit code 143", f"{seconds:.1f} s")


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not Path(path).exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("deed", "words"),
    [("kill", "died"), pytest.param("hang", "took more than --worker_timeout 3 s", marks=pytest.mark.torture)],
)
def test_a_loading_process_that_dies_or_hangs_is_an_error(pictures, tmp_path, deed, words, figure):
    recipe = small_recipe(pictures, workers=2, worker_timeout=3.0, batch_size=2)
    victim = victims.start(victims.training_with_a_worker, recipe, str(tmp_path / "run"), deed)
    victim.join(30)
    assert victim.exitcode == 2
    children = [int(path.name) for path in (tmp_path / "workers").iterdir()]
    assert words in (tmp_path / "run" / "error.txt").read_text()
    deadline = time.monotonic() + 10
    while any(is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children) >= 2
    assert not any(is_alive(child) for child in children)
    figure(f"a loading process is struck ({deed}; {recipe.worker_timeout:g} s allowed)", "an error, no orphans")


def children_of(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_full_disk_ends_it_with_the_path_and_it_goes_on(pictures, tmp_path):
    recipe = small_recipe(pictures, epochs=3, checkpoint_minutes=EVERY_STEP)
    whole = fit(recipe, tmp_path / "whole")
    victim = victims.start(victims.training, recipe, str(tmp_path / "run"), 5, "fill")
    victim.join()
    assert victim.exitcode == 2
    assert re.match(r"(checkpoint|run): .*/run/.* could not be written", (tmp_path / "run" / "error.txt").read_text())
    fit(recipe, tmp_path / "run")
    assert_same(tmp_path / "run", whole.model.state_dict())


@pytest.mark.torture
def test_two_ranks_of_which_one_is_killed_are_both_gone_and_go_on(pictures, tmp_path, figure):
    words = ["--data", pictures, "--devices", "2", "--device", "cpu", "--epochs", "15", "--batch_size", "4"]
    words += ["--image_size", "16", "--lr", "1e-3", "--precision", "32", "--val_fraction", "0"]
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lficam", "train", *words, "--out"]
    main_rank = subprocess.Popen([*command, str(out)], env=environment, stderr=subprocess.PIPE)
    wait_for(out / "checkpoints" / "last.ckpt")
    (other,) = [pid for pid in children_of(main_rank.pid) if b"lficam" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    killed = time.monotonic()
    os.kill(other, signal.SIGKILL)
    main_rank.communicate(timeout=30)
    seconds = time.monotonic() - killed
    assert main_rank.returncode != 0
    assert not is_alive(other)
    assert seconds < 20
    for folder in ("killed", "undisturbed"):
        words = [*command, str(tmp_path / folder)]
        subprocess.run(words, env=environment, check=True, capture_output=True, timeout=120)
    assert_same(out, lficam.load(tmp_path / "undisturbed").state_dict())
    figure("two gloo ranks, one killed: the same command goes on", "equal to the bit")
    figure("two gloo ranks, one killed: both gone", f"{seconds:.1f} s")


def test_a_loss_that_is_no_number_names_step_and_pictures_and_keeps_the_last_good_weights(
    pictures, tmp_path, monkeypatch
):
    recipe = small_recipe(pictures, epochs=2, checkpoint_minutes=EVERY_STEP)
    normalise = lficam.data.module.normalise
    calls = []

    def poisoned(images, preprocessing):
        calls.append(images)
        found = normalise(images, preprocessing)
        return found * math.nan if len(calls) == 4 else found

    monkeypatch.setattr(lficam.data.module, "normalise", poisoned)
    with pytest.raises(RunError, match=r"loss is nan at step 4, epoch 2, on train/.*\.png, .* and 5 more"):
        fit(recipe, tmp_path / "run")
    monkeypatch.undo()
    run = fit(recipe, tmp_path / "run")
    whole = fit(small_recipe(pictures, epochs=2), tmp_path / "whole")
    assert_same(run.directory, whole.model.state_dict())


def test_an_unfinished_run_is_no_model_yet(pictures, tmp_path, capsys):
    victim = victims.start(victims.training, small_recipe(pictures), str(tmp_path / "run"), 2)
    victim.join()
    assert main(["evaluate", str(tmp_path / "run"), "--data", pictures]) == 2
    assert "train first" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_of_a_set_on_disk_ends_it_by_name_until_it_is_left_out(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("lficam.data.pictures.IN_MEMORY_BYTES", 0)
    root = write_folder(tmp_path / "pictures", per_class=4)
    (root / "train" / "cat" / "2.png").write_bytes(b"broken")
    recipe = small_recipe(f"folder:{root}", workers=workers, batch_size=2, epochs=1)
    with pytest.raises(DataError, match=r"^[^\n]*cat/2.png: not a picture[^\n]*lficam scan FOLDER --quarantine true"):
        fit(recipe, tmp_path / "run")
    assert main(["scan", str(root), "--quarantine", "true"]) == 0
    fit(recipe, tmp_path / "run")


def test_asked_to_end_in_the_last_step_of_an_epoch_it_saves_too(pictures, tmp_path):
    recipe = small_recipe(pictures, epochs=2, batch_size=8, checkpoint_minutes=0.0)  # three steps an epoch
    whole = fit(recipe, tmp_path / "whole")
    victim = victims.start(victims.training, recipe, str(tmp_path / "run"), 2, "end")
    victim.join()
    assert victim.exitcode == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    fit(recipe, tmp_path / "run")
    assert_same(tmp_path / "run", whole.model.state_dict())


def test_other_pictures_are_not_gone_on_with(tmp_path):
    root = write_folder(tmp_path / "pictures", per_class=8)
    recipe = small_recipe(f"folder:{root}", epochs=2, checkpoint_minutes=EVERY_STEP)
    victims.start(victims.training, recipe, str(tmp_path / "run"), 3).join()
    (root / "train" / "cat" / "0.png").unlink()
    with pytest.raises(RunError, match="begun with other training pictures"):
        fit(recipe, tmp_path / "run")


def test_best_weights_that_are_damaged_cost_the_best_and_not_the_run(pictures, tmp_path):
    recipe = small_recipe(pictures, epochs=3, val_fraction=0.3, checkpoint_minutes=EVERY_STEP)
    steps = 3 * (17 // 8)
    victims.start(victims.training, recipe, str(tmp_path / "run"), steps - 1).join()
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-1])
    with pytest.warns(LficamWarning, match=r"best.ckpt is damaged"):
        run = fit(recipe, tmp_path / "run")
    assert run.metrics["chosen_epoch"] == 2


@pytest.mark.parametrize("pictures_held", [257])
def test_ranks_may_have_validation_batches_in_different_numbers(tmp_path, pictures_held):
    root = write_folder(tmp_path / "pictures", per_class=pictures_held + 10, size=(8, 8))
    (root / "val").mkdir()
    (root / "train").rename(root / "val_")
    for kind in ("cat", "dog"):
        for part, names in (("train", range(8)), ("val", range(8, 8 + pictures_held // 2 + (kind == "cat")))):
            (root / part / kind).mkdir(parents=True)
            for number in names:
                (root / "val_" / kind / f"{number}.png").rename(root / part / kind / f"{number}.png")
    words = ["--data", f"folder:{root}", "--devices", "2", "--device", "cpu", "--epochs", "1", "--batch_size", "8"]
    words += ["--image_size", "8", "--precision", "32", "--lr", "1e-3", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "lficam", "train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
