"""Features on disk, one file for each image, under a limit; what is lacking is computed again."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path, make_folder, read_json, remove_leftovers, write_json
from samunet.training.options import format_size

log = logging.getLogger(__name__)

_RECORD = "features.json"
_ENDING = ".npy"
RESERVE_BYTES = 10**9  # left free on the disk, for checkpoints and other programs


class FeatureCache:
    """A folder of arrays that only one process writes to: whoever holds the lock of the fold it lies in.

    Args:
        folder: Made if it is missing. What was made with another key is removed.
        key: A hash of everything but the image that the features depend on.
        limit: Bytes that the files may take.
    """

    def __init__(self, folder: Path, key: str, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.accepts = True
        if not _made_with(folder, key):
            if folder.exists():
                log.info("%s was made with other weights or another number format: removed", folder)
                _remove(folder)
            make_folder(folder)
            write_json(folder / _RECORD, {"key": key})
        remove_leftovers(folder, age=0)
        self._sizes = {path.stem: path.stat().st_size for path in folder.glob(f"[!.]*{_ENDING}")}
        self.bytes = sum(self._sizes.values())
        self._shrink(limit)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
        """An array; None if it is not there, damaged, or not of ``shape``."""
        if name not in self._sizes:
            return None
        try:
            array = np.load(self._path(name), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return array if shape is None or array.shape == shape else None

    def write(self, name: str, array: np.ndarray) -> None:
        """Keep an array, unless that passes the limit or the disk has no room: then nothing is kept from now on."""
        size = array.nbytes + 128  # numpy's header
        if not self.accepts or self.bytes - self._sizes.get(name, 0) + size > self.limit:
            self._stop(f"the feature cache is at its limit, {format_size(self.limit)}; the rest is computed every time")
            return
        free = shutil.disk_usage(self.folder).free
        if free < RESERVE_BYTES + size:
            self._stop(f"the disk of {self.folder} has only {format_size(free)} left: the feature cache takes no more")
            return
        try:
            with atomic_path(self._path(name)) as temporary:
                np.save(temporary, array, allow_pickle=False)
        except SamunetError as error:
            # A quota, which the free space does not tell of: the next checkpoint needs some of it.
            self._shrink(max(0, self.bytes - RESERVE_BYTES))
            self._stop(f"{error.message}; the feature cache takes no more and keeps {format_size(self.bytes)}")
            return
        self.bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def remove(self) -> None:
        """Delete the folder."""
        try:
            _remove(self.folder)
        except SamunetError as error:
            log.warning("%s; %s", error.message, error.hint)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_ENDING}"

    def _stop(self, message: str) -> None:
        if self.accepts:
            log.warning("%s; the training goes on", message)
        self.accepts = False

    def _shrink(self, enough: int) -> None:
        while self._sizes and self.bytes > enough:
            name, size = self._sizes.popitem()
            self._path(name).unlink(missing_ok=True)
            self.bytes -= size


def _made_with(folder: Path, key: str) -> bool:
    try:
        return read_json(folder / _RECORD) == {"key": key}
    except SamunetError:
        return False


def _remove(folder: Path) -> None:
    try:
        (folder / _RECORD).unlink(missing_ok=True)  # first: what a kill leaves behind is then still stale
        shutil.rmtree(folder)
    except OSError as error:
        raise SamunetError(f"could not remove {folder}: {error.strerror}", "delete this folder by hand") from error
