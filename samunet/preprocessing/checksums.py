"""Checksums of stored files: of the whole file for small ones, of every chunk for blosc2 arrays.

blosc2 has none of its own: most flipped bits would be read as other voxels, and some as other shapes. A chunk, what is
compressed together, is checked when it is first read. What stands around the chunks, header and index, is checked
before blosc2 sees it. Files may come from a stranger: what holds more than numbers (names of code, plug-ins or files)
is refused.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from samunet.errors import SamunetError

_HEADER_BYTES = slice(11, 15)  # of a blosc2 frame: how long its header is, big endian


class Damaged(Exception):
    """A file that is missing, or is not what was stored."""


def file_checksum(path: Path) -> int:
    """CRC-32 of a file."""
    return zlib.crc32(path.read_bytes())


def checked_bytes(path: Path, checksum: Any) -> bytes:
    """A file's content.

    Raises:
        Damaged: If it is missing, or ``checksum`` is not that of :func:`file_checksum`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged from error
    if zlib.crc32(content) != checksum:
        raise Damaged
    return content


def array_checksums(path: Path) -> dict[str, Any]:
    """Checksums of a blosc2 array just written, for :class:`CheckedArray`.

    Returns:
        ``bytes`` of the file, ``chunks`` (CRC-32 of each, compressed), ``data`` (where the chunks begin and end in the
        file), and ``rest``, the CRC-32 of all else.
    """
    array = open_array(path)
    with open(path, "rb") as file:
        first = last = int.from_bytes(file.read(_HEADER_BYTES.stop)[_HEADER_BYTES], "big")
        checksums = []
        for index in range(array.schunk.nchunks):
            chunk = array.schunk.get_chunk(index)
            checksums.append(zlib.crc32(chunk))
            file.seek(last)
            if file.read(len(chunk)) == chunk:  # those of one value alone are not in the file, but in its index
                last += len(chunk)
    size = os.path.getsize(path)
    return {"bytes": size, "data": [first, last], "rest": _rest(path, first, last), "chunks": checksums}


class CheckedArray:
    """A stored array; what is read of it is what was stored.

    Args:
        checksums: What :func:`array_checksums` told of it.

    Raises:
        Damaged: If the file is missing, or its size, header or index is another.
    """

    def __init__(self, path: Path, checksums: Any) -> None:
        try:
            sound = os.path.getsize(path) == checksums["bytes"]
            sound = sound and _rest(path, *checksums["data"]) == checksums["rest"]
        except OSError as error:
            raise Damaged from error
        if not sound:
            raise Damaged
        self._array = open_array(path)
        self._checksums = checksums["chunks"]
        self._checked: set[int] = set()
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def __getitem__(self, where: Sequence[slice]) -> np.ndarray:
        """A part, one slice an axis.

        Raises:
            Damaged: If a chunk that it lies in is not what was stored.
        """
        for index in self._chunks(where):
            if index not in self._checked:
                try:
                    chunk = self._array.schunk.get_chunk(index)
                except RuntimeError as error:
                    raise Damaged from error
                if zlib.crc32(chunk) != self._checksums[index]:
                    raise Damaged
                self._checked.add(index)
        return self._array[tuple(where)]

    def _chunks(self, where: Sequence[slice]) -> list[int]:
        """Numbers of the chunks that a part lies in."""
        shape, sides = self._array.shape, self._array.chunks
        grid = [math.ceil(whole / side) for whole, side in zip(shape, sides)]
        touched = []
        for part, whole, side in zip(where, shape, sides):
            start, stop, _ = part.indices(whole)
            touched.append(range(start // side, math.ceil(stop / side)) if stop > start else range(0))
        return [int(np.ravel_multi_index(place, grid)) for place in product(*touched)]


def open_array(path: Path) -> Any:
    """Open a blosc2 array for reading.

    Raises:
        Damaged: If it is none.
        SamunetError: If it holds more than an array as samunet stores it.
    """
    import blosc2
    from blosc2.exceptions import UnsafeDeserializationError

    if not path.is_file():  # a folder can be such an array as well, of as many files as it likes
        raise Damaged
    plain = False
    try:
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        if type(array) is blosc2.NDArray:
            schunk = array.schunk
            filters = {blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE}
            plain = schunk.cparams.codec == blosc2.Codec.LZ4 and set(schunk.cparams.filters) <= filters
            plain = plain and list(schunk.meta) == ["b2nd"] and not list(schunk.vlmeta)
    except UnsafeDeserializationError:
        pass
    except (RuntimeError, OSError, ValueError) as error:
        raise Damaged from error
    if not plain:
        raise SamunetError(
            f"{path} is no array as samunet stores it, and could run code when it is read",
            "ask where it comes from; to have it made from the images, remove it and run `api.plan_and_preprocess` "
            "again",
        )
    return array


def _rest(path: Path, first: int, last: int) -> int:
    """CRC-32 of a file without the bytes from ``first`` to ``last``."""
    with open(path, "rb") as file:
        before = zlib.crc32(file.read(first))
        file.seek(last)
        return zlib.crc32(file.read(), before)
