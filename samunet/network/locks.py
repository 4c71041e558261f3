"""One process at a time: a lock file that the system frees when its holder dies."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


@contextmanager
def one_process(target: Path) -> Iterator[None]:
    """Hold ``.NAME.lock`` beside ``target``, waiting for another process that holds it.

    Raises:
        OSError: If the lock file cannot be made.
    """
    path = target.with_name(f".{target.name}.lock")
    told = False
    while True:
        stream = open(path, "w")  # noqa: SIM115 (open as long as the lock is held)
        if _lock(stream) and _has_its_name(stream, path):
            break
        stream.close()
        if not told:
            log.info("another process is at work on %s; waiting for it", target)
            told = True
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            log.debug("%s stays: it cannot be removed while it is open", path)
        stream.close()


def _lock(stream: IO[str]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems know no locks: go on without one rather than not at all.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _has_its_name(stream: IO[str], path: Path) -> bool:
    """Whether the locked file is still the one of that name: a former holder removes it."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
