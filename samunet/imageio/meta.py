"""MetaImage: ``.mha`` in one file, ``.mhd`` with its voxels in another beside it (https://itk.org/Wiki/MetaIO)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN, Geometry
from samunet.imageio.border import check_file, check_size, reading
from samunet.imageio.headers import (
    LONGEST_FIELD,
    LONGEST_HEADER,
    MOST_AXES,
    beside,
    check_name,
    geometry_of,
    integers,
    numbers,
    sizes_of,
    wrong,
)
from samunet.imageio.unpacking import as_stream, take, take_text, unpacking

META_ENDINGS = (".mha", ".mhd")

_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "FLOAT": "f4"}
# The format's long has four bytes, whatever the machine's has.
_TYPES |= {"LONG": "i4", "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "DOUBLE": "f8"}
_LINE = re.compile(rb"\s*([^\s=:][^=:]*?)\s*[=:]\s*(.*?)\s*")
_LAST = "ElementDataFile"  # what follows are the voxels
# Fields with several names; where a header has more than one of them, they must agree.
_SPACING, _ORIGIN = ("ElementSpacing", "ElementSize"), ("Offset", "Origin", "Position")
_DIRECTION = ("TransformMatrix", "Rotation", "Orientation")
_BIG_ENDIAN = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_NEEDED = ("NDims", "DimSize", "ElementType")
_PLACING = {*_NEEDED, *_SPACING, *_ORIGIN, *_DIRECTION, *_BIG_ENDIAN, "ElementNumberOfChannels", "HeaderSize"}
_MOST_CHANNELS = 1000


class _Header(NamedTuple):
    fields: dict[str, str]
    end: int
    sizes: list[int]
    channels: int
    dtype: np.dtype

    @property
    def number(self) -> int:
        return math.prod(self.sizes) * self.channels


def read_meta(file: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels ``(channels, z, y, x)`` in the file's number type, and the geometry.

    Components of a voxel and axes beyond the third are channels.

    Raises:
        SamunetError: If the file is missing, damaged or truncated, or its header holds what it may not.
    """
    with reading(file):
        header = _read_header(file)
        check_size([*header.sizes, header.channels], file)
        geometry = _geometry(header, file)
        name = header.fields[_LAST]
        if name.upper() == "LOCAL":
            return _arranged(_voxels(file, header, header.end), header), geometry
        check_name(file, name, _LAST)
        if file.name.lower().endswith(".mha"):
            raise SamunetError(
                f"{file} keeps its voxels in another file, {name}",
                "call it .mhd, or save both in one file; with SimpleITK: WriteImage(ReadImage(file), 'case.mha')",
            )
        data = beside(file, name, _LAST)
        check_file(data)
        return _arranged(_voxels(data, header, 0), header), geometry


def count_meta_channels(file: Path) -> int:
    """Number of channels, from the header alone.

    Raises:
        SamunetError: If the header cannot be read.
    """
    with reading(file):
        header = _read_header(file)
    return math.prod(header.sizes[3:]) * header.channels


def join_meta(file: Path) -> bytes | None:
    """A ``.mhd`` with its voxels as the content of one ``.mha``; None for a file that holds its voxels itself.

    Raises:
        SamunetError: If there are not exactly the voxels that the header announces.
    """
    with reading(file):
        header = _read_header(file)
        if header.fields[_LAST].upper() == "LOCAL":
            return None
        data = beside(file, header.fields[_LAST], _LAST)
        skip = max(integers(header.fields.get("HeaderSize", "0"), file, "HeaderSize", 1)[0], 0)
        lines = file.read_bytes()[: header.end].splitlines(keepends=True)[:-1]
        kept = [line for line in lines if skip == 0 or not line.strip().startswith(b"HeaderSize")]
        return b"".join([*kept, b"ElementDataFile = LOCAL\n", data.read_bytes()[skip:]])


