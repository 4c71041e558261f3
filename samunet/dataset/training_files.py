"""Which files belong to the training cases: imagesTr and labelsTr, or the files that dataset.json lists."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from samunet.dataset.cases import Case, duplicate, ending_in, group_by_case, unusable_names, visible
from samunet.dataset.channels import channel_problem, number_problem
from samunet.dataset.description import CaseFiles, Description
from samunet.dataset.names import one_spelling
from samunet.dataset.problems import Problem, shortened
from samunet.errors import printable
from samunet.imageio.base import Reader
from samunet.imageio.registry import IN_ONE_FILE, READERS, reader_for

Found = tuple[dict[str, Case], list[Problem]]

# What os.path.expandvars leaves where a variable is not set.
_UNSET = re.compile(r"\$\{?(\w+)\}?")


def find_training_cases(folder: Path, description: Description) -> Found:
    """The training cases of a dataset, sorted by name, and what is wrong with their files' names.

    Args:
        folder: The dataset's.
        description: Tells endings and channels, and the files if it lists them.
    """
    if description.files is not None:
        return _listed_cases(folder, description)
    found, problems = find_images(folder / "imagesTr", description)
    labels, twice = _labels_by_case(folder / "labelsTr", description.file_ending)
    cases = {name: Case(name, images, labels.get(name)) for name, images in found.items()}
    problems += twice
    return cases, problems + _label_problems(folder / "labelsTr", cases, labels, description.file_ending)


def find_images(folder: Path, description: Description) -> tuple[dict[str, tuple[Path, ...]], list[Problem]]:
    """The images of imagesTr or imagesTs by case, and what is wrong with their names and numbers of channels."""
    if not folder.is_dir():
        hint = naming_hint(description)
        return {}, [Problem("missing folder:", folder.name, f"the folder {folder.name} is missing", hint)]
    reader, ending = reader_for(description.file_ending, description.reader_override), description.file_ending
    listed, broken = _without_broken(folder)
    files = [entry for entry in listed if entry.is_file()]
    # Of a header with separate voxels a change of the voxels would go unnoticed; samunet_make_dataset joins them.
    endings = [one for one in image_endings(description) if one not in IN_ONE_FILE]
    grouped, problems, unnumbered = group_by_case(files, endings)
    problems += broken
    if grouped:
        problems += _left_alone(folder, listed, endings)
    hint = naming_hint(description)
    # Pictures of another kind may lie beside the images (previews, for one) as long as they are not called like them.
    problems += [
        Problem("names without channel number:", file.name, file.name, hint)
        for file in unnumbered
        if file.name.casefold().endswith(ending.casefold())
    ]
    if not grouped and not problems:
        problems.append(Problem("no images:", folder.name, _no_images(folder, files, ending), hint))
    for name, channels in grouped.items():
        wrong = channel_problem(name, channels, description, reader, hint, thorough=False)
        problems += [wrong] if wrong else []
    return {name: tuple(channels.values()) for name, channels in grouped.items()}, problems


def _without_broken(folder: Path) -> tuple[list[Path], list[Problem]]:
    """What a folder holds, and the links in it that lead nowhere."""
    found = visible(folder)
    fix = "is the disk it leads to there? Correct the link, or remove it"
    broken = [
        Problem("links that lead nowhere:", entry.name, f"{folder.name}/{entry.name} -> {os.readlink(entry)}", fix)
        for entry in found
        if not entry.exists()
    ]
    return [entry for entry in found if entry.exists()], broken


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
    reader = reader_for(description.file_ending, description.reader_override)
    pictures = [ending for one in READERS if one.kind == "picture" for ending in one.image_endings]
    endings = reader.image_endings
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
    reader = reader_for(description.file_ending, description.reader_override)
    for name, files in description.files.items():
        cases[name] = case = _listed_case(name, files, folder)
        wrong = [problem for path in (*case.images, case.label) if path for problem in _missing(name, path, folder)]
        if not wrong:
            problem = _listed_channels(name, case, description, reader)
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


def _listed_channels(name: str, case: Case, description: Description, reader: Reader) -> Problem | None:
    expected = len(description.channel_names)
    if len(case.images) == expected:
        return None
    fix = f'list one file for each channel ({", ".join(description.channel_names)}) in "images" of dataset.json'
    return number_problem(name, case.images, description, reader, fix, thorough=False)


def _missing(name: str, path: Path, folder: Path) -> list[Problem]:
    if path.exists():
        return []
    unset = _UNSET.search(str(path))
    fix = f"export {unset[1]}=..." if unset else f"correct the key dataset of {folder / 'dataset.json'}"
    reason = f" (the variable {unset[1]} is not set)" if unset else ""
    return [Problem("files that do not exist:", name, f"{path} of {name}{reason}", fix)]


def _labels_by_case(folder: Path, ending: str) -> tuple[dict[str, Path], list[Problem]]:
    labels: dict[str, Path] = {}
    problems = []
    for file in visible(folder):
        if file.name.casefold().endswith(ending.casefold()):
            name = one_spelling(file.name[: -len(ending)])
            if labels.setdefault(name, file) is not file:
                problems.append(duplicate(name, [labels[name].name, file.name]))
    return labels, problems


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
    surplus = {name: file for name, file in labels.items() if name not in cases}
    return problems + [
        Problem("labels without image:", name, printable(file.name), fix) for name, file in surplus.items()
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
