"""Checks of a raw dataset that need no file's content, always made."""

from __future__ import annotations

from samunet.dataset.layout import Dataset
from samunet.errors import SamunetError


def quick_check(dataset: Dataset) -> None:
    """Check that images, labels and dataset.json agree about which cases there are.

    Raises:
        SamunetError: With all problems at once.
    """
    ending = dataset.description.file_ending
    labels = {
        path.name.removesuffix(ending)
        for path in (dataset.folder / "labelsTr").iterdir()
        if path.name.endswith(ending) and not path.name.startswith(".")
    }
    problems = []
    unlabelled = [name for name, case in dataset.cases.items() if case.label is None]
    if unlabelled:
        problems.append(f"{len(unlabelled)} cases have no label in labelsTr: {_some(unlabelled)}")
    orphans = sorted(labels - dataset.cases.keys())
    if orphans:
        problems.append(f"{len(orphans)} labels have no image in imagesTr: {_some(orphans)}")
    claimed = dataset.description.num_training
    if claimed is not None and claimed != len(dataset.cases):
        problems.append(f"dataset.json says numTraining {claimed}, imagesTr has {len(dataset.cases)} cases")
    if problems:
        raise SamunetError(
            f"{dataset.folder} is not complete:\n  " + "\n  ".join(problems),
            "add or remove the files named above, and correct numTraining in dataset.json",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
