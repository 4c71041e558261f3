"""The stored values of a DICOM file: plain ones by numpy, compressed ones by GDCM in a process of its own.

A damaged compressed file may crash GDCM, or keep it busy for ever. So it decodes in a child process, one for all files
of a series, with a time limit for each; and what it is given is a new file with the pixels and what describes them
alone, so that nothing else in the header can mislead it.
"""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN
from samunet.imageio.dicom_header import Header, guarded, read_dataset

if TYPE_CHECKING:
    from pydicom import Dataset

_SECONDS, _BYTES_PER_SECOND = 30.0, 1e6  # time for a file, and more for a large one
_DESCRIBING = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData", "PixelData",
)  # fmt: skip
_CHILD = "from samunet.imageio.dicom_pixels import serve; serve()"


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
                f"{COPY_AGAIN}; if other programs show it, decompress it with a DICOM tool (gdcmconv --raw)",
            )
        return iter(np.frombuffer(voxels, kind).reshape(shape))


def _transfer_syntax(dataset: Dataset):
    """How pixels are stored; of files that do not say it, by how their elements are."""
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
