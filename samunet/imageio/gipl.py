"""GIPL (``.gipl``, ``.gipl.gz``), the format of the Guy's Image Processing Lab: a header of 256 bytes, and voxels.

It keeps spacing and origin, but no direction: ITK reads and writes its axes as pointing to the left, back and up, and
it is always 3D.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN, Geometry
from samunet.imageio.volume import Layout, VolumeFormat, geometry_of, wrong

_HEADER = 256
# Codes of the types that ITK reads: binary (a byte each), 8 and 16 bits, float and double.
_TYPES = {1: "u1", 7: "i1", 8: "u1", 15: ">i2", 16: ">u2", 64: ">f4", 65: ">f8"}
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
_SPACING_AT, _ORIGIN_AT, _MAGIC_AT = 10, 204, 252


class Gipl(VolumeFormat):
    """GIPL; a fourth axis is channels."""

    endings = (".gipl", ".gipl.gz")
    itk = "GiplImageIO"
    directed = False
    gzipped = True

    def parse(self, stream: BinaryIO, file: Path) -> Layout:
        """See :meth:`VolumeFormat.parse`."""
        header = stream.read(_HEADER)
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
        return Layout(header, dims[:axes], np.dtype(_TYPES[code]), _HEADER)

    def geometry(self, layout: Layout, file: Path) -> Geometry:
        """See :meth:`VolumeFormat.geometry`."""
        axes = len(layout.sizes)
        spacing = struct.unpack_from(">4f", layout.header, _SPACING_AT)[:axes]
        origin = struct.unpack_from(">4d", layout.header, _ORIGIN_AT)[:axes]
        return geometry_of(file, spacing, origin, np.eye(axes), ("pixdim", "matrix"), placed=False)

    def write(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`VolumeFormat.write`."""
        if array.dtype == np.uint32:
            raise SamunetError(f"{file} cannot hold the label value {array.max()}; GIPL goes up to 65535")
        super().write(array, file, geometry)
