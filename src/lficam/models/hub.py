"""A model as a directory: ``config.json`` and ``model.safetensors``, never a pickle."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

import lficam
from lficam.errors import RunError
from lficam.files import read_record, write_json, write_whole

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
    write_whole(directory / WEIGHTS_FILE, weights)
    write_json(directory / CONFIG_FILE, signed)
    return directory


def read(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, and the weights that it vouches for.

    Raises:
        RunError: no run there, a damaged file, or weights that do not match their checksum.
    """
    config = read_record(Path(directory) / CONFIG_FILE)
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
