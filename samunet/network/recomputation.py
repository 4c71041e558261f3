"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): what is not kept is computed again when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def compute_twice(function: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], tokens: Tensor) -> Tensor:
    """``function(tokens)``, of which only ``tokens`` is kept for the backward pass; it runs a second time there.

    Where no gradient will pass, it runs as it is: in prediction, in an export, and in what lies before the first
    parameter that trains. Outputs and gradients are those of running it once.

    Args:
        function: Draws no random numbers.
        parameters: What it computes with.
        tokens: Its only input.
    """
    trains = tokens.requires_grad or any(parameter.requires_grad for parameter in parameters)
    if not (torch.is_grad_enabled() and trains):
        return function(tokens)
    return checkpoint(function, tokens, use_reentrant=False, preserve_rng_state=False)
