"""A case to be converted: its files, how they are read, and what reading them showed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from samunet.conversion.masks import RawMask, RawValue, drawn_on, join_class_files, read_mask
from samunet.dataset.check import count_values, grid_differences, unusable
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError
from samunet.files import atomic_path, write_json
from samunet.imageio.base import Geometry, Image, Segment
from samunet.imageio.dicom import write_as_nifti
from samunet.imageio.registry import READERS, ending_of, image_reader_for, kind_of, mask_ending
from samunet.imageio.same_grid import Grid, fitted
from samunet.workers import map_cases

_TEST = "imagesTs: "  # marks test cases, which may have the names of training cases


@dataclass(frozen=True)
class Case:
    """One case that is to be converted.

    Attributes:
        name: Of the case.
        images: One file per channel, or one that holds all; a folder is a DICOM series.
        mask: None for test images without reference.
        group: Its patient; None if not known.
        class_files: In place of ``mask``, a file for each class: name and file, in the order of the classes. A class
            may have no file, or several.
    """

    name: str
    images: tuple[Path, ...]
    mask: Path | None = None
    group: str | None = None
    class_files: tuple[tuple[str, Path], ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """The mask, or the files of its classes; may be empty."""
        return tuple(file for _, file in self.class_files) if self.mask is None else (self.mask,)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read, the image first."""
        return (*self.images, *self.masks)

    @property
    def kind(self) -> str:
        """``volume`` (formats with geometry), ``tiff`` or ``picture``."""
        return kind_of(self.images[0])

    @property
    def mask_name(self) -> str | None:
        """The mask in messages, its file's ending included; None if there is none."""
        if self.class_files:
            return shortened([f"{file.parent.name}/{file.name}" for _, file in self.class_files])
        return None if self.mask is None else self.mask.name

    def read_image(self) -> Image:
        """The image with all its channels, as the file has them.

        Raises:
            SamunetError: If it cannot be read.
        """
        kinds = {kind_of(file) for file in self.files}
        if "volume" in kinds and len(kinds) > 1:
            raise SamunetError(
                f"{', '.join(file.name for file in self.files)} are files with geometry and pictures without",
                "save image and mask in one format, such as .nii.gz for volumes or .png for pictures",
            )
        return image_reader_for(self.images[0], READERS[0]).read_image(self.images)

    def read_mask(self, *, as_colours: bool, threshold: float | None) -> RawMask:
        """The mask as it is coded in the file; see :func:`samunet.conversion.masks.read_mask`."""
        if self.class_files:
            return join_class_files(self.class_files, threshold)
        return read_mask(self.mask, as_colours=as_colours, threshold=threshold)

    def write_image(self, folder: Path, geometry: Geometry) -> None:
        """Write the image to ``folder`` (imagesTr or imagesTs) as ``NAME_0000.ending`` and so on.

        Files are copied byte for byte; a TIFF's spacing goes into the JSON file beside it, DICOM becomes NIfTI, and a
        header and the voxels beside it become one file.
        """
        for channel, file in enumerate(self.images):
            if file.is_dir():
                write_as_nifti(file, folder / f"{self.name}_{channel:04d}.nii.gz")
                continue
            ending = mask_ending(file) if kind_of(file) == "volume" else ending_of(file)
            target = folder / f"{self.name}_{channel:04d}{ending}"
            try:
                content = image_reader_for(file, READERS[0]).in_one_file(file) or file.read_bytes()
            except OSError as error:
                raise SamunetError(f"could not read {file}: {error.strerror}", "check that you may read it") from error
            # Content alone: a copy with the permissions of a read-only file could not be replaced later.
            with atomic_path(target) as temporary:
                temporary.write_bytes(content)
            if geometry.physical and kind_of(target) == "tiff":
                write_json(target.with_suffix(".json"), {"spacing": list(geometry.spacing)})


@dataclass
class Inspection:
    """A case that was read.

    Attributes:
        case: The case.
        problems: What is wrong with it; the rest may then be missing.
        shape: Of its image, ``(z, y, x)``.
        channels: Of its image.
        grey: Whether three channels are equal everywhere.
        largest: Highest intensity.
        geometry: Of its image.
        values: Voxels of every raw value of its mask.
        coloured: Whether these are colours.
        palette: Colours of these values, if the mask has a palette.
        segments: The named structures in its mask, where it has such.
    """

    case: Case
    problems: list[Problem] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    channels: int = 0
    grey: bool = False
    largest: float = 0.0
    geometry: Geometry | None = None
    values: dict[RawValue, int] = field(default_factory=dict)
    coloured: bool = False
    palette: dict[int, int] = field(default_factory=dict)
    segments: set[Segment] = field(default_factory=set)


