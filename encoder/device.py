"""Which device to compute on, and whether it computes in bfloat16 natively."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from encoder.contract import Precision
from encoder.errors import UsageError


def choose_device(name: str | None) -> torch.device:
    """Resolve a device name; None takes CUDA where present, else the CPU.

    Raises:
        UsageError: the name is none, or the device is absent.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device.", fix="Use cpu, cuda or cuda:0.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"Device {name} was asked for, but PyTorch finds no CUDA device.", fix="Use cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"Device {name} does not exist.", fix=f"There are {torch.cuda.device_count()}.")
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 in hardware; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Older PyTorch knows only the x86 question, and that under a private name.
        if hasattr(torch.cpu, "get_capabilities"):
            found = torch.cpu.get_capabilities()
            return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(probe is not None and probe())
    return False


def arithmetic(precision: Precision, device: torch.device) -> Precision:
    """What `precision` becomes on a device: bf16 without native support is computed in float32."""
    return "bf16" if precision == "bf16" and native_bf16(device) else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context for a forward pass in `precision`, as far as the device supports it."""
    if arithmetic(precision, device) == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
