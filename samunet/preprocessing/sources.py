"""Whether a case's files are still those that it was stored from: name, size and time first, then content."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from samunet.dataset.cases import Case, Dataset
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError
from samunet.files import file_hash
from samunet.imageio.registry import companions
from samunet.paths import number_in

FileFacts = dict[str, Any]


def image_files(case: Case) -> list[Path]:
    """The images of a case, with what is read along with them; of a DICOM folder, its files."""
    return [file for path in case.images for file in _with_companions(path)]


def source_files(case: Case) -> list[Path]:
    """The same of its images and its label."""
    return image_files(case) + ([] if case.label is None else _with_companions(case.label))


def _with_companions(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path, *companions(path)]
    return [file for file in files if file.is_file()]


def file_facts(case: Case) -> list[FileFacts]:
    """Name, size, time of change and SHA-256 of each of a case's files, and whose it is: image or label."""
    images = set(image_files(case))
    return [
        {
            "name": file.name,
            "bytes": (status := file.stat()).st_size,
            "time": status.st_mtime_ns,
            "sha256": file_hash(file),
            "of": "image" if file in images else "label",
        }
        for file in source_files(case)
    ]


def changed_files(case: Case, facts: list[FileFacts], *, images_only: bool = False) -> list[str]:
    """Those of a case's files, with their folders, that are not what they were when ``facts`` was written.

    Times differ after a copy to another machine: such files are read, and are unchanged if their content is.
    """
    if images_only:
        facts = [fact for fact in facts if fact["of"] == "image"]
    before = {(fact["name"], index): fact for index, fact in enumerate(facts)}
    now = {(file.name, index): file for index, file in enumerate((image_files if images_only else source_files)(case))}
    changed = [name for name, _ in before.keys() ^ now.keys()]
    for key in before.keys() & now.keys():
        status, fact = now[key].stat(), before[key]
        same = status.st_size == fact["bytes"] and (
            status.st_mtime_ns == fact["time"] or file_hash(now[key]) == fact["sha256"]
        )
        if not same:
            changed.append(f"{now[key].parent.name}/{key[0]}")
    return sorted(set(changed))


def with_times(case: Case, facts: list[FileFacts]) -> list[FileFacts]:
    """``facts`` of a case whose files did not change, with the times that they have now."""
    return [fact | {"time": file.stat().st_mtime_ns} for fact, file in zip(facts, source_files(case), strict=True)]


def check_cases(dataset: Dataset, known: Collection[str]) -> None:
    """Check that a raw dataset has the cases that were measured and stored.

    Args:
        dataset: As it is now.
        known: Names of the cases that were measured.

    Raises:
        SamunetError: Naming those that were added or removed since.
    """
    added, removed = sorted(set(dataset.cases) - set(known)), sorted(set(known) - set(dataset.cases))
    parts = [
        f"{len(names)} training case{'s were' if len(names) > 1 else ' was'} {what} ({shortened(names)})"
        for names, what in ((added, "added"), (removed, "removed"))
        if names
    ]
    if parts:
        number = len(dataset.cases)
        first = "" if dataset.description.num_training in (None, number) else (
            f'write "numTraining": {number} in {dataset.folder / "dataset.json"}, then: '
        )  # fmt: skip
        raise SamunetError(
            f"{dataset.folder} changed after preprocessing: {' and '.join(parts)}",
            f"{first}samunet_add_cases -d {number_in(dataset.name)} takes the change over, and leaves all other cases "
            "in their folds",
        )
