"""What the loop asks of a recipe, and the plain recipe of a fold, from which others are derived."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samunet.dataset.labels import Labels
from samunet.errors import UsageError
from samunet.network.encoders import Features
from samunet.network.model import SamunetModel
from samunet.network.optimizer import build_optimizer
from samunet.plans import NetworkPlan
from samunet.recipes import recipe_facts
from samunet.training.augmentation import training_transforms
from samunet.training.loss import SegmentationLoss, UpdateLoss
from samunet.training.ranks import summed
from samunet.training.schedule import Budget


@dataclass(frozen=True)
class Batch:
    """Items of an update, or of a part of it.

    Attributes:
        images: ``(n, channels, height, width)`` float32; of a recipe with slabs ``(n, slices, channels, height,
            width)``.
        target: ``(n, height, width)`` int64 label values; with slabs ``(n, slices, height, width)``.
        unlabelled: Images without labels, shaped as ``images``; None unless the recipe wants some.
    """

    images: Tensor
    target: Tensor
    unlabelled: Tensor | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> Batch:
        """A loader's batch on a device."""
        names = {"images": "data", "target": "seg", "unlabelled": "unlabelled"}
        return cls(**{n: torch.from_numpy(arrays[k]).to(device) for n, k in names.items() if k in arrays})

    def parts(self, size: int) -> list[Batch]:
        """The batch cut into parts of at most ``size`` items, and as many without labels."""
        return [self._rows(slice(start, start + size)) for start in range(0, len(self.images), size)]

    def _rows(self, rows: slice) -> Batch:
        unlabelled = None if self.unlabelled is None else self.unlabelled[rows]
        return Batch(self.images[rows], self.target[rows], unlabelled)


