"""Where datasets and their cases are: ids, folders, file names. The layout is nnU-Net v2's."""

from __future__ import annotations

from pathlib import Path

from samunet import paths
from samunet.dataset.cases import Case, Dataset, files_with_ending, group_by_case
from samunet.dataset.description import Description, read_description
from samunet.dataset.integrity import image_problems, naming_hint, quick_check, raise_problems
from samunet.errors import SamunetError, UsageError

__all__ = ["Case", "Dataset", "find_dataset", "list_cases", "load_dataset"]


def find_dataset(text: str | int) -> str:
    """The full name of a dataset, such as ``Dataset027_ACDC``.

    Args:
        text: ``27``, ``"27"``, ``"027"`` or ``"Dataset027_ACDC"``; looked up in the raw, preprocessed and results
            folders.

    Raises:
        UsageError: If there is no such dataset (listing those that exist), or several have the number (listing them).
    """
    folders = paths.known_folders()
    known = {
        entry.name: int(match[1])
        for folder in folders
        for entry in folder.iterdir()
        if (match := paths.DATASET_NAME.match(entry.name)) and entry.is_dir()
    }
    text = str(text).strip()
    if text in known:
        return text
    found = sorted(name for name, number in known.items() if text.isdecimal() and number == int(text))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"several datasets have the number {int(text)}: {', '.join(found)}", "give the full name")
    if not folders:
        raise UsageError(
            f"dataset {text} cannot be looked up: samunet_raw, samunet_preprocessed and samunet_results are not set to "
            "existing folders",
            "type: export samunet_raw=/path/to/raw",
        )
    where = ", ".join(str(folder) for folder in folders)
    listed = ", ".join(sorted(known)) if known else "none (names must look like Dataset027_ACDC)"
    raise UsageError(f"there is no dataset {text} in {where}", f"datasets that exist: {listed}")


def load_dataset(name: str) -> Dataset:
    """Load the dataset ``name`` (its full name) from the raw folder and run the quick check on it.

    Raises:
        SamunetError: If the folder or its dataset.json is missing or wrong, or files do not fit together.
    """
    folder = paths.raw_folder() / name
    if not folder.is_dir():
        raise SamunetError(
            f"{name} is not in the raw folder {folder.parent}", "copy it there, or set samunet_raw to where it is"
        )
    description = read_description(folder)
    if "dataset" in description.raw:
        raise SamunetError(
            f"{folder / 'dataset.json'}: the key dataset, a list of files in other places, is not supported",
            "link the files into imagesTr (case_0000 and so on) and labelsTr, and remove the key",
        )
    cases = _cases(folder / "imagesTr", description, labels=folder / "labelsTr")
    dataset = Dataset(name, folder, description, cases)
    quick_check(dataset)
    return dataset


def list_cases(folder: Path, description: Description) -> dict[str, Case]:
    """The cases of a folder of images without labels, such as imagesTs, sorted by name.

    Raises:
        SamunetError: If no file matches, or names or channels are wrong; it lists up to five offenders and says what
            names must look like.
    """
    folder = Path(folder)
    cases = _cases(folder, description)
    raise_problems(image_problems(folder, cases, description), folder, naming_hint(description))
    return cases


def _cases(folder: Path, description: Description, labels: Path | None = None) -> dict[str, Case]:
    ending = description.file_ending
    existing = {file.name: file for file in files_with_ending(labels, ending)} if labels else {}
    grouped = group_by_case(files_with_ending(folder, ending), ending)
    return {name: Case(name, images, existing.get(f"{name}{ending}")) for name, images in grouped.items()}
