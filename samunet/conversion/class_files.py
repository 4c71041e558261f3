"""Masks with a file for each class, joined to one mask whose values also say where classes overlap.

Classes are painted in the order of ``--labels``. A value is the class that lies on top, plus ``_UNDER`` times the one
that it covers; so counting the values of a mask counts its overlaps as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samunet.conversion.coding import Coding
from samunet.conversion.inspection import Finding
from samunet.conversion.masks import RawMask, read_mask
from samunet.conversion.source import FileSource
from samunet.dataset.check import count_values
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError, UsageError
from samunet.imageio.same_grid import Grid, difference, turn_between, turned

_UNDER = 256  # two classes then fit 16 bits, whose values are counted fast
_ONE_VALUE = (
    "if all that is drawn in it is the class, as with numbered lesions: --threshold 0; if it was smoothed: --threshold "
    "127; a mask that holds several classes is named without {class}"
)


@dataclass(frozen=True)
class ClassFilesSource(FileSource):
    """A case whose mask is several files.

    Attributes:
        class_files: Class from 1 on and file, in the order of the classes. A class may have no file, or several.
    """

    class_files: tuple[tuple[int, Path], ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """See :class:`samunet.conversion.source.Source`."""
        return (*self.images, *(file for _, file in self.class_files))

    @property
    def mask_name(self) -> str:
        """See :class:`samunet.conversion.source.Source`."""
        return shortened([f"{file.parent.name}/{file.name}" for _, file in self.class_files])

    def read_mask(self, *, as_colours: bool, threshold: float | None) -> RawMask:
        """The files joined; colours are told apart from black alone.

        Raises:
            SamunetError: If a file cannot be read, has several values besides 0, or another shape than the first.
        """
        values, first, parts, below = None, None, [], {}
        for label, file in self.class_files:
            mask = read_mask(file, threshold=threshold)
            own, drawn = Grid(file, mask.values.shape, mask.geometry), _drawn(mask, file)
            if first is None:
                first, values = own, np.zeros(own.shape, np.int32)
            # Where it cannot be turned to the first's grid, its own place is compared with the image's.
            found, turn = difference(own, first), turn_between(own, first)
            if found is not None and found.kind == "shape":
                raise SamunetError(found.text, found.fix)
            drawn = drawn if turn is None else turned(drawn, turn)
            for slice_, own in zip(values, drawn):
                top = slice_ % _UNDER
                slice_[...] = np.where(own & (top != label), label + _UNDER * top, slice_)
            parts.append((file, mask.geometry if turn is None else first.geometry))
            below |= mask.below
        return RawMask(values, parts[0][1], parts=tuple(parts), below=below)


def _drawn(mask: RawMask, file: Path) -> np.ndarray:
    found = [value for value in count_values(mask.values) if value]
    if len(found) > 1:
        listed = shortened([f"#{value:06x}" if mask.coloured else str(value) for value in found])
        raise SamunetError(
            f"{file} is the file of one class, but has {len(found)} values besides 0: {listed}", _ONE_VALUE
        )
    return mask.values != 0


def check_names(names: Sequence[str]) -> None:
    """Raise a UsageError if there are more classes than values can tell apart."""
    if len(names) >= _UNDER:
        raise UsageError(
            f"--labels names {len(names)} classes; masks with a file for each may have {_UNDER - 1}",
            "choose the classes that are needed, or join the files to one mask per case",
        )


def overlaps(findings: Iterable[Finding], names: Sequence[str]) -> list[Problem]:
    """Cases in which files of two classes have voxels in common."""
    fix = (
        "where a later name of --labels is to cover an earlier one, as a tumour the liver it lies in: add "
        f"--paint_in_order (the order is {' '.join(names)}); else correct the masks"
    )
    problems = []
    for finding in findings:
        name = finding.source.name
        found = [
            f"{_meaning(value, names)} ({voxels} voxels)"
            for value, voxels in sorted(finding.values.items())
            if value >= _UNDER
        ]
        if found:
            problems.append(Problem("classes overlap:", name, f"{name}: {shortened(found)}", fix))
    return problems


def decide_painting(values: Iterable[int], names: Sequence[str], threshold: float | None) -> Coding:
    """Every voxel gets the class that lies on top.

    Args:
        values: Those that occur anywhere, of :meth:`ClassFilesSource.read_mask`.
        names: Of the classes 1, 2, ...
        threshold: That the files were read with.

    Raises:
        SamunetError: If all files are empty, or one class covers another wherever that is.
    """
    values = set(values)
    if values == {0}:
        raise SamunetError("all masks are empty: 0 everywhere", "are these the files with the masks?")
    tops, covered = {value % _UNDER for value in values}, {value // _UNDER for value in values}
    for lost in sorted(covered - tops):
        over = names[min(value % _UNDER for value in values if value // _UNDER == lost) - 1]
        raise SamunetError(
            f"nothing is left of {names[lost - 1]}: later classes, such as {over}, cover it in all cases",
            "name what lies inside after what it lies in: --labels liver tumour",
        )
    by_class = sorted({*range(len(names) + 1), *values}, key=lambda value: (value % _UNDER, value))
    return Coding(
        ("background", *names),
        {value: value % _UNDER for value in by_class},
        threshold=threshold,
        meanings={value: _meaning(value, names) for value in by_class},
    )


def describe(sources: Iterable[FileSource], names: Sequence[str]) -> str:
    """How many files each class has, and which cases have none."""
    sources = [source for source in sources if isinstance(source, ClassFilesSource)]
    told = []
    for label, name in enumerate(names, 1):
        of_case: Mapping[str, int] = {
            source.name: sum(own == label for own, _ in source.class_files) for source in sources
        }
        without = [case for case, number in of_case.items() if not number]
        lacking = f" (no file, so no {name}: {shortened(without)})" if without else ""
        told.append(f"{name} {sum(of_case.values())}{lacking}")
    return "; ".join(told)


def _meaning(value: int, names: Sequence[str]) -> str:
    top, under = ("nothing" if not place else names[place - 1] for place in (value % _UNDER, value // _UNDER))
    return f"{top} over {under}" if value >= _UNDER else top
