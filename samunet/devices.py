"""Which device and which number format to compute with; torch is imported only when asked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from samunet.errors import UsageError, argument

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# Pixels. Below this, an encoder has convolutions (3 x 3, stride 2) with an output one pixel wide, which torch 2.13 on
# processors with bfloat16 reads from memory that was never written.
NARROWEST = 32
CHOICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str) -> torch.device:
    """The device to compute on; ``auto`` takes a GPU if there is one.

    Raises:
        UsageError: If the device is unknown or not there.
    """
    import torch

    kind, numbered, number = name.partition(":")
    if kind not in CHOICES or (kind == "auto" and numbered):
        raise UsageError(f"{argument('device', name)} is unknown", f"use one of: {', '.join(CHOICES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[kind]:
        raise UsageError(
            f"{argument('device', name)}: torch finds no such device on this machine", "use `device='cpu'`"
        )
    there = [str(index) for index in range(torch.cuda.device_count() if kind == "cuda" else 1)]
    if numbered and number not in there:
        names = ", ".join(f"{kind}:{index}" for index in there)
        raise UsageError(
            f"{argument('device', name)}: torch finds no such device, but {names}", f"use one of these, or {kind}"
        )
    return torch.device(name)


def fast_dtype(device: torch.device, input_shape: Sequence[int] | None = None) -> torch.dtype | None:
    """The 16-bit format that the device computes natively, or None where float32 is the only sensible one.

    Args:
        device: Where to compute.
        input_shape: Height and width of the network's input, if one is to be computed.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current one
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if input_shape and min(input_shape) < NARROWEST:
        return None
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes: allocated on a CUDA device, else resident in this process (None on Windows, which cannot tell)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reset_peak_memory(device: torch.device) -> None:
    """Let :func:`peak_memory` of a CUDA device count from here on; elsewhere it is that of the whole process."""
    import torch

    if device.type == "cuda" and torch.cuda.is_initialized():  # else nothing is counted yet, and torch would fail
        torch.cuda.reset_peak_memory_stats(device)
