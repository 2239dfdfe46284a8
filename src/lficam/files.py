"""Records on disk: written whole or not at all, read with a plain error."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from lficam.errors import RunError


@contextmanager
def whole_file(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write into that stands under its name complete and on the disk, or not at all.

    It is written beside its place, so that no other disk is involved, and what stood there stays until it is replaced.

    Args:
        path: of the file.
        keep: where what stood there goes; None: nowhere.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "record"
    >>> with whole_file(target) as file:
    ...     _ = file.write(b"all of it")
    >>> target.read_bytes()
    b'all of it'
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """A new name is on the disk when its directory is; not every system lets one ask for that."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: str | bytes) -> None:
    """A text or bytes as a `whole_file`."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, values: Any) -> None:
    """`write_whole` of indented JSON; NaN, which JSON does not have, is an error."""
    write_whole(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A mapping from a JSON or YAML file of a run.

    Raises:
        RunError: no such file, or a damaged one.
    """
    if not path.is_file():
        raise RunError(f"run: expected a run with {path.name}, got {path.parent}; train first, or mend the path.")
    try:
        text = path.read_text()
        values = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise RunError(
            f"run: {path} is damaged ({' '.join(str(error).split())}); restore it or train again."
        ) from error
    if not isinstance(values, dict):
        raise RunError(f"run: {path} is damaged (no mapping of names to values); restore it or train again.")
    return values
