"""finetune-SAM's datasets: 2D pictures and masks, listed in CSV files of two columns without a header.

https://github.com/mazurowski-lab/finetune-SAM. Each line is ``IMAGE,MASK`` (its README also shows tabs), relative to a
folder of images and one of masks. A list of training and one of validation slices make its only split.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from samunet.conversion.case import Case, Options
from samunet.conversion.draft import Draft, make_draft
from samunet.conversion.folders import group_by_pattern
from samunet.dataset.cases import name_below
from samunet.dataset.problems import Problem
from samunet.errors import SamunetError, UsageError


def draft_of_lists(
    name: str,
    img_folder: Path,
    mask_folder: Path,
    lists: Mapping[str, Path | None],
    options: Options,
    patient_pattern: str | None = None,
) -> Draft:
    """Slices of the training and validation lists as cases; their division becomes the dataset's only fold.

    A case is called by its image's path, without what all paths have in common and with ``_`` for ``/``.

    Args:
        name: Such as ``Dataset012_Vessels``.
        img_folder, mask_folder: What paths in the lists are relative to.
        lists: Of training (``train``), validation (``val``) and test slices (``test``); only the first is needed.
        options: What the user says about channels and values.
        patient_pattern: See :func:`samunet.conversion.folders.group_by_pattern`.

    Raises:
        UsageError: If a folder or list is missing.
        SamunetError: If a line is wrong, a file missing, or a slice in two lists.
    """
    for folder in (img_folder, mask_folder):
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}", "give the folder that paths in the lists are relative to")
    problems: list[Problem] = []
    rows = {
        part: [] if path is None else _read(path, img_folder, mask_folder, problems) for part, path in lists.items()
    }
    names = _names([image for found in rows.values() for image, _ in found])
    problems += _twice(rows)
    cases = {part: [Case(names[image], (image,), mask) for image, mask in found] for part, found in rows.items()}
    training = [*cases["train"], *cases["val"]]
    if patient_pattern is not None:
        training = group_by_pattern(training, patient_pattern)
    splits = None
    if cases["train"] and cases["val"]:
        splits = [{part: sorted(case.name for case in cases[part]) for part in ("train", "val")}]
    return make_draft(
        name, training, cases["test"], options, problems=problems, splits=splits, where=str(lists["train"])
    )  # fmt: skip


def _read(path: Path, img_folder: Path, mask_folder: Path, problems: list[Problem]) -> list[tuple[Path, Path]]:
    """Image and mask of every line; what is wrong with lines becomes problems."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SamunetError(f"{path} is not a text file", "save it as CSV in UTF-8") from None
    except OSError as error:
        raise UsageError(f"could not read {path}: {error.strerror}", "give the list of slices, a CSV file") from error
    delimiter = "\t" if "\t" in text else ","
    rows = []
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 2 or not all(cells):
            fix = "a line is IMAGE,MASK, without a header; names must not contain commas"
            problems.append(Problem("lines that are not understood:", path.name, f"{path}, line {number}: {row}", fix))
            continue
        image, mask = img_folder / cells[0].lstrip("/"), mask_folder / cells[1].lstrip("/")
        missing = [str(file) for file in (image, mask) if not file.is_file()]
        if missing:
            detail = f"{' and '.join(missing)} ({path.name}, line {number})"
            fix = "correct the list or the folders; a header must be removed"
            problems.append(Problem("files that do not exist:", path.name, detail, fix))
            continue
        rows.append((image, mask))
    if not rows and not problems:
        raise SamunetError(f"{path} lists nothing", "a line is IMAGE,MASK")
    return rows


def _names(images: list[Path]) -> dict[Path, str]:
    """Cases' names, unique as paths are: what all have in common is left out."""
    if not images:
        return {}
    common = os.path.commonpath([image.parent for image in images])
    return {image: name_below(Path(common), image) for image in images}


def _twice(rows: dict[str, list[tuple[Path, Path]]]) -> list[Problem]:
    """Slices that several lists have, or one has twice."""
    where: dict[Path, list[str]] = {}
    for part, found in rows.items():
        for image, _ in found:
            where.setdefault(image, []).append(part)
    fix = "take it out of one of them: a score on what was trained on says nothing"
    return [
        Problem("slices listed twice:", image.name, f"{image} ({' and '.join(parts)})", fix)
        for image, parts in where.items()
        if len(parts) > 1
    ]
