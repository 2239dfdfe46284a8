"""Records on disk: written whole or not at all, read with a plain error."""

import json
from pathlib import Path
from typing import Any

import yaml

from lficam.errors import RunError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    beside.replace(path)


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
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(
            f"run: {path} is damaged ({' '.join(str(error).split())}); restore it or train again."
        ) from error
    if not isinstance(values, dict):
        raise RunError(f"run: {path} is damaged (no mapping of names to values); restore it or train again.")
    return values
