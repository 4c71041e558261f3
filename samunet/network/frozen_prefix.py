"""What comes in an image encoder before anything that trains: it stays as it is during a training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Part(NamedTuple):
    """One step of an encoder's forward pass.

    Attributes:
        parameters: Tensors it computes with.
        run: From the output of the step before to its own.
    """

    parameters: list[Tensor]
    run: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, module: nn.Module, run: Callable[[Tensor], Tensor] | None = None, *more: Tensor) -> Part:
        """The step that is ``module``, or computes with it in another way than calling it."""
        return cls([*module.parameters(), *module.buffers(), *more], run or module)


class FrozenPrefix:
    """The parts of an encoder that come before the first one with a parameter that trains.

    Args:
        encoder: From :func:`samunet.network.build_encoder.build_encoder`, perhaps with LoRA or adapters.
    """

    def __init__(self, encoder: nn.Module) -> None:
        bare = encoder.get_base_model() if hasattr(encoder, "peft_config") else encoder
        self._parts: list[Part] = bare.parts()
        trains = [any(tensor.requires_grad for tensor in part.parameters) for part in self._parts]
        self.count = trains.index(True) if True in trains else len(trains)
        self.total = len(self._parts)

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """What the frozen parts make of ``(batch, 3, height, width)``; the batch stays first."""
        return _run(self._parts[: self.count], image)

    def finish(self, features: Tensor) -> Tensor:
        """The encoder's output, from :meth:`features`."""
        return _run(self._parts[self.count :], features)

    def digest(self) -> str:
        """A hash of every value the frozen parts compute with."""
        digest = hashlib.sha256(f"{self.count} of {self.total}".encode())
        for part in self._parts[: self.count]:
            for tensor in part.parameters:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def _run(parts: list[Part], features: Tensor) -> Tensor:
    for part in parts:
        features = part.run(features)
    return features
