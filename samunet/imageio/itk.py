"""SimpleITK, quiet and checked: no warnings on the console, and no damaged file taken for a whole one.

ITK reads a truncated GIPL file, and a MetaImage with damaged compressed data, without an error: what is missing is
whatever the memory held. Both formats say how many bytes there must be, which is compared here before ITK reads them.
"""

from __future__ import annotations

import math
import re
import zlib
from functools import cache
from pathlib import Path
from types import ModuleType

from samunet.errors import SamunetError
from samunet.imageio.base import COPY_AGAIN

# Naming the format makes ITK open upper-case endings too, and never another format under a wrong name.
_FORMATS = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".gipl": "GiplImageIO",
}
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_META_HEADER = re.compile(rb"[^\0]*?\nElementDataFile\s*=[^\n]*\n")
_ZLIB_OR_GZIP = zlib.MAX_WBITS + 32
# GIPL's codes for the types that ITK reads: 1, 8 and 16 bits, float and double.
_GIPL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 64: 4, 65: 8}
_GIPL_HEADER = 256


@cache
def itk() -> ModuleType:
    """SimpleITK with its C++ warnings off; whatever matters is checked by the readers and said as an error."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def itk_format(file: Path) -> str:
    """ITK's name of the format that a file's ending stands for."""
    return next(name for ending, name in _FORMATS.items() if file.name.lower().endswith(ending))


def unreadable(file: Path, error: RuntimeError) -> SamunetError:
    """An error of ITK's as one that names the file and what to do."""
    if file.is_dir():
        return SamunetError(f"{file} is a folder, not an image file", "remove it, or put the file in its place")
    if not file.is_file():
        return SamunetError(f"{file} does not exist")
    if not file.stat().st_size:
        return SamunetError(f"{file} is empty", COPY_AGAIN)
    if "orthonormal" in str(error):
        return SamunetError(
            f"{file} has axes that are not at right angles to each other (its sform is sheared)",
            "with nibabel: image.set_sform(image.get_qform()), then save; or resample it onto a right-angled grid; or"
            ' "overwrite_image_reader_writer": "NibabelIO" in dataset.json, which takes such axes as they are',
        )
    return SamunetError(f"could not read {file}: {reason(error)}", COPY_AGAIN)


def reason(error: RuntimeError) -> str:
    """ITK's last line: the lines before it name places in its source."""
    return str(error).strip().splitlines()[-1].strip().removeprefix("sitk::ERROR: ")


def check_complete(file: Path) -> None:
    """Raise a SamunetError if a GIPL file or MetaImage holds fewer voxels than its header says, or damaged ones."""
    check = {".gipl": _check_gipl, ".mha": _check_meta}.get(file.suffix.lower())
    if check is None or not file.is_file():
        return
    content = file.read_bytes()
    if not content:
        raise SamunetError(f"{file} is empty", COPY_AGAIN)
    check(file, content)


def _check_gipl(file: Path, content: bytes) -> None:
    sizes = [int.from_bytes(content[at : at + 2], "big") for at in range(0, 8, 2)]
    size = _GIPL_BYTES.get(int.from_bytes(content[8:10], "big"))
    if len(content) >= _GIPL_HEADER and size is not None:
        _check_length(file, len(content) - _GIPL_HEADER, math.prod(max(side, 1) for side in sizes) * size)


def _check_meta(file: Path, content: bytes) -> None:
    header = _META_HEADER.match(content)
    fields = {} if header is None else dict(re.findall(r"(\w+)\s*=\s*(.*?)\s*\n", header[0].decode("latin-1")))
    kind = re.fullmatch(r"MET_U?(\w+?)(_ARRAY)?", fields.get("ElementType", ""))
    try:
        sizes = [int(size) for size in fields["DimSize"].split()]
        expected = math.prod(sizes) * int(fields.get("ElementNumberOfChannels", 1)) * _META_BYTES[kind[1]]
    except (KeyError, ValueError, TypeError):
        raise SamunetError(f"{file} is not a MetaImage with voxels of a known type", COPY_AGAIN) from None
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise SamunetError(
            f"{file} keeps its voxels in another file, {fields['ElementDataFile']}",
            "save header and voxels in one file; with SimpleITK: WriteImage(ReadImage(file), 'case.mha')",
        )
    data = memoryview(content)[header.end() :]
    if not _is_true(fields.get("BinaryData", "True")):
        return
    if not _is_true(fields.get("CompressedData", "False")):
        _check_length(file, len(data), expected)
        return
    try:
        _check_length(file, len(zlib.decompress(data, _ZLIB_OR_GZIP)), expected)
    except zlib.error as error:
        raise SamunetError(f"{file} is damaged or truncated: {error}", COPY_AGAIN) from error


def _is_true(text: str) -> bool:
    # As the format's own library does.
    return text[:1] in "tT1"


def _check_length(file: Path, got: int, expected: int) -> None:
    if got < expected:
        raise SamunetError(
            f"{file} is truncated: {got} bytes of voxels where its header announces {expected}", COPY_AGAIN
        )
