"""How long a training takes, and what follows it, from what its first steps, checks and checkpoints took."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from samunet.inference.views import SHIFTED_VIEWS
from samunet.plans import ConfigurationPlan, NetworkPlan
from samunet.preprocessing.planes import SlicingPlane
from samunet.preprocessing.store import StoredCase
from samunet.recipes import recipe_facts
from samunet.training.monitoring import number_of_checks, windows_of
from samunet.training.schedule import Budget, format_duration

log = logging.getLogger(__name__)

_WARM_UP = 2  # the first steps wait for workers and for the device's preparations
_FEWEST, _ENOUGH, _SECONDS = 8, 50, 5.0


class StepClock:
    """Mean of whole steps: waiting for the batch, forward, backward, clipping and the optimiser's update.

    Args:
        ahead: Batches that workers prepare in advance; the first of them say nothing of how fast they come.
    """

    def __init__(self, ahead: int = 0) -> None:
        self.ahead = ahead
        self._first: list[float] = []
        self._count, self._total = 0, 0.0

    def add(self, seconds: float) -> None:
        """Note one step."""
        if len(self._first) < _WARM_UP + self.ahead:
            self._first.append(seconds)
        else:
            self._count, self._total = self._count + 1, self._total + seconds

    @property
    def is_enough(self) -> bool:
        """Whether the mean can be relied on: 8 steps that take 5 seconds, or 50."""
        return self._count >= _ENOUGH or (self._count >= _FEWEST and self._total >= _SECONDS)

    @property
    def mean(self) -> float:
        """Seconds of a step; of one of the first if there are no others."""
        return self._total / self._count if self._count else min(self._first)


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a training.

    Attributes:
        step: A whole step.
        check: A check of the monitored cases, with its log and plot.
        save: Writing a checkpoint, which happens every ``save_interval`` seconds.
    """

    step: float
    check: float = 0.0
    save: float = 0.0
    save_interval: float = 120.0

    def training(self, iterations: int, epoch: int) -> float:
        """Seconds of a training of so many iterations; ``epoch`` is the distance of its checks."""
        busy = iterations * self.step + number_of_checks(iterations, epoch) * self.check
        return busy + busy // self.save_interval * self.save

    def iterations(self, seconds: float, epoch: int) -> int:
        """The most iterations that a budget of time has room for, at least one."""
        low, high = 1, max(1, int(seconds / self.step))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.training(middle, epoch) <= seconds else (low, middle - 1)
        return low


def passes_to_predict(case: StoredCase, configuration: ConfigurationPlan, network: NetworkPlan) -> int:
    """Windows that pass the network when a trained fold predicts a case, over all its views and planes."""
    if not recipe_facts(network.recipe).averages:
        return windows_of(case, network)
    planes = configuration.planes
    views = 2 ** len(configuration.mirror_axes)
    if views == 1 and len(planes) == 1 and windows_of(case, network) == case.shape[0]:
        views = SHIFTED_VIEWS
    return views * sum(windows_of(case.along(SlicingPlane(tuple(axes))), network) for axes in planes)


def announce(costs: Costs, budget: Budget, epoch: int, after: Sequence[float], made: int = 0) -> dict[str, float]:
    """Log how long the training takes and what comes after it.

    Args:
        costs: As measured.
        budget: Of the training.
        epoch: Iterations between checks.
        after: Seconds that each validation case will take when the training is done; none if nothing is validated.
        made: Iterations so far, which may be all.

    Returns:
        The same as numbers, for ``run.json``.
    """
    iterations = budget.iterations or max(made, costs.iterations(budget.seconds, epoch))
    seconds = budget.seconds or costs.training(iterations, epoch)
    log.info(
        "estimate: %s for %d iterations (%.2f s a step, %.1f s a check)",
        format_duration(seconds), iterations, costs.step, costs.check,
    )  # fmt: skip
    estimate = asdict(costs) | {"iterations": iterations, "training": seconds, "validation": sum(after)}
    if after:
        log.info(
            "after it: about %s to predict and score the %d validation cases (%s a case; new cases take as long)",
            format_duration(sum(after)), len(after), format_duration(float(np.median(after))),
        )  # fmt: skip
    return {name: round(value, 4) for name, value in estimate.items()}
