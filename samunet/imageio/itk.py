"""SimpleITK, quiet: no warnings on the console, and its errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from samunet.errors import SamunetError
from samunet.files import atomic_path, check_room

if TYPE_CHECKING:
    from SimpleITK import Image

NIFTI = "NiftiImageIO"  # ITK's name of the format


@cache
def itk() -> ModuleType:
    """SimpleITK with its C++ warnings off; whatever matters is checked by the readers and said as an error."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


@contextmanager
def written(image: Image, file: Path, form: str = NIFTI) -> Iterator[Path]:
    """Write an image atomically in the format that ITK calls ``form``; yields the file before it gets its name.

    Raises:
        SamunetError: If it cannot be written, for example because the disk is full.
    """
    try:
        with atomic_path(file) as temporary:
            # Naming the format makes ITK write under endings in capitals too.
            itk().WriteImage(image, str(temporary), useCompression=True, imageIO=form)
            check_room(temporary)  # ITK says nothing when a NIfTI file does not fit
            yield temporary
    except RuntimeError as error:
        raise SamunetError(f"could not write {file}: {reason(error)}", "check the folder and the free space") from error


def reason(error: RuntimeError) -> str:
    """ITK's last line: the lines before it name places in its source."""
    return str(error).strip().splitlines()[-1].strip().removeprefix("sitk::ERROR: ")
