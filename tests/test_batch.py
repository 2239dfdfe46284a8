"""Very many pictures: shards that say what explain says, each picture once, whatever happens on the way."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

import lficam
from lficam.batch import explain_to_parquet, read_map
from lficam.cli import main
from lficam.errors import RunError
from lficam.predict import explain_images, find_images

from .reliability import victims


@pytest.fixture
def pictures(folder, tmp_path):
    """Twenty pictures, one of them broken."""
    shutil.copytree(folder / "test", tmp_path / "pictures")
    (tmp_path / "pictures" / "cat" / "3.png").write_bytes(b"broken")
    return find_images([tmp_path / "pictures"])


def rows_of(out):
    return [row for path in sorted(out.glob("part-*.parquet")) for row in parquet.read_table(path).to_pylist()]


def test_shards_say_what_explain_says(run, pictures, tmp_path):
    found = explain_to_parquet(run.directory, run.model, pictures, tmp_path / "out", device="cpu", shard_rows=8)
    assert found == {"pictures": 20, "broken": 1, "shards": 3}
    rows = rows_of(tmp_path / "out")
    assert [row["path"] for row in rows] == [str(path) for path in pictures]
    assert len({row["model"] for row in rows}) == 1
    for row, expected in zip(rows, explain_images(run.model, pictures), strict=True):
        if row["error"]:
            assert "3.png: not a picture" in row["error"]
            assert row["label"] is None
            continue
        told = expected.to_dict()
        assert (row["label"], row["map"]) == (told["label"], told["map"])
        assert row["probability"] == pytest.approx(told["probability"], abs=1e-5)
        assert row["top5"][1]["label"] == told["top5"][1]["label"]
        for name in ("peak", "box", "seen"):
            assert row[name] == pytest.approx(told[name], abs=1e-2)
        np.testing.assert_allclose(read_map(row, "evidence"), expected.evidence[0].numpy(), rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(read_map(row, "attention"), expected.attention[0].numpy(), rtol=2e-3, atol=2e-3)


def test_a_finished_call_does_nothing_again(run, pictures, tmp_path):
    for _ in range(2):
        explain_to_parquet(run.directory, run.model, pictures, tmp_path / "out", device="cpu")
        stamp = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    explain_to_parquet(run.directory, run.model, pictures, tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == stamp


def test_after_kills_every_picture_is_there_once(run, pictures, tmp_path, count):
    out = tmp_path / "out"
    for kill_after in (7, 3, 6) if count(False, True) else (7,):
        victim = victims.start(
            victims.explaining_to_parquet, str(run.directory), list(map(str, pictures)), str(out), kill_after
        )
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
    assert 0 < len(rows_of(out)) < 20
    explain_to_parquet(run.directory, run.model, pictures, out, device="cpu", shard_rows=5)
    assert [row["path"] for row in rows_of(out)] == [str(path) for path in pictures]
    assert not [path for path in out.iterdir() if "partial" in path.name]


def test_what_does_not_belong_together_is_refused(run, pictures, tmp_path):
    explain_to_parquet(run.directory, run.model, pictures, tmp_path / "out", device="cpu")
    with pytest.raises(RunError, match="of another model or of other pictures"):
        explain_to_parquet(run.directory, run.model, pictures[1:], tmp_path / "out", device="cpu")
    other = lficam.create_model("cifar_resnet20").save_pretrained(tmp_path / "other")
    with pytest.raises(RunError, match="of another model or of other pictures"):
        explain_to_parquet(other, run.model, pictures, tmp_path / "out", device="cpu")
    with pytest.raises(RunError, match="holds other content"):
        explain_to_parquet(run.directory, run.model, pictures, tmp_path / "pictures", device="cpu")


@pytest.mark.torture
def test_the_command_line_with_two_processes(run, pictures, tmp_path):
    words = ["explain", str(run.directory), str(tmp_path / "pictures"), "--out", str(tmp_path / "out")]
    words += ["--format", "parquet", "--devices", "2", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lficam", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("20 pictures in 1 shards") == 1
    assert "1 could not be read" in done.stdout
    assert len(rows_of(tmp_path / "out")) == 20


def test_a_class_of_ones_own_is_refused(run, pictures, tmp_path, capsys):
    words = ["explain", str(run.directory), str(tmp_path / "pictures"), "--out", str(tmp_path / "out")]
    assert main([*words, "--format", "parquet", "--class", "cat"]) == 2
    assert "shards hold the predicted class" in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_number_of_pictures(run, pictures, tmp_path, count, figure):
    times = count(200, 100_000)
    ours, theirs = victims.CONTEXT.Pipe(duplex=False)
    arguments = (str(run.directory), str(pictures[0]), times, str(tmp_path / "out"), theirs)
    victims.start(victims.explaining_ever_more, *arguments).join()
    grown = ours.recv()
    assert grown < 30
    figure(f"{times:,} pictures into shards: memory grows after the first fifth", f"by {grown:.1f} MB")
