"""Several folds of one model over one copy of what they share: a fold adds only what it trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from samunet.network.model import SamunetModel


class SharedFolds(Sequence):
    """The folds of a model, as one network that becomes each of them in turn.

    What every fold trained (adapters, decoder, heads) is kept per fold; frozen weights exist once. When a fold's turn
    comes, its tensors take their places in the network, and LoRA is merged into a copy of the adapted layers, so that
    a pass takes as long as one of a merged network. The network that indexing or iterating gives is that fold only
    until the next one is asked for.

    Args:
        model: Of any of the folds, LoRA not merged; this object owns it from now on.
        states: Per fold its trained tensors, as :meth:`SamunetModel.trained_state` names them.
    """

    def __init__(self, model: SamunetModel, states: Sequence[dict[str, Tensor]]) -> None:
        self._model = model.requires_grad_(False).eval()
        self._states = list(states)
        # Told by what they have: importing peft, where nothing uses it, would take 150 MB.
        self._lora = [module for module in model.modules() if hasattr(module, "lora_A")]
        self._place()

    def to(self, device: torch.device) -> SharedFolds:
        """Move everything to a device."""
        for layer, weight in zip(self._lora, self._frozen):
            layer.base_layer.weight.data = weight
        self._model.to(device)
        self._states = [{name: value.to(device) for name, value in state.items()} for state in self._states]
        self._place()
        return self

    def eval(self) -> SharedFolds:
        """Folds are only for prediction; as for a module."""
        return self

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: int) -> nn.Module:
        self._become(range(len(self))[index])
        return self._model

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[index] for index in range(len(self)))

    def _place(self) -> None:
        self._tensors = dict(self._model.named_parameters()) | dict(self._model.named_buffers())
        self._frozen = [layer.base_layer.weight.data for layer in self._lora]
        self._current: int | None = None

    # A tensor made in inference mode could not take a parameter's place.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _become(self, index: int) -> None:
        if index == self._current:
            return
        self._current = None
        for name, value in self._states[index].items():
            self._tensors[name].data = value
        for layer, weight in zip(self._lora, self._frozen):
            layer.base_layer.weight.data = weight
            layer.merged_adapters.clear()
            layer.merge(safe_merge=True)  # into a copy: the frozen weights serve every fold unchanged
        self._current = index
