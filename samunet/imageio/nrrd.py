"""NRRD: ``.nrrd`` in one file, ``.nhdr`` with its voxels in another (https://teem.sourceforge.net/nrrd/format.html).

NRRD stores one vector per axis, its length the spacing. ITK splits it into spacing and direction and multiplies them
again when it writes, which changes the last digits. The lines are therefore kept as they are and put back.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

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

_MAGIC = re.compile(rb"NRRD000[1-6]\s*")
_FIELD = re.compile(r"([a-z][a-z ]*?)\s*: (.*)", re.IGNORECASE)
_KEY = re.compile(r"(.+?):=(.*)")
_PLACING = ("space", "space dimension", "space origin", "space directions")
_USED = (*_PLACING, "type", "dimension", "sizes", "encoding", "endian", "kinds", "spacings", "axis mins", "axis maxs")
_USED += ("centers", "data file", "byte skip", "line skip")
_IGNORED = ("content", "number", "block size", "min", "max", "old min", "old max", "sample units", "labels", "units")
_IGNORED += ("space units", "thicknesses", "measurement frame")
_ALIASES = {"centerings": "centers", "datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip"}
_ALIASES |= {"blocksize": "block size", "oldmin": "old min", "oldmax": "old max", "sampleunits": "sample units"}
_ALIASES |= {"axismins": "axis mins", "axismaxs": "axis maxs"}
_CODES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPES = {name: code for code, names in _CODES.items() for name in names.split(", ")}
_PACKINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_PACKINGS |= {"ascii": "text", "text": "text", "txt": "text"}
# How many axes a named space has, where that is not three.
_WITH_TIME = re.compile(r".*-time|rast|last|lpst")
# To turn a space's x and y to those of ITK, which point to the left and backwards; of other spaces nothing is known.
_SIGNS = {"right-anterior-superior": (-1, -1), "ras": (-1, -1), "left-anterior-superior": (1, -1), "las": (1, -1)}
_SIGNS |= {f"{name}-time": signs for name, signs in _SIGNS.items() if "-" in name} | {"rast": (-1, -1), "last": (1, -1)}
_DOMAIN = ("domain", "space", "time", "???", "none")
# Written with and without their hyphens.
_COMPONENTS = re.compile(
    "list|(covariant)?vector|point|normal|stub|scalar|[234]vector|3(gradient|normal|color)|4color|(rgb|hsv|xyz|rgba)color"
)
_VECTOR = re.compile(r"\(([^()]*)\)|none", re.IGNORECASE)


class _Header(NamedTuple):
    """``keys`` are the file's own, such as Slicer's about segments; ``vectors`` None where there are none."""

    fields: dict[str, str]
    keys: dict[str, str]
    vectors: list[list[float] | None] | None


class Nrrd(VolumeFormat):
    """NRRD; an axis of components, and axes beyond the third, are channels."""

    endings = (".nrrd",)
    itk = "NrrdImageIO"
    read_only: ClassVar = {".nhdr": ".nrrd"}
    companions: ClassVar = {".nhdr": (".raw", ".raw.gz")}

    def parse(self, stream: BinaryIO, file: Path) -> Layout:
        """See :meth:`VolumeFormat.parse`."""
        fields, keys, end = _read_lines(stream.read(LONGEST_HEADER), file)
        for name in ("type", "dimension", "sizes", "encoding"):
            if name not in fields:
                raise SamunetError(f"{file}: its header has no {name}", COPY_AGAIN)
        axes = integer(fields["dimension"], file, "dimension")
        if not 2 <= axes <= MOST_AXES:
            raise wrong(file, "dimension", fields["dimension"], f"2 to {MOST_AXES}")
        sizes = sizes_of(fields["sizes"], file, "sizes", axes)
        dtype = _TYPES.get(fields["type"].lower())
        if dtype is None:
            raise wrong(file, "type", fields["type"], "a type of real numbers, such as short, uchar or float")
        packing = _PACKINGS.get(fields["encoding"].lower())
        if packing is None:
            raise wrong(file, "encoding", fields["encoding"], "raw, gzip, bzip2 or ascii")
        order = fields.get("endian", "").lower()
        if order not in ("little", "big") and packing != "text" and dtype[1] != "1":
            raise wrong(file, "endian", order, "little or big")
        kind = np.dtype(dtype).newbyteorder(">" if order == "big" else "<")
        skip, lines = (integer(fields.get(name, "0"), file, name) for name in ("byte skip", "line skip"))
        if lines or skip < -1 or (skip and packing != "raw"):
            text = f"line skip {lines}, byte skip {skip}"
            raise wrong(file, "skip", text, "without line skip, and with byte skip only before raw voxels")
        data = fields.get("data file")
        if data is not None:
            check_name(file, data, "data file")
        vectors = _vectors(fields, file, axes)
        components = _range_axis(fields, file, axes, vectors)
        return Layout(_Header(fields, keys, vectors), sizes, kind, end, data, skip, packing, components)

    def geometry(self, layout: Layout, file: Path) -> Geometry:
        """See :meth:`VolumeFormat.geometry`, with the lines that place the voxels, if there are such."""
        fields, vectors, axes = layout.header.fields, layout.header.vectors, layout.axes
        number = len(axes)
        signs = np.ones(number)
        if vectors is None:
            spacing, direction = [1.0] * number, np.eye(number)
            if "spacings" in fields:
                spacing = [numbers(fields["spacings"], file, "spacings", len(layout.sizes))[axis] for axis in axes]
        else:
            signs[:2] = _SIGNS.get(fields.get("space", "").lower(), (1, 1))
            placed = np.array([vectors[axis] for axis in axes])
            # As ITK computes them, to the last digit.
            spacing = [_length(vector) for vector in placed.tolist()]
            scales = np.array([1.0 / side if side > 0 else 0.0 for side in spacing])
            direction = (placed * scales[:, None] * signs).T + 0.0  # no minus zero
        origin = _origin(layout, file, spacing)
        if vectors is not None or "space origin" in fields:
            origin = [sign * number for sign, number in zip(signs, origin)]
        lines = _placement(layout)
        names = ("spacings", "kinds") if vectors is None else ("space directions", "space directions")
        placed = lines is not None and "space" in fields
        return geometry_of(file, spacing, origin, direction, names, placed=placed, nrrd=lines)

    def join(self, head: bytes, layout: Layout, voxels: bytes) -> bytes:
        """See :meth:`VolumeFormat.join`."""
        named = (b"data file", b"datafile")
        kept = [line for line in head.splitlines() if line and line.partition(b":")[0].lower() not in named]
        return b"\n".join([*kept, b"", voxels])

    def restore(self, file: Path, geometry: Geometry) -> None:
        """See :meth:`VolumeFormat.restore`: the image's own lines in place of ITK's."""
        if geometry.nrrd is None:
            return
        header, rest = file.read_bytes().split(b"\n\n", 1)
        kept = [line for line in header.decode("latin-1").splitlines() if line.partition(":")[0] not in _PLACING]
        file.write_bytes("\n".join([*kept, *geometry.nrrd]).encode("latin-1") + b"\n\n" + rest)


def _read_lines(content: bytes, file: Path) -> tuple[dict[str, str], dict[str, str], int]:
    """Fields, keys of the file's own, and where the header ends."""
    first, _, _ = content.partition(b"\n")
    if not _MAGIC.fullmatch(first):
        raise SamunetError(f"{file} is not a NRRD image", COPY_AGAIN)
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    end = len(first) + 1
    while True:
        stop = content.find(b"\n", end)
        line = content[end : stop if stop >= 0 else len(content)].rstrip(b"\r").decode("latin-1")
        end = stop + 1 if stop >= 0 else len(content)
        if not line:
            # A header beside its voxels may end with the file.
            if stop < 0 and "data file" not in fields:
                raise SamunetError(f"{file} is truncated, or its header is longer than allowed", COPY_AGAIN)
            return fields, keys, end
        field = _FIELD.fullmatch(line) if len(line) <= LONGEST_FIELD else None
        name = field and _ALIASES.get(" ".join(field[1].lower().split()), " ".join(field[1].lower().split()))
        if line.startswith("#") or name in _IGNORED:
            continue
        key = _KEY.fullmatch(line)
        if name in _USED:
            if name in fields:
                raise SamunetError(f"{file}: its header has {name!r} twice", COPY_AGAIN)
            fields[name] = field[2].strip()
        elif key is not None:
            keys[key[1]] = key[2]
        else:
            raise SamunetError(f"{file}: its header has a line that is no field of NRRD: {line[:60]!r}", COPY_AGAIN)


