"""Processes that train one network, each on a share of every update (``torch.distributed``).

Each is given other items of the same update. What the loss needs to know of all items and the gradients are summed over
the processes, so that every process takes the same step as one that had all items. In a single process nothing is done.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def is_shared() -> bool:
    """Whether several processes train one network."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def summed(values: Tensor) -> Tensor:
    """The sum of all processes' values; its gradient goes to this process's own."""
    if not is_shared():
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total + (values - values.detach())


def sum_gradients(module: nn.Module) -> None:
    """Replace the gradients of what trains by their sums; what has none in any process keeps none."""
    if not is_shared():
        return
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    given = torch.tensor([parameter.grad is not None for parameter in trained], device=trained[0].device).float()
    parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
    flat = torch.cat([given, *(part.flatten().float() for part in parts)])
    distributed.all_reduce(flat)
    counts, *sums = flat.split([len(trained), *(part.numel() for part in parts)])
    for parameter, count, values in zip(trained, counts.tolist(), sums):
        if count:
            parameter.grad = values.view_as(parameter).to(parameter.dtype)
