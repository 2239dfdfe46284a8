"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong model, and when they are made."""

import hashlib
import signal
import threading
import time
import warnings
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from lficam.errors import LficamWarning, RunError
from lficam.files import whole_file

LAST, BEST = "last.ckpt", "best.ckpt"
_MARK = b"lficam sha256\n\0\0"
_FOOTER = len(_MARK) + hashlib.sha256().digest_size
_CHUNK = 2**20


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM); the exit code is the usual one, 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class _Hashed:
    """A file that knows the SHA-256 of all that was written into it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept.

    >>> previous(Path("last.ckpt")).name
    'last.previous.ckpt'
    """
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_checkpoint(values: dict[str, Any], path: Path, keep: Path | None = None) -> None:
    """Write a checkpoint whole, with its SHA-256 at its end.

    ``torch.load`` reads the file too: what follows its archive does not disturb it.

    Args:
        values: fit for ``torch.load(..., weights_only=True)``.
        path: of the file.
        keep: where the checkpoint that stood there goes; None: nowhere.

    Raises:
        RunError: a disk that is full or cannot be written to; what was there stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, keep) as file:
            hashed = _Hashed(file)
            torch.save(values, hashed)  # type: ignore[arg-type]  # it writes and flushes, no more
            file.write(_MARK + hashed.sum.digest())
    except (OSError, RuntimeError) as error:  # torch wraps a write that failed
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise RunError(
            f"checkpoint: {path} could not be written ({cause}); make room or mend the permissions, and start the same "
            "command again. The checkpoint before it is whole."
        ) from error


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint; no code in it is run.

    Raises:
        RunError: a file that is missing, damaged or of another maker.
    """
    reason = _fault(path)
    if reason is None:
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # torch raises many kinds, some of pickle's
            reason = " ".join(str(error).split())[:200]
    raise RunError(f"checkpoint: {path} is damaged or not of lficam ({reason}); remove it, or train anew elsewhere.")


def last_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that a run in ``directory`` goes on from; None where there is none yet.

    Raises:
        RunError: there are some, and none is whole.
    """
    path = directory / LAST
    found = [candidate for candidate in (path, previous(path)) if candidate.is_file()]
    if not found:
        return None
    for candidate in found:
        reason = _fault(candidate)
        if reason is None:
            return candidate
        told = f"{candidate} is damaged ({reason}); the checkpoint before it is taken."
        warnings.warn(told, LficamWarning, stacklevel=2)
    raise RunError(f"checkpoint: none in {directory} is whole; remove the folder, and the run starts anew.")


def _fault(path: Path) -> str | None:
    """What is wrong with a file, before anything in it is believed."""
    try:
        size = path.stat().st_size - _FOOTER
        with path.open("rb") as file:
            digest, left = hashlib.sha256(), size
            while left > 0:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    break
                digest.update(chunk)
                left -= len(chunk)
            if size < 0 or file.read() != _MARK + digest.digest():
                return "it does not match its checksum"
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                return "it unpacks to more than its size"
    except FileNotFoundError:
        return "no such file"
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return None


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's way to `write_checkpoint` and `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """As `write_checkpoint`; the one before is kept."""
        write_checkpoint(checkpoint, Path(path), keep=previous(Path(path)))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As `read_checkpoint`; ``weights_only`` is always so."""
        return read_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Take a checkpoint away."""
        Path(path).unlink(missing_ok=True)


class KeepCheckpoints(pl.Callback):
    """Keep the last state and the best weights: after every epoch, every few minutes inside one, and at the end asked.

    SIGTERM and Ctrl-C wait for the step that runs, save, and end with 143 and 130; a second Ctrl-C does not wait. While
    pictures are validated they end at once: what is lost then are the minutes since the last checkpoint.

    Args:
        directory: of ``last.ckpt`` and ``best.ckpt``.
        minutes: between checkpoints inside an epoch; 0: none there.
    """

    def __init__(self, directory: Path, minutes: float) -> None:
        self.last, self.best = directory / LAST, directory / BEST
        self.minutes = minutes
        self.best_accuracy: float | None = None
        self._asked: int | None = None
        self._saved = 0.0
        self._handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know; the directory may be another by then."""
        return {"best_accuracy": self.best_accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it; where the best weights are damaged or gone, those of the epochs to come are compared anew."""
        self.best_accuracy = state_dict["best_accuracy"]
        reason = _fault(self.best) if self.best_accuracy is not None else None
        if reason is not None:
            told = f"{self.best} is damaged ({reason}); the best of the epochs to come takes its place."
            warnings.warn(told, LficamWarning, stacklevel=1)  # the caller is Lightning, whose warnings are not shown
            self.best_accuracy = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, after Lightning has put its own handlers in place; start the clock."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._ask)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen no more."""
        self.release()

    def release(self) -> None:
        """Give the signals back to whom they belonged."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time or if somebody asked for the end; all ranks do the same."""
        due = bool(self.minutes) and time.monotonic() - self._saved >= 60 * self.minutes
        # The step that ends an epoch belongs to the checkpoint behind its validation.
        inside = batch_idx + 1 < trainer.num_training_batches
        if inside and self._over_ranks(trainer, due or self._asked is not None):
            self._save(trainer)
            if self._over_ranks(trainer, self._asked is not None):
                self._end()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End if somebody asked for it; several ranks, which may have batches in different numbers, do so together."""
        if trainer.world_size == 1 and self._asked is not None:
            self._end()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As above, for several ranks."""
        if self._over_ranks(trainer, self._asked is not None):
            self._end()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, first the weights if they are the best so far."""
        accuracy = trainer.callback_metrics.get("val_accuracy")
        if accuracy is not None and (self.best_accuracy is None or float(accuracy) > self.best_accuracy):
            self.best_accuracy = float(accuracy)
            if trainer.is_global_zero:
                weights = pl_module.get_submodule("model").state_dict()
                write_checkpoint({"epoch": trainer.current_epoch, "state_dict": weights}, self.best)
        self._save(trainer)
        if self._over_ranks(trainer, self._asked is not None):
            self._end()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.last)
        self._saved = time.monotonic()

    def _over_ranks(self, trainer: pl.Trainer, decision: bool) -> bool:
        return trainer.strategy.reduce_boolean_decision(decision, all=False) if trainer.world_size > 1 else decision

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number

    def _end(self) -> None:
        if self._asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated
