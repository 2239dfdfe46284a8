"""Explanations of very many pictures: Parquet shards in constant memory, gone on after a kill, on several devices."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from lficam.data.folders import printable
from lficam.device import resolve_device
from lficam.errors import DataError, InvalidInputError, RunError
from lficam.files import read_record, whole_file, write_json
from lficam.models.hub import CONFIG_FILE
from lficam.models.plain import PlainClassifier
from lficam.predict import explain_images
from lficam.progress import progress_bar, quiet_lightning

MANIFEST = "manifest.json"
SHARD_ROWS = 1_000


def explain_to_parquet(
    run: str | Path,
    model: PlainClassifier,
    paths: Sequence[Path],
    out: str | Path,
    device: str = "auto",
    devices: int = 1,
    shard_rows: int = SHARD_ROWS,
) -> dict[str, Any]:
    """Explain pictures into ``OUT/part-NNNNN.parquet``, a thousand rows each, in the order of the paths.

    A shard stands there whole or not at all, so that after a kill the same call makes what is missing, and no picture
    is there twice. A picture that cannot be read has a row with its ``error``. Several devices share the shards.

    Args:
        run: the directory that the model is of; its ``config.json`` is hashed into every row.
        model: loaded from it.
        paths: of the pictures.
        out: a new or empty directory, or one that this call has begun.
        device: see `lficam.device.resolve_device`.
        devices: how many processes, one a device.
        shard_rows: pictures in a shard.

    Returns:
        ``pictures``, ``broken`` (rows with an error) and ``shards``; nothing in processes that are not the first.

    Raises:
        InvalidInputError: pyarrow is not installed, or no such device.
        RunError: ``out`` holds something else, or the explanations of another model or of other pictures.
    """
    try:
        from pyarrow import parquet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InvalidInputError(f"format: parquet needs pyarrow ({error}); pip install 'lficam[batch]'.") from error
    if shard_rows < 1:
        raise InvalidInputError(f"shard_rows: expected at least 1, got {shard_rows}.")
    accelerator, out = resolve_device(device, devices), Path(out)
    manifest = _manifest(Path(run), paths, shard_rows)
    if getattr(rank_zero_only, "rank", 0) == 0:
        _claim(out, manifest)
    count = -(-len(paths) // shard_rows)
    task = _ShardTask(model, [str(path) for path in paths], out, manifest)
    bar = _bar()
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[_ShardProgress(bar, count)],
        )
        try:
            trainer.predict(task, return_predictions=False)
        except SystemExit as stop:  # Lightning's answer to an interruption
            raise KeyboardInterrupt from stop
        finally:
            bar.stop()
    trainer.strategy.barrier()
    if not trainer.is_global_zero:
        return {}
    broken = sum(
        parquet.read_table(_shard(out, number), columns=["error"])["error"].drop_null().length()
        for number in range(count)
    )
    return {"pictures": len(paths), "broken": broken, "shards": count}


def _manifest(run: Path, paths: Sequence[Path], shard_rows: int) -> dict[str, Any]:
    """What the shards depend on."""
    listed = hashlib.sha256("\0".join(printable(path) for path in paths).encode()).hexdigest()
    model = hashlib.sha256((run / CONFIG_FILE).read_bytes()).hexdigest()
    return {"model": model, "pictures": len(paths), "paths_sha256": listed, "shard_rows": shard_rows}


def _claim(out: Path, manifest: dict[str, Any]) -> None:
    """Take a new or empty directory, or go on in one of the same manifest."""
    if out.exists() and not out.is_dir():
        raise RunError(f"out: {out} is a file; name a directory.")
    if (out / MANIFEST).is_file():
        if read_record(out / MANIFEST) != manifest:
            raise RunError(
                f"out: {out} holds explanations of another model or of other pictures; name a new directory. "
                "Nothing was changed."
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"out: {out} holds other content; name a new directory. Nothing was changed.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MANIFEST, manifest)


def _shard(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


class _ShardTask(pl.LightningModule):
    """A step is a shard; those that stand there already are passed over."""

    def __init__(self, model: PlainClassifier, paths: list[str], out: Path, manifest: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.paths, self.out, self.manifest = model, paths, out, manifest

    def predict_dataloader(self) -> DataLoader:
        """The numbers of this rank's shards; as many on every rank, for which some may lie behind the last."""
        steps = -(-len(self.paths) // (self.manifest["shard_rows"] * self.trainer.world_size))
        numbers = [self.global_rank + step * self.trainer.world_size for step in range(steps)]
        return DataLoader(numbers, batch_size=1)  # type: ignore[arg-type]

    def predict_step(self, batch: Tensor, batch_idx: int) -> None:
        """Write one."""
        number, rows = int(batch[0]), self.manifest["shard_rows"]
        path, pictures = _shard(self.out, number), self.paths[number * rows : (number + 1) * rows]
        if pictures and not path.exists():
            _write(path, self.model, pictures, self.manifest["model"])


def _write(path: Path, model: PlainClassifier, pictures: list[str], model_hash: str) -> None:
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow import parquet  # noqa: PLC0415

    rows = []
    for picture, found in zip(pictures, explain_images(model, pictures), strict=True):
        row: dict[str, Any] = {"path": printable(picture), "model": model_hash}
        if isinstance(found, DataError):
            rows.append({**row, "error": printable(str(found))})
            continue
        told = {name: value for name, value in found.to_dict().items() if name != "path"}
        rows.append({**row, **told, **_map("evidence", found.evidence), **_map("attention", found.attention)})
    number, maps = pa.float32(), pa.list_(pa.float16())
    top = pa.list_(pa.struct([("label", pa.string()), ("probability", number)]))
    words = dict.fromkeys(("path", "error", "label", "map", "model"), pa.string())
    numbers = dict.fromkeys(("peak", "box", "seen"), pa.list_(number)) | {"probability": number, "top5": top}
    grids = {"evidence": maps, "attention": maps} | dict.fromkeys(
        ("evidence_grid", "attention_grid"), pa.list_(pa.int32())
    )
    table = pa.Table.from_pylist(rows, schema=pa.schema(list({**words, **numbers, **grids}.items())))
    with whole_file(path) as file:
        parquet.write_table(table, file, compression="zstd")


def _map(name: str, values: Tensor | None) -> dict[str, Any]:
    """A map as its cells, row by row, and the grid that they are of."""
    if values is None:
        return {}
    return {name: values.flatten().numpy().astype(np.float16), f"{name}_grid": list(values.shape[1:])}


def _bar() -> Progress:
    columns = (TextColumn("explaining"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    return progress_bar(*columns, TimeRemainingColumn(compact=True))


class _ShardProgress(pl.Callback):
    """A bar of shards, of the first rank's share."""

    def __init__(self, bar: Progress, count: int) -> None:
        self.bar, self.count = bar, count

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show it."""
        if trainer.is_global_zero:
            self.task = self.bar.add_task("explaining", total=-(-self.count // trainer.world_size))
            self.bar.start()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on."""
        if trainer.is_global_zero:
            self.bar.advance(self.task)


def read_map(row: dict[str, Any], name: str) -> np.ndarray | None:
    """A map of a row as `explain_to_parquet` wrote it, (h, w) float32; None where there is none.

    >>> read_map({"evidence": [1.0, 2.0], "evidence_grid": [1, 2]}, "evidence").tolist()
    [[1.0, 2.0]]
    """
    values = row.get(name)
    return None if values is None else np.asarray(values, np.float32).reshape(row[f"{name}_grid"])
