"""The Medical Segmentation Decathlon's tasks, and nnU-Net v1's, whose folders and dataset.json are nearly the same.

http://medicaldecathlon.com: dataset.json maps channel numbers (``modality``) and label values (``labels``) to names and
lists the files. The Decathlon keeps channels as the fourth axis of a NIfTI file; nnU-Net v1 has a file per channel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from samunet.conversion.case import Case, Options
from samunet.conversion.draft import Draft, make_draft
from samunet.dataset.cases import channel_gaps, entries, group
from samunet.dataset.names import case_and_channel, case_stem, unusable_names
from samunet.dataset.problems import Problem
from samunet.errors import SamunetError, UsageError
from samunet.files import as_kind, read_as

_TASK = re.compile(r"Task(\d+)_(\S+)")
_CARRIED = ("description", "reference", "licence", "license", "release")
_ENDING = ".nii.gz"
_FILES = 'entries are {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, and paths alone in test'
_HINTS = {
    "modality": 'map numbers to names, for example {"0": "MRI"}',
    "labels": 'map numbers to names, for example {"0": "background", "1": "liver"}',
    "training": _FILES,
    "test": _FILES,
}
_Names = Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], str], Field(min_length=1)]


class _Image(BaseModel):
    image: str


class _Labelled(_Image):
    label: str


class _Task(BaseModel):
    """The keys of a task's dataset.json that are read."""

    modality: _Names
    labels: _Names
    training: list[_Labelled] = []
    test: list[str | _Image] = []


def msd_name(folder: Path, number: int | None) -> str:
    """``Dataset004_Hippocampus`` of the folder ``Task04_Hippocampus``.

    Raises:
        UsageError: If the folder has another name.
    """
    match = _TASK.fullmatch(folder.resolve().name)
    if match is None:
        raise UsageError(
            f"{folder} is not called like Task04_Hippocampus", "give the folder of the task as the Decathlon names it"
        )
    name = re.sub(r"[^A-Za-z0-9_-]", "-", match[2])
    return f"Dataset{int(match[1]) if number is None else number:03d}_{name}"


def draft_of_msd(name: str, folder: Path, options: Options) -> Draft:
    """A task of the Decathlon. Channels stay together in one file, as they come.

    Args:
        name: Such as ``Dataset004_Hippocampus``.
        folder: With dataset.json, imagesTr, labelsTr and, if there are any, imagesTs.
        options: Channels and labels are dataset.json's.

    Raises:
        SamunetError: If dataset.json or a file that it lists is missing or wrong.
    """
    task, content, options = _read(folder, options)
    problems: list[Problem] = []
    training = [
        Case(case_stem(image), (image,), _existing(folder, entry.label, problems))
        for entry in task.training
        for image in [_existing(folder, entry.image, problems)]
    ]
    paths = [entry if isinstance(entry, str) else entry.image for entry in task.test]
    images = [_existing(folder, path, problems) for path in paths]
    test = [Case(case_stem(image), (image,)) for image in images]
    return _draft(name, folder, content, training, test, problems, options)


def draft_of_old_nnunet(name: str, folder: Path, options: Options) -> Draft:
    """A task in nnU-Net v1's raw format: ``imagesTr/case_0000.nii.gz`` and so on, ``labelsTr/case.nii.gz``.

    Args:
        name: Such as ``Dataset004_Hippocampus``.
        folder: With dataset.json, imagesTr, labelsTr and, if there are any, imagesTs and labelsTs.
        options: Channels and labels are dataset.json's.

    Raises:
        SamunetError: If dataset.json is missing or wrong, or images and labels do not fit together.
    """
    _, content, options = _read(folder, options, listed=False)
    problems: list[Problem] = []
    training = _v1_cases(folder, "Tr", problems)
    test = _v1_cases(folder, "Ts", problems)
    channels = len(options.channel_names)
    for case in (*training, *test):
        if len(case.images) not in (1, channels):
            fix = f"dataset.json has the channels {', '.join(options.channel_names)}: add the files, or remove the case"
            detail = f"{case.name} has {len(case.images)}"
            problems.append(Problem(f"{channels} channels expected:", case.name, detail, fix))
    return _draft(name, folder, content, training, test, problems, options)


