"""Stored cases: blosc2 arrays that decompress slice by slice, half precision, and a JSON record written last.

Where volumes are sliced along all three axes (:mod:`.planes`), cubes decompress instead.

Four files make a case: ``NAME.b2nd`` (image), ``labels/NAME.b2nd``, ``labels/NAME.npz`` (where each class is) and
``NAME.json``; without a label, the first and the last. A case without its JSON is unfinished and is made again.
The JSON holds the checksums of all (:mod:`.checksums`), and its own. Nothing here is pickled.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from samunet.errors import SamunetError, quoted
from samunet.files import atomic_path, make_folder, read_json, to_json, write_json
from samunet.plans import fingerprint_of
from samunet.preprocessing.case import CaseRecord, PreparedCase
from samunet.preprocessing.checksums import CheckedArray, Damaged, array_checksums, checked_bytes, file_checksum
from samunet.preprocessing.chunks import sample_positions, unique_values
from samunet.preprocessing.planes import ALONG_Z, SlicingPlane

_CHUNK_BYTES = 1 << 18
_CUBE = 16  # voxels a side, of what is decompressed at once
_MOST_BLOCK_BYTES = 536_866_816  # blosc2's BLOSC2_MAXBLOCKSIZE
LABELS = "labels"  # a folder of its own: a suffix could be part of another case's name
MAX_LOCATIONS = 2000  # voxels kept per class and case: enough to centre training crops on
_HALF_MAX = 2048.0  # beyond this, half precision is coarser than one unit

FileFacts = dict[str, Any]


def write_case(
    folder: Path,
    name: str,
    case: PreparedCase,
    key: dict[str, Any],
    ignore: int | None = None,
    *,
    isotropic_chunks: bool = False,
) -> None:
    """Store a preprocessed case, with its label if it has one.

    Args:
        folder: The configuration's data folder.
        key: What the stored data depend on: ``plans``, a hash of the decisions about preprocessing, and the source
            ``files``, see :func:`samunet.preprocessing.run.file_facts`.
        ignore: Label value of voxels without annotation.
        isotropic_chunks: Whether slices along all three axes will be read.
    """
    files = case_files(folder, name)
    files["record"].unlink(missing_ok=True)  # from here until its end the case is unfinished
    fits_half = max(-float(case.image.min()), float(case.image.max())) < _HALF_MAX
    _write_array(files["image"], case.image.astype(np.float16 if fits_half else np.float32), isotropic_chunks)
    checksums: dict[str, Any] = {"image": array_checksums(files["image"])}
    if case.label is not None:
        make_folder(folder / LABELS)
        fits_byte = int(case.label.max(initial=0)) <= np.iinfo(np.int8).max
        _write_array(files["label"], case.label.astype(np.int8 if fits_byte else np.int16), isotropic_chunks)
        with atomic_path(files["locations"]) as temporary:
            locations = class_locations(case.label, ignore)
            np.savez(temporary, **{str(value): places for value, places in locations.items()})
        checksums |= {"label": array_checksums(files["label"]), "locations": file_checksum(files["locations"])}
    write_record(folder, name, {"key": key, "record": case.record.to_json(), "checksums": checksums})


def case_files(folder: Path, name: str) -> dict[str, Path]:
    """The files of a case, by part."""
    labels = folder / LABELS
    return {
        "image": folder / f"{name}.b2nd",
        "label": labels / f"{name}.b2nd",
        "locations": labels / f"{name}.npz",
        "record": folder / f"{name}.json",
    }


def write_record(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Write the JSON of a case: ``key``, ``record`` and ``checksums``, with a checksum of all three."""
    content = json.loads(to_json(content))  # as it will be read again
    write_json(case_files(folder, name)["record"], content | {"checksum": fingerprint_of(content)})


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The JSON of a case; nothing if it is missing, damaged or of a version without checksums: it is made again."""
    path = case_files(folder, name)["record"]
    try:
        content = read_json(path) if path.is_file() else {}
    except SamunetError:
        return {}
    if not isinstance(content, dict):
        return {}
    checksum = content.pop("checksum", None)
    return content if checksum == fingerprint_of(content) else {}


def stored_key(folder: Path, name: str, *, labelled: bool | None = None) -> dict[str, Any]:
    """The key that a case was stored with; nothing if it is not stored completely.

    What is in the files is checked when it is read.

    Args:
        labelled: Whether it must have been stored with a label, or without; None for either.
    """
    record, files = read_record(folder, name), case_files(folder, name)
    parts = record.get("checksums", {})
    complete = all(files[part].is_file() for part in parts) and labelled in (None, "label" in parts)
    return record["key"] if record and complete else {}


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
    for value in unique_values(label):
        if value >= lowest and value != ignore:
            chosen = sample_positions(label, lambda piece, value=value: piece == value, _evenly)
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
        made_again: What stores the case again, for errors.

    Raises:
        SamunetError: On reading what is not what was stored: it names the file and what makes it again.
    """

    folder: Path
    name: str
    plane: SlicingPlane = ALONG_Z
    made_again: str = "`api.plan_and_preprocess` again"

    def __reduce__(self):
        # A loader's worker opens the files itself.
        return type(self), (self.folder, self.name, self.plane, self.made_again)

    def along(self, plane: SlicingPlane) -> StoredCase:
        """The same case, sliced in another way."""
        if plane == self.plane:
            return self
        return self._others.setdefault(plane, StoredCase(self.folder, self.name, plane, self.made_again))

    @cached_property
    def _others(self) -> dict[SlicingPlane, StoredCase]:
        return {}

    @cached_property
    def _image(self) -> CheckedArray:
        return self._checked("image", CheckedArray)

    @cached_property
    def _label(self) -> CheckedArray:
        return self._checked("label", CheckedArray)

    @cached_property
    def _stored(self) -> dict[str, Any]:
        """The case's JSON."""
        stored = read_record(self.folder, self.name)
        if not stored:
            raise self._damaged("record")
        return stored

    @cached_property
    def record(self) -> CaseRecord:
        """How to bring masks back to the original image."""
        return CaseRecord.from_json(self._stored["record"])

    @cached_property
    def class_locations(self) -> dict[int, np.ndarray]:
        """Class value to ``(n, 3)`` positions: slice, row, column."""
        content = self._checked("locations", checked_bytes)
        with np.load(io.BytesIO(content), allow_pickle=False) as places:
            return {int(value): self.plane.positions(places[value]) for value in places.files}

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
        return self._cut(self._image, "image", first, last).astype(np.float32)

    def label(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Slices ``first`` to ``last`` (exclusive), int16; -1 lies outside the nonzero mask."""
        return self._cut(self._label, "label", first, last).astype(np.int16)

    def _cut(self, array: CheckedArray, part: str, first: int, last: int | None) -> np.ndarray:
        """Some slices of the volume, with its channels if it has them."""
        axis = self.plane.axes[0]
        where = tuple(slice(first, last) if own == axis else slice(None) for own in range(3))
        try:
            return self.plane.cut(array[(slice(None),) * (len(array.shape) - 3) + where])
        except Damaged as error:
            raise self._damaged(part) from error

    def _checked(self, part: str, opened: Callable[[Path, Any], Any]) -> Any:
        path = case_files(self.folder, self.name)[part]
        try:
            return opened(path, self._stored["checksums"].get(part))
        except Damaged as error:
            raise self._damaged(part) from error

    def _damaged(self, part: str) -> SamunetError:
        path = case_files(self.folder, self.name)[part]
        return SamunetError(
            f"the stored slices {path} are missing or damaged",
            f"have them made again: rm -f {quoted(path)}, then {self.made_again}",
        )


def _write_array(path: Path, array: np.ndarray, isotropic_chunks: bool) -> None:
    import blosc2

    *leading, depth, height, width = array.shape
    if isotropic_chunks:
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
