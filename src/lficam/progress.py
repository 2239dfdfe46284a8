"""Progress bars on long work: on standard error, and only where somebody can watch."""

from collections.abc import Iterable, Iterator
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
