"""A dataset that has been read and understood but not written: all decisions, as a table, and as dataset.json."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samunet.conversion import structures
from samunet.conversion.case import Case, Inspection, RawValue, inspect_all
from samunet.conversion.channels import decide_channels, decide_file_ending, wrong_channels
from samunet.conversion.coding import Coding, CodingOptions, decide_coding
from samunet.dataset.cases import duplicate
from samunet.dataset.description import description_from_json
from samunet.dataset.names import unusable_names
from samunet.dataset.problems import Problem, raise_problems, shortened
from samunet.errors import SamunetError, UsageError
from samunet.imageio.registry import ending_of, may_have_segments
from samunet.workers import default_workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the user says about the data.

    Attributes:
        channel_names: In order; None to tell them from pictures.
        coding: About the values of masks.
        tolerate_geometry: Accept masks whose origin or direction differs from their image's, which holds.
        num_workers: Worker processes; None for a number that suits this machine.
        progress: Whether to show progress bars.
    """

    channel_names: tuple[str, ...] | None = None
    coding: CodingOptions = field(default_factory=CodingOptions)
    tolerate_geometry: bool = False
    num_workers: int | None = None
    progress: bool = True

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return default_workers() if self.num_workers is None else self.num_workers


@dataclass(frozen=True)
class Draft:
    """All that is decided about a dataset.

    Attributes:
        name: Such as ``Dataset012_Vessels``.
        training, test: Its cases.
        channel_names: In order.
        coding: Of the masks.
        file_ending: Of the labels.
        keys: More keys of dataset.json.
        splits: Of splits_final.json; None where samunet makes them.
        options: What the user said.
    """

    name: str
    training: list[Inspection]
    test: list[Inspection]
    channel_names: tuple[str, ...]
    coding: Coding
    file_ending: str
    keys: Mapping[str, Any]
    splits: list[dict[str, list[str]]] | None
    options: Options

    @property
    def groups(self) -> dict[str, str] | None:
        """Training case to patient; None unless every case has one."""
        groups = {found.case.name: found.case.group for found in self.training}
        return None if None in groups.values() else groups

    def description(self, command: str) -> dict[str, Any]:
        """The content of dataset.json."""
        content: dict[str, Any] = {
            "name": self.name.split("_", 1)[1],
            "channel_names": {str(index): name for index, name in enumerate(self.channel_names)},
            "labels": {name: value for value, name in enumerate(self.coding.names)},
            "numTraining": len(self.training),
            "file_ending": self.file_ending,
        }
        if self.coding.changed:
            content["raw_values"] = {self.coding.show(raw): new for raw, new in self.coding.classes.items()}
        content |= {"converted_by": command} | dict(self.keys)
        return content | {"groups": self.groups} if self.groups else content

    def to_text(self) -> str:
        """What was found, as a table."""
        lines = [self.name]
        lines += [f"  {what:<14}{text}" for what, text in self._facts() if text]
        width = max(14, *(len(self.coding.show(raw)) for raw in self.coding.classes))
        lines += ["", f"  {'in the masks':>{width}}  {'class':>5}  {'cases':>6}  {'voxels':>14}  {'share':>8}  name"]
        voxels = _voxels(self.training)
        cases = Counter(value for found in self.training for value in found.values)
        total = max(sum(voxels.values()), 1)
        for raw, new in sorted(self.coding.classes.items(), key=lambda pair: pair[1]):
            lines.append(
                f"  {self.coding.show(raw):>{width}}  {new:>5}  {cases[raw]:>6}  {voxels[raw]:>14}  "
                f"{voxels[raw] / total:>8.3%}  {self.coding.names[new]}"
            )
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str]]:
        names = [found.case.name for found in self.training]
        facts = [("training", f"{len(names)} cases: {shortened(names)}")]
        if self.test:
            with_mask = sum(found.case.mask_name is not None for found in self.test)
            listed = shortened([found.case.name for found in self.test])
            facts.append(("test", f"{len(self.test)} cases, {with_mask} with masks: {listed}"))
        facts.append(("channels", ", ".join(self.channel_names)))
        facts.append(("shape", _range([found.shape for found in self.training], "{:.0f}")))
        spacings = [found.geometry.spacing for found in self.training if found.geometry.physical]
        facts.append(("spacing", f"{_range(spacings, '{:.3g}')} mm" if spacings else "none"))
        files = Counter(_form(file) for one in self.training for file in one.case.files[:1])
        facts.append(("images", ", ".join(f"{number} {ending}" for ending, number in files.most_common(4))))
        if self.options.coding.class_files:
            cases = [found.case for found in self.training]
            facts.append(("class files", structures.describe(cases, self.coding.names[1:])))
        facts.append(("labels", f"written as {self.file_ending}"))
        if self.groups:
            sizes = Counter(self.groups.values())
            facts.append(
                ("patients", f"{len(sizes)} with {_span(list(sizes.values()), '{}')} cases: {shortened(sorted(sizes))}")
            )
        if self.splits:
            facts.append(("folds", f"{len(self.splits)}, as the source has it"))
        return facts


