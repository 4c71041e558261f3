"""SimpleITK, quiet: no warnings on the console, and its errors in one line."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

# Naming the format makes ITK write under endings in capitals too.
_FORMATS = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".gipl": "GiplImageIO",
    ".gipl.gz": "GiplImageIO",
}


@cache
def itk() -> ModuleType:
    """SimpleITK with its C++ warnings off; whatever matters is checked by the readers and said as an error."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def itk_format(file: Path) -> str:
    """ITK's name of the format that a file's ending stands for."""
    return next(name for ending, name in _FORMATS.items() if file.name.lower().endswith(ending))


def reason(error: RuntimeError) -> str:
    """ITK's last line: the lines before it name places in its source."""
    return str(error).strip().splitlines()[-1].strip().removeprefix("sitk::ERROR: ")
