"""The complete check of a raw dataset, which reads every file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from samunet.dataset.cases import Case, Dataset
from samunet.dataset.description import Description
from samunet.dataset.labels import Labels
from samunet.dataset.layout import find_images
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError
from samunet.files import write_json, write_text
from samunet.imageio.registry import image_reader_for
from samunet.imageio.same_grid import Grid, difference, fitted
from samunet.workers import map_cases

REPORT = "integrity_report"
_TEST = "imagesTs: "
_KINDS = {
    "shape": "different shapes:",
    "spacing": "different spacings:",
    "origin": "another place:",
    "direction": "another place:",
}


@dataclass(frozen=True)
class CheckReport:
    """Findings of a complete check."""

    dataset: str
    cases: int  # looked at in training
    test_cases: int  # and in imagesTs
    problems: list[Problem]  # errors first
    labels: Labels
    voxels: dict[int, int]  # with each label value found
    cases_with: dict[int, int]  # training cases that have it

    @property
    def errors(self) -> int:
        """Number of findings that must be repaired."""
        return sum(not problem.warning for problem in self.problems)

    @property
    def summary(self) -> str:
        """The report in one line."""
        warnings = len(self.problems) - self.errors
        test = f" and {self.test_cases} of imagesTs" if self.test_cases else ""
        found = ((self.errors, "error"), (warnings, "warning"))
        counted = ", ".join(f"{number} {what}{'s' * (number != 1)}" for number, what in found)
        return f"{self.dataset}: {self.cases} training cases{test} checked: {counted}"

    def to_text(self) -> str:
        """The table: every finding with its fix, then the label values that occur."""
        lines, rows = [self.summary, ""], [problem.to_json() for problem in self.problems]
        width = max((len(row["where"]) for row in rows), default=0)
        for row in rows:
            lines.append(f"{row['severity']:<7}  {row['where']:<{width}}  {row['problem']}")
            lines += [" " * (11 + width) + f"-> {row['fix']}"] if row["fix"] else []
        lines += [""] if rows else []
        if self.voxels:
            lines.append(f"{'label value':>11}  {'cases':>6}  {'voxels':>14}  meaning")
        for row in self._label_values:
            lines.append(f"{row['value']:>11}  {row['cases']:>6}  {row['voxels']:>14}  {row['meaning']}")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> Path:
        """Write ``integrity_report.json`` and ``integrity_report.txt`` atomically to ``folder``; returns the latter."""
        content = {
            "dataset": self.dataset,
            "training_cases": self.cases,
            "test_cases": self.test_cases,
            "errors": self.errors,
            "warnings": len(self.problems) - self.errors,
            "problems": [problem.to_json() for problem in self.problems],
            "label_values": self._label_values,
        }
        write_json(folder / f"{REPORT}.json", content)
        write_text(folder / f"{REPORT}.txt", self.to_text())
        return folder / f"{REPORT}.txt"

    @property
    def _label_values(self) -> list[dict[str, Any]]:
        known = self.labels.meanings
        return [
            {
                "value": value,
                "cases": self.cases_with[value],
                "voxels": voxels,
                "meaning": known.get(value, "not in dataset.json"),
            }
            for value, voxels in self.voxels.items()
        ]


@dataclass
class _Inspection:
    """Findings in one case, voxels of every label value, and a hash of the image."""

    problems: list[Problem] = field(default_factory=list)
    values: dict[int, int] = field(default_factory=dict)
    content: str | None = None


def complete_check(
    dataset: Dataset, *, num_workers: int = 0, progress: bool = True, tolerate_geometry: bool = False
) -> CheckReport:
    """Read all training cases, and all cases of imagesTs, and collect what is wrong with any of them.

    What is wrong in imagesTs is a warning, since training does not need it. One channel of one case is in memory at a
    time, in each worker.

    Args:
        dataset: From :func:`samunet.dataset.layout.read_dataset`; its ``problems`` become part of the report.
        tolerate_geometry: Other origins and directions of channels and labels are warnings instead of errors.
    """
    description = dataset.description
    problems, test_images = list(dataset.problems), {}
    folder = dataset.folder / "imagesTs"
    if folder.is_dir() and any(folder.iterdir()):
        test_images, found = find_images(folder, description)
        problems += [replace(problem, where=f"{_TEST}{problem.where}", warning=True) for problem in found]
    cases = dataset.cases | {f"{_TEST}{name}": Case(name, files, None) for name, files in test_images.items()}
    lean = description.without_lists()
    jobs = [(case, lean, tolerate_geometry) for case in cases.values()]
    inspected: dict[str, _Inspection] = dict(
        map_cases(_inspect, list(cases), jobs, num_workers=num_workers, description="Checking", progress=progress)
    )
    voxels, cases_with = Counter(), Counter()
    for name in cases:
        found, test = inspected[name], name not in dataset.cases
        problems += [replace(row, where=name, warning=row.warning or test) for row in found.problems]
        if not test:
            voxels.update(found.values)
            cases_with.update(found.values.keys())
    problems += _identical_images({name: inspected[name].content for name in cases})
    problems += _absent_classes(description.labels, voxels)
    return CheckReport(
        dataset=dataset.name,
        cases=len(dataset.cases),
        test_cases=len(test_images),
        problems=sorted(problems, key=lambda problem: problem.warning),
        labels=description.labels,
        voxels=dict(sorted(voxels.items())),
        cases_with=dict(sorted(cases_with.items())),
    )


def _inspect(case: Case, description: Description, tolerate_geometry: bool) -> _Inspection:
    found = _Inspection()
    try:
        first = _inspect_image(case, description, tolerate_geometry, found)
        if case.label is not None:
            _inspect_label(case.label, first, description, tolerate_geometry, found)
    except MemoryError:
        fix = "close other programs, or check with fewer worker processes: `num_workers=1`"
        found.problems.append(Problem("memory ran out while reading", case.name, case.name, fix))
    return found


def _inspect_image(case: Case, description: Description, tolerate_geometry: bool, found: _Inspection) -> Grid | None:
    """Look at the channels one after the other; returns the first readable file's grid."""
    expected = len(description.channel_names)
    # One file per channel, or one that holds all of them; other numbers are findings of the quick check.
    per_file = {1: expected, expected: 1}.get(len(case.images))
    first, hashes, constant = None, [], []
    for file in case.images:
        try:
            image = image_reader_for(file, description.reader).read_image([file], channels=per_file)
        except MemoryError:
            raise
        except Exception as error:  # whatever a library raises on a damaged file, the other cases are still to be read
            found.problems.append(unusable(case.name, file, error))
            continue
        grid = Grid(file, image.array.shape[1:], image.geometry)
        first = first or grid
        found.problems += grid_differences(case.name, grid, first, tolerate_geometry)
        for channel in image.array:
            if channel.min() == channel.max():
                constant.append(f"{file.name} (everywhere {channel.flat[0]:g})")
            hashes.append(blake2b(np.ascontiguousarray(channel), digest_size=16).hexdigest() + str(grid.shape))
        del image
    if constant:
        fix = "look at the file: the export may have failed; remove the case if it shows nothing"
        found.problems.append(Problem("constant channels:", case.name, "; ".join(constant), fix, warning=True))
    if len(case.images) > 1 and not found.problems and len(hashes) != expected:
        try:
            image_reader_for(case.images[0], description.reader).read_image(case.images, channels=expected)
        except SamunetError as error:
            found.problems.append(unusable(case.name, case.images[0], error))
    if len(case.images) > 1 and len(set(hashes)) < len(hashes) and not constant:
        fix = "look whether a file was copied under the name of another channel"
        listed = ", ".join(file.name for file in case.images)
        found.problems.append(Problem("channels with the same voxels:", case.name, listed, fix, warning=True))
    if len(hashes) >= expected and len(constant) < len(hashes):
        found.content = " ".join(hashes)
    return first


