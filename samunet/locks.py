"""A lock that one process at a time can hold, and that the operating system frees when its holder dies.

It is ``flock`` on Linux and macOS and ``msvcrt.locking`` on Windows, on a hidden file. Network file systems pass such
locks on to other machines where they are set up to (NFS on Linux does).
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
# Windows keeps others from reading what is locked: the locked byte lies far behind the text.
_BYTE = 1 << 30


class LockHeld(Exception):
    """Another process holds the lock; the message says which one, where and since when."""


@contextmanager
def exclusive(target: Path) -> Iterator[bool]:
    """Hold the lock ``.NAME.lock`` beside ``target``, which need not exist, while the block runs.

    A process that is killed loses the lock at once, so a file that it left behind blocks nobody.

    Yields:
        False on a file system without locks, where nothing is held; else True.

    Raises:
        LockHeld: If another process holds it.
        OSError: If the lock file cannot be made.
    """
    path = target.with_name(f".{target.name}.lock")
    descriptor = _acquire(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):  # Windows removes no open file; what stays behind is no lock
                path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """The locked file, with who we are in it; None on a file system without locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 4096).decode(errors="replace") if error.errno in _HELD else ""
            os.close(descriptor)
            if error.errno in _HELD:
                raise LockHeld(_described(holder)) from None
            return None
        if _is_current(descriptor, path):
            break
        os.close(descriptor)  # its last holder removed the file while we opened it
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(_ourselves()).encode())
    return descriptor


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _ourselves() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _described(holder: str) -> str:
    try:
        return "process {pid} on {host} since {since}".format(**json.loads(holder))
    except (ValueError, KeyError, TypeError):  # it holds the lock and has not written yet who it is
        return "another process"
