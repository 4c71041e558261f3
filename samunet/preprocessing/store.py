"""Stored cases: blosc2 arrays that decompress slice by slice, half precision, and a JSON record written last.

Where volumes are sliced along all three axes (:mod:`.planes`), cubes decompress instead.

Four files make a case: ``NAME.b2nd`` (image), ``NAME_seg.b2nd`` (label), ``NAME_locations.npz`` (where each class is)
and ``NAME.json``; without a label, the first and the last. A case without its JSON is unfinished and is made again.
Nothing here is pickled.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path, read_json, write_json
from samunet.preprocessing.case import CaseRecord, PreparedCase
from samunet.preprocessing.pieces import places, values_in
from samunet.preprocessing.plain_arrays import open_plain
from samunet.preprocessing.planes import ALONG_Z, Plane

_CHUNK_BYTES = 1 << 18
_CUBE = 16  # voxels a side, of what is decompressed at once
_MOST_BLOCK_BYTES = 536_866_816  # blosc2's BLOSC2_MAXBLOCKSIZE
_ENDINGS = (".b2nd", ".json")
_LABEL_ENDINGS = ("_seg.b2nd", "_locations.npz")
MAX_LOCATIONS = 2000  # voxels kept per class and case: enough to centre training crops on
_HALF_MAX = 2048.0  # beyond this, half precision is coarser than one unit


@dataclass(frozen=True)
class StoreKey:
    """What stored data depend on: hashes of the decisions about preprocessing, and of the source files."""

    plans: str
    files: str


def write_case(
    folder: Path, name: str, case: PreparedCase, key: StoreKey, ignore: int | None = None, *, cubes: bool = False
) -> None:
    """Store a preprocessed case, with its label if it has one.

    Args:
        folder: The configuration's data folder.
        name: Case name.
        case: What :func:`samunet.preprocessing.case.prepare_case` made.
        key: What the stored data depend on; see :func:`is_stored`.
        ignore: Label value of voxels without annotation.
        cubes: Whether slices along all three axes will be read.
    """
    (folder / f"{name}.json").unlink(missing_ok=True)  # from here until its end the case is unfinished
    fits_half = max(-float(case.image.min()), float(case.image.max())) < _HALF_MAX
    _write_array(folder / f"{name}.b2nd", case.image.astype(np.float16 if fits_half else np.float32), cubes)
    if case.label is not None:
        fits_byte = int(case.label.max(initial=0)) <= np.iinfo(np.int8).max
        _write_array(folder / f"{name}_seg.b2nd", case.label.astype(np.int8 if fits_byte else np.int16), cubes)
        with atomic_path(folder / f"{name}_locations.npz") as temporary:
            locations = class_locations(case.label, ignore)
            np.savez(temporary, **{str(value): places for value, places in locations.items()})
    write_json(folder / f"{name}.json", {"key": asdict(key), "record": case.record.to_json()})


def is_stored(folder: Path, name: str, key: StoreKey, *, labelled: bool = True) -> bool:
    """Whether the case was stored completely, from the same source files and with the same plans."""
    endings = _ENDINGS + _LABEL_ENDINGS if labelled else _ENDINGS
    complete = all((folder / f"{name}{ending}").is_file() for ending in endings)
    return complete and _stored_key(folder, name) == asdict(key)


def stored_plans(folder: Path, name: str) -> str | None:
    """Hash of the decisions a case was stored with (``StoreKey.plans``), or None if it is not stored."""
    return _stored_key(folder, name).get("plans")


def _stored_key(folder: Path, name: str) -> dict[str, Any]:
    """What a case was stored with; nothing if its record is missing or damaged, so that it is made again."""
    path = folder / f"{name}.json"
    try:
        record = read_json(path) if path.is_file() else {}
    except SamunetError:
        return {}
    key = record.get("key") if isinstance(record, dict) else None
    return key if isinstance(key, dict) else {}


def class_locations(label: np.ndarray, ignore: int | None = None) -> dict[int, np.ndarray]:
    """Up to :data:`MAX_LOCATIONS` voxels of every foreground class, drawn evenly over the class.

    Args:
        label: ``(z, y, x)`` integer; values below 1 are background.
        ignore: Value of voxels without annotation. With one, key 0 has places in the annotated background, so that
            training finds them in sparsely annotated volumes.

    Returns:
        Class value to ``(n, 3)`` int32 positions ``z, y, x``. Absent classes have no entry.
    """
    lowest = 1 if ignore is None else 0
    found = {}
    for value in values_in(label):
        if value >= lowest and value != ignore:
            chosen = places(label, lambda piece, value=value: piece == value, _evenly)
            found[value] = np.stack(np.unravel_index(chosen, label.shape), axis=1).astype(np.int32)
    return found


def _evenly(number: int) -> np.ndarray:
    """Ranks spread evenly over ``number`` voxels: all of them, or :data:`MAX_LOCATIONS`."""
    if number <= MAX_LOCATIONS:
        return np.arange(number)
    return np.linspace(0, number - 1, MAX_LOCATIONS).astype(np.int64)


@dataclass
class StoredCase:
    """Read access to one stored case; slices are decompressed one by one.

    Args:
        folder: The configuration's data folder.
        name: Case name.
        plane: Along which axis its slices are cut.
    """

    folder: Path
    name: str
    plane: Plane = ALONG_Z

    def __reduce__(self):
        # A loader's worker opens the files itself.
        return type(self), (self.folder, self.name, self.plane)

    def along(self, plane: Plane) -> StoredCase:
        """The same case, sliced in another way."""
        if plane == self.plane:
            return self
        return self._others.setdefault(plane, StoredCase(self.folder, self.name, plane))

    @cached_property
    def _others(self) -> dict[Plane, StoredCase]:
        return {}

    @cached_property
    def _image(self):
        return _open_array(self.folder / f"{self.name}.b2nd")

    @cached_property
    def _label(self):
        return _open_array(self.folder / f"{self.name}_seg.b2nd")

    @cached_property
    def record(self) -> CaseRecord:
        """How to bring masks back to the original image."""
        return CaseRecord.from_json(read_json(self.folder / f"{self.name}.json")["record"])

    @cached_property
    def class_locations(self) -> dict[int, np.ndarray]:
        """Class value to ``(n, 3)`` positions: slice, row, column."""
        path = self.folder / f"{self.name}_locations.npz"
        try:
            with np.load(path, allow_pickle=False) as places:
                return {int(value): self.plane.positions(places[value]) for value in places.files}
        except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
            raise _damaged(path) from error

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(slices, rows, columns)``."""
        return tuple(self.plane.sides(self._image.shape[1:]))

    @cached_property
    def spacing(self) -> list[float] | None:
        """Millimetres of a slice's pixels, ``[rows, columns]``; None without physical spacing."""
        return self.plane.spacing(self.record)

    def image(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Slices ``first`` to ``last`` (exclusive): ``(channels, slices, rows, columns)`` float32."""
        return self.plane.cut(self._image[(slice(None), *self._where(first, last))].astype(np.float32))

    def label(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Slices ``first`` to ``last`` (exclusive), int16; -1 lies outside the nonzero mask."""
        return self.plane.cut(self._label[self._where(first, last)].astype(np.int16))

    def _where(self, first: int, last: int | None) -> tuple[slice, ...]:
        """Where in the volume some slices lie."""
        return tuple(slice(first, last) if axis == self.plane.axes[0] else slice(None) for axis in range(3))


def _write_array(path: Path, array: np.ndarray, cubes: bool) -> None:
    import blosc2

    *leading, depth, height, width = array.shape
    if cubes:
        blocks, chunks = ([min(side, most) for side in (depth, height, width)] for most in (_CUBE, 4 * _CUBE))
    else:
        blocks, chunks = _flat_blocks(array)
    with atomic_path(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            chunks=(*leading, *chunks),
            blocks=(*leading, *blocks),
            urlpath=str(temporary),
            mode="w",
            cparams={"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1},
        )


def _flat_blocks(array: np.ndarray) -> tuple[list[int], list[int]]:
    """Sides of blocks and of chunks where slices are read one by one."""
    # A block, what is decompressed at once, is one slice, or of a giant one as many rows as blosc2 allows. Small slices
    # share a chunk: each has a fixed cost in writing.
    *leading, depth, height, width = array.shape
    row = math.prod(leading) * width * array.dtype.itemsize
    rows = min(height, max(1, _MOST_BLOCK_BYTES // row))
    slices = max(1, min(depth, _CHUNK_BYTES // (rows * row)))
    return [1, rows, width], [slices, rows, width]


def _open_array(path: Path):
    try:
        return open_plain(path)
    except (RuntimeError, OSError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> SamunetError:
    return SamunetError(
        f"the stored slices {path} are missing or damaged", f"delete {path} and run samunet_plan_and_preprocess again"
    )