def inspect_all(
    training: Sequence[Case],
    test: Sequence[Case],
    *,
    threshold: float | None,
    tolerate_geometry: bool,
    as_colours: bool = False,
    num_workers: int,
    progress: bool,
) -> tuple[list[Inspection], list[Inspection]]:
    """Read all cases once, before anything is written.

    Masks are read as colours if any of them needs it: if one has colours, or if palettes give one index different
    colours.

    Returns:
        Training and test cases, in their order.
    """
    jobs = {case.name: case for case in training} | {f"{_TEST}{case.name}": case for case in test}

    def run(names: Sequence[str], as_colours: bool) -> dict[str, Inspection]:
        arguments = [(jobs[name], as_colours, threshold, tolerate_geometry) for name in names]
        found = dict(
            map_cases(inspect, names, arguments, num_workers=num_workers, description="Reading", progress=progress)
        )
        for name, one in found.items():
            one.problems = [replace(problem, where=name) for problem in one.problems]
        return found

    found = run(list(jobs), as_colours)
    if not as_colours and _colours_needed(list(found.values())):
        found |= run([name for name, one in found.items() if one.values and not one.coloured], True)
    return [found[case.name] for case in training], [found[f"{_TEST}{case.name}"] for case in test]


def _colours_needed(found: Sequence[Inspection]) -> bool:
    palette: dict[int, int] = {}
    return any(one.coloured for one in found) or any(
        palette.setdefault(index, colour) != colour for one in found for index, colour in one.palette.items()
    )


def inspect(case: Case, as_colours: bool, threshold: float | None, tolerate_geometry: bool) -> Inspection:
    """Read one case; whatever is wrong with it becomes a problem."""
    found, file = Inspection(case), case.files[0]
    try:
        image = case.read_image()
        found.shape, found.channels, found.geometry = image.array.shape[1:], len(image.array), image.geometry
        found.grey = len(image.array) == 3 and all(np.array_equal(image.array[0], other) for other in image.array[1:])
        found.largest = float(image.array.max())
        del image
        if case.mask_name is None:
            return found
        file = case.mask_name
        mask = drawn_on(case.read_mask(as_colours=as_colours, threshold=threshold), found.shape, found.geometry)
    except MemoryError:
        raise
    except Exception as error:  # whatever a library raises on a damaged file, the other cases are still to be read
        found.problems.append(unusable(case.name, file, error))
        return found
    first = Grid(case.files[0], found.shape, found.geometry)
    for file, geometry in mask.parts or [(first.file.with_name(case.mask_name), mask.geometry)]:
        own = Grid(file, mask.values.shape, geometry)
        found.problems += grid_differences(case.name, own, first, tolerate_geometry)
    fix = "if something is drawn there, the threshold is too high for it"
    for file, highest in mask.below.items():
        detail = f"{file} has values up to {highest:g}"
        found.problems.append(Problem("nothing is above --threshold:", case.name, detail, fix, warning=True))
    counts = Counter()
    for value, voxels in count_values(mask.values).items():
        counts[mask.raw(value)] += voxels
    found.values, found.coloured, found.palette = dict(counts), mask.coloured, mask.palette
    found.segments = {one for segments in mask.segments or () for one in segments}
    return found


def mask_for(found: Inspection, coloured: bool, threshold: float | None) -> RawMask:
    """A case's mask once more, as :func:`inspect_all` has read it, on the grid of the image.

    Raises:
        SamunetError: If its shape is another one by now.
    """
    case = found.case
    mask = drawn_on(case.read_mask(as_colours=coloured, threshold=threshold), found.shape, found.geometry)
    own, wanted = (
        Grid(case.files[0], shape, geometry)
        for shape, geometry in ((mask.values.shape, mask.geometry), (found.shape, found.geometry))
    )
    fit = fitted(mask.values, own, wanted)
    if fit is None and mask.values.shape != found.shape:
        raise SamunetError(f"{case.mask_name} has changed while it was read", "run the same command again")
    return mask if fit is None else replace(mask, values=fit)
