"""The encoder with all that pretraining hangs on it, and the files that it is kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samunet.encoders import EncoderFacts
from samunet.errors import SamunetError
from samunet.files import as_kind, atomic_path, parse_json
from samunet.network.encoders import build_encoder
from samunet.network.heads import build_head
from samunet.pretraining.draw import Draw
from samunet.pretraining.objectives import MaskedReconstruction, SameRegion
from samunet.pretraining.options import PERIOD
from samunet.pretraining.prompts import prompt_loss
from samunet.pretraining.synthesis import SyntheticBatch
from samunet.tensors import read_tensors

_MASK_TOKENS = 4  # as every SAM


class PretrainingModel(nn.Module):
    """A SAM, and a small head for each objective that SAM itself has none for.

    Every part is there whatever the objective, so that a later piece may change it.

    Args:
        facts: The encoder to train.
    """

    def __init__(self, facts: EncoderFacts) -> None:
        super().__init__()
        self.image_encoder = build_encoder(facts)
        self.head = build_head("detail", _MASK_TOKENS, self.image_encoder, facts)
        self.head.requires_grad_(True)
        self.head.prompt_encoder.mask_downscaling.requires_grad_(False)  # no mask is ever the prompt here
        self.same_region = SameRegion(facts.embedding // 8)
        self.reconstruction = MaskedReconstruction(facts.embedding, facts.patch_size)

    def forward(self, batch: SyntheticBatch, objective: str, iteration: int, draw: Draw) -> dict[str, Tensor]:
        """Losses of a batch by name: ``dense``, ``prompt``, ``mae``; what is minimised is their sum."""
        if objective == "mae" or (objective == "mix" and iteration % PERIOD == PERIOD - 1):
            seen, mask = self.reconstruction.hide(batch.images, draw)
            return {"mae": self.reconstruction(self.image_encoder(seen), batch.images, mask)}
        features = self.image_encoder.features(batch.images)
        losses = {}
        if objective in ("dense", "mix"):
            _, upscaled = self.head.decode(features, batch.images)
            losses["dense"] = self.same_region(upscaled, batch.regions, draw)
        if objective == "prompt" or (objective == "mix" and iteration % PERIOD == 0):
            losses["prompt"] = prompt_loss(self.head, features, batch.images, batch.regions, draw)
        return losses

    def sam_state(self) -> dict[str, Tensor]:
        """Encoder, prompt encoder and mask decoder by SAM's names, and ``detail``, in half precision."""
        return {
            f"{part}.{name}": value.detach().half()
            for part, module in self._parts().items()
            for name, value in module.state_dict().items()
        }

    def load_sam_state(self, state: dict[str, Tensor]) -> None:
        """Start from what :meth:`sam_state` gave; the heads of the other objectives stay as they are.

        Raises:
            RuntimeError: If a tensor is missing or of another shape, as in a file with the mask tokens of a dataset.
        """
        for part, module in self._parts().items():
            module.load_state_dict(_with_prefix(state, f"{part}."))

    def _parts(self) -> dict[str, nn.Module]:
        return {
            "image_encoder": self.image_encoder,
            "detail": self.head.detail,
            "prompt_encoder": self.head.prompt_encoder,
            "mask_decoder": self.head.mask_decoder,
        }


@dataclass
class PretrainingProgress:
    """Where a pretraining stands; in the metadata of its checkpoint.

    Attributes:
        iteration: Updates made over all pieces.
        images: Images seen.
        elapsed: Seconds in the training loop over all pieces.
        decay: Of a final decay that was interrupted: updates and seconds of it.
        log: One entry per 100 updates.
        pieces: What every piece was: objective, seed, batch size, image sizes, rate, images, versions, command.
        setup: What must not change.
    """

    iteration: int = 0
    images: int = 0
    elapsed: float = 0.0
    decay: dict = field(default_factory=lambda: {"iterations": 0, "seconds": 0.0})
    log: list[dict] = field(default_factory=list)
    pieces: list[dict] = field(default_factory=list)
    setup: dict = field(default_factory=dict)


def save_state(path: Path, model: nn.Module, optimizer: Optimizer, progress: PretrainingProgress) -> None:
    """Write one file from which the pretraining goes on exactly."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{names[id(parameter)]}.{key}"] = torch.as_tensor(value)
    write_tensors(path, tensors, {"progress": json.dumps(vars(progress))})


def load_state(path: Path, model: nn.Module, optimizer: Optimizer, setup: dict) -> PretrainingProgress:
    """Restore what :func:`save_state` wrote.

    Raises:
        SamunetError: If the file is damaged, or was begun with another setup.
    """
    from safetensors import safe_open

    remedy = "restore the file, or begin anew in another folder: --out FOLDER"
    try:
        tensors = read_tensors(path)
        with safe_open(path, "pt") as stream:
            told = (stream.metadata() or {}).get("progress", "")
        progress = as_kind(PretrainingProgress, parse_json(told.encode(), f"{path}: progress"), f"{path}: progress")
        if progress.setup != setup:
            former = progress.setup
            unlike = [
                f"{key} {former.get(key, 'none')}, not {setup.get(key, 'none')}"
                for key in sorted(former | setup)
                if former.get(key) != setup.get(key)
            ]
            raise SamunetError(
                f"{path} was begun with {'; '.join(unlike)}",
                "give the same --checkpoint, -d, -c and -encoder as at its beginning, or use another --out FOLDER",
            )
        model.load_state_dict(_with_prefix(tensors, "model."))
        for name, parameter in model.named_parameters():
            saved = _with_prefix(tensors, f"optimizer.{name}.")
            if saved:
                # Copies, not views of the file: Windows cannot replace a file that is mapped into memory.
                optimizer.state[parameter] = {
                    key: value.to(parameter.device, copy=True) for key, value in saved.items()
                }
    except SamunetError as error:
        raise SamunetError(error.message, error.hint if "--out" in (error.hint or "") else remedy) from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SamunetError(f"{path} is no checkpoint of a pretraining: {first}", remedy) from error
    return progress


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    from safetensors.torch import save_file

    contiguous = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
