"""The loop of everything that learns: batch, update, count, save, and stop when told to."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from samunet.cores import FreeCores
from samunet.errors import SamunetError
from samunet.signals import StopRequest
from samunet.training.ranks import sum_gradients
from samunet.training.recipes import BaseRecipe
from samunet.training.schedule import Budget
from samunet.training.state import LoopProgress

log = logging.getLogger(__name__)


class Loop:
    """Updates by a recipe until the budget is spent; what is logged and saved meanwhile is up to subclasses.

    Args:
        recipe, optimizer: How to learn.
        state: Where to begin; counted on.
        budget: When to end.
        checkpoint_seconds: Time between checkpoints.
        repeatable: Whether the result must be the same every time to the last bit, and so the number of threads.
        dtype: What autocast computes in; the gradients of float16 are scaled.

    Attributes:
        steps, seconds, data_seconds: Updates since :meth:`restart_clock`, their seconds, and those spent on data.
    """

    def __init__(
        self,
        recipe: BaseRecipe,
        optimizer: Optimizer,
        state: LoopProgress,
        budget: Budget,
        *,
        checkpoint_seconds: float,
        repeatable: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.recipe, self.optimizer, self.state, self.budget = recipe, optimizer, state, budget
        self.checkpoint_seconds, self.repeatable, self.dtype = checkpoint_seconds, repeatable, dtype
        self.device = recipe.device
        self.ended = False  # before the budget is spent
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.restart_clock()

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return self.budget.progress(self.state.iteration, self.state.elapsed)

    def restart_clock(self) -> None:
        """Count updates and seconds anew."""
        self.steps, self.seconds, self.data_seconds = 0, 0.0, 0.0

    def learn(self, source: Generator[Any, None, None]) -> None:
        """Go on to the end of the budget.

        Args:
            source: Batches from the state's iteration on, as :meth:`BaseRecipe.place` takes them.

        Raises:
            KeyboardInterrupt: After a signal, once the checkpoint is written.
            SamunetError: If the loss is no longer a number.
        """
        saved = time.monotonic()
        self._started = saved - self.state.elapsed
        watch = self.device.type == "cpu" and not self.repeatable
        with StopRequest() as stop, FreeCores(watch) as cores:
            self._begin()
            while self.progress < 1 and not self.ended:
                begin = time.monotonic()
                batch = next(source)
                self.data_seconds += time.monotonic() - begin
                cores.adjust()
                loss = self._step(batch)
                self.state.iteration += 1
                self.steps += 1
                self._tick()
                seconds = time.monotonic() - begin
                self.seconds += seconds
                self._updated(loss, seconds)
                if stop.received or time.monotonic() - saved > self.checkpoint_seconds:
                    self._save_latest()
                    saved = time.monotonic()
                if stop.received:
                    source.close()
                    log.info("checkpoint written at iteration %d", self.state.iteration)
                    stop.pass_on()
        source.close()

    def _begin(self) -> None:
        """Called before the first update of a run."""

    def _updated(self, loss: float, seconds: float) -> None:
        """Called after an update, with its loss and the seconds it took."""

    def _save_latest(self) -> None:
        """Write what is needed to go on exactly."""
        raise NotImplementedError

    def _loss_error(self, loss: float, batch: Any) -> SamunetError:
        """What to say of a loss that is no number."""
        raise NotImplementedError

    def _tick(self) -> None:
        self.state.elapsed = time.monotonic() - self._started

    def _step(self, given: Any) -> float:
        """One update from one batch; returns its loss."""
        recipe = self.recipe
        factor = recipe.rate(self.budget, self.state.iteration, self.state.elapsed)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        recipe.iteration, recipe.progress = self.state.iteration, self.progress
        batch = recipe.place(given)
        loss = self._backward(batch)
        if not np.isfinite(loss):
            raise self._loss_error(loss, batch)
        sum_gradients(recipe.learner)
        if recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            trained = [parameter for parameter in recipe.learner.parameters() if parameter.requires_grad]
            nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        recipe.after_update()
        return loss

    def _backward(self, batch: Any) -> float:
        """Gradients of the batch; returns the loss."""
        return self.recipe.gradients(batch, None, self.scaler.scale)


def dtype_name(dtype: torch.dtype | None) -> str:
    """Of what autocast computes in; ``float32`` for none."""
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")
