"""GIPL (``.gipl``, ``.gipl.gz``), the Guy's Image Processing Lab's format: a header of 256 bytes, and voxels.

It keeps spacing and origin, but no direction.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN, Geometry
from samunet.imageio.border import check_size
from samunet.imageio.headers import geometry_of, wrong
from samunet.imageio.unpacking import take, unpacked

_HEADER = 256
# Codes of the types that ITK reads: binary (a byte each), 8 and 16 bits, float and double.
_TYPES = {1: "u1", 7: "i1", 8: "u1", 15: ">i2", 16: ">u2", 64: ">f4", 65: ">f8"}
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
_ORIGIN_AT, _MAGIC_AT = 204, 252


def read_gipl(file: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels ``(channels, z, y, x)`` in the file's number type, and the geometry; a fourth axis is channels.

    Raises:
        SamunetError: If the file is missing, damaged or truncated, or its header holds what it may not.
    """
    with unpacked(file) as stream:
        header = stream.read(_HEADER)
        sizes, dtype = _parse(header, file)
        check_size(sizes, file)
        voxels = take(stream, math.prod(sizes) * dtype.itemsize, file).view(dtype)
    axes = len(sizes)
    spacing = struct.unpack_from(">4f", header, 10)[:axes]
    origin = struct.unpack_from(">4d", header, _ORIGIN_AT)[:axes]
    geometry = geometry_of(file, spacing, origin, np.eye(axes), ("pixdim", "matrix"), placed=False)
    return voxels.reshape(math.prod(sizes[3:]), *[*sizes, 1][2::-1]), geometry


def count_gipl_channels(file: Path) -> int:
    """Number of channels, from the header alone.

    Raises:
        SamunetError: If the header cannot be read.
    """
    with unpacked(file) as stream:
        return math.prod(_parse(stream.read(_HEADER), file)[0][3:])


def _parse(header: bytes, file: Path) -> tuple[list[int], np.dtype]:
    if len(header) < _HEADER:
        raise SamunetError(f"{file} is truncated: {len(header)} bytes of a header of {_HEADER}", COPY_AGAIN)
    if struct.unpack_from(">I", header, _MAGIC_AT)[0] not in _MAGIC:
        raise SamunetError(f"{file} is not a GIPL image", COPY_AGAIN)
    *dims, code = struct.unpack_from(">5H", header)
    # An axis of size 0 is none; a fourth one of size 1 says nothing.
    axes = next((axis for axis, size in enumerate(dims) if not size), 4 if dims[3] > 1 else 3)
    if axes < 2 or any(dims[axes:3]):
        raise wrong(file, "dim", " ".join(map(str, dims)), "two to four sizes of 1 or more")
    if code not in _TYPES:
        raise wrong(file, "image_type", str(code), f"one of {', '.join(map(str, _TYPES))}")
    return dims[:axes], np.dtype(_TYPES[code])
