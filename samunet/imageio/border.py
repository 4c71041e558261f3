"""The border to other people's files: what is looked at before one is opened, and what a failure is called."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

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


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Within this block whatever a library raises on a damaged file becomes an error that names the file.

    Raises:
        SamunetError: If the file is missing, empty, no file, or the block fails.
    """
    check_file(file)
    try:
        yield
    except (SamunetError, MemoryError):
        raise
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

    Asked before anything is unpacked, since a file of some megabytes may announce, and hold, many gigabytes.
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
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows does not tell
        return _MOST_VALUES * _BYTES_PER_VALUE
    try:
        return min(total, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return total
