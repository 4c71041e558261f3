"""Reading weights, and whether they are numbers: checked whenever they are read, and before they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from samunet.errors import SamunetError
from samunet.files import atomic_path

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Of tensors that count (batches seen by a normalisation, steps of an optimizer).
_COUNTERS = (torch.int64, torch.int32)
_AGAIN = "train again, or restore the file"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        SamunetError: If it is missing, truncated or no safetensors file, or its tensors are no numbers.
    """
    from safetensors.torch import load_file

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise SamunetError(f"{path} is no file", _AGAIN)
    try:
        tensors = load_file(path)
    except Exception as error:  # the border to a file that may be anybody's
        raise SamunetError(f"{path} is missing or damaged: {error}", _AGAIN) from error
    check_numbers(tensors, path)
    return tensors


def check_numbers(tensors: Mapping[str, Tensor], source: Path | str, hint: str = _AGAIN) -> None:
    """Refuse weights that a network cannot compute with: they would give masks without anything in them.

    Args:
        tensors: By name.
        source: The file, for the message.
        hint: What to do.

    Raises:
        SamunetError: Naming a tensor that has NaN or infinity, or a type that no weights have.
    """
    for name, value in tensors.items():
        if value.dtype not in _FLOATS + _COUNTERS or value.layout != torch.strided or value.is_meta:
            raise SamunetError(f"{source}: {name} has the type {value.dtype}, which weights do not have", hint)
    wrong = not_finite(tensors)
    if wrong:
        raise SamunetError(f"{source} has values that are no numbers (NaN or infinite), for example in {wrong}", hint)


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with NaN or infinity; None if there is none."""
    for name, value in tensors.items():
        # A sum is finite only where all its terms are, and much faster than looking at each; but it may overflow.
        finite = not value.is_floating_point() or torch.isfinite(value.sum(dtype=torch.float32))
        if not finite and not torch.isfinite(value.to(torch.float32)).all():  # as the network computes with it
            return name
    return None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically."""
    from safetensors.torch import save_file

    contiguous = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, dict(metadata or {}))
