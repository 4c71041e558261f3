"""Classes of named structures: of a file for each class, or of 3D Slicer's segments, which may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from samunet.conversion.case import Case, Inspection
from samunet.conversion.coding import Coding, CodingOptions, decide_coding
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError, UsageError


def overlaps(found: Iterable[Inspection], options: CodingOptions) -> list[Problem]:
    """Cases in which voxels belong to several structures."""
    if options.class_files:
        what, mend = "classes", f"--paint_in_order (the order is {' '.join(options.labels)}); else correct the masks"
    else:
        what = "segments"
        mend = "--labels with all names in that order, and --paint_in_order; else correct the segments in Slicer"
    fix = f"where a later name of --labels is to cover an earlier one, as a tumour the liver it lies in: add {mend}"
    problems = []
    for one in found:
        both = [
            f"{_from_top(value, options.labels or ())} ({voxels} voxels)"
            for value, voxels in sorted(one.values.items(), key=str)
            if isinstance(value, tuple) and len(value) > 1
        ]
        if both:
            name = one.case.name
            problems.append(Problem(f"{what} overlap:", name, f"{name}: {shortened(both)}", fix))
    return problems


def decide_structures(found: Sequence[Inspection], options: CodingOptions) -> Coding:
    """Give every structure a class by its name; by its value if --labels names none of them, or --remap is given.

    Args:
        found: All cases.
        options: What the user says.

    Raises:
        SamunetError: If some masks have no names, names and values do not agree among the cases, all are empty, or one
            class covers another wherever that is.
        UsageError: If --labels names some of the structures only.
    """
    known: set[tuple[str, ...]] = set()
    for one in found:
        if any(isinstance(value, int) and value for value in one.values):
            raise SamunetError(
                f"{one.case.mask_name} names no segments, as the masks of other cases do",
                "save all masks in the same way, for example from Slicer as .seg.nrrd",
            )
        known |= {value for value in one.values if isinstance(value, tuple)}
    alone = {name for value in known for name in value}
    if not alone:
        raise SamunetError("all masks are empty: nothing is drawn in any", "are these the files with the masks?")
    names, of_name = _classes(found, alone, options)
    classes = {value: max((of_name[name] for name in value), default=0) for value in known | {()}}
    covered = sorted(set(of_name.values()) - set(classes.values()))
    if covered:
        lost = {name for name, place in of_name.items() if place == covered[0]}
        over = names[min(place for value, place in classes.items() if lost & set(value)) - 1]
        raise SamunetError(
            f"nothing is left of {names[covered[0] - 1]}: later classes, such as {over}, cover it in all cases",
            "name what lies inside after what it lies in: --labels liver tumour",
        )
    if options.class_files:
        classes |= {(name,): place for place, name in enumerate(names, 1)}
    ordered = sorted(classes, key=lambda value: (classes[value], len(value), value))
    return Coding(("background", *names), {value: classes[value] for value in ordered}, threshold=options.threshold)


def describe(cases: Iterable[Case], names: Sequence[str]) -> str:
    """How many files each class has, and which cases have none."""
    told = []
    for name in names:
        of_case = {case.name: sum(own == name for own, _ in case.class_files) for case in cases}
        without = [case for case, number in of_case.items() if not number]
        missing = f" (no file, so no {name}: {shortened(without)})" if without else ""
        told.append(f"{name} {sum(of_case.values())}{missing}")
    return "; ".join(told)


def _from_top(names: tuple[str, ...], order: Sequence[str]) -> str:
    if set(names) <= set(order):
        return " over ".join(sorted(names, key=order.index, reverse=True))
    return " and ".join(names)


def _classes(
    found: Sequence[Inspection], alone: set[str], options: CodingOptions
) -> tuple[Sequence[str], dict[str, int]]:
    """Names of the classes 1, 2, ..., and the class of every structure's name."""
    by_fold = {label.casefold(): place for place, label in enumerate(options.labels or (), 1)}
    of_name = {name: by_fold[name.casefold()] for name in alone if name.casefold() in by_fold}
    if options.remap is None and len(of_name) == len(alone):
        return options.labels, of_name
    listed = " ".join(f"'{name}'" for name in sorted(alone))
    if options.remap is None and of_name:
        missing = sorted(alone - set(of_name))
        raise UsageError(f"--labels does not name the segment {missing[0]!r}", f"the segments are --labels {listed}")
    values: dict[str, set[int]] = {}
    for segment in {segment for one in found for segment in one.segments}:
        values.setdefault(segment.name, set()).add(segment.value)
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
