"""Recipes of a pretraining, and the objective of further training: masked-image reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from samunet.network.optimizer import build_optimizer
from samunet.training.pretraining.options import PretrainingOptions
from samunet.training.recipes import BaseRecipe
from samunet.training.schedule import Budget

_WARM_UP = 200
_WEIGHT_DECAY = 0.05
_HIDDEN_SHARE = 0.6
_OBJECTIVE_KEY = 1  # separates the objectives' randomness from the images'


class Draw:
    """All randomness of one batch: it depends on ``key`` and the device alone.

    What decides shapes (how many images have what) comes from ``host``, so that a GPU never has to be waited for.

    Args:
        device: Where tensors are drawn.
        *key: Integers, for example seed and number of the batch.
    """

    def __init__(self, device: torch.device, *key: int) -> None:
        self.device = device
        self.host = np.random.default_rng(key)
        self.generator = torch.Generator(device).manual_seed(int(self.host.integers(2**62)))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Float32, even between ``low`` and ``high``."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low


class PretrainingRecipe(BaseRecipe):
    """Learning by the sum of named losses, at a constant rate after a short warm-up, or with a rate that falls to zero.

    Args:
        model: Everything that learns.
        options: The user's choices.
        optimizer: As a plan names it.
        dtype: What autocast computes in; None for float32.

    Attributes:
        draw: Random numbers for :meth:`losses`; class attribute.
        values: The last update's losses by name.
    """

    draw = Draw

    def __init__(
        self,
        model: nn.Module,
        options: PretrainingOptions,
        optimizer: Literal["adamw", "muon"] = "adamw",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, dtype)
        self.options, self.optimizer_name = options, optimizer
        self.values: dict[str, float] = {}

    def losses(self, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """Losses of a batch by name; what is minimised is their sum."""
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        """After the warm-up."""
        return self.options.learning_rate

    def optimizer(self) -> Optimizer:
        """As named."""
        name, rate = self.optimizer_name, self.learning_rate
        return build_optimizer(name, self.learner, rate, _WEIGHT_DECAY, betas=(0.9, 0.95))

    def rate(self, budget: Budget, iteration: int, elapsed: float) -> float:
        """Constant after the warm-up, so that it may go on at any time; in a final decay linear to zero."""
        if self.options.final_decay:
            return 1 - budget.progress(iteration, elapsed)
        return min(1.0, (iteration + 1) / _WARM_UP)

    def gradients(self, batch: Any, size: int | None, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> float:
        """Those of the whole batch at once; see :class:`BaseRecipe`."""
        draw = self.draw(self.device, self.options.seed, self.iteration, _OBJECTIVE_KEY)
        with self.autocast():
            losses = self.losses(batch, draw)
        loss = torch.stack(list(losses.values())).sum()
        scale(loss).backward()
        self.values = {name: float(value.detach()) for name, value in losses.items()}
        return float(loss.detach())

    def optimizer_keys(self, optimizer: Optimizer) -> list[str]:
        """The parameters' names."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


class MaskedReconstruction(nn.Module):
    """Masked-image reconstruction by one linear layer (Xie et al. 2022, SimMIM).

    Args:
        embedding: Channels of the encoder's output.
        patch_size: Input pixels per token and side.
    """

    def __init__(self, embedding: int, patch_size: int) -> None:
        super().__init__()
        self.cell = 2 * patch_size
        self.pixels = nn.Conv2d(embedding, 3 * patch_size**2, 1)
        self.patch_size = patch_size

    def hide(self, images: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Hide squares of two tokens a side, 60 % of the image.

        Returns:
            The images with 0 there, and the mask ``(batch, 1, H, W)``, 1 where something is hidden.
        """
        cells = [-(-side // self.cell) for side in images.shape[2:]]
        hidden = max(1, round(_HIDDEN_SHARE * cells[0] * cells[1]))
        order = draw.uniform(0, 1, len(images), cells[0] * cells[1]).argsort(1).argsort(1)
        mask = (order < hidden).float().view(-1, 1, *cells)
        mask = mask.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)
        mask = mask[:, :, : images.shape[2], : images.shape[3]]
        return images * (1 - mask), mask

    def forward(self, embedding: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Mean absolute error of the hidden pixels.

        Args:
            embedding: ``(batch, channels, h, w)``, from the images with parts hidden.
            images: ``(batch, 3, H, W)``, whole.
            mask: ``(batch, 1, H, W)``, as :meth:`hide` gave it.
        """
        restored = F.pixel_shuffle(self.pixels(embedding).float(), self.patch_size)
        return ((restored - images).abs() * mask).sum() / (3 * mask.sum().clamp(min=1))


class Reconstruction(PretrainingRecipe):
    """What is hidden of an image is reconstructed.

    The model has ``image_encoder`` and ``reconstruction``, a :class:`MaskedReconstruction`.
    """

    def images(self, batch: Any) -> Tensor:
        """The encoder's input, ``(batch, 3, height, width)``."""
        return self.model.input_layer(batch)

    def losses(self, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """The loss of a batch, as ``mae``."""
        images = self.images(batch)
        seen, mask = self.model.reconstruction.hide(images, draw)
        return {"mae": self.model.reconstruction(self.model.image_encoder(seen), images, mask)}