def _vectors(fields: dict[str, str], file: Path, axes: int) -> list[list[float] | None] | None:
    """The vector of each axis, None for an axis that has none; None where the header has no vectors."""
    text = fields.get("space directions")
    if text is None:
        return None
    if "spacings" in fields:
        raise SamunetError(f"{file}: its header has 'spacings' and 'space directions'", COPY_AGAIN)
    found = list(_VECTOR.finditer(text))
    if len(found) != axes or _VECTOR.sub("", text).strip():
        raise wrong(file, "space directions", text, f"{axes} vectors, such as (1,0,0), or none")
    count = _space_axes(fields, file)
    return [
        None if one[1] is None else numbers(one[1].replace(",", " "), file, "space directions", count) for one in found
    ]


def _space_axes(fields: dict[str, str], file: Path) -> int:
    if "space dimension" in fields:
        return integer(fields["space dimension"], file, "space dimension")
    if "space" not in fields:
        raise SamunetError(f"{file}: its header has 'space directions', but no 'space'", COPY_AGAIN)
    return 4 if _WITH_TIME.fullmatch(fields["space"].lower()) else 3


def _range_axis(fields: dict[str, str], file: Path, axes: int, vectors: list[list[float] | None] | None) -> int | None:
    """The axis of a voxel's components, if there is one."""
    kinds = fields.get("kinds", " ".join(["domain"] * axes)).lower().split()
    if len(kinds) != axes:
        raise wrong(file, "kinds", fields["kinds"], f"{axes} words")
    unplaced = [vectors is not None and vectors[axis] is None for axis in range(axes)]
    components = [axis for axis, kind in enumerate(kinds) if kind not in _DOMAIN or unplaced[axis]]
    words = [kinds[axis] for axis in components]
    if not all(word in _DOMAIN or _COMPONENTS.fullmatch(word.replace("-", "")) for word in words):
        raise wrong(file, "kinds", fields["kinds"], "those of images: no complex numbers, matrices or tensors")
    spatial = axes - len(components)
    if len(components) > 1 or spatial < 2 or (vectors is not None and _space_axes(fields, file) != spatial):
        what = "two or three axes in space, and at most one of components"
        raise wrong(file, "kinds", fields.get("kinds", "missing"), what)
    return components[0] if components else None


