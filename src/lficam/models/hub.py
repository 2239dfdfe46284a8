"""A model as a directory: ``config.json`` and ``model.safetensors``, never a pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

import lficam
from lficam.errors import RunError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def write(directory: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Path:
    """Write configuration and weights, weights first, each file whole or not at all.

    Tensors are stored contiguous, whatever the model's memory format; the configuration holds their SHA-256.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = dump_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    signed = {
        "lficam_version": lficam.__version__,
        **config,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    _write_whole(directory / WEIGHTS_FILE, weights)
    _write_whole(directory / CONFIG_FILE, (json.dumps(signed, indent=2) + "\n").encode())
    return directory


def read(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, and the weights that it vouches for.

    Raises:
        RunError: no run there, a damaged file, or weights that do not match their checksum.
    """
    config = _read_config(Path(directory) / CONFIG_FILE)
    config.pop("lficam_version", None)
    expected = config.pop("weights_sha256", None)
    path = Path(directory) / WEIGHTS_FILE
    if not path.is_file():
        raise RunError(f"run: expected {WEIGHTS_FILE} beside {CONFIG_FILE}, got none in {directory}; train again.")
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != expected:
        raise RunError(f"run: {path} does not match its checksum in {CONFIG_FILE}; it is damaged, restore it.")
    try:
        return config, load_tensors(weights)
    except SafetensorError as error:
        raise RunError(f"run: {path} is no safetensors file ({error}); restore it.") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"run: expected a directory with {path.name}, got {path.parent}; train first, or mend the path.")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"run: {path} is damaged ({error}); restore it or train again.") from error
    if not isinstance(config, dict):
        raise RunError(f"run: {path} is damaged (no JSON object); restore it or train again.")
    return config


def _write_whole(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    beside.replace(path)
