"""The list of readers, and the choice of one by a file's ending."""

from __future__ import annotations

import difflib
from pathlib import Path

from samunet.errors import Blank, SamunetError, call
from samunet.imageio.base import Reader
from samunet.imageio.dicom import is_dicom_folder
from samunet.imageio.natural import NaturalImageReader
from samunet.imageio.simpleitk import NibabelReader, SimpleITKReader
from samunet.imageio.tiff import Tiff3DReader

_MAKE = call("make_dataset", Blank("IMAGES"), Blank("MASKS"), name=Blank("NAME"), id=Blank("ID"))
# Without a name the first reader with an ending opens it. The names are nnU-Net's.
READERS: tuple[Reader, ...] = (
    SimpleITKReader(),
    Tiff3DReader(),
    NaturalImageReader(),
    NibabelReader(),
    SimpleITKReader(reorients=True),
    NibabelReader(reorients=True),
)
MASK_ENDINGS = tuple(dict.fromkeys(ending for reader in READERS for ending in reader.endings))
# Read but not written, and what their masks are written as.
READ_ONLY = {ending: mask for reader in READERS for ending, mask in reader.read_only.items()}
# Of headers with separate voxels: the same format in one file.
IN_ONE_FILE = {
    ending: mask for reader in READERS if reader.kind == "volume" for ending, mask in reader.read_only.items()
}
IMAGE_ENDINGS = tuple(dict.fromkeys(ending for reader in READERS for ending in reader.image_endings))


def reader_for(file_ending: str, override: str | None = None) -> Reader:
    """The reader for a dataset's file ending.

    Args:
        file_ending: With the leading dot, as in dataset.json; in any case.
        override: A reader's name, ``overwrite_image_reader_writer`` in dataset.json.

    Raises:
        SamunetError: If there is no reader of that name, no reader opens the ending, or the one asked for does not.
    """
    named = [reader for reader in READERS if reader.name == override]
    if override is not None and not named:
        names = [reader.name for reader in READERS]
        close = difflib.get_close_matches(override, names, 1, 0.4)
        raise SamunetError(
            f"overwrite_image_reader_writer: there is no reader called {override!r}; there are {', '.join(names)}",
            (f"did you mean {close[0]}? " if close else "") + "Without this key the file ending chooses the reader",
        )
    ending = file_ending.lower()
    for reader in named or READERS:
        if ending in reader.endings:
            return reader
    allowed = ", ".join(dict.fromkeys(ending for reader in named or READERS for ending in reader.endings))
    if ending in IN_ONE_FILE and not named:
        raise SamunetError(
            f"{file_ending!r} cannot be a dataset's file_ending: its voxels lie in another file, which would be lost",
            f"{_MAKE} makes a dataset of such files; or save them as {IN_ONE_FILE[ending]}",
        )
    if ending in IMAGE_ENDINGS and not named:
        raise SamunetError(
            f"{file_ending!r} cannot be a dataset's file_ending: it is lossy, and labels have that ending too; "
            f"file_ending must be one of {allowed}",
            'set "file_ending": ".png" in dataset.json and store labels as .png; images to predict may stay '
            f"{file_ending}",
        )
    who = f"the reader {override}" if named else "samunet"
    raise SamunetError(
        f"{who} cannot open files ending in {file_ending!r}; file_ending must be one of {allowed}",
        "convert the images and labels without loss (not to JPEG), and set file_ending in dataset.json",
    )


def ending_of(file: Path) -> str | None:
    """The longest known image ending of a file's name, in lower case; None if there is none. Case does not matter."""
    name = Path(file).name.lower()
    return max((ending for ending in IMAGE_ENDINGS if name.endswith(ending)), key=len, default=None)


def image_reader_for(path: Path, preferred: Reader) -> Reader:
    """The reader for an image to predict, which need not have the dataset's ending.

    Args:
        path: An image file, or a folder with one DICOM series.
        preferred: The reader that the model's dataset was read with. It is taken if it opens the file; if not, and it
            reorients volumes, so does the reader that is returned where it can.

    Raises:
        SamunetError: If no reader opens the file, or the folder holds no DICOM files.
    """
    path = Path(path)
    ending = _image_ending(path)
    able = [
        reader
        for reader in (preferred, *READERS)
        if (reader.opens_folders if ending is None else ending in reader.image_endings)
    ]
    return next((reader for reader in able if reader.reorients == preferred.reorients), able[0])


def mask_ending(image: Path) -> str:
    """The ending of a mask for an image: the image's own in lower case, ``.png`` for JPEG, ``.nii.gz`` for DICOM.

    Headers with separate voxels, ``.mhd`` and ``.nhdr``, get masks in one file.

    Raises:
        SamunetError: If no reader opens the image.
    """
    ending = _image_ending(Path(image))
    if ending is None:
        return ".nii.gz"
    return READ_ONLY.get(ending, ending)


def kind_of(path: Path) -> str:
    """``volume``, ``tiff`` or ``picture``, by a file's ending; a DICOM folder is a volume."""
    ending = ending_of(path)
    return next((reader.kind for reader in READERS if ending in reader.image_endings), "volume")


def may_have_segments(name: str) -> bool:
    """Whether a file of that name may hold named segments."""
    return any(name.lower().endswith(reader.segment_endings) for reader in READERS)


def is_lossy(path: Path) -> bool:
    """Whether no label may have a file's ending, since its format changes values."""
    return kind_of(path) == "picture" and ending_of(path) in READ_ONLY


def companions(path: Path) -> list[Path]:
    """Files that are read along with an image or a mask, such as the JSON file with a TIFF volume's spacing."""
    path = Path(path)
    endings = {ending: beside for reader in READERS for ending, beside in reader.companions.items()}
    found = (path.with_suffix(ending) for ending in endings.get(path.suffix.lower(), ()))
    return [file for file in found if file.is_file()]


def is_companion(path: Path) -> bool:
    """Whether a file is one of an image's or a mask's :func:`companions`."""
    name = path.name.lower()
    pairs = {
        (ending, beside)
        for reader in READERS
        for ending, endings in reader.companions.items()
        for beside in endings
        if name.endswith(beside)
    }
    stems = [(path.name[: -len(beside)], ending) for ending, beside in pairs]
    return any(path.with_name(stem + own).is_file() for stem, ending in stems for own in (ending, ending.upper()))


def _image_ending(path: Path) -> str | None:
    """The ending of an image file; None for a DICOM folder."""
    if is_dicom_folder(path):
        return None
    if path.is_dir():
        raise SamunetError(
            f"{path} is a folder without DICOM files",
            "give an image file, or the folder that holds the files of one DICOM series (subfolders are not searched)",
        )
    ending = ending_of(path)
    if ending is None:
        raise SamunetError(
            f"{path} has none of the endings that can be read: {', '.join(IMAGE_ENDINGS)}, or a folder with DICOM",
            "convert the image without loss; a header with separate voxels (.hdr with .img) to .nii.gz",
        )
    return ending
