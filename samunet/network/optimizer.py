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
# Odd polynomials of degree five, one after the other, as Polar Express (Amsel et al. 2025) makes them: each is nearest
# to 1 on what the one before makes of singular values between 0.03 and 1 times the bound; 0.62 to 1.38 is left. With
# the Gram matrix's bound they lift small values as far as three steps of Jordan et al. (2024) with the matrix's norm.
_POLYNOMIALS = ((7.3625, -20.7434, 15.1606), (2.9175, -2.1824, 0.4755))


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
        self._together: dict[torch.Size, tuple[Tensor, list[Tensor]]] = {}  # momenta by shape, and each one's view

    @torch.no_grad()
    def step(self) -> None:
        """One update of everything that has a gradient."""
        self.others.step()
        group = self.param_groups[0]
        decay, rate = 1 - group["lr"] * group["weight_decay"], group["lr"]
        alike = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.flatten(1).shape].append(parameter)
        for shape, parameters in alike.items():
            gradients = torch.stack([parameter.grad.flatten(1) for parameter in parameters])
            momenta = self._momenta(parameters).lerp_(gradients, 1 - _MOMENTUM)
            ahead = gradients.lerp_(momenta, _MOMENTUM)  # Nesterov's
            size = _UPDATE_SIZE * max(shape) ** 0.5  # entries of an orthogonal matrix have 1 / √(longer side)
            for parameter, update in zip(parameters, orthogonal(ahead)):
                parameter.mul_(decay).sub_(update.view_as(parameter), alpha=rate * size)

    def _momenta(self, parameters: list[Tensor]) -> Tensor:
        """Those of parameters of one shape as one tensor, ``(n, rows, columns)``; the parameters' states are views."""
        states = [self.state[parameter] for parameter in parameters]
        together, views = self._together.get(parameters[0].flatten(1).shape, (None, []))
        if len(views) != len(states) or any(state.get("momentum") is not view for state, view in zip(states, views)):
            momenta = [state.get("momentum", torch.zeros_like(p)) for state, p in zip(states, parameters)]
            together = torch.stack([momentum.flatten(1) for momentum in momenta])
            views = [row.view_as(parameter) for row, parameter in zip(together, parameters)]
            for state, view in zip(states, views):
                state["momentum"] = view
            self._together[parameters[0].flatten(1).shape] = together, views
        return together


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices whose rows, or columns if those are fewer, are orthonormal.

    An odd polynomial of a matrix is a polynomial of its Gram matrix times the matrix. So all steps but the first and
    the last product are on the Gram matrix of the shorter side. They start from the root of that matrix's Frobenius
    norm, a bound of the largest singular value that is nearer to it than the matrix's own norm.

    Args:
        matrices: ``(n, rows, columns)``.

    Returns:
        The same shape, bfloat16 where the device computes that natively.
    """
    fast = fast_dtype(matrices.device) == torch.bfloat16
    x = matrices.to(torch.bfloat16 if fast else torch.float32)
    tall = x.shape[1] > x.shape[2]
    gram = x.mT @ x if tall else x @ x.mT
    bound = gram.float().norm(dim=(1, 2), keepdim=True).clamp_min(1e-30).to(gram.dtype)
    gram /= bound
    polynomial = None
    for step, (first, second, third) in enumerate(_POLYNOMIALS, start=1):
        factor = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        factor.diagonal(dim1=1, dim2=2).add_(first)
        if step < len(_POLYNOMIALS):
            gram = factor @ gram @ factor
        polynomial = factor if polynomial is None else factor @ polynomial
    polynomial /= bound.sqrt()
    return x @ polynomial if tall else polynomial @ x
