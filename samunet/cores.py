"""Torch's number of threads: as many as other programs leave cores free."""

from __future__ import annotations

import logging
import time
from types import TracebackType

log = logging.getLogger(__name__)

_WINDOW = 5.0  # seconds over which the use by others is averaged
_BUSY = ("user", "nice", "system", "irq", "softirq")


class FreeCores:
    """Context manager that adapts torch's thread count to the free CPU cores, and restores it at the end.

    Torch's threads wait for each other many hundred times in a training step. One that has to share its core holds up
    all, and a step takes longer than on a core less. Results depend on the number of threads in their last bits.

    Args:
        watch: False changes nothing.
    """

    def __init__(self, watch: bool = True) -> None:
        import torch

        self._torch = torch
        self._most = torch.get_num_threads()
        self._watches = watch and self._most > 1
        self._last = _sample() if self._watches else None

    def __enter__(self) -> FreeCores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watches:
            self._torch.set_num_threads(self._most)

    def adjust(self) -> None:
        """Follow what other programs do; to be called often, for it looks only every few seconds."""
        if self._last is None or time.monotonic() - self._last[0] < _WINDOW:
            return
        now = _sample()
        if now is not None:
            seconds, own, busy = (later - earlier for later, earlier in zip(now[:3], self._last[:3]))
            others = max(0.0, busy - own) / seconds
            threads = free_threads(self._most, now[3], others)
            if threads != self._torch.get_num_threads():
                self._torch.set_num_threads(threads)
                log.debug("%d threads: other programs use %.1f of %d cores", threads, others, now[3])
        self._last = now


def free_threads(most: int, cores: int, others: float) -> int:
    """Threads for which cores are free, from 1 to ``most``.

    Args:
        most: Threads on an idle machine.
        cores: That this process may use.
        others: How many of them other programs use on average.
    """
    return min(max(round(cores - others), 1), most)


def _sample() -> tuple[float, float, float, int] | None:
    """This moment, seconds of this process, of all on the cores that it may use, and their number; None if unknown."""
    import psutil

    try:
        process, all_cores = psutil.Process(), psutil.cpu_times(percpu=True)
        cores = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(all_cores))
        busy = sum(getattr(all_cores[core], kind, 0.0) for core in cores for kind in _BUSY)
    except (psutil.Error, OSError, ValueError, IndexError):  # a sandbox that hides it
        return None
    return (time.monotonic(), time.process_time(), busy, len(cores)) if cores else None
