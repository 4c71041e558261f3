"""The report of a complete check: a table to read, and JSON for programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samunet.dataset.labels import Labels
from samunet.dataset.problems import Problem
from samunet.files import write_json, write_text

FILE_NAME = "integrity_report"


@dataclass(frozen=True)
class CheckReport:
    """What a complete check found.

    Attributes:
        dataset: Its name.
        cases, test_cases: How many were looked at in training and in imagesTs.
        problems: Errors first.
        labels: Of dataset.json.
        voxels, cases_with: Number of voxels with, and of training cases that have, each label value found.
    """

    dataset: str
    cases: int
    test_cases: int
    problems: list[Problem]
    labels: Labels
    voxels: dict[int, int]
    cases_with: dict[int, int]

    @property
    def errors(self) -> int:
        """Number of findings that must be repaired."""
        return sum(not problem.warning for problem in self.problems)

    @property
    def summary(self) -> str:
        """One line."""
        warnings = len(self.problems) - self.errors
        test = f" and {self.test_cases} of imagesTs" if self.test_cases else ""
        return (
            f"{self.dataset}: {self.cases} training cases{test} checked: {_counted(self.errors, 'error')}, "
            f"{_counted(warnings, 'warning')}"
        )

    def to_text(self) -> str:
        """The table: every finding with its fix, then the label values that occur."""
        rows = [(problem.to_json()["severity"], problem.where, problem) for problem in self.problems]
        width = max((len(where) for _, where, _ in rows), default=0)
        lines = [self.summary, ""]
        for severity, where, problem in rows:
            lines.append(f"{severity:<7}  {where:<{width}}  {problem.text}")
            if problem.fix:
                lines.append(" " * (11 + width) + f"-> {problem.fix}")
        lines += [""] if rows else []
        if self.voxels:
            lines.append(f"{'label value':>11}  {'cases':>6}  {'voxels':>14}  meaning")
        for value, voxels in self.voxels.items():
            lines.append(f"{value:>11}  {self.cases_with[value]:>6}  {voxels:>14}  {self._meaning(value)}")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> Path:
        """Write ``integrity_report.json`` and ``integrity_report.txt`` atomically to ``folder``; returns the latter."""
        values = [
            {"value": value, "cases": self.cases_with[value], "voxels": voxels, "meaning": self._meaning(value)}
            for value, voxels in self.voxels.items()
        ]
        content = {
            "dataset": self.dataset,
            "training_cases": self.cases,
            "test_cases": self.test_cases,
            "errors": self.errors,
            "warnings": len(self.problems) - self.errors,
            "problems": [problem.to_json() for problem in self.problems],
            "label_values": values,
        }
        write_json(folder / f"{FILE_NAME}.json", content)
        write_text(folder / f"{FILE_NAME}.txt", self.to_text())
        return folder / f"{FILE_NAME}.txt"

    def _meaning(self, value: int) -> str:
        if value == 0:
            return "background"
        if value == self.labels.ignore:
            return "ignore"
        names = [name for name, region in self.labels.foreground if value in region]
        return " and ".join(names) or "not in dataset.json"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
