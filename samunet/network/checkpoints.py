"""Checkpoints in SAM's layout: reading them safely, and putting them into our modules, strictly."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samunet import paths
from samunet.encoders import BUNDLED_WEIGHTS, CHECKPOINTS, EncoderFacts
from samunet.errors import SamunetError, call
from samunet.network.checkpoint_kinds import compare, describe
from samunet.network.encoders import build_encoder
from samunet.network.heads import SamHead, build_head
from samunet.tensors import check_numbers

# SAMed gives every class a mask token of its own, so SAM's three tokens and what hangs on them are left behind.
_CLASS_SPECIFIC = ("mask_tokens.", "output_hypernetworks_mlps.", "iou_prediction_head.")
# Keys under which training scripts put the state dict; the last is nnU-Net's, read to say so.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "sam", "module", "network_weights")
_PARTS = r"(?:image_encoder|prompt_encoder|mask_decoder|detail)\."
_PREFIX = re.compile(rf"^(?:(?:module|model|sam|sam_model|_orig_mod)\.)+(?={_PARTS})")
# Modules whose functions a file of tensors names: they put tensors together.
_OF_TENSORS = ("collections", "torch", "torch._utils", "torch._tensor", "torch.nn.parameter", "torch.serialization")
_PICKLE_BYTES = 1 << 26  # looked through at most
# Buffers that some files hold and SAM's own do not: the encoder's facts have them.
_STATISTICS = ("pixel_mean", "pixel_std")


def find_checkpoint(facts: EncoderFacts) -> Path | None:
    """The encoder's checkpoint in the package or in the checkpoints folder, or None if it is not there."""
    folder = paths.checkpoints_folder() if facts.checkpoint_url else BUNDLED_WEIGHTS
    path = folder / facts.checkpoint_file
    return path if path.is_file() else None


def load_sam_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.pth`` or ``.safetensors`` file without running any code that it may contain.

    What training scripts put around a state dict (a dict with ``model`` or ``state_dict``, names that begin with
    ``module.`` or ``sam.``) is taken off.

    Raises:
        SamunetError: If the file is missing, truncated, no checkpoint, or holds anything but tensors by name.
    """
    content = _read(path)
    for _ in _WRAPPERS:  # a file may hold itself
        wrapped = [key for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        content = content[wrapped[0]] if wrapped else content
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise SamunetError(f"{path} does not hold a state dict (tensors by name)", "use a checkpoint in SAM's layout")
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        short = _PREFIX.sub("", name)
        if short in state:
            raise SamunetError(f"{path} holds {short} twice, with different prefixes", "use a file with one model")
        if short not in _STATISTICS:
            state[short] = value
    return state


def check_fits(facts: EncoderFacts, state: dict[str, Tensor], path: Path) -> None:
    """Check that a state dict is a whole checkpoint of an encoder, before anything is built.

    Raises:
        SamunetError: Listing what is missing, unexpected or of another shape, and what the file seems to be; or naming
            a tensor with values that are no numbers.
    """
    with torch.device("meta"):  # shapes without memory or time
        encoder = build_encoder(facts)
        head = build_head("detail" if encoder.gives_details else "sam", 4, encoder, facts)
    _check(_given(state), _expected(encoder, head), facts.name, str(path))
    check_numbers(_given(state), path, f"get the file again{_again(path)}")


def load_base(encoder: nn.Module, head: SamHead, state: dict[str, Tensor]) -> None:
    """Put a SAM state dict into an encoder and a head, strictly.

    Every tensor of the encoder, the prompt encoder and the class-independent part of the mask decoder must be there
    with the right shape, and nothing else may be. An encoder that gives details has weights for what the ``detail``
    head makes of them as well; the ``sam`` head leaves them out.

    Raises:
        SamunetError: Listing what is missing, unexpected or of another shape.
    """
    given = _given(state)
    if not hasattr(head, "detail") and encoder.gives_details:
        given = {name: value for name, value in given.items() if not name.startswith("detail.")}
    _check(given, _expected(encoder, head), "this encoder", "the checkpoint")
    for part, module in _modules(encoder, head).items():
        prefix = part + "."
        module.load_state_dict(
            {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}, strict=False
        )


def _read(path: Path) -> Any:
    """The file's content: tensors in dicts, nothing that could run."""
    if not path.is_file():
        raise SamunetError(f"the checkpoint {path} does not exist" + (" as a file" if path.exists() else ""))
    with open(path, "rb") as stream:
        start = stream.read(512)
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SamunetError(f"{path} is a web page, not a checkpoint", f"get the file itself{_again(path)}")
    if start.startswith(b"version https://git-lfs"):
        raise SamunetError(f"{path} is a Git LFS pointer, not the file itself", "fetch it: git lfs pull")
    try:
        if start[8:9] == b"{":  # safetensors begin with the length of their JSON header
            from safetensors.torch import load_file

            return load_file(path)
        _check_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except SamunetError:
        raise
    except Exception as error:  # a damaged file can raise anything while it is parsed
        if isinstance(error, pickle.UnpicklingError) and _runs_code(path):
            raise SamunetError(
                f"{path} holds more than tensors and would run code when it is loaded: samunet does not load it",
                "use a file of tensors alone; whoever made it can write one: torch.save(model.state_dict(), FILE)",
            ) from None
        # torch advises to load the file all the same, which is not for a file from a stranger.
        said = str(error).rsplit("WeightsUnpickler error:", 1)[-1].strip()
        first_line = next(iter(said.splitlines()), type(error).__name__)
        why = "" if "weights_only" in first_line else f": {first_line}"
        raise SamunetError(
            f"{path} is truncated, damaged or no checkpoint ({path.stat().st_size} bytes){why}",
            f"get the file again{_again(path)}",
        ) from error


