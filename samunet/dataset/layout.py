"""Raw datasets in nnU-Net v2's layout: where they are, and the files of their training cases.

Training cases are the files of imagesTr and labelsTr, or those that dataset.json lists.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from samunet import paths
from samunet.dataset.cases import Case, Dataset, channel_problem, group, number_problem, visible
from samunet.dataset.description import Description, misspelt_keys, read_description
from samunet.dataset.names import case_and_channel, ending_in, one_spelling, unusable_names
from samunet.dataset.prediction_input import list_cases
from samunet.dataset.problems import Problem, raise_problems, shortened
from samunet.errors import SamunetError, UsageError, printable
from samunet.files import restore_folders
from samunet.imageio.registry import IN_ONE_FILE

__all__ = [
    "Case",
    "Dataset",
    "find_dataset",
    "find_images",
    "list_cases",
    "load_dataset",
    "raw_dataset",
    "read_dataset",
]

log = logging.getLogger(__name__)

# os.path.expandvars leaves these where a variable is not set.
_UNSET = re.compile(r"\$\{?(\w+)\}?")
_Found = tuple[dict[str, Case], list[Problem]]


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
    if description.files is None:
        cases, problems = _cases_of_folders(folder, description)
    else:
        cases, problems = _listed_cases(folder, description)
    dataset = Dataset(name, folder, description, cases)
    dataset.problems = problems + _key_problems(dataset)
    return dataset


def _cases_of_folders(folder: Path, description: Description) -> _Found:
    ending, labels = description.file_ending, folder / "labelsTr"
    found, problems = find_images(folder / "imagesTr", description)
    there = visible(labels)
    files = [file for file in there if file.name.casefold().endswith(ending.casefold())]
    grouped, twice = group((one_spelling(file.name[: -len(ending)]), None, file) for file in files)
    problems += twice
    cases = {name: Case(name, images, grouped.get(name, {}).get(None)) for name, images in found.items()}
    if not labels.is_dir():
        fix = f"put the label of every training case there, called case{ending}"
        problems.append(Problem("missing folder:", labels.name, f"the folder {labels.name} is missing", fix))
    elif cases:
        fix = f"add the label to labelsTr, called case{ending}, or remove the case's images"
        if not grouped and there:
            fix = (
                f"labelsTr has {len(there)} other files, such as {there[0].name}: does file_ending in dataset.json fit?"
            )
        kind = "images without label: labelsTr lacks"
        problems += [Problem(kind, name, f"{name}{ending}", fix) for name in cases if name not in grouped]
        fix = "add the images to imagesTr, or remove the label"
        surplus = {name: printable(of[None].name) for name, of in grouped.items() if name not in cases}
        problems += [Problem("labels without image:", name, file, fix) for name, file in surplus.items()]
    return cases, problems


def find_images(folder: Path, description: Description) -> tuple[dict[str, tuple[Path, ...]], list[Problem]]:
    """The images of imagesTr or imagesTs by case, and the errors in their names and numbers of channels."""
    hint, ending = _naming_hint(description), description.file_ending
    if not folder.is_dir():
        return {}, [Problem("missing folder:", folder.name, f"the folder {folder.name} is missing", hint)]
    there = visible(folder)
    listed = [entry for entry in there if entry.exists()]
    # Of a header with separate voxels a change of the voxels would go unnoticed; samunet_make_dataset joins them.
    endings = [one for one in description.image_endings if one not in IN_ONE_FILE]
    found = {
        file: case_and_channel(file.name.removesuffix(own))
        for file in listed
        if file.is_file() and (own := ending_in(file.name, endings))
    }
    grouped, problems = group((*key, file) for file, key in found.items() if key)
    problems += unusable_names(grouped)
    fix = "is the disk it leads to there? Correct the link, or remove it"
    problems += [
        Problem("links that lead nowhere:", entry.name, f"{folder.name}/{entry.name} -> {os.readlink(entry)}", fix)
        for entry in there
        if not entry.exists()
    ]
    if grouped:
        problems += _left_alone(folder, listed, endings)
    # Pictures of another kind may lie among the images (previews, for one) as long as they are not called like them.
    problems += [
        Problem("names without channel number:", file.name, file.name, hint)
        for file, key in found.items()
        if key is None and file.name.casefold().endswith(ending.casefold())
    ]
    if not grouped and not problems:
        files = [file for file in listed if file.is_file()]
        problems.append(Problem("no images:", folder.name, _no_images(folder, files, ending), hint))
    wrong = [channel_problem(name, files, description, hint, thorough=False) for name, files in grouped.items()]
    return {name: tuple(files.values()) for name, files in grouped.items()}, problems + [one for one in wrong if one]


def _left_alone(folder: Path, listed: list[Path], endings: list[str]) -> list[Problem]:
    """Files and folders that are no images of the dataset; TIFF has its spacing in .json files."""
    others = [
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in listed
        if entry.is_dir() or (ending_in(entry.name, endings) is None and entry.suffix.lower() != ".json")
    ]
    if not others:
        return []
    detail = f"{folder.name} has {shortened(others)}"
    fix = "if they are cases: one file per channel, in the format of the others"
    return [Problem("files that are no images of this dataset are left alone:", folder.name, detail, fix, warning=True)]


def _naming_hint(description: Description) -> str:
    ending, last = description.file_ending, len(description.channel_names) - 1
    images = f"case_0000{ending}"
    if last:
        images += f" to case_{last:04d}{ending} (or one file case_0000{ending} that holds all channels)"
    return f"channels {', '.join(description.channel_names)}: a case's images must be {images}, its label case{ending}"


def _listed_cases(folder: Path, description: Description) -> _Found:
    cases: dict[str, Case] = {}
    problems: list[Problem] = []
    reader, names = description.reader, description.channel_names

    def resolved(text: str) -> Path:
        return folder / Path(os.path.expandvars(text)).expanduser()

    for name, files in description.files.items():
        images, label = tuple(map(resolved, files.images)), resolved(files.label) if files.label else None
        cases[name] = Case(name, images, label)
        missing = [path for path in (*images, label) if path and not path.exists()]
        for path in missing:
            unset = _UNSET.search(str(path))
            fix = f"export {unset[1]}=..." if unset else f"correct the key dataset of {folder / 'dataset.json'}"
            reason = f" (the variable {unset[1]} is not set)" if unset else ""
            problems.append(Problem("files that do not exist:", name, f"{path} of {name}{reason}", fix))
        if not missing and len(images) != len(names):
            fix = f'list one file for each channel ({", ".join(names)}) in "images" of dataset.json'
            problem = number_problem(name, images, description, fix, thorough=False)
            problems += [problem] if problem else []
        if label is None:
            fix = f'give it one in the key dataset of dataset.json: "{name}": {{"images": [...], "label": "..."}}'
            problems.append(Problem("images without label: dataset.json lists none for", name, name, fix))
        elif label.exists() and ending_in(label.name, reader.endings) is None:
            fix = f"save it as {description.file_ending}"
            problems.append(Problem(f"label files that {reader.name} cannot read:", name, str(label), fix))
    return cases, problems + unusable_names(cases)


def _no_images(folder: Path, files: list[Path], ending: str) -> str:
    if not files:
        return f"{folder.name} has no file ending in {ending} (it is empty)"
    apart = next((file.name for file in files if file.suffix.lower() in IN_ONE_FILE), None)
    if apart is not None:
        return f"{folder.name} has headers with separate voxels, such as {apart}: `api.make_dataset` joins them"
    return (
        f"{folder.name} has no file ending in {ending} (but {len(files)} others, such as {files[0].name}: does "
        "file_ending in dataset.json fit?)"
    )


def _key_problems(dataset: Dataset) -> list[Problem]:
    """Keys of dataset.json that contradict the cases: their number, their groups, and keys that nothing reads."""
    description, number = dataset.description, len(dataset.cases)
    problems = []

    def found(kind: str, where: str, detail: str, fix: str, warning: bool = False) -> None:
        problems.append(Problem(kind, where, detail, fix, warning))

    for wrong, right in misspelt_keys(description.raw).items():
        fix = f'rename it to "{right}" if that is meant'
        found("dataset.json has a key that nothing reads:", wrong, f'"{wrong}"', fix, True)
    announced = description.num_training
    if number and announced not in (None, number):
        where = "imagesTr has" if description.files is None else "its key dataset lists"
        detail = f"dataset.json announces {announced} training cases (numTraining), {where} {number}"
        found("wrong numTraining:", "numTraining", detail, f'if none is missing, write "numTraining": {number}')
    groups = description.groups
    if groups:
        missing = [name for name in dataset.cases if name not in groups]
        if missing:
            detail = f"{len(missing)} of {number} cases: {shortened(missing)}"
            fix = "name a group for every training case, or remove groups"
            found("groups of dataset.json lack", "groups", detail, fix)
        unknown = sorted(set(groups) - set(dataset.cases))
        if unknown and number:
            detail = f"{len(unknown)} cases that the dataset lacks: {shortened(unknown)}"
            fix = "correct the names, or remove them from groups"
            found("groups of dataset.json name", "groups", detail, fix, True)
    return problems
