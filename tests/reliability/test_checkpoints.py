"""A checkpoint is whole, or it is refused: kills while saving, full disks, flipped bits, hostile files."""

import hashlib
import io
import os
import pickle
import random
import resource
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch

import lficam
from lficam import checkpoints
from lficam.checkpoints import last_checkpoint, previous, read_checkpoint, write_checkpoint
from lficam.errors import RunError

from . import victims


@pytest.fixture
def saved(tmp_path):
    write_checkpoint({"weights": torch.arange(500.0), "epoch": 3}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_it_comes_back_and_torch_reads_it_too(saved):
    assert torch.equal(read_checkpoint(saved)["weights"], torch.arange(500.0))
    assert torch.load(saved, weights_only=True)["epoch"] == 3
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_the_one_before_is_kept_and_taken_where_the_last_is_damaged(saved):
    write_checkpoint({"epoch": 4}, saved, keep=previous(saved))
    assert last_checkpoint(saved.parent) == saved
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged .*checksum"):
        assert read_checkpoint(last_checkpoint(saved.parent))["epoch"] == 3
    previous(saved).write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(RunError, match=r"none in .* is whole"):
        last_checkpoint(saved.parent)


def test_killed_while_saving_there_is_always_one_and_never_an_old_one(tmp_path, count, figure):
    kills, oldest = count(3, 100), 0
    for number in range(kills):
        folder = tmp_path / str(number)
        folder.mkdir()
        ours, theirs = victims.CONTEXT.Pipe(duplex=False)
        victim = victims.start(victims.saving, str(folder / "last.ckpt"), theirs)
        theirs.close()
        safe = ours.recv()
        time.sleep(random.Random(number).uniform(0, 0.1))
        victim.kill()
        victim.join()
        while ours.poll():
            try:
                safe = ours.recv()
            except EOFError:
                break
        values = read_checkpoint(last_checkpoint(folder))
        assert (values["weights"] == values["number"]).all()
        assert values["number"] >= safe
        oldest = max(oldest, values["number"])
    figure(f"{kills} SIGKILLs while saving", f"{kills} whole checkpoints, none older than the last acknowledged")


def test_a_disk_that_takes_no_more_leaves_what_was_there(saved):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
        with pytest.raises(RunError, match=r"last.ckpt could not be written \(.*File too large"):
            write_checkpoint({"weights": torch.zeros(10_000)}, saved, keep=previous(saved))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(saved)["epoch"] == 3
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/last.ckpt could not be written"):
        write_checkpoint({}, tmp_path / "file" / "last.ckpt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(saved):
    saved.parent.chmod(0o500)
    try:
        with pytest.raises(RunError, match="could not be written"):
            write_checkpoint({}, saved)
    finally:
        saved.parent.chmod(0o700)


def damaged(content, number):
    """A bit flipped, bytes lost at the end, or bytes in the middle overwritten."""
    draw = random.Random(number)
    data = bytearray(content)
    kind = number % 3
    if kind == 0:
        position = draw.randrange(len(data))
        data[position] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[draw.randrange(len(data)) :]
    else:
        position = draw.randrange(len(data) - 16)
        data[position : position + 16] = bytes(value ^ 0xA5 for value in data[position : position + 16])
    return bytes(data)


def test_damage_is_always_found(saved, tmp_path, count, figure):
    times = count(60, 600)
    whole = saved.read_bytes()
    for number in range(times):
        saved.write_bytes(damaged(whole, number))
        with pytest.raises(RunError, match=r"last.ckpt is damaged"):
            read_checkpoint(saved)
    run = lficam.create_model("cifar_resnet20", "plain").save_pretrained(tmp_path / "run")
    weights = run / "model.safetensors"
    whole = weights.read_bytes()
    for number in range(times):
        weights.write_bytes(damaged(whole, number))
        with pytest.raises(RunError, match=r"model.safetensors"):
            lficam.load(run)
    figure(f"{2 * times} damaged checkpoints (bits, ends, middles; both formats)", f"{2 * times} refused")


def signed(payload):
    """As an attacker would: our mark and the right sum."""
    return payload + checkpoints._MARK + hashlib.sha256(payload).digest()


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = io.BytesIO()
    torch.save({"weights": Hostile()}, archive)
    for payload in (archive.getvalue(), pickle.dumps(Hostile())):
        (tmp_path / "last.ckpt").write_bytes(signed(payload))
        with pytest.raises(RunError, match="is damaged or not of lficam"):
            read_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "executed").exists()


def test_an_archive_that_unpacks_to_more_is_refused_with_little_memory(tmp_path, figure):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", pickle.dumps({}))
        with packed.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(300):
                entry.write(bytes(2**20))
    (tmp_path / "last.ckpt").write_bytes(signed(archive.getvalue()))
    ours, theirs = victims.CONTEXT.Pipe(duplex=False)
    victims.start(victims.refusing, str(tmp_path / "last.ckpt"), theirs).join()
    message, grown = ours.recv()
    assert "unpacks to more than its size" in message
    assert grown < 20
    figure("an archive of 0.3 MB that unpacks to 300 MB", f"refused; peak memory grew by {grown:.0f} MB")


@pytest.mark.parametrize(
    "header",
    [b"", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}", (10**5).to_bytes(8, "little") + b"[" * 10**5],
)
def test_malformed_safetensors_are_refused(tmp_path, header):
    run = lficam.create_model("cifar_resnet20", "plain").save_pretrained(tmp_path)
    config = run / "config.json"
    sums = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(), hashlib.sha256(header).hexdigest()
    (run / "model.safetensors").write_bytes(header)
    config.write_text(config.read_text().replace(*sums))
    with pytest.raises(RunError, match="is no safetensors file"):
        lficam.load(run)


def test_nested_records_are_refused(tmp_path):
    run = lficam.create_model("cifar_resnet20", "plain").save_pretrained(tmp_path)
    (run / "config.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"config.json is damaged"):
        lficam.load(run)


def test_a_copied_run_is_the_run(tmp_path):
    run = lficam.create_model("cifar_resnet20", "plain").save_pretrained(tmp_path / "a")
    shutil.copytree(run, tmp_path / "b")
    images = torch.from_numpy(np.zeros((1, 3, 32, 32), np.float32))
    assert torch.equal(lficam.load(run)(images), lficam.load(tmp_path / "b")(images))