def _length(vector: list[float]) -> float:
    total = 0.0
    for number in vector:  # sum() would round otherwise
        total += number * number
    return math.sqrt(total)


def _origin(layout: Layout, file: Path, spacing: list[float]) -> list[float]:
    fields, axes = layout.header.fields, layout.axes
    text = fields.get("space origin", "none")
    if text.lower() != "none":
        if not re.fullmatch(r"\([^()]*\)", text):
            raise wrong(file, "space origin", text, "a vector, such as (0,0,0)")
        return numbers(text[1:-1].replace(",", " "), file, "space origin", len(axes))
    if layout.header.vectors is not None or "axis mins" not in fields:
        return [0.0] * len(axes)
    everyone = len(layout.sizes)
    lowest = numbers(fields["axis mins"], file, "axis mins", everyone)
    centers = fields.get("centers", " ".join(["cell"] * everyone)).lower().split()
    if len(centers) != everyone:
        raise wrong(file, "centers", fields["centers"], f"{everyone} words")
    # The lowest place is a voxel's border, unless voxels are said to be points.
    steps = spacing
    if "spacings" not in fields and "axis maxs" in fields:
        highest = numbers(fields["axis maxs"], file, "axis maxs", everyone)
        steps = [(highest[axis] - lowest[axis]) / layout.sizes[axis] for axis in axes]
    return [
        lowest[axis] + (0.0 if centers[axis] == "node" else step / 2) for axis, step in zip(axes, steps, strict=True)
    ]


def _placement(layout: Layout) -> tuple[str, ...] | None:
    """The lines that place the voxels, without vectors of components; None where ITK's numbers are exact."""
    fields, axes = layout.header.fields, layout.axes
    if layout.header.vectors is None or len(axes) > 3:
        return None
    found = [one[0] for one in _VECTOR.finditer(fields["space directions"])]
    lines = fields | {"space directions": " ".join(found[axis] for axis in axes)}
    return tuple(f"{name}: {lines[name]}" for name in _PLACING if name in lines)
