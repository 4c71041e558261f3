"""One DICOM file: where its frames lie and what its stored values mean, by pydicom; its pixels, by numpy or GDCM.

GDCM, which ITK reads DICOM with, takes type, orientation, spacing and slope of a series from its first file and those
of a file from its first frame, and some malformed headers keep it busy for ever. So it sees none: every value is taken
here from the frame that it belongs to. A damaged compressed file may crash GDCM, or keep it busy for ever, too. So it
decodes in a child process, one for all files of a series, with a time limit for each; and what it is given is a new
file with the pixels and what describes them alone.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN

if TYPE_CHECKING:
    from pydicom import Dataset

_MAGIC_AT, _MAGIC = 128, b"DICM"
# The modality as it lies in the first bytes of a file: tag, with or without a type, length, capital letters.
_RAW_MODALITY, _HEAD = re.compile(rb"\x08\x00\x60\x00(?:CS..|..\x00\x00)([A-Z]{2,16} ?)", re.DOTALL), 4096
_SHARED, _PER_FRAME, _DETECTOR = (
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DetectorInformationSequence",
)  # fmt: skip
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# Two axes of unit length at right angles, as rounded to two digits.
_RIGHT_ANGLED = 0.01
_WANTED = [
    *_UIDS, "Modality", "SeriesDescription", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "ImagerPixelSpacing", "NominalScannedPixelSpacing", "SpacingBetweenSlices", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "DoseGridScaling", "GridFrameOffsetVector", _SHARED, _PER_FRAME, _DETECTOR,
]  # fmt: skip


_SECONDS, _BYTES_PER_SECOND = 30.0, 1e6  # time for a file, and more for a large one
_DESCRIBING = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData", "PixelData",
)  # fmt: skip
_CHILD = "from samunet.imageio.dicom_file import serve; serve()"


class Frame(NamedTuple):
    """One slice.

    Attributes:
        file: That holds it.
        position: Of its first pixel, ITK's axes, in mm; None if not stated.
        orientation: Direction cosines along a row and along a column; None if not stated.
        spacing: From row to row and from column to column, in mm; 1 if not stated.
        distance: To the next slice in mm, as the header has it; None if not stated.
        slope, intercept: Intensity = stored value x slope + intercept.
    """

    file: Path
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...]
    distance: float | None
    slope: float
    intercept: float


class Header(NamedTuple):
    """Header of one file.

    Attributes:
        file: Its path.
        uids: Of study, series and frame of reference; empty text if not stated.
        modality, description: As the file has them; may be empty.
        size: Rows and columns.
        components: 3 for colours.
        photometric: What the values of pixels mean, such as ``MONOCHROME2``.
        frames: In the order in which they are stored.
    """

    file: Path
    uids: tuple[str, str, str]
    modality: str
    description: str
    size: tuple[int, int]
    components: int
    photometric: str
    frames: tuple[Frame, ...]


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its first bytes: the word DICM, or, where that is left out, the first elements."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return False
    return head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC or _begins_with_elements(head)


def read_header(file: Path) -> Header | None:
    """The header of a DICOM file; None of one without pixels, such as a report, and of one that is damaged.

    A value that is broken is a SamunetError that names file and tag.
    """
    try:
        dataset = read_dataset(file, stop_before_pixels=True, specific_tags=_WANTED)
    except SamunetError:
        return None
    return guarded(file, _header, dataset, file)


def read_dataset(file: Path, **how) -> Dataset:
    """A file as pydicom has it; ``how`` goes to ``pydicom.dcmread``."""
    import pydicom

    return guarded(file, pydicom.dcmread, file, force=True, **how)


def guarded(file: Path, function, *arguments, **keywords):
    """Call ``function``, in which a damaged file may make pydicom raise anything, as a SamunetError that names it."""
    try:
        with _quiet():
            return function(*arguments, **keywords)
    except SamunetError:
        raise
    except Exception as error:
        raise SamunetError(f"{file} is a damaged or truncated DICOM image: {error}", COPY_AGAIN) from error


def raw_modality(file: Path) -> str | None:
    """The modality by the first bytes of a file, of which nothing else need be readable."""
    with file.open("rb") as stream:
        found = _RAW_MODALITY.search(stream.read(_HEAD))
    return None if found is None else found[1].decode("ascii").strip()


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom neither warns of unusual values nor checks them: what matters is checked here."""
    from pydicom import config

    log, before = logging.getLogger("pydicom"), logging.getLogger("pydicom").level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _begins_with_elements(head: bytes) -> bool:
    """Whether bytes begin with two elements of the groups that come first in DICOM, each with a short value."""
    at, last = 0, (0, -1)
    for _ in range(2):
        if len(head) < at + 8:
            return False
        group, number, length = struct.unpack_from("<HHI", head, at)
        if head[at + 4 : at + 6].isalpha() and head[at + 4 : at + 6].isupper():
            length = struct.unpack_from("<H", head, at + 6)[0]
            if head[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT") and len(head) >= at + 12:
                at, length = at + 4, struct.unpack_from("<I", head, at + 8)[0]
        if group not in (2, 8) or (group, number) <= last or length % 2 or length > 256:
            return False
        at, last = at + 8 + length, (group, number)
    return True


def _header(dataset: Dataset, file: Path) -> Header | None:
    sides = [_numbers(dataset, keyword, 1, file) for keyword in ("Rows", "Columns", "BitsAllocated")]
    if None in sides:
        return None
    samples = _numbers(dataset, "SamplesPerPixel", 1, file) or (1.0,)
    photometric = _text(dataset, "PhotometricInterpretation")
    return Header(
        file=file,
        uids=tuple(_text(dataset, keyword) for keyword in _UIDS),
        modality=_text(dataset, "Modality"),
        description=_text(dataset, "SeriesDescription"),
        size=(int(sides[0][0]), int(sides[1][0])),
        components=3 if photometric.startswith("PALETTE") else int(samples[0]),
        photometric=photometric,
        frames=tuple(_frames(dataset, file)),
    )


def _frames(dataset: Dataset, file: Path) -> Iterator[Frame]:
    number = int((_numbers(dataset, "NumberOfFrames", 1, file) or (1.0,))[0])
    shared, own = dataset.get(_SHARED) or [], dataset.get(_PER_FRAME) or []
    if number < 1 or (own and len(own) != number):
        raise SamunetError(
            f"{file}: NumberOfFrames (0028,0008) is {number}, but the places of {len(own)} frames are given", COPY_AGAIN
        )
    places = [*(dataset.get(_DETECTOR) or [])[:1], dataset]
    for index in range(number):
        groups = [*own[index : index + 1], *shared[:1]]

        def find(group: str, keywords: Sequence[str], count: int) -> tuple[float, ...] | None:
            inner = [(source.get(group) or [None])[0] for source in groups]  # noqa: B023  called in this turn
            found = (
                _numbers(source, keyword, count, file)
                for source in [*filter(None, inner), *places]
                for keyword in keywords
            )
            return next((numbers for numbers in found if numbers is not None), None)

        position = find("PlanePositionSequence", ["ImagePositionPatient"], 3)
        orientation = find("PlaneOrientationSequence", ["ImageOrientationPatient"], 6)
        spacing = find("PixelMeasuresSequence", ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"], 2)
        distance = find("PixelMeasuresSequence", ["SpacingBetweenSlices"], 1)
        slope = find("PixelValueTransformationSequence", ["RescaleSlope", "DoseGridScaling"], 1) or (1.0,)
        intercept = find("PixelValueTransformationSequence", ["RescaleIntercept"], 1) or (0.0,)
        orientation = None if orientation is None else _right_angled(orientation, file)
        if not own and number > 1 and position is not None and orientation is not None:
            # The file states the position of the first frame, and distances.
            offsets = _numbers(dataset, "GridFrameOffsetVector", number, file)
            if offsets is None and distance is not None:
                offsets = [place * distance[0] for place in range(number)]
            normal = np.cross(orientation[:3], orientation[3:])
            moved = None if offsets is None else np.array(position) + (offsets[index] - offsets[0]) * normal
            position = None if moved is None else tuple(moved.tolist())
        if slope[0] == 0:
            raise SamunetError(f"{file}: RescaleSlope (0028,1053) is 0: all voxels would be the same", COPY_AGAIN)
        distance = None if distance is None else abs(distance[0])
        yield Frame(file, position, orientation, spacing or (1.0, 1.0), distance, slope[0], intercept[0])


def _right_angled(cosines: tuple[float, ...], file: Path) -> tuple[float, ...]:
    """Rounded direction cosines as exact ones."""
    row, column = np.reshape(cosines, (2, 3))
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > _RIGHT_ANGLED:
        raise SamunetError(
            f"{file}: ImageOrientationPatient (0020,0037) is {' '.join(f'{cosine:g}' for cosine in cosines)}, which "
            "are no two directions at right angles",
            COPY_AGAIN,
        )
    row = row / lengths[0]
    column = column - (row @ column) * row
    return (*row.tolist(), *(column / np.linalg.norm(column)).tolist())


def _numbers(dataset: Dataset, keyword: str, count: int, file: Path) -> tuple[float, ...] | None:
    """The numbers of an element; None if it is missing or empty."""
    if keyword not in dataset:
        return None
    raw = dataset.get_item(keyword).value
    try:
        value = dataset[keyword].value
        listed = [] if value in (None, "", b"") else [value] if isinstance(value, (str, int, float)) else list(value)
        numbers = tuple(float(number) for number in listed)
    except Exception:  # whatever pydicom raises on a broken value
        numbers = (np.nan,)
    if not numbers:
        return None
    if len(numbers) != count or not np.isfinite(numbers).all():
        from pydicom.datadict import tag_for_keyword

        tag = tag_for_keyword(keyword)
        shown = raw.decode("latin-1").strip() if isinstance(raw, bytes) else str(raw)
        raise SamunetError(
            f"{file}: {keyword} ({tag >> 16:04x},{tag & 0xFFFF:04x}) is {shown[:80]!r}; it must be "
            f"{count} number{'s' * (count > 1)}, with decimal points",
            "export the series again, or correct the element with a DICOM tool",
        )
    return numbers


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


class PixelReader:
    """Context manager that reads the pixels of DICOM files; its child process starts with the first compressed one."""

    def __enter__(self) -> PixelReader:
        self._child: subprocess.Popen | None = None
        return self

    def __exit__(self, *error) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()

    def read(self, header: Header) -> Iterator[np.ndarray]:
        """The stored values of every frame in turn, ``(y, x)``, or ``(y, x, 3)`` of colours.

        Raises:
            SamunetError: If the file is damaged or truncated, holds other frames than it announces, or its compression
                is not known.
        """
        dataset = read_dataset(header.file)
        frames = guarded(header.file, self._frames, dataset, header)
        for _ in header.frames:
            frame = guarded(header.file, next, frames, None)
            if frame is None or frame.shape[:2] != header.size:
                raise SamunetError(f"{header.file} lacks pixels of the frames that it announces", COPY_AGAIN)
            yield frame
        if guarded(header.file, next, frames, None) is not None:
            announced = len(header.frames)
            raise SamunetError(
                f"{header.file} holds the pixels of more frames than it announces ({announced})", COPY_AGAIN
            )

    def _frames(self, dataset: Dataset, header: Header) -> Iterator[np.ndarray]:
        from pydicom.pixels import apply_color_lut, iter_pixels

        syntax = _transfer_syntax(dataset)
        if syntax.is_encapsulated:
            return self._decoded(dataset, header, syntax.name)
        # All at once, so that a truncated file is found here and not in the midst of its frames.
        frames = list(iter_pixels(dataset))
        if header.photometric.startswith("PALETTE"):
            return (apply_color_lut(frame, dataset) for frame in frames)
        stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
        unused = allocated - stored if frames[0].dtype.kind in "iu" and allocated > 1 else 0
        # Bits above the highest may hold an overlay. Shifting out and back also extends the sign.
        above = allocated - 1 - int(dataset.get("HighBit", stored - 1)) if unused else 0
        return ((frame << above) >> unused if unused else frame for frame in frames)

    def _decoded(self, dataset: Dataset, header: Header, compression: str) -> Iterator[np.ndarray]:
        if self._child is None:
            # The child must find what this process finds, however it was made to.
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._child = subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
        shape = (len(header.frames), *header.size, *(3,) * (header.components > 1))
        seconds = _SECONDS + np.prod(shape, dtype=float) * int(dataset.BitsAllocated) / 8 / _BYTES_PER_SECOND
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "pixels.dcm")
            _write_pixels(dataset, file)
            try:
                self._child.stdin.write(f"{seconds} {file}\n".encode())
                self._child.stdin.flush()
                kind, _, size = self._child.stdout.readline().decode().partition(" ")
                voxels = self._child.stdout.read(int(size or 0))
            except OSError:  # the child has died
                kind, voxels = "", b""
        if not kind or np.dtype(kind).itemsize * np.prod(shape) != len(voxels):
            raise SamunetError(
                f"{header.file} cannot be decoded: it is damaged, or takes longer than {seconds:.0f} s (compression: "
                f"{compression})",
                f"{COPY_AGAIN}; if other programs show it, decompress it with a DICOM tool, such as GDCM's gdcmconv",
            )
        return iter(np.frombuffer(voxels, kind).reshape(shape))


def _transfer_syntax(dataset: Dataset):
    """The transfer syntax; of files that do not state it, guessed from the encoding of their elements."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset.file_meta.TransferSyntaxUID


def _write_pixels(dataset: Dataset, file: Path) -> None:
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage as Frames
    from pydicom.uid import SecondaryCaptureImageStorage as Single
    from pydicom.uid import generate_uid

    pixels = Dataset()
    for keyword in _DESCRIBING:
        if keyword in dataset:
            pixels[keyword] = dataset[keyword]
    pixels.SOPClassUID = Frames if "NumberOfFrames" in dataset else Single
    pixels.SOPInstanceUID = generate_uid()
    pixels.file_meta = FileMetaDataset()
    pixels.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    dcmwrite(file, pixels, enforce_file_format=True)


def serve() -> None:
    """Of the child process: decode the files named on standard input, and write them to standard output."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the voxels
    for line in sys.stdin.buffer:
        seconds, file = line.decode().rstrip("\n").split(" ", 1)
        # A watchdog that needs no Python, which waits while GDCM works.
        faulthandler.dump_traceback_later(float(seconds), exit=True)
        try:
            array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file, imageIO="GDCMImageIO"))
        except RuntimeError:
            break
        out.write(f"{array.dtype.str} {array.nbytes}\n".encode())
        out.write(np.ascontiguousarray(array))
        faulthandler.cancel_dump_traceback_later()
        out.flush()
