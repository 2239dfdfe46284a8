"""Order from (seed, epoch), augmentation from (seed, epoch, position): no worker, rank or resume changes it."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class Key(NamedTuple):
    """One picture in one epoch: all that its augmentation may depend on, beside the seed."""

    epoch: int
    position: int


def spread(length: int, count: int) -> Tensor:
    """At most ``count`` positions spread over ``length`` of them, ends included, (n,) int64.

    >>> spread(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return torch.linspace(0, length - 1, min(count, length)).round().long()


@functools.lru_cache(maxsize=64)
def _stream(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of all that is random inside one training step, such as dropout: a resumed run draws what it would have drawn."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def uniform_draws(seed: int, keys: Sequence[Key], count: int) -> Tensor:
    """``count`` numbers in [0, 1) for each key, (N, count) float32, the same whatever stands beside it in a batch.

    >>> alone = uniform_draws(0, [Key(3, 7)], 2)
    >>> bool((uniform_draws(0, [Key(0, 1), Key(3, 7)], 2)[1] == alone[0]).all())
    True
    """
    generator = torch.Generator()
    draws = torch.empty(len(keys), count)
    for row, (epoch, position) in zip(draws, keys, strict=True):
        # Seeds of one epoch are consecutive, so no two pictures share one; the generator reads 32 bits.
        generator.manual_seed((_stream(seed, epoch) + position) % 2**32)
        torch.rand(count, generator=generator, out=row)
    return draws


class EpochSampler(Sampler[Key]):
    """The keys of one epoch, shuffled from (seed, epoch) and shared out among the ranks.

    Rank r takes every world-th key from the r-th on, so that the ranks' batches of B / world are together the batch
    of B that a single process would see. Training drops what does not fill a global batch (never the only one).

    Args:
        size: number of pictures.
        seed: of the order.
        global_batch: B, over all ranks.
        rank: this process.
        world: number of processes.
        done: (epoch, steps): a resumed run has taken so many steps of that epoch already.

    >>> sampler = EpochSampler(5, seed=0, global_batch=2)
    >>> sampler.set_epoch(3)
    >>> [key.epoch for key in sampler]
    [3, 3, 3, 3]
    """

    def __init__(
        self, size: int, seed: int, global_batch: int, rank: int = 0, world: int = 1, done: tuple[int, int] = (0, 0)
    ) -> None:
        self.size, self.seed, self.rank, self.world = size, seed, rank, world
        self.batch, self.done = global_batch // world, done
        self.used = size // global_batch * global_batch or size // world * world
        self.epoch = done[0]  # loading processes may read ahead before anybody sets it

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Pictures of a whole epoch, also where a part of it is done."""
        return self.used // self.world

    @property
    def steps(self) -> int:
        """Of a whole epoch."""
        return -(-len(self) // self.batch)

    def __iter__(self) -> Iterator[Key]:
        epoch, steps = self.done
        return iter(self._keys()[steps * self.batch if epoch == self.epoch else 0 :])

    def keys(self, step: int) -> list[Key]:
        """What this process sees in one step of the epoch."""
        return self._keys()[step * self.batch : (step + 1) * self.batch]

    def _keys(self) -> list[Key]:
        generator = torch.Generator().manual_seed(_stream(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)[: self.used]
        return [Key(self.epoch, position) for position in order[self.rank :: self.world].tolist()]
