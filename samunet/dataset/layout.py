"""Dataset ids, folders and cases in nnU-Net's layout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from samunet import paths
from samunet.dataset.description import Description, read_description
from samunet.errors import SamunetError, UsageError
from samunet.imageio.registry import reader_for


@dataclass(frozen=True)
class Case:
    """One case: its name, image files in channel order, and its label file if it has one."""

    name: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass
class Dataset:
    """A raw dataset with all its training cases, sorted by name."""

    name: str
    folder: Path
    description: Description
    cases: dict[str, Case]


def find_dataset(text: str | int) -> str:
    """Full name of a dataset from ``27``, ``"027"`` or ``"Dataset027_ACDC"``.

    Raises:
        UsageError: If there is none or several; lists what there is.
    """
    folders = paths.known_folders()
    if not folders:
        paths.raw_folder()
    found = {path.name for folder in folders for path in folder.iterdir() if paths.DATASET_NAME.match(path.name)}
    listing = ", ".join(sorted(found)) or "none"
    text = str(text).strip().rstrip("/")
    if text in found:
        return text
    if not text.isdigit():
        raise UsageError(f"there is no dataset {text!r} (datasets: {listing})", "give its number, for example -d 027")
    fitting = sorted(name for name in found if int(paths.DATASET_NAME.match(name)[1]) == int(text))
    if not fitting:
        where = ", ".join(map(str, folders))
        raise UsageError(f"there is no dataset with the number {int(text)} in {where} (datasets: {listing})")
    if len(fitting) > 1:
        raise UsageError(f"the number {int(text)} is used by {', '.join(fitting)}", "rename one, or give the full name")
    return fitting[0]


def load_dataset(name: str) -> Dataset:
    """A raw dataset, quickly checked.

    Args:
        name: Full name, from :func:`find_dataset`.

    Raises:
        SamunetError: If its folder or dataset.json is missing or wrong, or files do not fit together.
    """
    from samunet.dataset.integrity import quick_check

    folder = paths.raw_folder() / name
    if not folder.is_dir():
        raise SamunetError(f"the raw data of {name} is not in {folder.parent}", "copy it there, or set samunet_raw")
    description = read_description(folder)
    for part in ("imagesTr", "labelsTr"):
        if not (folder / part).is_dir():
            raise SamunetError(f"{folder} has no folder {part}", "see documentation/dataset_format.md")
    ending = description.file_ending
    cases = {
        case.name: Case(
            case.name, case.images, label if (label := folder / "labelsTr" / (case.name + ending)).is_file() else None
        )
        for case in list_cases(folder / "imagesTr", description).values()
    }
    dataset = Dataset(name, folder, description, cases)
    quick_check(dataset)
    return dataset


def list_cases(folder: Path, description: Description) -> dict[str, Case]:
    """Cases of a folder of images, sorted by name.

    A picture with three channels in one file (``case_0000.png`` for R, G and B) is one file.

    Raises:
        SamunetError: If no file fits, or a case lacks a channel or has one too many.
    """
    ending = description.file_ending
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        match = pattern.fullmatch(path.name)
        if match and not path.name.startswith("."):
            found.setdefault(match[1], {})[int(match[2])] = path
    if not found:
        others = sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))[:3]
        raise SamunetError(
            f"no image in {folder} is named like case_0000{ending} (found: {', '.join(others) or 'nothing'})",
            f"name the files CASE_0000{ending}, with one file per channel: 0000, 0001, ...",
        )
    expected = range(_files_per_case(description, next(iter(found.values()))))
    wrong = [f"{name} has {sorted(files)}" for name, files in found.items() if sorted(files) != list(expected)]
    if wrong:
        raise SamunetError(
            f"{len(wrong)} cases in {folder} do not have the channels {list(expected)}: {'; '.join(wrong[:5])}",
            f"dataset.json has {len(description.channel_names)} channels: one file each, CASE_0000{ending} and so on",
        )
    return {name: Case(name, tuple(files[index] for index in expected), None) for name, files in sorted(found.items())}


def _files_per_case(description: Description, first: dict[int, Path]) -> int:
    """One per channel; but one alone where a picture's file holds all channels."""
    channels = len(description.channel_names)
    if channels > 1 and len(first) == 1 and 0 in first:
        image = reader_for(description.file_ending, description.reader_override).read_image([first[0]])
        if len(image.array) == channels:
            return 1
    return channels
