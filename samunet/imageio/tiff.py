"""TIFF volumes and pictures through tifffile, with nnU-Net's JSON file for a volume's spacing.

``case_0000.tif`` finds its spacing in ``case_0000.json`` or ``case.json``, ``case.tif`` in ``case.json``:
``{"spacing": [z, y, x]}`` in millimetres. Spacing in other places (ImageJ, OME) is not used.
"""

from __future__ import annotations

import io
import logging
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path, read_json, write_json
from samunet.imageio.base import COPY_AGAIN, PICTURE_GEOMETRY, Geometry, Reader, check_spacing, fit_channels
from samunet.imageio.border import check_size, reading
from samunet.workers import warn_once

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

TIFF_ENDINGS = (".tif", ".tiff")

_CHANNEL_SUFFIX = re.compile(r"_\d{4}$")
_SAVE_AGAIN = "save it again; with tifffile: imwrite(file, array, photometric='minisblack', compression='zlib')"
# Numbers of the format's definition (TIFF 6.0): kinds of pixels, and extra samples that are transparency.
_PALETTE = 3
_ALPHA_SAMPLES = (1, 2)
_MOST_PAGES = 20_000  # each is parsed by itself, before anything is known of the whole
# Those that imagecodecs decodes into as many bytes as a page has: none, LZW, JPEG, deflate, PackBits, LZMA, Zstandard.
# Others, such as JPEG 2000, have sizes of their own.
_COMPRESSIONS = (1, 5, 7, 8, 32773, 32946, 34925, 50000)


class Pages(NamedTuple):
    """``(channels, z, y, x)``, 3 for a stack or 2 for a page, and whether the last channel is transparency."""

    pixels: np.ndarray
    dimension: int
    alpha: bool


