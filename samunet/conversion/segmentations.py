"""Masks whose files name their structures: 3D Slicer's segmentations, understood by name, whatever the values are.

Raw values are codes of names, the same in all cases; where segments overlap, of all names that are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from samunet.conversion.coding import Coding, CodingOptions, decide_coding
from samunet.conversion.inspection import Finding
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError, UsageError
from samunet.imageio.base import Segment


def overlaps(findings: Iterable[Finding]) -> list[Problem]:
    """Cases in which voxels belong to several segments."""
    fix = (
        "where a later name of --labels is to cover an earlier one, as a tumour the liver it lies in: add "
        "--labels with all names in that order, and --paint_in_order; else correct the segments in Slicer"
    )
    problems = []
    for finding in findings:
        found = [
            f"{' and '.join(one.name for one in finding.segments[value])} ({voxels} voxels)"
            for value, voxels in sorted(finding.values.items())
            if len(finding.segments.get(value, ())) > 1
        ]
        if found:
            name = finding.source.name
            problems.append(Problem("segments overlap:", name, f"{name}: {shortened(found)}", fix))
    return problems


def decide_segments(findings: Sequence[Finding], options: CodingOptions) -> Coding:
    """Give every segment a class by its name; by its value if --labels names none of them, or --remap is given.

    Args:
        findings: Of all cases.
        options: What the user says.

    Raises:
        SamunetError: If some masks have no named segments, or names and values do not agree among the cases.
        UsageError: If --labels names some of the segments only.
    """
    known: dict[int, tuple[Segment, ...]] = {}
    for finding in findings:
        if not finding.segments and finding.values.keys() - {0}:
            raise SamunetError(
                f"{finding.source.mask_name} names no segments, as the masks of other cases do",
                "save all masks in the same way, for example from Slicer as .seg.nrrd",
            )
        known |= {value: finding.segments[value] for value in finding.values if value in finding.segments}
    alone = {one.name for found in known.values() for one in found}
    if not alone:
        raise SamunetError("all masks are empty: no segment has a voxel", "are these the files with the masks?")
    classes = _classes(findings, alone, options)
    names, of_name = classes
    top = {value: max((of_name[one.name] for one in found), default=0) for value, found in known.items()}
    covered = sorted(set(of_name.values()) - set(top.values()) - {0})
    if covered:
        raise SamunetError(
            f"nothing is left of {names[covered[0] - 1]}: later classes cover it in all cases",
            "name what lies inside after what it lies in: --labels liver tumour",
        )
    meanings = {0: "nothing"} | {value: " over ".join(_from_top(found, of_name)) for value, found in known.items()}
    return Coding(("background", *names), {0: 0} | top, meanings=meanings)


def _from_top(found: Sequence[Segment], of_name: dict[str, int]) -> list[str]:
    return [one.name for one in sorted(found, key=lambda one: -of_name[one.name])]


def _classes(
    findings: Sequence[Finding], alone: set[str], options: CodingOptions
) -> tuple[Sequence[str], dict[str, int]]:
    """Names of the classes 1, 2, ..., and the class of every segment's name."""
    by_fold = {label.casefold(): place for place, label in enumerate(options.labels or (), 1)}
    of_name = {name: by_fold[name.casefold()] for name in alone if name.casefold() in by_fold}
    if options.remap is None and len(of_name) == len(alone):
        return options.labels, of_name
    listed = " ".join(f"'{name}'" for name in sorted(alone))
    if options.remap is None and of_name:
        lacking = sorted(alone - set(of_name))
        raise UsageError(f"--labels does not name the segment {lacking[0]!r}", f"the segments are --labels {listed}")
    values: dict[str, set[int]] = {}
    for finding in findings:
        for found in finding.segments.values():
            for one in found:
                values.setdefault(one.name, set()).add(one.value)
    same = all(len(values[name]) == 1 for name in alone) and len({min(values[name]) for name in alone}) == len(alone)
    if options.labels is None and options.remap is None:
        ordered = sorted(alone, key=lambda name: (min(values[name]) if same else 0, name))
        return ordered, {name: place for place, name in enumerate(ordered, 1)}
    if not same:
        raise SamunetError(
            "the segments of the masks have other values in other cases, or the same in several layers; only their "
            "names tell them apart",
            f"call the classes as the segments are called: --labels {listed}",
        )
    coding = decide_coding([0, *(min(values[name]) for name in alone)], False, options)
    return coding.names[1:], {name: coding.classes[min(values[name])] for name in alone}
