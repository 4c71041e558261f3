"""Whether a dataset's keys fit its cases: what names alone tell. Runs whenever a dataset is loaded."""

from __future__ import annotations

from samunet.dataset.cases import Dataset
from samunet.dataset.description import misspelt_keys
from samunet.dataset.problems import Problem, shortened


def name_problems(dataset: Dataset) -> list[Problem]:
    """Keys of dataset.json that contradict the cases: their number, their groups, and keys that nothing reads."""
    description, number = dataset.description, len(dataset.cases)
    problems = [
        Problem(
            "dataset.json has a key that nothing reads:", wrong, f'"{wrong}"',
            f'rename it to "{right}" if that is meant', warning=True,
        )
        for wrong, right in misspelt_keys(description.raw).items()
    ]  # fmt: skip
    announced = description.num_training
    if number and announced not in (None, number):
        where = "imagesTr has" if description.files is None else "its key dataset lists"
        problems.append(
            Problem(
                "wrong numTraining:", "numTraining",
                f"dataset.json announces {announced} training cases (numTraining), {where} {number}",
                f'if none is missing, write "numTraining": {number}',
            )
        )  # fmt: skip
    groups = description.groups
    if groups:
        lacking = [name for name in dataset.cases if name not in groups]
        if lacking:
            problems.append(
                Problem(
                    "groups of dataset.json lack", "groups", f"{len(lacking)} of {number} cases: {shortened(lacking)}",
                    "name a group for every training case, or remove groups",
                )
            )  # fmt: skip
        unknown = sorted(set(groups) - set(dataset.cases))
        if unknown and number:
            problems.append(
                Problem(
                    "groups of dataset.json name", "groups",
                    f"{len(unknown)} cases that the dataset lacks: {shortened(unknown)}",
                    "correct the names, or remove them from groups", warning=True,
                )
            )  # fmt: skip
    return problems
