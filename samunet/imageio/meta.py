"""MetaImage: ``.mha`` in one file, ``.mhd`` with its voxels in another beside it (https://itk.org/Wiki/MetaIO)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN, Geometry
from samunet.imageio.volume import (
    LONGEST_FIELD,
    LONGEST_HEADER,
    MOST_AXES,
    Layout,
    VolumeFormat,
    check_name,
    geometry_of,
    integer,
    numbers,
    sizes_of,
    wrong,
)

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


class Meta(VolumeFormat):
    """MetaImage; components of a voxel and axes beyond the third are channels."""

    endings = (".mha",)
    itk = "MetaImageIO"
    read_only: ClassVar = {".mhd": ".mha"}
    companions: ClassVar = {".mhd": (".raw", ".zraw")}

    def parse(self, stream: BinaryIO, file: Path) -> Layout:
        """See :meth:`VolumeFormat.parse`."""
        fields, end = _fields(stream.read(LONGEST_HEADER), file)
        if fields.get("ObjectType", "Image").lower() != "image":
            raise wrong(file, "ObjectType", fields["ObjectType"], "Image")
        for name in _NEEDED:
            if name not in fields:
                raise SamunetError(f"{file}: its header has no {name}", COPY_AGAIN)
        axes = integer(fields["NDims"], file, "NDims")
        if not 2 <= axes <= MOST_AXES:
            raise wrong(file, "NDims", fields["NDims"], f"2 to {MOST_AXES}")
        channels = integer(fields.get("ElementNumberOfChannels", "1"), file, "ElementNumberOfChannels")
        if not 1 <= channels <= _MOST_CHANNELS:
            raise wrong(file, "ElementNumberOfChannels", str(channels), f"1 to {_MOST_CHANNELS}")
        kind = re.fullmatch(r"MET_(\w+?)(_ARRAY)?", fields["ElementType"])
        if kind is None or kind[1] not in _TYPES:
            raise wrong(file, "ElementType", fields["ElementType"], f"MET_ and one of {', '.join(_TYPES)}")
        order = ">" if _is_true(_either(fields, _BIG_ENDIAN, file) or "False") else "<"
        dtype = np.dtype(_TYPES[kind[1]]).newbyteorder(order)
        # Components run fastest.
        sizes = [channels, *sizes_of(fields["DimSize"], file, "DimSize", axes)]
        data = None if fields[_LAST].upper() == "LOCAL" else fields[_LAST]
        if data is not None:
            check_name(file, data, _LAST)
            if file.name.lower().endswith(self.endings):
                raise SamunetError(
                    f"{file} keeps its voxels in another file, {data}",
                    "call it .mhd, or save both in one file; with SimpleITK: WriteImage(ReadImage(file), 'case.mha')",
                )
        packed, skip = _is_true(fields.get("CompressedData", "False")), fields.get("HeaderSize", "0")
        before = integer(skip, file, "HeaderSize")
        if before < -1 or (before > 0 and data is None) or (before and packed):
            raise wrong(file, "HeaderSize", skip, "0, or before unpacked voxels in another file, what precedes them")
        packing = "zlib" if packed else "raw"
        if not _is_true(fields.get("BinaryData", "True")):
            packing = "text"
        return Layout(fields, sizes, dtype, end, data, before, packing, components=0)

    def geometry(self, layout: Layout, file: Path) -> Geometry:
        """See :meth:`VolumeFormat.geometry`."""
        axes = len(layout.axes)

        def given(names: tuple[str, ...], count: int, default: list[float]) -> list[float]:
            text = _either(layout.header, names, file)
            return default if text is None else numbers(text, file, names[0], count)

        spacing = given(_SPACING, axes, [1.0] * axes)
        origin = given(_ORIGIN, axes, [0.0] * axes)
        # Row by row, the format lists the axes' vectors.
        vectors = np.reshape(given(_DIRECTION, axes * axes, np.eye(axes).ravel().tolist()), (axes, axes))
        return geometry_of(file, spacing, origin, vectors.T, (_SPACING[0], _DIRECTION[0]))

    def join(self, head: bytes, layout: Layout, voxels: bytes) -> bytes:
        """See :meth:`VolumeFormat.join`."""
        skip = max(layout.skip, 0)
        kept = [
            line
            for line in head.splitlines(keepends=True)[:-1]
            if skip == 0 or not line.strip().startswith(b"HeaderSize")
        ]
        return b"".join([*kept, b"ElementDataFile = LOCAL\n", voxels[skip:]])


def _fields(content: bytes, file: Path) -> tuple[dict[str, str], int]:
    """The header's fields, and where it ends."""
    fields: dict[str, str] = {}
    end = 0
    while _LAST not in fields:
        stop = content.find(b"\n", end)
        line = content[end : stop if stop >= 0 else len(content)]
        found = _LINE.fullmatch(line) if len(line) <= LONGEST_FIELD else None
        if found is None and (line.strip() or stop < 0):
            raise SamunetError(f"{file} is not a MetaImage, or its header is damaged", COPY_AGAIN)
        if found is not None:
            name, value = found[1].decode("ascii", "replace"), found[2].decode("latin-1")
            if fields.setdefault(name, value) != value and name in _PLACING:
                raise SamunetError(f"{file}: its header has {name} twice", COPY_AGAIN)
        end = stop + 1 if stop >= 0 else len(content)
    return fields, end


def _either(fields: dict[str, str], names: tuple[str, ...], file: Path) -> str | None:
    """A field that goes by several names; the first counts, and others must say the same."""
    given = [fields[name] for name in names if name in fields]
    if len({" ".join(value.lower().split()) for value in given}) > 1 and names != _SPACING:
        raise SamunetError(f"{file}: {' and '.join(n for n in names if n in fields)} in its header differ", COPY_AGAIN)
    return given[0] if given else None


def _is_true(text: str) -> bool:
    # As the format's own library does.
    return text[:1] in ("t", "T", "1")
