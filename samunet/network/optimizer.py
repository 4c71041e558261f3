"""The optimizer of training and pretraining."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    everything_decays: bool = False,
) -> AdamW:
    """AdamW on whatever trains.

    Args:
        model: Frozen parameters are left out.
        learning_rate: At its peak; a schedule changes it.
        weight_decay: Of matrices; of biases, norms, positions and tokens only with ``everything_decays``.
        betas: Of the moments.
        everything_decays: As in SAMed.
    """
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in matrices], "weight_decay": weight_decay},
        {
            "params": [p for p in trained if id(p) not in matrices],
            "weight_decay": weight_decay if everything_decays else 0.0,
        },
    ]
    # One pass over each tensor instead of ten: a tenth of a small network's step.
    return AdamW(groups, lr=learning_rate, betas=betas, fused=True)
