"""Packed voxels, unpacked up to what a header announces and no further.

A few megabytes can unpack to many gigabytes. Here the header is read first; then as many bytes are unpacked as it
announces, and a little more for the checksum behind them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN
from samunet.imageio.border import reading

_GZIP_START = b"\x1f\x8b"
_ZLIB_OR_GZIP = zlib.MAX_WBITS + 32
_BLOCK = 1 << 20
# More than one byte of gzip, zlib (1032) or bzip2 can stand for: what a damaged size may make us allocate.
_MOST_PACKED = 1 << 15
_LONGEST_WORD = 64  # of a number as text, with the space behind it
# Behind the voxels some programs leave a few bytes. They are unpacked too, because the checksum comes last.
_MOST_BEHIND = 16 << 20


@contextmanager
def unpacked(file: Path) -> Iterator[BinaryIO]:
    """Open a file, and unpack it if its content, whatever its name, is gzip.

    Raises:
        SamunetError: If it cannot be opened, or, while the stream is read, is damaged.
    """
    with reading(file), file.open("rb") as plain:
        packed = plain.read(2) == _GZIP_START
        plain.seek(0)
        with unpacking(file):
            yield gzip.GzipFile(fileobj=plain) if packed else plain


@contextmanager
def unpacking(file: Path) -> Iterator[None]:
    """Within this block, damaged packed data are an error that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SamunetError(f"{file} is damaged or truncated: {error}", COPY_AGAIN) from error


def take(stream: BinaryIO, number: int, file: Path, what: str = "voxels") -> np.ndarray:
    """Exactly ``number`` bytes from ``stream``, as uint8. Of packed data the checksum behind them is verified.

    Args:
        stream: A plain file, or one of :func:`unpacked` or :func:`as_stream`.
        number: As the header announces.
        file: Named in errors.
        what: The bytes are.

    Raises:
        SamunetError: If there are fewer, or far more.
    """
    size, plain = file.stat().st_size, isinstance(getattr(stream, "raw", None), io.FileIO)
    if plain and number > size - stream.tell():
        raise _truncated(file, size - stream.tell(), number, what)
    if not plain and number > size * _MOST_PACKED:
        raise _truncated(file, f"{size} packed", number, what)
    content = np.empty(number, np.uint8)
    view, got = memoryview(content), 0
    while got < number:
        read = stream.readinto(view[got : got + _BLOCK])
        if not read:
            raise _truncated(file, got, number, what)
        got += read
    behind = 0
    while not plain and (more := len(stream.read(_BLOCK))):
        behind += more
        if behind > _MOST_BEHIND:
            raise SamunetError(
                f"{file} holds more than its header announces: {number} bytes of {what}, and over "
                f"{_MOST_BEHIND >> 20} MB behind them",
                COPY_AGAIN,
            )
    return content


def take_text(stream: BinaryIO, number: int, dtype: np.dtype, file: Path) -> np.ndarray:
    """``number`` values of a type, written as text with spaces between.

    Raises:
        SamunetError: If there are fewer, or one is no number of that type.
    """
    words = stream.read(number * _LONGEST_WORD).split(None, number)[:number]
    if len(words) < number:
        raise SamunetError(f"{file} is truncated: {len(words)} values where its header announces {number}", COPY_AGAIN)
    try:
        # Through double, in which programs write numbers of all types.
        values = np.array(words).astype(np.float64)
    except ValueError:
        raise SamunetError(
            f"{file} holds values that are no numbers, where its header announces text", COPY_AGAIN
        ) from None
    with np.errstate(invalid="ignore", over="ignore"):
        typed = values.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(typed.astype(np.float64), values):
        raise SamunetError(f"{file} holds values that are no {dtype.name}, the type that its header states", COPY_AGAIN)
    return typed


def as_stream(stream: BinaryIO, packing: str) -> BinaryIO:
    """``stream`` from where it stands, unpacked; ``packing`` is ``raw``, ``gzip``, ``bzip2`` or ``zlib``."""
    if packing == "gzip":
        return gzip.GzipFile(fileobj=stream)
    if packing == "bzip2":
        return bz2.BZ2File(stream)
    return io.BufferedReader(_Inflated(stream), _BLOCK) if packing == "zlib" else stream


class _Inflated(io.RawIOBase):
    """One piece of zlib or gzip data, as MetaImage holds it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._unpacker = stream, zlib.decompressobj(_ZLIB_OR_GZIP)

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:
        while not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self._stream.read(1 << 16)
            content = self._unpacker.decompress(packed, len(target))
            if content:
                target[: len(content)] = content
                return len(content)
            if not packed:
                raise EOFError("the packed voxels end too early")
        return 0


def _truncated(file: Path, got: int | str, number: int, what: str) -> SamunetError:
    return SamunetError(f"{file} is truncated: {got} bytes of {what} where its header announces {number}", COPY_AGAIN)
