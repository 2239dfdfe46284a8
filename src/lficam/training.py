"""From a recipe to a run directory: the Lightning task, resumption, and the files that a run leaves."""

import csv
import io
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import yaml
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from lficam.checkpoints import (
    BEST,
    KeepCheckpoints,
    Terminated,
    VerifiedCheckpointIO,
    last_checkpoint,
    read_checkpoint,
)
from lficam.contract import ModelConfig, Prediction, Preprocessing
from lficam.data.module import Batch, ImageData
from lficam.data.sampling import step_seed
from lficam.data.sources import Source, load_source, shown_source
from lficam.device import native_bfloat16, resolve_device
from lficam.errors import DataError, InvalidInputError, LficamWarning, RunError
from lficam.files import read_record, write_json, write_whole
from lficam.models.factory import build, load
from lficam.models.plain import PlainClassifier
from lficam.models.wrapped import is_factory_name
from lficam.progress import progress_bar, quiet_lightning
from lficam.recipes import Recipe, recipe_from_values
from lficam.retrofit import compare_with, freeze_backbone, pretrained_classifier, start_from

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.json"
CURVES_FILE = "metrics.csv"
CHECKPOINTS = "checkpoints"
LEFT_OUT_FILE = "left-out.txt"
# How a run is made, not what comes out of it: a resumed run may have others.
_MAY_CHANGE = ("workers", "worker_timeout", "checkpoint_minutes")


@dataclass
class Run:
    """A finished run.

    Attributes:
        directory: where it is.
        model: trained, in eval mode, on the CPU.
        metrics: the content of ``metrics.json``.
        is_main: whether this process speaks for all; one of several does.
    """

    directory: Path
    model: PlainClassifier
    metrics: dict[str, Any]
    is_main: bool = True