def _draft(
    name: str,
    folder: Path,
    content: dict[str, Any],
    training: Sequence[Case],
    test: Sequence[Case],
    problems: Sequence[Problem],
    options: Options,
) -> Draft:
    keys = {key: content[key] for key in _CARRIED if content.get(key)}
    return make_draft(name, training, test, options, problems=problems, keys=keys, where=str(folder))


def _read(folder: Path, options: Options, *, listed: bool = True) -> tuple[_Task, dict[str, Any], Options]:
    """dataset.json, and the channels and labels in it; ``listed``: whether its lists of files are used."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise UsageError(
            f"there is no dataset.json in {folder}", "give the folder of one task: it has dataset.json and imagesTr"
        )
    content = read_as(dict[str, Any], path, "restore the file")
    if isinstance(content.get("labels"), dict) and "channel_names" in content:
        raise UsageError(f"{folder} is in nnU-Net v2's format already", "copy it to samunet_raw as it is")
    keys = _Task.model_fields if listed else ("modality", "labels")
    task = as_kind(_Task, {key: content[key] for key in keys if key in content}, str(path), _HINTS)
    labels = {int(value): name for value, name in task.labels.items()} | {0: "background"}
    channels = {int(index): name for index, name in task.modality.items()}
    if sorted(channels) != list(range(len(channels))):
        raise SamunetError(f"{path}: modality must have the keys 0, 1, 2, ..., got {sorted(channels)}", "correct it")
    if len(labels) < 2 or all(int(value) for value in task.labels):
        raise SamunetError(
            f'{path}: labels must have "0", the background, and others, got {task.labels}', _HINTS["labels"]
        )
    if len({name.casefold() for name in labels.values()}) < len(labels):
        raise SamunetError(f"{path}: labels gives a name twice: {task.labels}", "give every class a name of its own")
    names = tuple(channels[index] for index in sorted(channels))
    return task, content, replace(options, channel_names=names, known=labels)


def _existing(folder: Path, path: str, problems: list[Problem]) -> Path:
    file = folder / path
    # By name alone: data managers put links in the place of files.
    if os.path.normpath(path).startswith((os.pardir, os.sep)):
        problems.append(Problem("files outside the task's folder:", path, path, "correct dataset.json"))
    elif not file.is_file():
        fix = "unpack the archive again, or take the case out of dataset.json"
        problems.append(Problem("files that dataset.json lists and that are missing:", path, path, fix))
    return file


def _v1_cases(folder: Path, part: str, problems: list[Problem]) -> list[Case]:
    files = [file for file in entries(folder / f"images{part}") if file.name.endswith(_ENDING)]
    keys = {file: case_and_channel(case_stem(file)) for file in files}
    images, wrong = group((*key, file) for file, key in keys.items() if key)
    problems += wrong + unusable_names(images) + channel_gaps(images)
    hint = "images of nnU-Net v1 are called case_0000.nii.gz, case_0001.nii.gz, ..."
    problems += [
        Problem("names without channel number:", file.name, file.name, hint) for file in files if not keys[file]
    ]
    found = [file for file in entries(folder / f"labels{part}") if file.name.endswith(_ENDING)]
    labels = {case_stem(file): file for file in found}
    fix = "add the other one, or remove it"
    if part == "Tr":
        problems += [Problem("images without label:", name, name, fix) for name in images if name not in labels]
    problems += [Problem("labels without image:", name, name, fix) for name in labels if name not in images]
    return [Case(name, tuple(files.values()), labels.get(name)) for name, files in images.items()]
