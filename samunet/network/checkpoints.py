"""Published checkpoints in SAM's layout: where they are, reading them safely, and putting them into our modules."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from samunet import paths
from samunet.encoders import EncoderFacts
from samunet.errors import SamunetError
from samunet.network.heads import SamHead

# SAMed gives every class a mask token of its own, so SAM's three tokens and what hangs on them are left behind.
_CLASS_SPECIFIC = ("mask_tokens.", "output_hypernetworks_mlps.", "iou_prediction_head.")


def find_checkpoint(facts: EncoderFacts) -> Path | None:
    """The encoder's published checkpoint in the checkpoints folder, or None if it is not there."""
    if not facts.pretrained:
        return None
    path = paths.checkpoints_folder() / facts.checkpoint_file
    return path if path.is_file() else None


def require_checkpoint(facts: EncoderFacts) -> Path:
    """Like :func:`find_checkpoint`.

    Raises:
        SamunetError: If the file is not there; says where to get it and where to put it.
    """
    path = find_checkpoint(facts)
    if path is None:
        folder = paths.checkpoints_folder()
        raise SamunetError(
            f"the weights of {facts.name} are not in {folder}",
            f"get {facts.checkpoint_url} and put it at {folder / facts.checkpoint_file}, or use -encoder small",
        )
    return path


def load_sam_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a ``.pth`` state dict in SAM's layout without running any code that it may contain.

    Raises:
        SamunetError: If the file is missing, truncated, or holds anything but tensors by name.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SamunetError(f"the checkpoint {path} does not exist") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise SamunetError(
            f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}", "download the file again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SamunetError(f"{path} does not hold a state dict (tensors by name)", "use a checkpoint in SAM's layout")
    return state


def load_base(encoder: nn.Module, head: SamHead, state: dict[str, Tensor]) -> None:
    """Put a SAM state dict into an encoder and a head, strictly.

    Every tensor of the encoder, the prompt encoder and the class-independent part of the mask decoder must be there
    with the right shape, and nothing else may be.

    Raises:
        SamunetError: Listing what is missing, unexpected or of another shape.
    """
    targets = {"image_encoder": encoder, "prompt_encoder": head.prompt_encoder, "mask_decoder": head.mask_decoder}
    expected = {
        f"{part}.{name}": value
        for part, module in targets.items()
        for name, value in module.state_dict().items()
        if not (part == "mask_decoder" and name.startswith(_CLASS_SPECIFIC))
    }
    given = {
        name: value
        for name, value in state.items()
        if not name.removeprefix("mask_decoder.").startswith(_CLASS_SPECIFIC)
    }
    problems = [f"missing: {name}" for name in sorted(expected.keys() - given.keys())]
    problems += [f"unexpected: {name}" for name in sorted(given.keys() - expected.keys())]
    problems += [
        f"shape of {name}: {tuple(given[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & given.keys())
        if given[name].shape != expected[name].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise SamunetError(
            f"the checkpoint does not fit this encoder:\n  {shown}", "choose the encoder it was made for"
        )
    for part, module in targets.items():
        prefix = part + "."
        module.load_state_dict(
            {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}, strict=False
        )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
