"""Cases and the files that belong to them: ``case_0000.ending`` for images, ``case.ending`` for labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from samunet.dataset.description import Description


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Attributes:
        name: What remains of the file name without channel number and ending.
        images: One file per channel, in channel order; or one file that holds all channels (such as RGB).
        label: None if there is none.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass
class Dataset:
    """A raw dataset with its training cases, sorted by name."""

    name: str
    folder: Path
    description: Description
    cases: dict[str, Case]


def files_with_ending(folder: Path, ending: str) -> list[Path]:
    """The files of a folder that have the ending, sorted; hidden ones (unfinished writes, for one) left out.

    A folder that does not exist has none.
    """
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.name.endswith(ending) and not file.name.startswith("."))


def group_by_case(files: list[Path], ending: str) -> dict[str, tuple[Path, ...]]:
    """Case name to its image files in channel order, sorted by name; other file names are left out."""
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    cases: dict[str, list[Path]] = {}
    for file in files:
        match = pattern.fullmatch(file.name)
        if match:
            cases.setdefault(match[1], []).append(file)
    return {name: tuple(sorted(cases[name])) for name in sorted(cases)}
