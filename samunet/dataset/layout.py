"""Where datasets and their cases are: ids, folders, file names. The layout is nnU-Net v2's."""

from __future__ import annotations

import logging

from samunet import paths
from samunet.dataset.cases import Case, Dataset
from samunet.dataset.description import read_description
from samunet.dataset.integrity import name_problems
from samunet.dataset.prediction_input import list_cases
from samunet.dataset.problems import raise_problems
from samunet.dataset.training_files import find_training_cases
from samunet.errors import SamunetError, UsageError
from samunet.files import restore_folders

__all__ = ["Case", "Dataset", "find_dataset", "list_cases", "load_dataset", "raw_dataset", "read_dataset"]

log = logging.getLogger(__name__)


def find_dataset(text: str | int) -> str:
    """The full name of a dataset, such as ``Dataset027_ACDC``.

    Args:
        text: ``27``, ``"27"``, ``"027"`` or ``"Dataset027_ACDC"``; looked up in the raw, preprocessed and results
            folders.

    Raises:
        UsageError: If there is no such dataset (listing those that exist), or several have the number (listing them).
    """
    folders = paths.known_folders()
    for folder in folders:
        restore_folders(folder)
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
    """Load the dataset ``name`` (its full name) from the raw folder, and refuse it if files and keys do not agree.

    This looks at names, and at headers where only they tell the number of channels; it reads no voxels.

    Raises:
        SamunetError: If the folder or its dataset.json is missing or wrong, or files do not fit together; all problems
            are listed, at most five of each kind.
    """
    dataset = read_dataset(name)
    raise_problems(dataset.problems, dataset.folder)
    for problem in dataset.problems:
        log.warning("%s: %s (%s)", dataset.folder, problem.text, problem.fix)
    return dataset


def raw_dataset(name: str) -> Dataset | None:
    """The raw dataset, whatever problems it has; None where it is not there, as on a machine that only trains."""
    try:
        folder = paths.raw_folder() / name
    except SamunetError:
        return None
    found = read_dataset(name) if (folder / "dataset.json").is_file() else None
    return found if found and found.cases else None


def read_dataset(name: str) -> Dataset:
    """As :func:`load_dataset`, but problems with files are only collected in ``problems``.

    Raises:
        SamunetError: If the folder or its dataset.json is missing or wrong.
    """
    folder = paths.raw_folder() / name
    if not folder.is_dir():
        raise SamunetError(
            f"{name} is not in the raw folder {folder.parent}", "copy it there, or set samunet_raw to where it is"
        )
    description = read_description(folder)
    cases, problems = find_training_cases(folder, description)
    dataset = Dataset(name, folder, description, cases)
    dataset.problems = problems + name_problems(dataset)
    return dataset
