"""Ctrl-C and SIGTERM: a chance to save, processes started undisturbed, and workers that end with their parent."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 128 + signal.SIGTERM  # exit status of a worker that was told to stop


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: a scheduler or container wants the process to stop. Handled like Ctrl-C."""


@contextmanager
def termination_as_exception() -> Iterator[None]:
    """Turn SIGTERM into :class:`Terminated`, so that files and worker processes are cleaned up as after Ctrl-C."""
    if not _in_main_thread():
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a forked worker inherits this handler but must simply die when told to
            os._exit(128 + number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


class StopRequest:
    """Context manager that notes SIGINT and SIGTERM instead of raising; a second signal is passed on at once.

    So a training stops between two steps, and what is saved is whole. What the process ignores (under ``nohup``, or in
    the background of a script) stays ignored.

    Attributes:
        received: The signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if _in_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        self._restore()

    def pass_on(self) -> None:
        """Deliver the noted signal to whoever handled signals before; call once everything is saved.

        Raises:
            KeyboardInterrupt: In any case, whatever that handler does.
        """
        number, self.received = self.received, None
        self._restore()
        signal.raise_signal(number)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Answer Ctrl-C and SIGTERM after the block; processes that start in it are not disturbed while they do."""
    if not _in_main_thread():
        yield
        return
    numbers, noted = {signal.SIGINT, signal.SIGTERM}, []
    # Blocking alone is not enough here, where another thread may take the signal; new processes inherit only the block.
    before = {number: signal.signal(number, lambda number, frame: noted.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in noted[:1]:
            signal.raise_signal(number)


def prepare_worker() -> None:
    """Initializer of a worker process: it stops when told to, and does not outlive the process that started it.

    Ctrl-C reaches every process of a terminal; only the first one answers, and tells its workers with SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # what interrupts_held held: ends the worker here
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STOPPED))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent_process().join()
    os._exit(STOPPED)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()  # Python sets signal handlers there only
