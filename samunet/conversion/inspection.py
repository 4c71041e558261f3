"""Every case is read once before anything is written: what it holds, and all that is wrong with any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from samunet.conversion.masks import RawMask
from samunet.conversion.source import Source
from samunet.dataset.check import count_values, grid_differences, unusable
from samunet.dataset.problems import Problem
from samunet.errors import SamunetError
from samunet.imageio.base import Geometry
from samunet.imageio.same_grid import Grid, turn_between, turned
from samunet.imageio.segments import Segment, on_grid
from samunet.workers import map_cases

TEST = "imagesTs: "  # tells a test case from a training case of the same name


@dataclass
class Finding:
    """What one case holds.

    Attributes:
        source: The case.
        problems: What is wrong with it; the rest may then be missing.
        shape: Of its image, ``(z, y, x)``.
        channels: Of its image.
        grey: Whether three channels are equal everywhere.
        largest: Highest intensity.
        geometry: Of its image.
        values: Voxels of every raw value of its mask.
        coloured: Whether these are colours.
        palette: Colours of these values, if the mask has a palette.
        segments: The named segments that these values stand for, where the mask names such.
    """

    source: Source
    problems: list[Problem] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    channels: int = 0
    grey: bool = False
    largest: float = 0.0
    geometry: Geometry | None = None
    values: dict[int, int] = field(default_factory=dict)
    coloured: bool = False
    palette: dict[int, int] = field(default_factory=dict)
    segments: dict[int, tuple[Segment, ...]] = field(default_factory=dict)


def inspect_all(
    training: Sequence[Source],
    test: Sequence[Source],
    *,
    threshold: float | None,
    tolerate_geometry: bool,
    as_colours: bool = False,
    num_workers: int,
    progress: bool,
) -> tuple[list[Finding], list[Finding]]:
    """Read all cases.

    Masks are read as colours if any of them needs it: if one has colours, or if palettes give one index different
    colours.

    Returns:
        Findings of training and of test cases, in their order.
    """
    jobs = {source.name: source for source in training} | {f"{TEST}{source.name}": source for source in test}

    def run(names: Sequence[str], as_colours: bool) -> dict[str, Finding]:
        arguments = [(jobs[name], as_colours, threshold, tolerate_geometry) for name in names]
        results = map_cases(
            inspect, names, arguments, num_workers=num_workers, description="Reading", progress=progress
        )  # fmt: skip
        return {name: _located(name, finding) for name, finding in results}

    found = run(list(jobs), as_colours)
    if not as_colours and _colours_needed(list(found.values())):
        readable = [name for name, finding in found.items() if finding.values and not finding.coloured]
        found |= run(readable, True)
    return [found[source.name] for source in training], [found[f"{TEST}{source.name}"] for source in test]


def _colours_needed(findings: Sequence[Finding]) -> bool:
    if any(finding.coloured for finding in findings):
        return True
    palette: dict[int, int] = {}
    return any(
        palette.setdefault(index, colour) != colour for finding in findings for index, colour in finding.palette.items()
    )


def inspect(source: Source, as_colours: bool, threshold: float | None, tolerate_geometry: bool) -> Finding:
    """Read one case; whatever is wrong with it becomes a problem."""
    found = Finding(source)
    image_file = source.files[0]
    try:
        image = source.read_image()
    except MemoryError:
        raise
    except Exception as error:  # whatever a library raises on a damaged file, the other cases are still to be read
        found.problems.append(unusable(source.name, image_file, error))
        return found
    found.shape, found.channels, found.geometry = image.array.shape[1:], len(image.array), image.geometry
    found.grey = len(image.array) == 3 and all(np.array_equal(image.array[0], other) for other in image.array[1:])
    found.largest = float(image.array.max())
    del image
    if source.mask_name is None:
        return found
    try:
        mask = _placed(source.read_mask(as_colours=as_colours, threshold=threshold), found)
    except MemoryError:
        raise
    except Exception as error:
        found.problems.append(unusable(source.name, source.mask_name, error))
        return found
    first = Grid(image_file, found.shape, found.geometry)
    for file, geometry in mask.parts or [(image_file.with_name(source.mask_name), mask.geometry)]:
        own = Grid(file, mask.values.shape, geometry)
        found.problems += grid_differences(source.name, own, first, tolerate_geometry)
    fix = "if something is drawn there, the threshold is too high for it"
    for file, highest in mask.below.items():
        detail = f"{file} has values up to {highest:g}"
        found.problems.append(Problem("nothing is above --threshold:", source.name, detail, fix, warning=True))
    found.values, found.coloured, found.palette = count_values(mask.values), mask.coloured, mask.palette
    found.segments = mask.segments
    return found


def _placed(mask: RawMask, finding: Finding) -> RawMask:
    """A segmentation, which Slicer crops to what is drawn, in the grid of its image; other masks as they are."""
    if not mask.segments or mask.values.shape == finding.shape:
        return mask
    values = on_grid(mask.values, mask.geometry, finding.shape, finding.geometry)
    return mask if values is None else replace(mask, values=values, geometry=finding.geometry)


def _located(name: str, finding: Finding) -> Finding:
    finding.problems = [replace(problem, where=name) for problem in finding.problems]
    return finding


def mask_for(finding: Finding, coloured: bool, threshold: float | None) -> np.ndarray:
    """Raw values of a case's mask once more, as :func:`inspect_all` has read them, on the grid of the image.

    Raises:
        SamunetError: If its shape is another one by now.
    """
    mask = _placed(finding.source.read_mask(as_colours=coloured, threshold=threshold), finding)
    image = finding.source.files[0]
    own, wanted = Grid(image, mask.values.shape, mask.geometry), Grid(image, finding.shape, finding.geometry)
    turn = turn_between(own, wanted)
    if turn is None and mask.values.shape != finding.shape:
        raise SamunetError(f"{finding.source.mask_name} has changed while it was read", "run the same command again")
    return mask.values if turn is None else turned(mask.values, turn)