def _runs_code(path: Path) -> bool:
    """Whether a pickle names functions or classes that are not torch's; it is looked through, not loaded."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                content = archive.read(name)
        else:
            with open(path, "rb") as stream:
                content = stream.read(_PICKLE_BYTES)
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("STACK_GLOBAL", "INST"):  # torch writes neither
                return True
            if opcode.name == "GLOBAL" and str(argument).split()[0] not in _OF_TENSORS:
                return True
    except (ValueError, StopIteration, zipfile.BadZipFile, OSError):  # no pickle up to its end
        return False
    return False


def _check_size(path: Path) -> None:
    """Refuse a file whose tensors are packed, as torch never writes them: they could unpack to anything."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > path.stat().st_size:
            raise SamunetError(
                f"{path} would unpack to {unpacked} bytes, which no checkpoint does", "get the file from its source"
            )


def _again(path: Path) -> str:
    names = [name for name, facts in CHECKPOINTS.items() if facts.checkpoint_file == path.name]
    return f": {call('download_checkpoint', names[0], overwrite=True)}" if names else ""


def _modules(encoder: nn.Module, head: SamHead) -> dict[str, nn.Module]:
    modules = {"image_encoder": encoder, "prompt_encoder": head.prompt_encoder, "mask_decoder": head.mask_decoder}
    return modules | ({"detail": head.detail} if encoder.gives_details and hasattr(head, "detail") else {})


def _expected(encoder: nn.Module, head: SamHead) -> dict[str, Tensor]:
    state = {
        f"{part}.{name}": value
        for part, module in _modules(encoder, head).items()
        for name, value in module.state_dict().items()
    }
    return _given(state)


def _given(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in state.items()
        if not name.removeprefix("mask_decoder.").startswith(_CLASS_SPECIFIC)
    }


def _check(given: dict[str, Tensor], expected: dict[str, Tensor], encoder: str, source: str) -> None:
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    problems = compare(shapes, {name: tuple(value.shape) for name, value in expected.items()})
    if not problems:
        return
    kind = describe(shapes)
    what = f"; it seems to be {kind.what}" if kind and kind.encoder != encoder else ""
    hint = kind.hint if kind and kind.encoder != encoder else "choose the encoder that it was made for"
    raise SamunetError(f"{source} does not fit {encoder}{what}:\n  " + "\n  ".join(problems), hint)
