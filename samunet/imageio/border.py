"""Safe access to files from elsewhere: checked before they are opened, unpacked no further than they announce.

A few megabytes can unpack to many gigabytes. A header is read first; then as many bytes are unpacked as it announces,
and a little more for the checksum behind them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN

_POINTER = b"version https://git-lfs.github.com/spec/"
# Values of one image, all channels together; a whole-body CT has half a billion.
_MOST_VALUES = 1 << 31
# A step holds up to four copies of a case as float32 (documentation/reference/architecture.md, "Memory").
_BYTES_PER_VALUE = 4 * 4
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GIGABYTE = 1e9
_LONGEST_REASON = 200  # letters of a library's own words; they may hold what it read
_GZIP_START = b"\x1f\x8b"
_ZLIB_OR_GZIP = zlib.MAX_WBITS + 32
_BLOCK = 1 << 20
# More than one byte of gzip, zlib (1032) or bzip2 can stand for: what a damaged size may make us allocate.
_MOST_PACKED = 1 << 15
_LONGEST_WORD = 64  # of a number as text, with the space behind it
# Behind the voxels some programs leave a few bytes. They are unpacked too, because the checksum comes last.
_MOST_BEHIND = 16 << 20


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Check a file, and turn whatever a library raises on it within this block into a SamunetError that names it."""
    check_file(file)
    try:
        yield
    except (SamunetError, MemoryError):
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SamunetError(f"{file} is damaged or truncated: {error}", COPY_AGAIN) from error
    except OSError as error:
        raise SamunetError(
            f"could not read {file}: {error.strerror or error}", "check that it is whole and that you may read it"
        ) from error
    # Libraries trust what they read: a damaged file ends in whatever the next step raises.
    except Exception as error:
        what = ascii(str(error).strip())[1:-1][:_LONGEST_REASON] or type(error).__name__
        raise SamunetError(f"could not read {file}: damaged, or of an unusual kind ({what})", COPY_AGAIN) from error


def check_file(file: Path) -> None:
    """Raise a SamunetError unless ``file`` is a regular file that holds something, and not a git-LFS pointer."""
    if file.is_dir():
        raise SamunetError(f"{file} is a folder, not an image file", "remove it, or put the file in its place")
    if not file.exists():
        what = f"is a link to {os.readlink(file)}, which does not exist" if file.is_symlink() else "does not exist"
        raise SamunetError(f"{file} {what}", "check the path, or remove the case")
    if not file.is_file():
        raise SamunetError(f"{file} is not a regular file (a pipe or a device)", "put the image itself in its place")
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise SamunetError(f"could not read {file}: {error.strerror}", "check that you may read it") from error
    if not start:
        raise SamunetError(f"{file} is empty", COPY_AGAIN)
    if start == _POINTER:
        raise SamunetError(
            f"{file} is a git-LFS pointer, not the image: git has fetched its description alone",
            "in its folder: git lfs pull",
        )


def check_size(shape: Sequence[int], file: Path) -> None:
    """Raise a SamunetError if an image of ``shape``, as its header announces, is more than this machine can work on.

    To be called before anything is unpacked: a file of some megabytes may announce, and hold, many gigabytes.
    """
    values = math.prod(shape)
    needed, memory = values * _BYTES_PER_VALUE, _memory()
    if values > _MOST_VALUES or needed > memory:
        sizes = " x ".join(str(size) for size in shape if size != 1)
        most = min(_MOST_VALUES, memory // _BYTES_PER_VALUE)
        raise SamunetError(
            f"{file} announces {sizes} = {values:,} values; working on it takes {needed / _GIGABYTE:.0f} GB of memory. "
            f"This machine has {memory / _GIGABYTE:.0f} GB, and an image may have up to {most:,} values here",
            "if its header is right, cut the image into smaller ones or reduce its resolution; if not, export it again",
        )


@cache
def _memory() -> int:
    """Bytes of memory of this machine, or of the container that this runs in."""
    import psutil

    total = psutil.virtual_memory().total
    try:
        return min(total, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return total


@contextmanager
def opened(file: Path, *, gzipped: bool) -> Iterator[BinaryIO]:
    """A file within :func:`reading`; ``gzipped``: unpacked if its content, whatever its name, is gzip."""
    with reading(file), file.open("rb") as plain:
        packed = gzipped and plain.read(2) == _GZIP_START
        plain.seek(0)
        yield gzip.GzipFile(fileobj=plain) if packed else plain


def unpacked(stream: BinaryIO, packing: str) -> BinaryIO:
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


def take(stream: BinaryIO, number: int, file: Path) -> np.ndarray:
    """Exactly ``number`` bytes of voxels, as uint8. Of packed data the checksum behind them is verified.

    ``stream`` is one of :func:`opened` or :func:`unpacked`. Fewer bytes, or far more, are a SamunetError.
    """

    def truncated(got: int | str) -> SamunetError:
        return SamunetError(
            f"{file} is truncated: {got} bytes of voxels where its header announces {number}", COPY_AGAIN
        )

    size, plain = file.stat().st_size, isinstance(getattr(stream, "raw", None), io.FileIO)
    if plain and number > size - stream.tell():
        raise truncated(size - stream.tell())
    if not plain and number > size * _MOST_PACKED:
        raise truncated(f"{size} packed")
    content = np.empty(number, np.uint8)
    view, got = memoryview(content), 0
    while got < number:
        read = stream.readinto(view[got : got + _BLOCK])
        if not read:
            raise truncated(got)
        got += read
    behind = 0
    while not plain and (more := len(stream.read(_BLOCK))):
        behind += more
        if behind > _MOST_BEHIND:
            raise SamunetError(
                f"{file} holds more than its header announces: {number} bytes of voxels, and over "
                f"{_MOST_BEHIND >> 20} MB behind them",
                COPY_AGAIN,
            )
    return content


def take_text(stream: BinaryIO, number: int, dtype: np.dtype, file: Path) -> np.ndarray:
    """``number`` values written as text with spaces between; a SamunetError if there are fewer, or of another type."""
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
