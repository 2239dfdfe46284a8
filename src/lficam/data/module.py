"""The Lightning data module: batches of uint8 from memory, normalised on the device."""

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from lficam.contract import Preprocessing
from lficam.data.pictures import OnDemand, Pictures
from lficam.data.sampling import EpochSampler, Key, spread, uniform_draws
from lficam.data.sources import Source
from lficam.data.transforms import (
    BATCH_AUGMENTATIONS,
    HIDING_DRAWS,
    RESIZED_CROP_DRAWS,
    AugmentationName,
    hide_patch,
    normalise,
    resized_crop_flip,
)
from lficam.errors import DataError, UnknownNameError

Batch = tuple[Tensor, Tensor]


class TrainingSet(Dataset[Batch]):
    """Augmented uint8 batches of the keys that `EpochSampler` deals out.

    Args:
        pictures: the training part.
        preprocessing: gives the size.
        augmentation: ``none``, ``crop``, ``crop_flip`` (on prepared pictures, a batch at a time) or
            ``resized_crop_flip`` (on the pictures in their own size, one at a time).
        seed: of the augmentation.
        hidden_patch: share of the pictures that lose a patch, see `hide_patch`.
    """

    def __init__(
        self,
        pictures: Pictures,
        preprocessing: Preprocessing,
        augmentation: AugmentationName,
        seed: int,
        hidden_patch: float = 0.0,
    ) -> None:
        known = [*BATCH_AUGMENTATIONS, "resized_crop_flip"]
        if augmentation not in known:
            raise UnknownNameError("augmentation", augmentation, known)
        by_batch = augmentation in BATCH_AUGMENTATIONS
        self.pictures = pictures.prepare_all(preprocessing) if by_batch else pictures
        self.preprocessing, self.augmentation, self.seed = preprocessing, augmentation, seed
        self.hidden_patch = hidden_patch

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Images (N, 3, S, S) uint8 and labels (N,) of some keys."""
        images = self._augmented(keys)
        if self.hidden_patch:
            # A stream of its own: with and without hidden patches the crops are the same.
            draws = uniform_draws(self.seed + 1, keys, HIDING_DRAWS)
            images = hide_patch(images, draws, self.hidden_patch, self.preprocessing.mean)
        return images, self.pictures.labels[[key.position for key in keys]]

    def _augmented(self, keys: Sequence[Key]) -> Tensor:
        indices = [key.position for key in keys]
        if self.augmentation == "resized_crop_flip":
            draws = uniform_draws(self.seed, keys, RESIZED_CROP_DRAWS)
            size = self.preprocessing.size
            crops = [resized_crop_flip(self.pictures.images[i], d, size) for i, d in zip(indices, draws, strict=True)]
            return torch.stack(crops)
        augmentation = BATCH_AUGMENTATIONS[self.augmentation]
        images = self.pictures.prepared(indices, self.preprocessing)
        return augmentation.apply(images, uniform_draws(self.seed, keys, augmentation.draws))


class EvaluationSet(Dataset[Batch]):
    """Prepared uint8 batches, nothing drawn; a rank's share is every world-th picture, never padded."""

    def __init__(self, pictures: Pictures, preprocessing: Preprocessing, rank: int = 0, world: int = 1) -> None:
        mine = torch.arange(rank, len(pictures), world)
        self.pictures = (pictures.select(mine) if world > 1 else pictures).prepare_all(preprocessing)
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images (N, 3, S, S) uint8 and labels (N,)."""
        return self.pictures.prepared(indices, self.preprocessing), self.pictures.labels[list(indices)]


def _as_it_is(batch: Any) -> Any:
    return batch


class ImageData(pl.LightningDataModule):
    """Training and validation batches of a source.

    Args:
        source: with a training part.
        preprocessing: size and normalisation.
        batch_size: over all ranks together.
        augmentation: see `TrainingSet`.
        seed: of order and augmentation.
        workers: loading processes; 0 is fastest for sets in memory.
        hidden_patch: see `TrainingSet`.
        worker_timeout: seconds that a batch may take a worker beyond three times its own; 0: any time.

    Raises:
        DataError: no training pictures, or fewer than ranks.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        batch_size: int,
        augmentation: AugmentationName,
        seed: int,
        workers: int = 0,
        hidden_patch: float = 0.0,
        worker_timeout: float = 0.0,
    ) -> None:
        super().__init__()
        if source.train is None:
            raise DataError(f"data: {source.name} was loaded without training pictures.")
        self.validation, self.preprocessing = source.validation, preprocessing
        self.batch_size, self.seed, self.workers, self.worker_timeout = batch_size, seed, workers, worker_timeout
        self.training_set = TrainingSet(source.train, preprocessing, augmentation, seed, hidden_patch)

    def train_dataloader(self) -> DataLoader:
        """Shuffled from (seed, epoch); of an epoch that a resumed run is in, what is left."""
        sampler = self._sampler(self._done())
        return self._loader(self.training_set, sampler, sampler.batch)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the training pictures' names and labels: the order of an epoch is one of these pictures alone."""
        pictures = self.training_set.pictures
        listed = "\0".join((*pictures.names, *map(str, pictures.labels.tolist())))
        return hashlib.sha256(listed.encode()).hexdigest()

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self._sampler().steps

    def names(self, epoch: int, step: int) -> list[str]:
        """The pictures that this process sees in a step."""
        sampler = self._sampler()
        sampler.set_epoch(epoch)
        return [self.training_set.pictures.names[key.position] for key in sampler.keys(step)]

    def val_dataloader(self) -> list[DataLoader]:
        """The validation part in order; no loader where there is none."""
        if self.validation is None:
            return []
        pictures = EvaluationSet(self.validation, self.preprocessing, *self._place())
        return [self._loader(pictures, SequentialSampler(pictures), max(self.batch_size, 128))]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise on the device, channels last."""
        images, labels = batch
        images = normalise(images, self.preprocessing)
        return images.contiguous(memory_format=torch.channels_last), labels

    def _sampler(self, done: tuple[int, int] = (0, 0)) -> EpochSampler:
        return EpochSampler(len(self.training_set), self.seed, self.batch_size, *self._place(), done)

    def _done(self) -> tuple[int, int]:
        """The epoch and its finished steps as a checkpoint tells, which was made between two steps or two epochs."""
        if self.trainer is None:
            return 0, 0
        epoch, steps = self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return epoch, steps if steps < self.steps else 0

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _patience(self, pictures: Any, batch_size: int) -> float:
        """Seconds until a loading process counts as hung: some, and three times what a batch takes in this one."""
        if not (self.workers and self.worker_timeout):
            return 0
        if not isinstance(pictures.pictures.images, OnDemand):
            return self.worker_timeout
        started = time.perf_counter()
        for position in spread(len(pictures.pictures), 3).tolist():
            with contextlib.suppress(DataError):  # it is told where it is met
                pictures.pictures.images[position]
        return self.worker_timeout + 3 * batch_size * (time.perf_counter() - started) / 3

    def _loader(self, pictures: Dataset[Batch], sampler: Any, batch_size: int) -> DataLoader:
        return DataLoader(
            pictures,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            timeout=self._patience(pictures, batch_size),
            collate_fn=_as_it_is,
            persistent_workers=self.workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            multiprocessing_context="fork" if self.workers and os.name == "posix" else None,
        )
