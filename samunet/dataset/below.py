"""What a folder holds, without leaving anything out unsaid: links are followed, and what cannot be opened is named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from samunet.dataset.cases import visible
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError
from samunet.imageio.dicom import is_dicom_folder
from samunet.imageio.registry import ending_of


def entries(folder: Path) -> list[Path]:
    """As :func:`samunet.dataset.cases.visible`.

    Raises:
        SamunetError: If links among them lead nowhere.
    """
    found = visible(folder)
    _refuse_broken([entry for entry in found if not entry.exists()])
    return found


def files_below(folder: Path, without: Path | None = None) -> list[Path]:
    """All files of a folder and its subfolders, sorted, without hidden ones and those below ``without``.

    Links to folders are followed, but for those back to a folder that they lie in. A subfolder that holds DICOM files
    is named in their place; other files in it are named as well.

    Raises:
        SamunetError: If a subfolder cannot be opened, or a link leads nowhere.
    """
    files: list[Path] = []
    broken: list[Path] = []
    _walk(folder, without, (), files, broken)
    _refuse_broken(broken)
    strange = {file.parent for file in files if ending_of(file) is None}
    series = {parent for parent in strange if parent != folder and is_dicom_folder(parent)}
    return sorted({file.parent if file.parent in series and ending_of(file) is None else file for file in files})


def name_below(folder: Path, file: Path) -> str:
    """The name of a case by its place: ``anna/03.png`` is ``anna_03``."""
    parts = file.relative_to(folder).parts
    ending = None if file.is_dir() else ending_of(file)
    return "_".join((*parts[:-1], file.name[: -len(ending or "") or None]))


def _walk(folder: Path, without: Path | None, above: tuple[str, ...], files: list[Path], broken: list[Path]) -> None:
    own = os.path.realpath(folder)
    if own in above or folder == without:
        return
    try:
        found = visible(folder)
    except OSError as error:
        raise SamunetError(
            f"the folder {folder} cannot be opened: {error.strerror}",
            "ask for the permission to read it, or move it away",
        ) from error
    for entry in found:
        # __MACOSX is what macOS puts into zip files beside the data.
        if entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            _walk(entry, without, (*above, own), files, broken)
        elif entry.is_file():
            files.append(entry)
        elif not entry.exists():
            broken.append(entry)


def _refuse_broken(links: Sequence[Path]) -> None:
    if links:
        listed = shortened([f"{link} -> {os.readlink(link)}" for link in links])
        raise SamunetError(
            f"links that lead nowhere: {listed}",
            "is the disk they lead to there? Correct them, or remove them to leave these cases out",
        )
