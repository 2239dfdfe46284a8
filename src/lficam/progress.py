"""Progress bars on long work: on standard error, and only where somebody can watch."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn

T = TypeVar("T")


def progress_bar(*columns: ProgressColumn, transient: bool = True) -> Progress:
    """A bar that draws nothing into logs and pipes."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=transient, disable=not console.is_terminal)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """The items, under a bar that goes when they are done."""
    with progress_bar() as bar:
        yield from bar.track(items, total=total, description=description)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's hints are for those who write training scripts; our users have a bar and plain errors."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", module="lightning_fabric")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
