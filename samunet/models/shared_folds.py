"""Folds of a model over one copy of the weights that they share."""

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
        states: Per fold its trained tensors, as :meth:`SamunetModel.trained_state` names them. Those of a network
            without base weights are whole; what they have in common is kept once.
        dtype: Number format that autocast will compute in: the encoder's layers are held in it, but for weights that
            LoRA is merged into, whose merged copy is. None keeps float32.
    """

    def __init__(
        self, model: SamunetModel, states: Sequence[dict[str, Tensor]], dtype: torch.dtype | None = None
    ) -> None:
        self._model = model.requires_grad_(False).eval()
        # Told by what they have: importing peft, where nothing uses it, would take 150 MB.
        self._lora = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
        self._dtype = dtype
        self._states = [dict(state) for state in states]
        if dtype is not None:
            self._hold(dtype)
        self._share()
        self._place()

    def to(self, device: torch.device) -> SharedFolds:
        """Move everything to a device."""
        for name, weight in self._frozen.items():
            self._lora[name].base_layer.weight.data = weight
        self._model.to(device)
        moved = {id(value): value.to(device) for state in self._states for value in state.values()}
        self._states = [{name: moved[id(value)] for name, value in state.items()} for state in self._states]
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
        self._frozen = {name: layer.base_layer.weight.data for name, layer in self._lora.items()}
        self._current: int | None = None

    def _hold(self, dtype: torch.dtype) -> None:
        """As :func:`samunet.network.encoders.hold_frozen`, for the network and for what the folds trained."""
        encoder = {id(module) for module in self._model.image_encoder.modules()}
        kept = {f"{name}.base_layer.weight" for name in self._lora}
        for prefix, module in self._model.named_modules():
            if id(module) not in encoder or not isinstance(module, (nn.Linear, nn.Conv2d)) or ".lora_" in prefix:
                continue
            for own, parameter in module.named_parameters(recurse=False):
                name = f"{prefix}.{own}"
                if name in kept:
                    continue
                parameter.data = parameter.data.to(dtype)
                for state in self._states:
                    if name in state:
                        state[name] = state[name].to(dtype)

    def _share(self) -> None:
        """Let tensors that are equal to the first fold's be the same: what stayed frozen in networks without a base."""
        first = self._states[0]
        for state in self._states[1:]:
            state.update({name: first[name] for name, value in state.items() if torch.equal(first[name], value)})

    # A tensor made in inference mode could not take a parameter's place.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _become(self, index: int) -> None:
        if index == self._current:
            return
        self._current = None
        for name, value in self._states[index].items():
            self._tensors[name].data = value
        for name, layer in self._lora.items():
            weight = layer.base_layer.weight
            weight.data = self._states[index].get(f"{name}.base_layer.weight", self._frozen[name])
            layer.merged_adapters.clear()
            layer.merge(safe_merge=True)  # into a copy: the frozen weights serve every fold unchanged
            if self._dtype is not None and name.startswith("image_encoder."):
                weight.data = weight.data.to(self._dtype)
        self._current = index