class Tiff3DReader(Reader):
    """Stacks of grey or colour pages, and single ones as pictures; BigTIFF too.

    A file without a stated spacing has the spacing (1, 1, 1), which means nothing; for a stack that is a warning.
    """

    name = "Tiff3DIO"
    kind = "tiff"
    endings = TIFF_ENDINGS
    companions = dict.fromkeys(TIFF_ENDINGS, (".json",))
    fits_channels = True

    def read_voxels(self, file: Path, wanted: int | None = None, label: bool = False) -> tuple[np.ndarray, Geometry]:
        """See :meth:`Reader.read_voxels`. Single pages are fitted to ``wanted`` as pictures are; stacks are not.

        A palette gives its indices for a label, whose equal colour components count as grey.
        """
        pages = read_pages(file, wanted, label)
        fit = wanted if pages.dimension == 2 or label else None
        return fit_channels(pages.pixels, fit, pages.alpha, file), _geometry(file, pages.dimension)

    def write_voxels(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`Reader.write_voxels`. A stated spacing is written into the JSON file beside it."""
        sidecar = file.with_suffix(".json")
        if geometry.physical:
            if sidecar.exists() and _spacing(sidecar) is None:
                raise SamunetError(
                    f"{sidecar} is in the way: the spacing of {file.name} belongs there", "rename it, or the case"
                )
            # First, so that a mask is never without its spacing.
            write_json(sidecar, {"spacing": list(geometry.spacing)})
        elif sidecar.exists() and _spacing(sidecar) is not None:
            sidecar.unlink()
        write_pages(array, file)

    def count_channels(self, file: Path) -> int:
        """See :meth:`Reader.count_channels`. Transparency does not count."""
        with _opened(file) as tiff:
            series = _series(tiff, file)
            if series.keyframe.photometric == _PALETTE:
                return 3
            sizes = [size for axis, size in zip(series.axes, series.shape) if axis in "CS"]
            return int(np.prod(sizes, dtype=int)) - _has_alpha(series)


def read_pages(file: Path, wanted: int | None, label: bool = False) -> Pages:
    """Read a TIFF file; a palette gives red, green and blue of 8 bit, or its indices for a label.

    ImageJ's format does not distinguish channels from slices where a program has not named them: pages that it calls
    channels are slices if one channel is wanted.
    """
    with _opened(file) as tiff:
        series = _series(tiff, file)
        page = series.keyframe
        check_size(series.shape, file)
        _check_pages(tiff, series, file)
        array = series.asarray()
        axes = "ZYX" if wanted == 1 and series.axes == "CYX" else series.axes
        pixels, dimension = _canonical(array, axes, file)
        if page.photometric == _PALETTE and not label:
            # Eight of the 16 bits of a colour: some programs leave the lower ones empty.
            pixels = (page.colormap >> 8).astype(np.uint8)[:, pixels[0]]
        return Pages(pixels, dimension, _has_alpha(series))


def write_pages(values: np.ndarray, file: Path) -> None:
    """Write ``(z, y, x)`` or ``(y, x)`` atomically as grey pages with lossless compression."""
    from tifffile import imwrite

    with atomic_path(file) as temporary:
        axes = "ZYX"[3 - values.ndim :]
        imwrite(temporary, values, photometric="minisblack", compression="zlib", metadata={"axes": axes})


def _series(tiff: TiffFile, file: Path) -> TiffPageSeries:
    if len(tiff.series) != 1:
        shapes = ", ".join(str(series.shape) for series in tiff.series[:4])
        raise SamunetError(f"{file} holds {len(tiff.series)} images (shapes {shapes}); it must hold one", _SAVE_AGAIN)
    return tiff.series[0]


def _has_alpha(series: TiffPageSeries) -> bool:
    samples = series.keyframe.extrasamples
    return "S" in series.axes and len(samples) == 1 and int(samples[0]) in _ALPHA_SAMPLES


def _canonical(array: np.ndarray, axes: str, file: Path) -> tuple[np.ndarray, int]:
    """Bring tifffile's axes into the order ``(channels, z, y, x)``; also the file's dimension."""
    for axis in reversed(range(len(axes))):
        if array.shape[axis] == 1 and axes[axis] not in "YX":
            array, axes = array.squeeze(axis), axes[:axis] + axes[axis + 1 :]
    channels = [axis for axis in axes if axis in "CS"]
    depth = [axis for axis in axes if axis not in "CSYX"]
    if "Y" not in axes or "X" not in axes or len(channels) > 1 or len(depth) > 1:
        raise SamunetError(
            f"{file} has axes {axes} of sizes {array.shape}; it must be one picture or one stack (z, y, x)",
            "save one file per time point and channel: case_0000.tif, case_0001.tif, ...",
        )
    order = [axes.index(axis) for axis in (*channels, *depth, "Y", "X")]
    array = array.transpose(order)
    sizes = array.shape
    return array.reshape(sizes[0] if channels else 1, sizes[-3] if depth else 1, *sizes[-2:]), 2 + len(depth)


def _geometry(file: Path, dimension: int) -> Geometry:
    names = dict.fromkeys([file.stem, _CHANNEL_SUFFIX.sub("", file.stem)])
    found = (_spacing(file.with_name(f"{name}.json")) for name in names)
    spacing = next((spacing for spacing in found if spacing is not None), None)
    if spacing is None and dimension == 2:
        return PICTURE_GEOMETRY
    if spacing is None:
        warn_once(
            f"{file.parent} holds TIFF volumes without spacing: 1, 1, 1 is used. State it in CASE.json beside each: "
            '{"spacing": [z, y, x]} in mm'
        )
    return Geometry(
        spacing=spacing or (1.0, 1.0, 1.0),
        physical=spacing is not None,
        origin=(0.0,) * dimension,
        direction=tuple(np.eye(dimension).ravel().tolist()),
        dimension=dimension,
        placed=False,
    )


def _spacing(sidecar: Path) -> tuple[float, float, float] | None:
    """The spacing that a JSON file states; None without the file, or if it is about something else."""
    content = read_json(sidecar) if sidecar.is_file() else None
    if not isinstance(content, dict) or "spacing" not in content:
        return None
    spacing = content["spacing"]
    numbers = isinstance(spacing, list) and all(type(side) in (int, float) for side in spacing)
    if not numbers or len(spacing) != 3:
        raise SamunetError(f'{sidecar}: "spacing" is {spacing!r}', "it must be three numbers in mm: [z, y, x]")
    check_spacing(spacing, sidecar, "spacing")
    return tuple(map(float, spacing))


class _Complaints(logging.Handler):
    """tifffile only logs that pages are missing, and goes on with those that are there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.part_of_set = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.messages.append(record.getMessage())
        self.part_of_set |= "missing files" in record.getMessage()


class _Alone(io.FileIO):
    """A file that tifffile cannot look around: it would read other files of a set, and give zeros for missing ones."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


@contextmanager
def _opened(file: Path) -> Iterator[TiffFile]:
    """Open a TIFF; whatever tifffile raises or logs on damaged files becomes an error that names the file."""
    from tifffile import TiffFile

    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(complaints)
    try:
        with reading(file), io.BufferedReader(_Alone(file)) as stream:
            _check_chain(stream, file)
            with TiffFile(stream, name=file.name, _multifile=False) as tiff:
                yield tiff
                # Where its description names other files, tifffile goes by the pages alone.
                if complaints.part_of_set or (tiff.is_ome and not any(one.kind == "ome" for one in tiff.series)):
                    warn_once(
                        f"{file.parent} holds TIFF files that describe themselves as parts of sets of files (OME, "
                        "Micro-Manager): only the pages in each file itself are read"
                    )
    finally:
        logger.removeHandler(complaints)
        logger.propagate = propagate
    if complaints.messages:
        raise SamunetError(f"{file} is damaged or truncated: {complaints.messages[0]}", COPY_AGAIN)


def _check_chain(stream: BinaryIO, file: Path) -> None:
    """Raise a SamunetError if the pages, each of which names the next, run in a circle: tifffile would never end."""
    start = stream.read(16)
    stream.seek(0)
    if start[:2] not in (b"II", b"MM"):
        return  # no TIFF, as tifffile will say
    order, big = "<" if start[:2] == b"II" else ">", start[2:4] in (b"+\0", b"\0+")
    # Of BigTIFF and TIFF: the number of a page's tags, the size of one, and the place of the next page.
    count, size, link, first = (f"{order}Q", 20, f"{order}Q", 8) if big else (f"{order}H", 12, f"{order}I", 4)
    at, seen = struct.unpack_from(link, start, first)[0], set()
    while at:
        if at in seen:
            raise SamunetError(f"{file} is damaged: its pages follow each other in a circle", COPY_AGAIN)
        if len(seen) == _MOST_PAGES:
            raise SamunetError(f"{file} has more than {_MOST_PAGES} pages", "cut the stack into smaller ones")
        seen.add(at)
        stream.seek(at)
        number = stream.read(struct.calcsize(count))
        if len(number) < struct.calcsize(count):
            break
        stream.seek(at + len(number) + size * struct.unpack(count, number)[0])
        place = stream.read(struct.calcsize(link))
        at = struct.unpack(link, place)[0] if len(place) == struct.calcsize(link) else 0
    stream.seek(0)


def _check_pages(tiff: TiffFile, series: TiffPageSeries, file: Path) -> None:
    """Raise a SamunetError unless the pages of a series are all there, and all that there are."""
    pages = list(series.pages)
    lacking = sum(page is None or not all(page.databytecounts) for page in pages)
    if lacking:
        raise SamunetError(
            f"{file}: {lacking} of {len(pages)} pages are not in this file: it is one of a set of files, or cut short",
            f"save the whole stack as one file; {_SAVE_AGAIN}",
        )
    if not series.is_truncated and len(tiff.pages) > len(pages):
        raise SamunetError(
            f"{file} has {len(tiff.pages)} pages, but its own description (OME, Micro-Manager) counts {len(pages)}",
            _SAVE_AGAIN,
        )
    compression = series.keyframe.compression
    if compression not in _COMPRESSIONS:
        name = getattr(compression, "name", compression)
        raise SamunetError(f"{file} has a compression ({name}) that cannot be read", _SAVE_AGAIN)
