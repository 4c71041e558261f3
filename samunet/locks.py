"""Locks that one process at a time can hold, and that the operating system frees when the holder dies."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class LockHeld(Exception):
    """Another process holds the lock; the message says which one, where and since when."""


@contextmanager
def exclusive(target: Path) -> Iterator[bool]:
    """Hold the lock ``.NAME.lock`` beside ``target``, which need not exist, while the block runs.

    Yields:
        False on a file system without locks, where nothing is held; else True.

    Raises:
        LockHeld: If another process holds it.
        OSError: If the lock file cannot be made.
    """
    from filelock import FileLock, Timeout

    path = target.with_name(f".{target.name}.lock")
    # Not in the lock file, which filelock empties, and which Windows lets nobody else read.
    holder = path.with_suffix(".holder")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LockHeld(_described(holder)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        yield False
        return
    try:
        with suppress(OSError):
            holder.write_text(json.dumps(_ourselves()), encoding="utf-8")
        yield True
    finally:
        for file in (holder, path):
            with suppress(OSError):  # Windows removes no open file; what stays behind is no lock
                file.unlink(missing_ok=True)
        lock.release()


def _ourselves() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _described(holder: Path) -> str:
    try:
        content = json.loads(holder.read_text(encoding="utf-8"))
        return "process {pid} on {host} since {since}".format(**content)
    except (OSError, ValueError, KeyError, TypeError):  # it holds the lock and has not written yet who it is
        return "another process"
