"""A dataset's folder appears whole or not at all; what it was made from is only read."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from samunet import paths
from samunet.conversion.case import Case, Inspection, mask_for
from samunet.conversion.coding import Coding
from samunet.conversion.draft import Draft
from samunet.errors import SamunetError, UsageError
from samunet.files import atomic_folder, make_folder, write_json
from samunet.imageio.registry import reader_for
from samunet.workers import map_cases

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def dataset_name(name: str, number: str | int) -> str:
    """``Dataset012_Vessels`` of ``Vessels`` and 12.

    Raises:
        UsageError: If the name has other signs than letters, digits, - and _, or the number is not positive.
    """
    text = str(number)
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"the number of a dataset must be 1 or more, got {text!r}", "for example `id=12`")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the name of a dataset has letters, digits, - and _ only, got {name!r}", "for example `name='Vessels'`"
        )
    return f"Dataset{int(text):03d}_{name}"


def check_name(name: str) -> int:
    """The number of a dataset with this name.

    Raises:
        UsageError: If the name has another form than ``Dataset012_Vessels``.
    """
    match = paths.DATASET_NAME.match(name)
    if match is None or set(name) & set("/\\:"):
        raise UsageError(f"a dataset must be called like Dataset012_Vessels, got {name!r}", "give it such a name")
    return int(match[1])


def check_target(name: str, *, overwrite: bool) -> Path:
    """Where a dataset is to be written, before anything is read.

    Args:
        name: Such as ``Dataset012_Vessels``.
        overwrite: Whether a dataset of this name may be replaced.

    Returns:
        Its folder in ``samunet_raw``.

    Raises:
        UsageError: If the name has another form, the dataset exists and must not be replaced, or another dataset has
            its number.
        SamunetError: If samunet_raw is not set.
    """
    number = check_name(name)
    folder = paths.raw_folder_to_write() / name
    taken = {
        entry
        for known in paths.known_folders()
        for entry in known.iterdir()
        if (other := paths.DATASET_NAME.match(entry.name)) and int(other[1]) == number and entry.name != name
    }
    if taken:
        raise UsageError(f"the number {number} is taken: {sorted(taken)[0]}", "choose another number")
    if folder.exists() and not overwrite:
        raise UsageError(
            f"{folder} exists already", "choose another name and number, or add `overwrite=True` to replace it"
        )
    return folder


def write_dataset(draft: Draft, command: str) -> Path:
    """Write a dataset to the raw folder, in place of one of the same name.

    Args:
        draft: All that is to be written.
        command: Written to dataset.json as ``converted_by``.

    Raises:
        SamunetError: If a file cannot be read or written, or the sources lie in the folder that would be replaced.
            What was there before stays.
    """
    target = check_target(draft.name, overwrite=True)
    _refuse_own_source([found.case for found in (*draft.training, *draft.test)], target)
    with atomic_folder(target) as folder:
        for findings, part in ((draft.training, "Tr"), (draft.test, "Ts")):
            _write_cases(findings, part, folder, draft)
        write_json(folder / "dataset.json", draft.description(command))
        if draft.splits:
            write_json(folder / "splits_final.json", draft.splits)
    _warn_of_splits(draft.name)
    return target


def _refuse_own_source(cases: Sequence[Case], target: Path) -> None:
    folder = target.resolve()
    inside = [
        file
        for case in cases
        for file in case.files
        if folder in file.resolve().parents or folder in (file.parent.resolve(), *file.parent.resolve().parents)
    ]
    if inside:
        raise SamunetError(
            f"{inside[0]} lies in {target}, which would be replaced", "give the new dataset another name and number"
        )


def _write_cases(findings: Sequence[Inspection], part: str, folder: Path, draft: Draft) -> None:
    if not findings:
        return
    images, labels = make_folder(folder / f"images{part}"), folder / f"labels{part}"
    if any(found.case.mask_name is not None for found in findings):
        make_folder(labels)
    jobs = [(found, images, labels, draft.file_ending, draft.coding) for found in findings]
    names = [found.case.name for found in findings]
    options = draft.options
    for _ in map_cases(write_case, names, jobs, num_workers=options.workers, description=f"Writing {part}"):
        # Unfinished folders that nobody has touched for an hour count as leftovers of a killed process.
        os.utime(folder)


def write_case(found: Inspection, images: Path, labels: Path, ending: str, coding: Coding) -> None:
    """Write the image and the label of one case."""
    found.case.write_image(images, found.geometry)
    if found.case.mask_name is None:
        return
    label = coding.apply(mask_for(found, coding.coloured, coding.threshold), found.case.mask_name)
    reader_for(ending).write_label(label, labels / f"{found.case.name}{ending}", found.geometry)


def _warn_of_splits(name: str) -> None:
    preprocessed = paths.setting("samunet_preprocessed")
    splits = Path(preprocessed).expanduser() / name / "splits_final.json" if preprocessed else None
    if splits is not None and splits.is_file():
        log.warning("%s has the folds of an earlier dataset of this name; for new ones: rm %s", splits.parent, splits)
