"""Length and learning rate of a training: warm-up, then polynomial decay to zero."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from samunet.errors import UsageError

WARM_UP_ITERATIONS = 250
WARM_UP_SHARE = 0.05
POWER = 0.9
_NUMBER = r"(\d+(?:\.\d+)?)\s*"
_DURATION = re.compile(rf"(?:{_NUMBER}h)?\s*(?:{_NUMBER}m(?:in)?)?\s*(?:{_NUMBER}s(?:ec)?)?|{_NUMBER}", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """The length of a training: a number of iterations, or seconds in the training loop.

    Exactly one of the two is set.
    """

    iterations: int | None = None
    seconds: float | None = None

    def progress(self, iteration: int, elapsed: float) -> float:
        """Share of the budget that is spent, from 0 to 1."""
        spent = iteration / self.iterations if self.iterations else elapsed / self.seconds
        return min(spent, 1.0)

    def learning_rate_factor(self, iteration: int, elapsed: float) -> float:
        """Multiplier of the peak learning rate: linear warm-up over 250 iterations or 5 %, then power-0.9 decay."""
        progress = self.progress(iteration, elapsed)
        warm_up = WARM_UP_SHARE
        if self.iterations:
            warm_up = min(warm_up, WARM_UP_ITERATIONS / self.iterations)
            if progress < warm_up:
                return (iteration + 1) / (warm_up * self.iterations + 1)
        elif progress < warm_up:
            return max(progress / warm_up, 0.01)
        return ((1 - progress) / (1 - warm_up)) ** POWER


def parse_duration(text: str) -> float:
    """Seconds from ``90s``, ``2min``, ``2h30m``, ``1.5h`` or a plain number of seconds.

    Raises:
        UsageError: If the text is none of these.
    """
    parts = _DURATION.fullmatch(text.strip().lower())
    given = zip(parts.groups(), (3600, 60, 1, 1)) if parts else ()
    seconds = sum(float(value) * unit for value, unit in given if value)
    if not 0 < seconds < math.inf:
        raise UsageError(f"{text!r} is no duration", "write for example 90s, 20m, 1.5h or 2h30m")
    return seconds


def format_duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``1 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
