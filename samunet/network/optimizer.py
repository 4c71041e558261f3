"""The optimizers of training and pretraining: AdamW, and Muon for networks that train in full."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from samunet.devices import fast_dtype

_SEES_PIXELS = ("input_layer.", "image_encoder.patch_embed.")
_MOMENTUM = 0.95
# Root mean square of an update's entries, in learning rates. 0.2 makes Muon's updates as large as AdamW's (Liu et al.
# 2025); in trainings of minutes three times as much won (documentation/lab/notebook.md).
_UPDATE_SIZE = 0.6
# Quintic Newton-Schulz iteration (Jordan et al. 2024). Their five steps gave the same Dice as three, and took longer.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 3


def build_optimizer(
    kind: Literal["adamw", "muon"], model: nn.Module, learning_rate: float, weight_decay: float, **settings
) -> Optimizer:
    """The optimizer that a plan names, for whatever trains.

    With ``muon``, AdamW trains what is no matrix inside the network: biases, norms, positions and tokens, what sees the
    pixels, and convolutions that are transposed or have groups.

    Args:
        kind: As a plan has it.
        model, learning_rate, weight_decay, settings: See :func:`adamw`.
    """
    if kind == "adamw":
        return adamw(model, learning_rate, weight_decay, **settings)
    matrices = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and getattr(module, "groups", 1) == 1
        if module.weight.requires_grad and not name.startswith(_SEES_PIXELS)
    ]
    others = adamw(model, learning_rate, weight_decay, **settings, without=matrices)
    return Muon(matrices, others, learning_rate, weight_decay)


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    everything_decays: bool = False,
    without: Sequence[Tensor] = (),
) -> AdamW:
    """AdamW on whatever trains.

    Args:
        model: Frozen parameters are left out.
        learning_rate: At its peak; a schedule changes it.
        weight_decay: Of matrices; of biases, norms, positions and tokens only with ``everything_decays``.
        betas: Of the moments.
        everything_decays: As in SAMed.
        without: Parameters that another optimizer trains.
    """
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    }
    elsewhere = {id(parameter) for parameter in without}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in elsewhere]
    groups = [
        {"params": [p for p in trained if id(p) in matrices], "weight_decay": weight_decay},
        {
            "params": [p for p in trained if id(p) not in matrices],
            "weight_decay": weight_decay if everything_decays else 0.0,
        },
    ]
    # One pass over each tensor instead of ten: a tenth of a small network's step.
    return AdamW(groups, lr=learning_rate, betas=betas, fused=True)


class Muon(Optimizer):
    """Momentum whose singular values are all brought to about 1 (Jordan et al. 2024), scaled and decaying as AdamW.

    Every direction of a matrix is then learnt as fast as its strongest. Matrices of one shape are computed together.

    Args:
        matrices: Weights of linear layers and convolutions; of the latter, one row is an output channel.
        others: AdamW on the other parameters; it makes its step with this one's, and this one keeps its state.
        learning_rate, weight_decay: Of the matrices.
    """

    def __init__(self, matrices: list[Tensor], others: AdamW, learning_rate: float, weight_decay: float) -> None:
        super().__init__([{"params": matrices}], {"lr": learning_rate, "weight_decay": weight_decay})
        self.others = others
        self.param_groups += others.param_groups  # the same objects: a schedule reaches both
        others.state = self.state

    @torch.no_grad()
    def step(self) -> None:
        """One update of everything that has a gradient."""
        self.others.step()
        group = self.param_groups[0]
        alike = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.flatten(1).shape].append(parameter)
        for shape, parameters in alike.items():
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self._momentum(parameter) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov's
            updates = orthogonal(torch.stack([update.flatten(1) for update in ahead])).float()
            size = _UPDATE_SIZE * max(shape) ** 0.5  # entries of an orthogonal matrix have 1 / √(longer side)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(
                parameters,
                [update.view_as(parameter) for update, parameter in zip(updates, parameters)],
                alpha=-group["lr"] * size,
            )

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices whose rows, or columns if those are fewer, are orthonormal.

    Singular values of more than a fiftieth of the matrix's norm come to between 0.6 and 1.3; smaller ones, which tell
    little of the direction, grow about fortyfold.

    Args:
        matrices: ``(n, rows, columns)``.

    Returns:
        The same shape, bfloat16 where the device computes that natively.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    fast = fast_dtype(matrices.device) == torch.bfloat16
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if fast else torch.float32).contiguous()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, second, third = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=second, alpha=third), x, beta=first)
    return x.mT if tall else x