def _inspect_label(
    file: Path, first: Grid | None, description: Description, tolerate_geometry: bool, found: _Inspection
) -> None:
    labels, name = description.labels, file.name
    try:
        label, geometry = description.reader.read_label(file)
        own = Grid(file, label.shape, geometry)
        if first is not None and fitted(label, own, first) is None:
            found.problems += grid_differences(name, own, first, tolerate_geometry)
        found.values = count_values(label)
        labels.check(found.values, file)
    except MemoryError:
        raise
    except Exception as error:
        found.problems.append(unusable(name, file, error))
        return
    if not set(found.values) - {0, labels.ignore}:
        what = "only background" if labels.ignore not in found.values else "only background and ignore"
        fix = "right if the case is healthy; else annotate it, or remove it"
        found.problems.append(Problem("labels without any structure:", name, f"{name} has {what}", fix, warning=True))


def count_values(label: np.ndarray) -> dict[int, int]:
    """Voxels of every value that occurs."""
    if label.min() >= 0 and label.max() < 1 << 16:
        counts = np.bincount(label.reshape(-1))
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist()))


def unusable(name: str, file: Path | str, error: Exception) -> Problem:
    """The finding for a file that could not be read."""
    if isinstance(error, SamunetError):
        return Problem("cannot be used:", name, error.message, error.hint or "")
    detail = f"{file}: {type(error).__name__}: {error}"
    return Problem("cannot be used:", name, detail, "copy or export the file again, or remove the case")


