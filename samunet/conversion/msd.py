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
from typing import Any

from samunet.conversion.case import Case
from samunet.conversion.coding import CodingOptions
from samunet.conversion.draft import Draft, Options, make_draft
from samunet.dataset.cases import channel_gaps, entries, group
from samunet.dataset.names import case_and_channel, case_stem, unusable_names
from samunet.dataset.problems import Problem
from samunet.errors import SamunetError, UsageError
from samunet.files import read_json

_TASK = re.compile(r"Task(\d+)_(\S+)")
_CARRIED = ("description", "reference", "licence", "license", "release")
_ENDING = ".nii.gz"


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
    content, options = _read(folder, options)
    problems: list[Problem] = []
    training, test = [], []
    for entry in _listed(content, "training", folder):
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise _wrong_list(folder, "training", entry)
        image, label = (_existing(folder, entry[key], problems) for key in ("image", "label"))
        training.append(Case(case_stem(image), (image,), label))
    for entry in _listed(content, "test", folder):
        path = entry["image"] if isinstance(entry, dict) and "image" in entry else entry
        if not isinstance(path, str):
            raise _wrong_list(folder, "test", entry)
        image = _existing(folder, path, problems)
        test.append(Case(case_stem(image), (image,), None))
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
    content, options = _read(folder, options)
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


def _read(folder: Path, options: Options) -> tuple[dict[str, Any], Options]:
    """dataset.json, and what it says about channels and labels."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise UsageError(
            f"there is no dataset.json in {folder}", "give the folder of one task: it has dataset.json and imagesTr"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise SamunetError(f"{path} must hold a JSON object, got {type(content).__name__}", "restore the file")
    if isinstance(content.get("labels"), dict) and "channel_names" in content:
        raise UsageError(f"{folder} is in nnU-Net v2's format already", "copy it to samunet_raw as it is")
    channels, labels = (_names(content, key, path) for key in ("modality", "labels"))
    if sorted(channels) != list(range(len(channels))):
        raise SamunetError(f"{path}: modality must have the keys 0, 1, 2, ..., got {sorted(channels)}", "correct it")
    if labels.get(0) is None or len(labels) < 2:
        raise SamunetError(f'{path}: labels must have "0", the background, and others, got {labels}', "correct it")
    names = tuple(channels[index] for index in sorted(channels))
    labels[0] = "background"
    return content, replace(options, channel_names=names, coding=CodingOptions(known=labels))


def _names(content: dict[str, Any], key: str, path: Path) -> dict[int, str]:
    value = content.get(key)
    right = isinstance(value, dict) and value and all(isinstance(name, str) for name in value.values())
    if not right or not all(str(number).isdecimal() for number in value):
        example = '{"0": "MRI"}' if key == "modality" else '{"0": "background", "1": "liver"}'
        raise SamunetError(f"{path}: {key} must map numbers to names, got {value!r:.200}", f"for example {example}")
    if len({name.casefold() for name in value.values()}) < len(value) and key == "labels":
        raise SamunetError(f"{path}: labels gives a name twice: {value}", "give every class a name of its own")
    return {int(number): name for number, name in value.items()}


def _listed(content: dict[str, Any], key: str, folder: Path) -> list[Any]:
    value = content.get(key, [])
    if not isinstance(value, list):
        raise SamunetError(
            f"{folder / 'dataset.json'}: {key} must be a list of files, got {value!r:.200}", "correct it"
        )
    return value


def _wrong_list(folder: Path, key: str, entry: Any) -> SamunetError:
    return SamunetError(
        f"{folder / 'dataset.json'}: {key} has the entry {entry!r:.200}",
        'entries are {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, and paths alone in test',
    )


def _existing(folder: Path, path: Any, problems: list[Problem]) -> Path:
    file = folder / str(path)
    # By name alone: data managers put links in the place of files.
    if os.path.normpath(str(path)).startswith((os.pardir, os.sep)):
        problems.append(Problem("files outside the task's folder:", str(path), str(path), "correct dataset.json"))
    elif not file.is_file():
        fix = "unpack the archive again, or take the case out of dataset.json"
        problems.append(Problem("files that dataset.json lists and that are missing:", str(path), str(path), fix))
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
