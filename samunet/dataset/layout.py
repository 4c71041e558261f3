"""Where datasets and their cases are: ids, folders, file names. The layout is nnU-Net v2's."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable

from samunet import paths
from samunet.dataset.cases import Case, Dataset
from samunet.dataset.check import name_problems
from samunet.dataset.description import read_description
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
        text: ``27``, ``"27"``, ``"027"``, ``"Dataset027_ACDC"`` or ``"ACDC"``; looked up in the raw, preprocessed and
            results folders.

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
    found = [name for name, number in known.items() if text.isdecimal() and number == int(text)]
    found = sorted(found or [name for name in known if name.partition("_")[2].lower() == text.lower()])
    if len(found) == 1:
        return found[0]
    if found:
        which = f"number {int(text)}" if text.isdecimal() else f"name {text}"
        raise UsageError(f"several datasets have the {which}: {', '.join(found)}", "give the full name")
    problem = paths.raw_folder_problem()
    where = ", ".join(str(folder) for folder in folders)
    if problem is not None:  # most likely the reason, whatever other folders hold
        also = f", and it is not in {where}" if folders else ""
        raise UsageError(f"dataset {text} cannot be looked up: {problem[0]}{also}", problem[1])
    listed = ", ".join(sorted(known)) if known else "none (names must look like Dataset027_ACDC)"
    meant = _meant(text, known)
    nearest = f"did you mean {meant}? " if meant else ""
    raise UsageError(f"there is no dataset {text} in {where}", f"{nearest}datasets that exist: {listed}")


def _meant(text: str, known: Iterable[str]) -> str | None:
    """The dataset whose name, with or without ``Dataset027_``, is nearest to a misspelt one."""
    names = {spelling.lower(): name for name in known for spelling in (name, name.partition("_")[2])}
    nearest = difflib.get_close_matches(text.lower(), names, n=1)
    return names[nearest[0]] if nearest else None


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
