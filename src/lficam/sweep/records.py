"""What a sweep leaves for later: records, one JSON object a line, and raw maps on their small grids."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lficam import functional as LF
from lficam.errors import RunError
from lficam.explainers import EXPLAINERS
from lficam.files import write_whole
from lficam.sweep.plan import Sweep, slug


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a record file; none where there is no file yet.

    Raises:
        RunError: a damaged file.
    """
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise RunError(f"sweep: {path} is damaged ({error}); restore it.") from error


def write_records(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the rows in place of what the file holds."""
    write_whole(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def maps_file(sweep: Sweep, variant: str, run: int) -> Path:
    """The raw maps of a run, and its pictures' labels."""
    return sweep.path.parent / "maps" / f"{slug(variant, run)}.npz"


def shown_maps(maps: Tensor, name: str, side: int) -> Tensor:
    """Raw maps as an explainer normalises them."""
    return LF.min_max(LF.upsample(maps.relu() if EXPLAINERS[name].signed else maps, (side, side)))
