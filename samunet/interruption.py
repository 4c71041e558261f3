"""Lets a training stop between two steps when Ctrl-C or SIGTERM arrives, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Context manager that notes SIGINT and SIGTERM instead of raising; a second signal is passed on at once.

    What the process ignores (under ``nohup``, or in the background of a script) stays ignored.

    Attributes:
        received: The signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
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
