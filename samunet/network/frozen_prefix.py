"""What comes in an image encoder before anything that trains: it stays as it is during a training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]  # the tokens so far, and behind them what the head wants of earlier parts; batch first


class Part(NamedTuple):
    """One step of an encoder's forward pass.

    Attributes:
        parameters: Tensors it computes with.
        run: From the state after the step before to that after this one.
    """

    parameters: list[Tensor]
    run: Callable[[State], State]

    @classmethod
    def of(cls, module: nn.Module, change: Callable[[Tensor], Tensor] | None = None, *, keep: bool = False) -> Part:
        """The step that changes the tokens as ``module`` does, or ``change`` with its parameters.

        Args:
            module: Its parameters and buffers are the part's.
            change: Instead of calling it.
            keep: Whether what it gives is kept behind the tokens as well.
        """

        def run(state: State) -> State:
            tokens = (change or module)(state[0])
            return (tokens, *state[1:], *((tokens,) if keep else ()))

        return cls([*module.parameters(), *module.buffers()], run)


class FrozenPrefix:
    """The parts of an encoder that come before the first one with a parameter that trains.

    Args:
        encoder: From :func:`samunet.network.encoders.build_encoder`, perhaps with LoRA or adapters.
        embedding_only: Whether the head wants nothing but the encoder's last output.
    """

    def __init__(self, encoder: nn.Module, *, embedding_only: bool = False) -> None:
        self._encoder = encoder.get_base_model() if hasattr(encoder, "peft_config") else encoder
        self._parts: list[Part] = self._encoder.parts(embedding_only=embedding_only)
        trains = [any(tensor.requires_grad for tensor in part.parameters) for part in self._parts]
        self.count = trains.index(True) if True in trains else len(trains)
        self.total = len(self._parts)

    @torch.no_grad()
    def features(self, image: Tensor) -> State:
        """What the frozen parts make of ``(batch, 3, height, width)``."""
        return run(self._parts[: self.count], (image,))

    def finish(self, state: State):
        """The encoder's :class:`~samunet.network.encoders.Features`, from :meth:`features`."""
        return self._encoder.collect(run(self._parts[self.count :], state))

    def digest(self) -> str:
        """A hash of every value the frozen parts compute with."""
        digest = hashlib.sha256(f"{self.count} of {self.total}".encode())
        for part in self._parts[: self.count]:
            for tensor in part.parameters:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def run(parts: list[Part], state: State) -> State:
    """All of some parts, one after the other."""
    for part in parts:
        state = part.run(state)
    return state