class BaseRecipe:
    """How something learns: all that :class:`samunet.training.loop.Loop` knows of it.

    Args:
        model: On its device.
        dtype: What autocast computes in; None for float32.

    Attributes:
        clip_norm: Largest norm of an update's gradients; None for any; class attribute.
        iteration, progress: Number of the update to come, and share of the training that is done, 0 to 1; the loop
            sets both before every update.
    """

    clip_norm: float | None = 1.0

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device
        self.iteration, self.progress = 0, 0.0

    @property
    def learner(self) -> nn.Module:
        """Everything that the optimizer trains; of several networks an ``nn.ModuleList``."""
        return self.model

    @property
    def learning_rate(self) -> float:
        """The peak."""
        raise NotImplementedError

    def optimizer(self) -> Optimizer:
        """Of :attr:`learner`."""
        raise NotImplementedError

    def rate(self, budget: Budget, iteration: int, elapsed: float) -> float:
        """Multiplier of the peak learning rate for the next update."""
        raise NotImplementedError

    def place(self, given: Any) -> Any:
        """A batch on the device, as :meth:`gradients` takes it, from what the source of batches gives."""
        return given

    def gradients(self, batch: Any, size: int | None, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> float:
        """Add the gradients of an update's loss.

        Args:
            batch: The whole update.
            size: Items that memory allows at a time; None for all.
            scale: Of a gradient scaler.

        Returns:
            The loss.
        """
        raise NotImplementedError

    def autocast(self) -> torch.autocast:
        """Context in which the network computes."""
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def after_update(self) -> None:
        """Move what follows the network, for example a teacher."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the optimizer's state."""
        return {f"model.{name}": value for name, value in self.model.state_dict().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`tensors` gave, from a whole checkpoint."""
        self.model.load_state_dict(without_prefix("model.", tensors))

    def optimizer_keys(self, optimizer: Optimizer) -> list[str]:
        """Names in a checkpoint of the optimizer's parameters, in its order."""
        return [str(index) for index in range(sum(len(group["params"]) for group in optimizer.param_groups))]


class Recipe(BaseRecipe):
    """How a network learns; as it stands, by cross-entropy and Dice on labelled slices.

    The trainer knows nothing else of a method: it makes batches, asks for their gradients, takes the optimizer's step,
    and looks after budget, checks, checkpoints and logs. A recipe of one's own overrides what differs
    (documentation/guide/write_a_recipe.md). Further attributes: :class:`BaseRecipe`.

    Args:
        model: The network as planned; on its device.
        network: Its plan.
        labels: The dataset's.
        dtype: What autocast computes in; None for float32.

    Attributes:
        unlabelled: Whether a batch holds as many items without labels as with; class attribute.
        slices: Neighbouring slices that an item holds, an odd number; class attribute.
        passes: Whether every slice comes once in a pass instead of being drawn; class attribute.
        needs_target: Whether slices without any class are left out of a pass; class attribute.
        patience: Passes without a better check after which the training ends, and the best network is its result;
            None for never; class attribute.
        everything_decays: Whether weight decay shrinks biases, norms and positions as well; class attribute.
        encode: Another way to the encoder's output (the feature cache), or None.
    """

    unlabelled = False
    slices = 1
    passes = False
    needs_target = False
    patience: int | None = None
    everything_decays = False

    def __init__(
        self, model: SamunetModel, network: NetworkPlan, labels: Labels, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(model, dtype)
        self.network, self.labels = network, labels
        self.upsampled = recipe_facts(network.recipe).upsampled
        self.loss = self.build_loss().to(self.device)
        self.encode: Callable[[Tensor], Features] | None = None

    @classmethod
    def transforms(cls, **settings: Any) -> Callable[..., dict[str, np.ndarray]]:
        """Augmentation of an item; :func:`samunet.training.augmentation.training_transforms` has the settings."""
        return training_transforms(**settings)

    @classmethod
    def slices_for(cls, network: NetworkPlan) -> int:
        """Neighbouring slices of an item: the recipe's, or those that the network computes together.

        Raises:
            UsageError: If both want several, and not as many.
        """
        together = network.adaptation.slab
        if cls.slices > 1 and together > 1 and cls.slices != together:
            raise UsageError(
                f"the recipe {network.recipe} has items of {cls.slices} slices, and the adaptation "
                f"{network.adaptation.method} computes {together} together",
                "plan with as many, or with another recipe",
            )
        return max(cls.slices, together)

    def build_loss(self) -> UpdateLoss:
        """The loss of labelled items."""
        return SegmentationLoss(self.labels)

    @property
    def learning_rate(self) -> float:
        """The peak, as planned."""
        return self.network.learning_rate

    @property
    def result(self) -> SamunetModel:
        """The network that is checked while training, and written at the end."""
        return self.model

    def optimizer(self) -> Optimizer:
        """As planned."""
        plan = self.network
        return build_optimizer(
            plan.optimizer, self.learner, plan.learning_rate, plan.weight_decay,
            everything_decays=self.everything_decays,
        )  # fmt: skip

    def rate(self, budget: Budget, iteration: int, elapsed: float) -> float:
        """Multiplier of the peak learning rate for the next update."""
        return budget.learning_rate_factor(iteration, elapsed)

    def place(self, given: Mapping[str, np.ndarray]) -> Batch:
        """A loader's batch on the device."""
        return Batch.of(given, self.device)

    def logits(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """Class logits, float32, of the network or of another one (a teacher).

        Args:
            images: ``(n, channels, height, width)``.
            model: Instead of :attr:`model`.
        """
        with self.autocast():
            return (model or self.model)(images, upsample=self.upsampled, encode=self.encode).float()

    def sums(self, batch: Batch) -> Tensor:
        """All that :meth:`value` needs to know of a part of an update, ``(m,)``: sums over its items, with gradients.

        May draw random numbers from torch: they are the same whenever a part is computed again.
        """
        return self.loss.sums(self.logits(batch.images.flatten(0, -4)), batch.target.flatten(0, -3))

    def value(self, sums: Tensor) -> Tensor:
        """The loss, a scalar, from the sums of the whole update."""
        return self.loss.value(sums)

    def gradients(self, batch: Batch, size: int, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> float:
        """Add the gradients of an update's loss, the same whatever parts it is computed in.

        Where several processes share the update, the loss is that of the whole update, and the gradients are those of
        this process's items: the loop sums them (:mod:`samunet.training.ranks`).
        """
        parts = batch.parts(size)
        if len(parts) == 1:
            loss = self.value(summed(self.sums(batch)))
            scale(loss).backward()
            return float(loss.detach())
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), buffers_kept(self.learner), torch.random.fork_rng(devices):
            sums = summed(sum(self.sums(part) for part in parts))
        loss = self.value(sums.requires_grad_())
        (slope,) = torch.autograd.grad(loss, sums)
        for part in parts:
            scale(slope @ self.sums(part)).backward()
        return float(loss.detach())

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`BaseRecipe`."""
        further = {f"recipe.{name}": value for name, value in self.state().items()}
        return {f"model.{name}": value for name, value in self.model.trained_state().items()} | further

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See :class:`BaseRecipe`."""
        self.model.load_trained_state(without_prefix("model.", tensors))
        self.load_state(without_prefix("recipe.", tensors))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the trained tensors of :attr:`model` and the optimizer's state."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` gave."""


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Passes within do not count in the statistics of a batch normalisation that trains."""
    running = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(running[name])