def _read_header(file: Path) -> _Header:
    with file.open("rb") as stream:
        content = stream.read(LONGEST_HEADER)
    fields: dict[str, str] = {}
    end = 0
    while _LAST not in fields:
        stop = content.find(b"\n", end)
        line = content[end : stop if stop >= 0 else len(content)]
        found = _LINE.fullmatch(line) if len(line) <= LONGEST_FIELD else None
        if found is None and (line.strip() or stop < 0):
            raise SamunetError(f"{file} is not a MetaImage, or its header is damaged", COPY_AGAIN)
        if found is not None:
            name = found[1].decode("ascii", "replace")
            value = found[2].decode("latin-1")
            if fields.setdefault(name, value) != value and name in _PLACING:
                raise SamunetError(f"{file}: its header has {name} twice", COPY_AGAIN)
        end = stop + 1 if stop >= 0 else len(content)
    if fields.get("ObjectType", "Image").lower() != "image":
        raise wrong(file, "ObjectType", fields["ObjectType"], "Image")
    for name in _NEEDED:
        if name not in fields:
            raise SamunetError(f"{file}: its header has no {name}", COPY_AGAIN)
    axes = integers(fields["NDims"], file, "NDims", 1)[0]
    if not 2 <= axes <= MOST_AXES:
        raise wrong(file, "NDims", fields["NDims"], f"2 to {MOST_AXES}")
    channels = integers(fields.get("ElementNumberOfChannels", "1"), file, "ElementNumberOfChannels", 1)[0]
    if not 1 <= channels <= _MOST_CHANNELS:
        raise wrong(file, "ElementNumberOfChannels", str(channels), f"1 to {_MOST_CHANNELS}")
    kind = re.fullmatch(r"MET_(\w+?)(_ARRAY)?", fields["ElementType"])
    if kind is None or kind[1] not in _TYPES:
        raise wrong(file, "ElementType", fields["ElementType"], f"MET_ and one of {', '.join(_TYPES)}")
    order = ">" if _is_true(_either(fields, _BIG_ENDIAN, file) or "False") else "<"
    dtype = np.dtype(_TYPES[kind[1]]).newbyteorder(order)
    return _Header(fields, end, sizes_of(fields["DimSize"], file, "DimSize", axes), channels, dtype)


def _either(fields: dict[str, str], names: tuple[str, ...], file: Path) -> str | None:
    """A field that goes by several names; the first counts, and others must say the same."""
    given = [fields[name] for name in names if name in fields]
    if len({" ".join(value.lower().split()) for value in given}) > 1 and names != _SPACING:
        raise SamunetError(f"{file}: {' and '.join(n for n in names if n in fields)} in its header differ", COPY_AGAIN)
    return given[0] if given else None


def _voxels(file: Path, header: _Header, start: int) -> np.ndarray:
    """The numbers of a data file as they follow each other; ``start`` is the end of a header in the same file."""
    fields = header.fields
    packed = _is_true(fields.get("CompressedData", "False"))
    size = header.number * header.dtype.itemsize
    skip = integers(fields.get("HeaderSize", "0"), file, "HeaderSize", 1)[0]
    if skip < -1 or (skip > 0 and start) or (skip and packed):
        raise wrong(file, "HeaderSize", str(skip), "0, or before unpacked voxels in another file, what precedes them")
    with file.open("rb") as stream:
        stream.seek(start or skip if skip >= 0 else max(start, file.stat().st_size - size))
        if not _is_true(fields.get("BinaryData", "True")):
            return take_text(stream, header.number, header.dtype, file)
        with unpacking(file):
            return take(as_stream(stream, "zlib" if packed else "raw"), size, file).view(header.dtype)


def _arranged(voxels: np.ndarray, header: _Header) -> np.ndarray:
    shape = [*header.sizes, 1][2::-1]
    others = math.prod(header.sizes[3:])
    # Stored with the component running fastest; further axes are slower than z.
    array = np.moveaxis(voxels.reshape(others, *shape, header.channels), -1, 0)
    return array.reshape(header.channels * others, *shape)


def _geometry(header: _Header, file: Path) -> Geometry:
    axes, fields = len(header.sizes), header.fields

    def given(names: tuple[str, ...], count: int, default: list[float]) -> list[float]:
        text = _either(fields, names, file)
        return default if text is None else numbers(text, file, names[0], count)

    spacing = given(_SPACING, axes, [1.0] * axes)
    origin = given(_ORIGIN, axes, [0.0] * axes)
    # Row by row, the format lists the axes' vectors.
    vectors = np.reshape(given(_DIRECTION, axes * axes, np.eye(axes).ravel().tolist()), (axes, axes))
    return geometry_of(file, spacing, origin, vectors.T, (_SPACING[0], _DIRECTION[0]), placed=True)


def _is_true(text: str) -> bool:
    # As the format's own library does.
    return text[:1] in ("t", "T", "1")
