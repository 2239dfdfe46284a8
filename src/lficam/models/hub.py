"""A model as a directory: ``config.json`` and ``model.safetensors``, never a pickle; and on Hugging Face's hub."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
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


def newer_version(directory: str | Path) -> str:
    """What to do about a directory that a later version wrote; empty where it is none."""
    written = str(read_record(Path(directory) / CONFIG_FILE).get("lficam_version", ""))

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".") if part.isdecimal()]

    if numbers(written) <= numbers(lficam.__version__):
        return ""
    return f" It was written by lficam {written}, this is {lficam.__version__}: upgrade."


def card(config: Mapping[str, Any], repo_id: str, told: str = "") -> str:
    """A model card: what the model is, how to use it, and what is ``told`` of it in Markdown."""
    own_code = ", model=YOUR_NETWORK" if ":" in config["backbone"] else ""
    names = ", ".join(config["class_names"][:20]) + (" ..." if len(config["class_names"]) > 20 else "")
    return f"""---
library_name: lficam
pipeline_tag: image-classification
tags: [image-classification, explainability, class-activation-map, lficam]
---

# {repo_id.rpartition("/")[2]}

An image classifier that explains itself, of lficam: {config["method"]} on
{config["backbone"]}, {config["num_classes"]} classes{f": {names}" if names else ""}.

```python
import lficam

model = lficam.from_pretrained("{repo_id}"{own_code})
explanation = model.predict("PICTURE.jpg")
explanation.label, explanation.probability, explanation.evidence, explanation.attention
```

An attention map has no class and is no reason for a label. Class evidence, where the network ends in global average
pooling and one linear layer, is what the label's logit sums, place by place, on the last grid.
{told}"""


@contextmanager
def plain_errors(repo_id: str) -> Iterator[None]:
    """What the hub refuses, as one sentence."""
    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"hub: {repo_id} cannot be read or written ({reason}); mend the name, log in with hf auth login, or try "
            "again when the network is there."
        ) from error
