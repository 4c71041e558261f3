"""Files of the training cases: imagesTr and labelsTr, or the files that dataset.json lists."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from samunet.dataset.cases import Case, channel_problem, group, number_problem, visible
from samunet.dataset.description import CaseFiles, Description
from samunet.dataset.names import case_and_channel, ending_in, one_spelling, unusable_names
from samunet.dataset.problems import Problem, shortened
from samunet.errors import printable
from samunet.imageio.registry import IN_ONE_FILE, READERS

Found = tuple[dict[str, Case], list[Problem]]

# What os.path.expandvars leaves where a variable is not set.
_UNSET = re.compile(r"\$\{?(\w+)\}?")


def find_training_cases(folder: Path, description: Description) -> Found:
    """The training cases of a dataset, sorted by name, and the errors in their files' names.

    Args:
        folder: The dataset's.
        description: Has endings and channels, and the files if it lists them.
    """
    if description.files is not None:
        return _listed_cases(folder, description)
    found, problems = find_images(folder / "imagesTr", description)
    labels, twice = _labels(folder / "labelsTr", description.file_ending)
    cases = {name: Case(name, images, labels.get(name)) for name, images in found.items()}
    return cases, problems + twice + _label_problems(folder / "labelsTr", cases, labels, description.file_ending)


def find_images(folder: Path, description: Description) -> tuple[dict[str, tuple[Path, ...]], list[Problem]]:
    """The images of imagesTr or imagesTs by case, and the errors in their names and numbers of channels."""
    hint, ending = naming_hint(description), description.file_ending
    if not folder.is_dir():
        return {}, [Problem("missing folder:", folder.name, f"the folder {folder.name} is missing", hint)]
    there = visible(folder)
    listed = [entry for entry in there if entry.exists()]
    # Of a header with separate voxels a change of the voxels would go unnoticed; samunet_make_dataset joins them.
    endings = [one for one in image_endings(description) if one not in IN_ONE_FILE]
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
    # Pictures of another kind may lie beside the images (previews, for one) as long as they are not called like them.
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


def _left_alone(folder: Path, listed: list[Path], endings: Sequence[str]) -> list[Problem]:
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


def image_endings(description: Description) -> tuple[str, ...]:
    """Endings that images of a dataset may have: those of its reader, and of all pictures if it holds pictures."""
    pictures = [ending for one in READERS if one.kind == "picture" for ending in one.image_endings]
    endings = description.reader.image_endings
    if description.reader_override is None and set(endings) & set(pictures):
        endings = (*endings, *pictures)
    return tuple(dict.fromkeys(endings))


def naming_hint(description: Description) -> str:
    """What the files of a case must be called."""
    ending, last = description.file_ending, len(description.channel_names) - 1
    images = f"case_0000{ending}"
    if last:
        images += f" to case_{last:04d}{ending} (or one file case_0000{ending} that holds all channels)"
    return f"channels {', '.join(description.channel_names)}: a case's images must be {images}, its label case{ending}"


def _listed_cases(folder: Path, description: Description) -> Found:
    cases: dict[str, Case] = {}
    problems: list[Problem] = []
    reader, names = description.reader, description.channel_names
    for name, files in description.files.items():
        cases[name] = case = _listed_case(name, files, folder)
        wrong = [_missing(name, path, folder) for path in (*case.images, case.label) if path and not path.exists()]
        if not wrong and len(case.images) != len(names):
            fix = f'list one file for each channel ({", ".join(names)}) in "images" of dataset.json'
            problem = number_problem(name, case.images, description, fix, thorough=False)
            wrong = [problem] if problem else []
        if case.label is None:
            fix = f'give it one in the key dataset of dataset.json: "{name}": {{"images": [...], "label": "..."}}'
            wrong.append(Problem("images without label: dataset.json lists none for", name, name, fix))
        elif case.label.exists() and ending_in(case.label.name, reader.endings) is None:
            fix = f"save it as {description.file_ending}"
            wrong.append(Problem(f"label files that {reader.name} cannot read:", name, str(case.label), fix))
        problems += wrong
    return cases, problems + unusable_names(cases)


def _listed_case(name: str, files: CaseFiles, folder: Path) -> Case:
    def resolved(text: str) -> Path:
        return folder / Path(os.path.expandvars(text)).expanduser()

    return Case(name, tuple(map(resolved, files.images)), None if files.label is None else resolved(files.label))


def _missing(name: str, path: Path, folder: Path) -> Problem:
    unset = _UNSET.search(str(path))
    fix = f"export {unset[1]}=..." if unset else f"correct the key dataset of {folder / 'dataset.json'}"
    reason = f" (the variable {unset[1]} is not set)" if unset else ""
    return Problem("files that do not exist:", name, f"{path} of {name}{reason}", fix)


def _labels(folder: Path, ending: str) -> tuple[dict[str, Path], list[Problem]]:
    files = [file for file in visible(folder) if file.name.casefold().endswith(ending.casefold())]
    found, twice = group((one_spelling(file.name[: -len(ending)]), None, file) for file in files)
    return {name: files[None] for name, files in found.items()}, twice


def _label_problems(folder: Path, cases: dict[str, Case], labels: dict[str, Path], ending: str) -> list[Problem]:
    if not folder.is_dir():
        fix = f"put the label of every training case there, called case{ending}"
        return [Problem("missing folder:", folder.name, f"the folder {folder.name} is missing", fix)]
    if not cases:
        return []
    fix = f"add the label to labelsTr, called case{ending}, or remove the case's images"
    others = [file.name for file in visible(folder)]
    if not labels and others:
        fix = f"labelsTr has {len(others)} other files, such as {others[0]}: does file_ending in dataset.json fit?"
    problems = [
        Problem("images without label: labelsTr lacks", case.name, f"{case.name}{ending}", fix)
        for case in cases.values()
        if case.label is None
    ]
    fix = "add the images to imagesTr, or remove the label"
    return problems + [
        Problem("labels without image:", name, printable(file.name), fix)
        for name, file in labels.items()
        if name not in cases
    ]


def _no_images(folder: Path, files: list[Path], ending: str) -> str:
    if not files:
        return f"{folder.name} has no file ending in {ending} (it is empty)"
    apart = next((file.name for file in files if file.suffix.lower() in IN_ONE_FILE), None)
    if apart is not None:
        return f"{folder.name} has headers with separate voxels, such as {apart}: samunet_make_dataset joins them"
    return (
        f"{folder.name} has no file ending in {ending} (but {len(files)} others, such as {files[0].name}: does "
        "file_ending in dataset.json fit?)"
    )