def classification_loss(prediction: Prediction, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the logits (section 3.4), plus that of the attention branch's own logits (ABN).

    >>> classification_loss(Prediction(torch.zeros(1, 2)), torch.tensor([0])).item() == torch.tensor(2.0).log().item()
    True
    """
    loss = F.cross_entropy(prediction.logits, labels, label_smoothing=label_smoothing)
    if prediction.attention_logits is not None:
        loss = loss + F.cross_entropy(prediction.attention_logits, labels, label_smoothing=label_smoothing)
    return loss


def learning_rate_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The rate at every step: the paper's (a tenth at 50 and again at 75 percent of the steps), or one cycle."""
    if recipe.schedule == "step":
        return MultiStepLR(optimizer, [max(steps // 2, 1), max(steps * 3 // 4, 1)], gamma=0.1)
    steps = max(steps, 2)
    # torch divides by the length of the rise, which must therefore be more than one step.
    rise = max(recipe.warmup, 1.5 / steps)
    return OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=rise, cycle_momentum=False)


class ClassificationTask(pl.LightningModule):
    """Train a model on labelled images with SGD; loss and accuracy per epoch.

    Args:
        model: of `lficam.create_model`.
        recipe: optimiser and schedule.
    """

    sums: Tensor

    def __init__(self, model: PlainClassifier, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.threads = torch.get_num_threads()
        # Loss times pictures, right answers, pictures; for training and validation. Summed on the device, read once an
        # epoch. No buffer: those of rank 0 are sent to all ranks.
        self.sums = torch.zeros(2, 3)

    def on_fit_start(self) -> None:
        """Start counting, or go on: what all ranks had counted is the first one's."""
        self.sums = self.sums.to(self.device) if self.global_rank == 0 else torch.zeros(2, 3, device=self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a run needs to go on to the bit: the sums of its epoch, and the threads, which change rounding."""
        checkpoint["sums"] = torch.tensor([self._over_all_ranks(sums) for sums in self.sums])
        checkpoint["threads"] = self.threads
        checkpoint["pictures"] = self.trainer.datamodule.fingerprint  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them.

        Raises:
            RunError: the training pictures are not those that the run began with.
        """
        if checkpoint["pictures"] != self.trainer.datamodule.fingerprint:  # type: ignore[attr-defined]
            raise RunError(
                "out: the run there was begun with other training pictures; restore them, or name a new directory."
            )
        self.sums = checkpoint["sums"]
        self.threads = checkpoint["threads"]
        torch.set_num_threads(self.threads)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """What is random inside a step depends on its number alone."""
        torch.manual_seed(step_seed(self.recipe.seed, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step's loss.

        Raises:
            RunError: it is not finite; weights after it would be none either.
        """
        loss = self._loss(batch, self.sums[0])
        if not torch.isfinite(loss):
            raise RunError(self._divergence(loss.item(), batch_idx))
        return loss

    def _divergence(self, loss: float, batch_idx: int) -> str:
        names = self.trainer.datamodule.names(self.current_epoch, batch_idx)  # type: ignore[attr-defined]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return (
            f"training diverged: the loss is {loss} at step {self.global_step + 1}, epoch {self.current_epoch + 1}, on "
            f"{shown}. The checkpoint before it is kept; start in a new directory with a lower --lr."
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect loss and accuracy."""
        self._loss(batch, self.sums[1])

    def on_validation_epoch_end(self) -> None:
        """Make ``val_accuracy`` known to the checkpoint that keeps the best."""
        _, right, count = self._over_all_ranks(self.sums[1])
        self.log("val_accuracy", right / count)

    def epoch_means(self) -> dict[str, float]:
        """The epoch's figures over all ranks; validation's only where there is some. Starts the next epoch."""
        figures: dict[str, float] = {}
        for part, sums in zip(("train", "val"), self.sums, strict=True):
            loss, right, count = self._over_all_ranks(sums)
            if count:
                figures |= {f"{part}_loss": loss / count, f"{part}_accuracy": right / count}
        self.sums.zero_()
        return figures

    def means_so_far(self) -> tuple[float, float]:
        """Training loss and accuracy of this rank in this epoch; asks no other rank, so any one may call it."""
        loss, right, count = self.sums[0].tolist()
        return loss / count, right / count

    def configure_optimizers(self) -> Any:
        """SGD; the paper's steps at 50 and 75 percent of the epochs, or one cycle."""
        recipe = self.recipe
        optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
        # Lightning's own estimate would start the loaders before a checkpoint has told where to go on.
        steps = recipe.epochs * self.trainer.datamodule.steps  # type: ignore[attr-defined]
        schedule = learning_rate_schedule(recipe, optimizer, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _loss(self, batch: Batch, sums: Tensor) -> Tensor:
        images, labels = batch
        prediction = self.model.explain(images)
        loss = classification_loss(prediction, labels, self.recipe.label_smoothing)
        right = (prediction.logits.argmax(dim=1) == labels).sum()
        count = torch.tensor(len(labels), device=sums.device)
        sums += torch.stack((loss.detach() * count, right, count)).to(sums.dtype)
        return loss

    def _over_all_ranks(self, sums: Tensor) -> list[float]:
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum").tolist()


class RunFiles(pl.Callback):
    """Append a row an epoch to ``metrics.csv``; a resumed run drops the rows that it is about to make again."""

    FIELDS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds", "images_per_second")

    def __init__(self, directory: Path) -> None:
        self.path = directory / CURVES_FILE
        self.seen = 0
        self.started = 0.0
        self.elapsed = 0.0
        self.rate = 0.0
        self.lr = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What the row of an epoch needs of the part of it that is over."""
        return {"seen": self.seen, "elapsed": time.perf_counter() - self.started, "lr": self.lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.seen, self.elapsed, self.lr = state_dict["seen"], state_dict["elapsed"], state_dict["lr"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock where a resumed epoch stands, and keep the rows of finished epochs only."""
        self.started = time.perf_counter() - self.elapsed
        if trainer.is_global_zero:
            rows = [row for row in read_curves(self.path.parent) if int(row["epoch"]) < trainer.current_epoch]
            self._write(rows)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self.FIELDS)
        writer.writeheader()
        writer.writerows(rows)
        try:
            write_whole(self.path, table.getvalue())
        except OSError as error:
            raise RunError(f"run: {self.path} could not be written ({error}); make room, and go on.") from error

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; note the rate before the epoch's schedule moves it."""
        self.started, self.seen = time.perf_counter(), 0
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count pictures; validation time does not count."""
        self.seen += len(batch[1]) * trainer.world_size
        self.rate = self.seen / (time.perf_counter() - self.started)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row, and tell the loggers."""
        assert isinstance(pl_module, ClassificationTask)
        figures = pl_module.epoch_means()
        figures |= {
            "lr": self.lr,
            "seconds": time.perf_counter() - self.started,
            "images_per_second": self.rate,
        }
        if trainer.is_global_zero:
            self._write([*read_curves(self.path.parent), {"epoch": trainer.current_epoch, **figures}])
            for logger in trainer.loggers:
                logger.log_metrics(figures, trainer.global_step)


class TrainingProgress(pl.Callback):
    """One bar for the whole training: epoch, loss, accuracy, images a second, time left; a line an epoch in a log."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, where a resumed run stands."""
        if not trainer.is_global_zero:
            return
        left = (TimeRemainingColumn(compact=True), TextColumn("left"))
        self.bar = progress_bar(TextColumn("{task.description}"), BarColumn(bar_width=12), *left)
        total = int(trainer.estimated_stepping_batches)
        self.task = self.bar.add_task("training", total=total, completed=trainer.global_step)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move on; the figures are refreshed every 10 steps."""
        if self.bar is None:
            return
        self.bar.advance(self.task)
        if batch_idx % 10 == 0:
            assert isinstance(pl_module, ClassificationTask)
            loss, right = pl_module.means_so_far()
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            figures = f"loss {loss:.3f}  accuracy {right:.1%}  {self.files.rate:.0f} images/s"
            self.bar.update(self.task, description=f"{epoch}  {figures}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave a line behind."""
        if self.bar is not None:
            row = read_curves(self.files.path.parent)[-1]
            held = f"  validation {float(row['val_accuracy']):.1%}" if row["val_accuracy"] else ""
            self.bar.console.print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {float(row['train_loss']):.3f}  "
                f"accuracy {float(row['train_accuracy']):.1%}{held}  {float(row['images_per_second']):.0f} images/s  "
                f"{float(row['seconds']):.0f} s",
                highlight=False,
            )

    def close(self) -> None:
        """Take the bar away, however training ended."""
        if self.bar is not None:
            self.bar.stop()


def read_curves(directory: Path) -> list[dict[str, str]]:
    """The rows of a run's ``metrics.csv``; none where there is no such file yet."""
    path = directory / CURVES_FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fit(recipe: Recipe, out: str | Path, resume: str = "auto", source: Source | None = None) -> Run:
    """Train a model by a recipe and leave a run directory.

    Args:
        recipe: what to train, on what, how.
        out: the run directory: new, empty, or a run of the same recipe.
        resume: ``auto`` goes on where the run in ``out`` stopped (a finished one is returned as it is), ``never``
            asks for a new or empty directory.
        source: the data, if it is loaded already; else ``recipe.data`` is.

    Returns:
        The run; its model is in eval mode on the CPU, with the weights of the best validation accuracy, or the last
        ones where there is no validation part. The test part is not touched, but to say at the end what a retrofit
        (``init_from``) changed.

    Raises:
        InvalidInputError: a setting out of its range.
        DataError: data that cannot be trained on.
        RunError: ``out`` holds something else, or a run of another recipe; or the training diverged.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for colour in ("red", "blue"):
    ...     (root / "data" / colour).mkdir(parents=True)
    ...     for number in range(2):
    ...         Image.new("RGB", (16, 16), colour).save(root / "data" / colour / f"{number}.png")
    >>> recipe = Recipe(data=f"folder:{root}/data", image_size=16, epochs=1, batch_size=2, val_fraction=0.0)
    >>> fit(recipe, root / "run").model.config.class_names
    ['blue', 'red']
    """
    recipe.check()
    resolve_device(recipe.device, recipe.devices)
    directory = Path(out)
    is_main = getattr(rank_zero_only, "rank", 0) == 0
    if is_main:
        _require_free(directory, recipe, resume)
    if (directory / METRICS_FILE).is_file():
        return _open(directory, recipe)
    source = source or load_source(recipe.data, recipe.image_size, recipe.val_fraction, recipe.seed)
    _require_enough(source, recipe.devices)
    pl.seed_everything(recipe.seed, verbose=False)
    preprocessing = preprocessing_of(recipe)
    model = build(_model_config(recipe, source, preprocessing), recipe.model.pretrained and not recipe.init_from)
    model.check_images(torch.empty(1, 3, recipe.image_size, recipe.image_size))
    last = last_checkpoint(directory / CHECKPOINTS)
    before = _classifier_before(model, recipe, resumed=last is not None)
    data = ImageData(
        source,
        preprocessing,
        recipe.batch_size,
        recipe.augmentation,
        recipe.seed,
        recipe.workers,
        recipe.hidden_patch,
        recipe.worker_timeout,
    )
    task = ClassificationTask(model, recipe)
    if is_main:
        directory.mkdir(parents=True, exist_ok=True)
        _write_left_out(directory / LEFT_OUT_FILE, source)
        write_whole(directory / RECIPE_FILE, yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    trainer, keeper, progress = _trainer(recipe, directory)
    _set_modes(model, recipe)
    model.to(memory_format=torch.channels_last)
    with quiet_lightning(), _threads_given_back():
        try:
            trainer.fit(task, datamodule=data, ckpt_path=last, weights_only=True)
        except Terminated:
            raise
        except SystemExit as stop:  # Lightning's answer to an interruption
            raise KeyboardInterrupt from stop
        except (RuntimeError, DataError) as error:
            raise _told(error, recipe) from error
        finally:
            progress.close()
            keeper.release()
    if trainer.is_global_zero:
        metrics = _choose_weights(directory, task, trainer, source)
        model.save_pretrained(directory)  # before anything else is tried: it is what the training was for
        if before is not None:
            metrics["retrofit"] = compare_with(before, model, source.test, resolve_device(recipe.device))
        write_json(directory / METRICS_FILE, metrics)  # last of all: with it the run is finished
    trainer.strategy.barrier()
    return _open(directory, recipe, trainer.is_global_zero)


def _told(error: RuntimeError | DataError, recipe: Recipe) -> Exception:
    """What is said of loading, also by PyTorch of its loading processes, in our words; another error as it is."""
    if isinstance(error, DataError):
        reason = str(error).splitlines()[-1].removeprefix(f"{DataError.__module__}.{DataError.__qualname__}: ")
        return DataError(f"{reason} lficam scan FOLDER --quarantine true leaves such files out.")
    if not any(words in str(error) for words in ("timed out", "exited unexpectedly", "killed by signal")):
        return error
    how = "took more than --worker_timeout" if "timed out" in str(error) else "died"
    seconds = f" {recipe.worker_timeout:g} s" if "timed out" in str(error) else ""
    return RunError(
        f"workers: a loading process {how}{seconds} ({str(error).splitlines()[0]}); the same command goes on after the "
        "last checkpoint, with --workers 0 without such processes."
    )


def _write_left_out(path: Path, source: Source) -> None:
    """The files that were left out because they could not be read; no list where there are none."""
    parts = [source.train, source.test, *([source.validation] if source.validation else [])]
    broken = dict.fromkeys(reason for part in parts if part is not None for reason in part.broken)
    if broken:
        write_whole(path, "\n".join(broken) + "\n")


def _classifier_before(model: PlainClassifier, recipe: Recipe, resumed: bool) -> PlainClassifier | None:
    """The trained classifier that the training starts from, its weights now in the model; None where there is none."""
    if recipe.init_from and resumed and not Path(recipe.init_from).is_dir():
        return None  # the checkpoint has all weights; there is only nothing left to compare with
    if recipe.init_from:
        return start_from(model, recipe.init_from)
    return pretrained_classifier(model) if recipe.model.pretrained else None


def _model_config(recipe: Recipe, source: Source, preprocessing: Preprocessing) -> ModelConfig:
    return ModelConfig(
        backbone=recipe.model.backbone,
        backbone_args=_backbone_args(recipe),
        method=recipe.model.method,
        options=recipe.model.method_options(),
        num_classes=len(source.test.class_names),
        class_names=list(source.test.class_names),
        preprocessing=preprocessing,
    )


def _backbone_args(recipe: Recipe) -> dict[str, Any]:
    """The user's own network is tried at the size of the training's pictures, unless another is named."""
    size = {"image_size": recipe.image_size} if is_factory_name(recipe.model.backbone) else {}
    return {**size, **recipe.model.backbone_args}


def _require_free(directory: Path, recipe: Recipe, resume: str) -> None:
    """Accept a new or empty directory, or a run of the same recipe; refuse anything else before any work."""
    if resume not in ("auto", "never"):
        raise InvalidInputError(f"resume: expected 'auto' or 'never', got {resume!r}.")
    if directory.exists() and not directory.is_dir():
        raise RunError(f"out: {directory} is a file; name a directory.")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    path = directory / RECIPE_FILE
    if not path.is_file():
        raise RunError(f"out: {directory} holds other content; name a new or empty directory. Nothing was changed.")
    if resume == "never":
        raise RunError(f"out: {directory} holds a run already; name another directory, or pass --resume auto.")
    _require_same(path, recipe)


def _require_same(path: Path, recipe: Recipe) -> None:
    # A run of an earlier version has no word on settings that came later: they are at their defaults.
    stored, asked = recipe_from_values(read_record(path)).to_dict(), recipe.to_dict()
    for values in (stored, asked):
        values["init_from"] = values["init_from"] and str(Path(values["init_from"]).resolve())
    started = (path.parent / CHECKPOINTS).is_dir() or (path.parent / METRICS_FILE).is_file()
    changed = [key for key in asked if stored[key] != asked[key] and key not in _MAY_CHANGE]
    if started and changed:
        key = changed[0]
        raise RunError(
            f"out: {path.parent} holds a run with {key} {stored[key]}, not {asked[key]}; "
            "name another directory, or ask for the same settings."
        )


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """What a recipe's pictures pass before the network."""
    return Preprocessing(recipe.image_size, recipe.resize or recipe.image_size, recipe.mean, recipe.std)


def _require_enough(source: Source, processes: int) -> None:
    for part, pictures in (("training", source.train), ("validation", source.validation)):
        if pictures is not None and len(pictures) < processes:
            raise DataError(
                f"data: {source.name} has {len(pictures)} {part} pictures for {processes} processes; "
                "ask for fewer --devices."
            )


def _set_modes(model: PlainClassifier, recipe: Recipe) -> None:
    """Training mode, which Lightning leaves to us; frozen parts stay in eval mode."""
    model.train()
    if recipe.freeze == "batch_norm":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    if recipe.freeze == "backbone":
        freeze_backbone(model)
    if recipe.freeze == "fin":
        model.get_submodule("fin").eval().requires_grad_(False)


def _trainer(recipe: Recipe, directory: Path) -> tuple[pl.Trainer, KeepCheckpoints, TrainingProgress]:
    device = resolve_device(recipe.device)
    bfloat16 = recipe.precision == "bf16" or (recipe.precision == "auto" and native_bfloat16(device))
    keeper = KeepCheckpoints(directory / CHECKPOINTS, recipe.checkpoint_minutes)
    files = RunFiles(directory)
    progress = TrainingProgress(files)
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator=device,
            devices=recipe.devices,
            strategy=_strategy(recipe),
            precision="bf16-mixed" if bfloat16 else "32-true",
            max_epochs=recipe.epochs,
            # The row of an epoch is written before its checkpoint, so that a resumed run never misses one.
            callbacks=[files, progress, keeper],
            plugins=[VerifiedCheckpointIO()],
            enable_checkpointing=False,
            logger=TensorBoardLogger(directory, name="tensorboard", version=""),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            log_every_n_steps=50,
        )
    return trainer, keeper, progress


def _strategy(recipe: Recipe) -> str:
    if recipe.devices == 1:
        return "auto"
    # The user's own network may have layers that its forward function leaves out.
    return "ddp_find_unused_parameters_true" if is_factory_name(recipe.model.backbone) else "ddp"


@contextmanager
def _threads_given_back() -> Iterator[None]:
    """A resumed training takes the threads that it began with; what comes after has those of its process again."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _best_checkpoint(path: Path) -> dict[str, Any] | None:
    """The best weights; where they are damaged or gone, None and a warning: the last ones are whole."""
    try:
        return read_checkpoint(path)
    except RunError as error:
        warnings.warn(f"{error} The last weights are taken.", LficamWarning, stacklevel=2)
        return None


def _chosen_by(validated: bool, checkpoint: Any) -> str:
    if not validated:
        return "last epoch (no validation part)"
    return "best accuracy on the validation part" if checkpoint else "last epoch (the best checkpoint was damaged)"


def _choose_weights(directory: Path, task: ClassificationTask, trainer: pl.Trainer, source: Source) -> dict[str, Any]:
    """Give the model its best or last weights and the facts of its training; returns what metrics.json tells."""
    model, recipe, validated = task.model, task.recipe, source.validation is not None
    curves = read_curves(directory)
    chosen = len(curves) - 1
    checkpoint = _best_checkpoint(directory / CHECKPOINTS / BEST) if validated else None
    if checkpoint is not None:
        chosen = checkpoint["epoch"]
        model.load_state_dict(checkpoint["state_dict"])
    metrics = {
        "epochs": recipe.epochs,
        "chosen_epoch": chosen,
        "chosen_by": _chosen_by(validated, checkpoint),
        "val_accuracy": float(curves[chosen]["val_accuracy"]) if validated else None,
        "train_accuracy": float(curves[chosen]["train_accuracy"]),
        "train_loss": float(curves[chosen]["train_loss"]),
        "training_seconds": round(sum(float(row["seconds"]) for row in curves), 1),
        "seconds_per_epoch": round(sum(float(row["seconds"]) for row in curves) / len(curves), 2),
    }
    model.config.training = {
        "data": shown_source(recipe.data),
        "listing_sha256": source.training_listing_sha256,
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "hidden_patch": recipe.hidden_patch,
        "precision": str(trainer.precision),
        "device": trainer.strategy.root_device.type,
        "processes": trainer.world_size,
        "threads": task.threads,
        "torch": torch.__version__,
        **{key: metrics[key] for key in ("chosen_epoch", "training_seconds")},
    }
    return metrics


def _open(directory: Path, recipe: Recipe, is_main: bool = True) -> Run:
    name = recipe.model.backbone
    model = load(directory, name if is_factory_name(name) else None)
    return Run(directory, model, read_record(directory / METRICS_FILE), is_main)