def grid_differences(name: str, grid: Grid, first: Grid, tolerate_geometry: bool) -> list[Problem]:
    """Where a file's grid is not that of the case's first image file."""
    found = difference(grid, first)
    if found is None:
        return []
    tolerated = tolerate_geometry and found.tolerable
    fix = "tolerated: that of the first file is used" if tolerated else found.fix
    return [Problem(_KINDS[found.kind], name, found.text, fix, warning=tolerated)]


def _identical_images(contents: Mapping[str, str | None]) -> list[Problem]:
    """Cases with the same voxels: twice in training, or in training and imagesTs."""
    groups: dict[str, list[str]] = {}
    for name, content in contents.items():
        if content is not None:
            groups.setdefault(content, []).append(name)
    problems = []
    for names in groups.values():
        training = [name for name in names if not name.startswith(_TEST)]
        test = [name.removeprefix(_TEST) for name in names if name.startswith(_TEST)]
        found = []
        if len(training) > 1:
            fix = 'remove all but one, or give them one group in dataset.json ("groups"), so that no fold '
            fix += "is validated on what it was trained on"
            found.append(("the same image under several names:", shortened(training), fix))
        if training and test:
            fix = "remove it from one of them: its test result would say nothing"
            found.append(("test images that are trained on:", f"{training[0]} is {shortened(test)} of imagesTs", fix))
        problems += [Problem(kind, training[0], detail, fix, warning=True) for kind, detail, fix in found]
    return problems


def _absent_classes(labels: Labels, voxels: Mapping[int, int]) -> list[Problem]:
    absent = [name for name, region in labels.foreground if not any(voxels.get(value) for value in region)]
    if not absent or not voxels:
        return []
    detail = ", ".join(f'"{name}"' for name in absent)
    fix = "remove them from labels in dataset.json, or add cases that have them: they cannot be learnt"
    if unknown := labels.unknown(voxels):
        listed, others = (shortened(list(map(str, values))) for values in (voxels, unknown))
        fix = f"the files hold the values {listed}: number the labels in dataset.json and in the files alike"
        detail += f", while files hold {others}, which dataset.json does not list"
    return [Problem("labels that occur in no file:", "labels", detail, fix, warning=not unknown)]
