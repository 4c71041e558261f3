"""NRRD: ``.nrrd`` in one file, ``.nhdr`` with its voxels in another (https://teem.sourceforge.net/nrrd/format.html).

NRRD stores one vector per axis, its length the spacing. ITK splits it into spacing and direction and multiplies them
again when it writes, which changes the last digits. The lines are therefore kept as they are and put back.
"""

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
    geometry_of,
    integers,
    numbers,
    sizes_of,
    wrong,
)
from samunet.imageio.unpacking import as_stream, take, take_text, unpacking

NRRD_ENDINGS = (".nrrd", ".nhdr")

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
_COMPONENTS = (
    "list",
    "point",
    "vector",
    "covariantvector",
    "normal",
    "stub",
    "scalar",
    "2vector",
    "3vector",
    "4vector",
)
_COMPONENTS += ("3gradient", "3normal", "3color", "rgbcolor", "hsvcolor", "xyzcolor", "4color", "rgbacolor")
_VECTOR = re.compile(r"\(([^()]*)\)|none", re.IGNORECASE)


class _Header(NamedTuple):
    fields: dict[str, str]
    keys: dict[str, str]
    end: int
    sizes: list[int]
    dtype: np.dtype
    packing: str
    vectors: list[list[float] | None] | None
    range_axis: int | None

    @property
    def domain(self) -> list[int]:
        """The axes that are not components of a voxel."""
        return [axis for axis in range(len(self.sizes)) if axis != self.range_axis]


class Nrrd(NamedTuple):
    """A file as read.

    Attributes:
        voxels: ``(channels, z, y, x)`` in the file's number type.
        geometry: With the lines that place the voxels, if there are such.
        keys: The file's own keys and values, such as Slicer's about segments.
    """

    voxels: np.ndarray
    geometry: Geometry
    keys: dict[str, str]


def read_nrrd(file: Path) -> Nrrd:
    """Read a file; an axis of components, and axes beyond the third, are channels.

    Raises:
        SamunetError: If the file is missing, damaged or truncated, or its header holds what it may not.
    """
    with reading(file):
        header = _read_header(file)
        check_size(header.sizes, file)
        geometry = _geometry(header, file)
        data, start = file, header.end
        if "data file" in header.fields:
            data, start = beside(file, header.fields["data file"], "data file"), 0
            check_file(data)
        array = _voxels(data, header, start).reshape(header.sizes[::-1])
    if header.range_axis is not None:
        array = np.moveaxis(array, len(header.sizes) - 1 - header.range_axis, 0)
    shape = [*(header.sizes[axis] for axis in header.domain), 1][2::-1]
    return Nrrd(array.reshape(-1, *shape), geometry, header.keys)


def count_nrrd_channels(file: Path) -> int:
    """Number of channels, from the header alone.

    Raises:
        SamunetError: If the header cannot be read.
    """
    with reading(file):
        header = _read_header(file)
    return math.prod(header.sizes) // math.prod(header.sizes[axis] for axis in header.domain[:3])


def nrrd_keys(file: Path) -> dict[str, str]:
    """The file's own keys and values, from the header alone.

    Raises:
        SamunetError: If the header cannot be read.
    """
    with reading(file):
        return _read_header(file).keys


def join_nrrd(file: Path) -> bytes | None:
    """A header with its voxels as the content of one ``.nrrd``; None for a file that holds its voxels itself.

    Raises:
        SamunetError: If the header is damaged, or the voxels are not beside it.
    """
    with reading(file):
        header = _read_header(file)
        if "data file" not in header.fields:
            return None
        data = beside(file, header.fields["data file"], "data file")
        lines = file.read_bytes()[: header.end].splitlines()
        kept = [line for line in lines if line and line.partition(b":")[0].lower() not in (b"data file", b"datafile")]
        return b"\n".join([*kept, b"", data.read_bytes()])


def restore_placement(file: Path, placement: tuple[str, ...]) -> None:
    """Put lines of a geometry's ``nrrd`` into a file that ITK has written, in place of its own."""
    header, rest = file.read_bytes().split(b"\n\n", 1)
    kept = [line for line in header.decode("latin-1").splitlines() if line.partition(":")[0] not in _PLACING]
    file.write_bytes("\n".join([*kept, *placement]).encode("latin-1") + b"\n\n" + rest)


def _read_header(file: Path) -> _Header:
    fields, keys, end = _read_lines(file)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise SamunetError(f"{file}: its header has no {name}", COPY_AGAIN)
    axes = integers(fields["dimension"], file, "dimension", 1)[0]
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
    vectors = _vectors(fields, file, axes)
    kind = np.dtype(dtype).newbyteorder(">" if order == "big" else "<")
    return _Header(fields, keys, end, sizes, kind, packing, vectors, _range_axis(fields, file, axes, vectors))