def make_draft(
    name: str,
    training: Sequence[Case],
    test: Sequence[Case],
    options: Options,
    *,
    problems: Sequence[Problem] = (),
    keys: Mapping[str, Any] | None = None,
    splits: list[dict[str, list[str]]] | None = None,
    where: str = "",
) -> Draft:
    """Read all cases and decide everything. Nothing is written.

    Args:
        name: Such as ``Dataset012_Vessels``.
        training: Cases with masks.
        test: Cases of imagesTs, with masks or without.
        options: What the user says.
        problems: What is known to be wrong already; reported together with what reading finds.
        keys: More keys of dataset.json.
        splits: Folds that came with the data.
        where: The source, for messages.

    Raises:
        SamunetError: If there are no cases, any case is wrong (all are listed, at most five of each kind), or values of
            the masks are not understood.
        UsageError: If the options do not fit the data.
    """
    training, test = (sorted(cases, key=lambda case: case.name) for cases in (training, test))
    coding = options.coding
    problems = list(dict.fromkeys([*problems, *_names_that_clash(training), *_names_that_clash(test)]))
    if not training:
        raise_problems(problems, where)
        raise SamunetError(f"{where}: there are no cases to train on", "correct the path")
    named = coding.class_files or any(may_have_segments(case.mask_name or "") for case in training)
    if coding.paint_in_order and not named:
        raise UsageError(
            "--paint_in_order says which of several files covers the others, but masks are one file per case",
            "leave it out, or write {class} where the pattern of masks names the class: 'masks/{case}_{class}.nii.gz'",
        )
    found, found_test = inspect_all(
        # Cases without mask are reported already; their images need not be read for it.
        [case for case in training if case.mask_name is not None],
        test,
        threshold=coding.threshold,
        tolerate_geometry=options.tolerate_geometry,
        as_colours=coding.as_colours,
        num_workers=options.workers,
        progress=options.progress,
    )
    everything = found + found_test
    problems += [problem for one in everything for problem in one.problems]
    if not coding.paint_in_order:
        problems += structures.overlaps(everything, coding)
    raise_problems(problems, where)
    for problem in problems:
        log.warning("%s: %s (%s)", problem.where, problem.text, problem.fix)
    sound = [one for one in everything if one.geometry is not None]
    channel_names = decide_channels(sound, options.channel_names)
    raise_problems(wrong_channels(sound, channel_names), where)
    if coding.class_files or (any(one.segments for one in everything) and coding.known is coding.threshold is None):
        decided = structures.decide_structures(everything, coding)
    else:
        voxels = _voxels(everything)
        decided = decide_coding(voxels, any(one.coloured for one in everything), coding, voxels)
    draft = Draft(
        name, found, found_test, channel_names, decided, decide_file_ending(sound), keys or {}, splits, options
    )  # fmt: skip
    description_from_json(draft.description(""), where)
    return draft


def _voxels(found: Iterable[Inspection]) -> Counter[RawValue]:
    voxels = Counter()
    for one in found:
        voxels.update(one.values)
    return voxels


def _names_that_clash(cases: Sequence[Case]) -> list[Problem]:
    """Cases that would be written to the same files, on this system or on another."""
    files: dict[str, list[Path]] = {}
    for case in cases:
        files.setdefault(case.name, []).append(case.files[0])
    same = [duplicate(name, found) for name, found in files.items() if len(found) > 1]
    return same + unusable_names(files)


def _form(file: Path) -> str:
    return "DICOM series" if file.is_dir() else ending_of(file) or file.suffix


def _range(rows: Sequence[Sequence[float]], form: str) -> str:
    return " x ".join(_span([row[axis] for row in rows], form) for axis in range(3))


def _span(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}-{high}"
