"""Where to compute: the best device here, and what it computes natively."""

import torch

from lficam.errors import InvalidInputError


def resolve_device(device: str, count: int = 1) -> str:
    """``auto`` to the best device here, others checked.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        count: how many of them are wanted, one a process; processes may share a CPU.

    Raises:
        InvalidInputError: a device, or as many of it, that this machine does not have.

    >>> resolve_device("cpu", count=2)
    'cpu'
    """
    if count < 1:
        raise InvalidInputError(f"devices: expected at least 1, got {count}.")
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if device == "auto":
        device = next(name for name, number in here.items() if number)
    if device not in here or (here[device] < count and device != "cpu") or not here[device]:
        present = ", ".join(f"{number} {name}" for name, number in here.items() if number)
        raise InvalidInputError(f"device: got {count} x {device}, but this machine has {present}.")
    return device


def native_bfloat16(device: str) -> bool:
    """Whether bfloat16 is computed natively on ``cpu`` or ``cuda`` here; False where torch cannot tell."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