def _read_lines(file: Path) -> tuple[dict[str, str], dict[str, str], int]:
    """Fields, keys of the file's own, and where the header ends."""
    with file.open("rb") as stream:
        content = stream.read(LONGEST_HEADER)
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
        return integers(fields["space dimension"], file, "space dimension", 1)[0]
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
    if any(kinds[axis].replace("-", "") not in (*_DOMAIN, *_COMPONENTS) for axis in components):
        raise wrong(file, "kinds", fields["kinds"], "those of images: no complex numbers, matrices or tensors")
    spatial = axes - len(components)
    if len(components) > 1 or spatial < 2 or (vectors is not None and _space_axes(fields, file) != spatial):
        what = "two or three axes in space, and at most one of components"
        raise wrong(file, "kinds", fields.get("kinds", "missing"), what)
    return components[0] if components else None


def _geometry(header: _Header, file: Path) -> Geometry:
    fields, axes = header.fields, header.domain
    number = len(axes)
    signs = np.ones(number)
    if header.vectors is None:
        spacing, direction = [1.0] * number, np.eye(number)
        if "spacings" in fields:
            spacing = [numbers(fields["spacings"], file, "spacings", len(header.sizes))[axis] for axis in axes]
    else:
        signs[:2] = _SIGNS.get(fields.get("space", "").lower(), (1, 1))
        vectors = np.array([header.vectors[axis] for axis in axes])
        # As ITK computes them, to the last digit.
        spacing = [_length(vector) for vector in vectors.tolist()]
        scales = np.array([1.0 / side if side > 0 else 0.0 for side in spacing])
        direction = (vectors * scales[:, None] * signs).T + 0.0  # no minus zero
    origin = _origin(header, file, spacing)
    if header.vectors is not None or "space origin" in fields:
        origin = [sign * number for sign, number in zip(signs, origin)]
    lines = _placement(header)
    names = ("spacings", "kinds") if header.vectors is None else ("space directions", "space directions")
    placed = lines is not None and "space" in fields
    return geometry_of(file, spacing, origin, direction, names, placed=placed, nrrd=lines)


def _length(vector: list[float]) -> float:
    total = 0.0
    for number in vector:  # sum() would round otherwise
        total += number * number
    return math.sqrt(total)


def _origin(header: _Header, file: Path, spacing: list[float]) -> list[float]:
    fields, axes = header.fields, header.domain
    text = fields.get("space origin", "none")
    if text.lower() != "none":
        if not re.fullmatch(r"\([^()]*\)", text):
            raise wrong(file, "space origin", text, "a vector, such as (0,0,0)")
        return numbers(text[1:-1].replace(",", " "), file, "space origin", len(axes))
    if header.vectors is not None or "axis mins" not in fields:
        return [0.0] * len(axes)
    everyone = len(header.sizes)
    lowest = numbers(fields["axis mins"], file, "axis mins", everyone)
    centers = fields.get("centers", " ".join(["cell"] * everyone)).lower().split()
    if len(centers) != everyone:
        raise wrong(file, "centers", fields["centers"], f"{everyone} words")
    # The lowest place is a voxel's border, unless voxels are said to be points.
    steps = spacing
    if "spacings" not in fields and "axis maxs" in fields:
        highest = numbers(fields["axis maxs"], file, "axis maxs", everyone)
        steps = [(highest[axis] - lowest[axis]) / header.sizes[axis] for axis in axes]
    return [
        lowest[axis] + (0.0 if centers[axis] == "node" else step / 2) for axis, step in zip(axes, steps, strict=True)
    ]


def _placement(header: _Header) -> tuple[str, ...] | None:
    """The lines that place the voxels, without vectors of components; None where ITK's numbers are exact."""
    vectors, dimension = header.vectors, min(len(header.domain), 3)
    if vectors is None or len(header.domain) != dimension:
        return None
    found = [one[0] for one in _VECTOR.finditer(header.fields["space directions"])]
    lines = header.fields | {"space directions": " ".join(found[axis] for axis in header.domain)}
    return tuple(f"{name}: {lines[name]}" for name in _PLACING if name in lines)


def _voxels(file: Path, header: _Header, start: int) -> np.ndarray:
    skip, lines = (integers(header.fields.get(name, "0"), file, name, 1)[0] for name in ("byte skip", "line skip"))
    number = math.prod(header.sizes)
    size = number * header.dtype.itemsize
    if lines or skip < -1 or (skip and header.packing != "raw"):
        text = f"line skip {lines}, byte skip {skip}"
        raise wrong(file, "skip", text, "without line skip, and with byte skip only before raw voxels")
    with file.open("rb") as stream:
        stream.seek(start + skip if skip >= 0 else max(start, file.stat().st_size - size))
        if header.packing == "text":
            return take_text(stream, number, header.dtype, file)
        with unpacking(file):
            return take(as_stream(stream, header.packing), size, file).view(header.dtype)
