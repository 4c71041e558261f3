"""One training per fold at a time: a lock of the operating system, which ends with the process that holds it."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samunet.errors import SamunetError
from samunet.files import make_folder, remove_leftovers

log = logging.getLogger(__name__)

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
# Windows keeps others from reading what is locked: the locked byte lies far behind the text.
_BYTE = 1 << 30


@contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Hold the right to train the fold in ``folder`` while the block runs.

    The lock is ``flock`` on Linux and macOS and ``msvcrt.locking`` on Windows, on ``.fold_X.lock`` beside the fold's
    folder. A process that is killed loses it at once, so a file that it left behind blocks nobody. Network file systems
    pass such locks on to other machines where they are set up to (NFS on Linux does); on a file system without locks
    the training goes on with a warning.

    Args:
        folder: The fold's folder, which need not exist yet. What a killed training left half written in it is removed.

    Raises:
        SamunetError: If another process trains the fold; says which one, where and since when.
    """
    make_folder(folder.parent)
    path = folder.parent / f".{folder.name}.lock"
    descriptor = _acquire(path, folder)
    try:
        if descriptor is not None:
            remove_leftovers(folder, age=0)
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):  # Windows removes no open file; what stays behind is no lock
                path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path, folder: Path) -> int | None:
    """The locked file, with who we are in it; None on a file system without locks."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SamunetError(
                f"could not write {path}: {error.strerror}", "set samunet_results to a folder that you may write to"
            ) from error
        try:
            _lock(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 4096).decode(errors="replace") if error.errno in _HELD else ""
            os.close(descriptor)
            if error.errno in _HELD:
                raise _refusal(folder, holder) from None
            log.warning("%s cannot be locked (%s): never train one fold twice at once", path, error.strerror)
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


def _refusal(folder: Path, holder: str) -> SamunetError:
    try:
        who = "process {pid} on {host} since {since}".format(**json.loads(holder))
    except (ValueError, KeyError, TypeError):  # it holds the lock and has not written yet who it is
        who = "another process"
    return SamunetError(
        f"{folder} is being trained by {who}",
        "wait until it is done or stop it; other folds can be trained meanwhile",
    )
