"""A case to be converted: its files, its mask as people draw them, and what reading them showed.

Masks are numbers, palettes, black and white, colours, named structures, or a file for each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from samunet.dataset.cases import count_channels
from samunet.dataset.check import count_values, grid_differences, unusable
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError
from samunet.files import atomic_path, write_json
from samunet.imageio.base import Geometry, Image, Reader, Segment
from samunet.imageio.border import check_file
from samunet.imageio.dicom import write_as_nifti
from samunet.imageio.registry import READERS, ending_of, image_reader_for, is_lossy, kind_of, mask_ending
from samunet.imageio.same_grid import Grid, difference, fitted
from samunet.imageio.segments import drawn
from samunet.workers import default_workers, map_cases

_TEST = "imagesTs: "  # marks test cases, which may have the names of training cases
_JPEG_START = b"\xff\xd8"
_LOSSLESS = "export the masks again without loss, as PNG; converting this file keeps its wrong values"
_ONE_VALUE = (
    "if all that is drawn in it is the class, as with numbered lesions: `threshold=0`; if it was smoothed: "
    "`threshold=127`; a mask that holds several classes is named without {class}"
)

RawValue = int | tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """The user's answers about the data.

    Attributes:
        channel_names: In order; None to derive them from pictures.
        labels: Names of the classes 1, 2, ...; None for names made up here.
        remap: Raw value (or colour) and class; empty to number the values in ascending order; None if not asked for.
        threshold: Mask values above it are class 1; None if not asked for.
        known: Raw value to name, where a file of the dataset has them; then nothing is decided.
        class_files: Whether each class has a file of its own; ``labels`` are then known.
        paint_in_order: Whether later classes may then cover earlier ones.
        not_annotated: Colour or value of the voxels that nobody annotated, as it was given; they become ``ignore``.
        background: Where not annotated is 0, so that 0 is not the background: the value that is; None if none is named.
        as_colours: Whether masks are read as colours even if they have a palette or are grey.
        tolerate_geometry: Accept masks whose origin or direction differs from their image's, which holds.
        num_workers: Worker processes; None for a number that suits this machine.
    """

    channel_names: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    remap: tuple[tuple[str, int], ...] | None = None
    threshold: float | None = None
    known: Mapping[int, str] | None = None
    class_files: bool = False
    paint_in_order: bool = False
    not_annotated: str | None = None
    background: int | None = None
    as_colours: bool = False
    tolerate_geometry: bool = False
    num_workers: int | None = None

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return default_workers() if self.num_workers is None else self.num_workers


@dataclass(frozen=True)
class RawMask:
    """A mask before its values have been given a meaning.

    Attributes:
        values: ``(z, y, x)`` integers: numbers, colours as 65536 red + 256 green + blue, or places in ``segments``.
        geometry: Of the file.
        coloured: Whether ``values`` are colours.
        palette: Colour of every index that occurs, if the file has a palette and ``values`` are its indices.
        parts: The files that ``values`` were joined of, and their geometries; none where it is one file.
        below: Files in which something is drawn, but nothing above the threshold; with their highest value.
        segments: The named structures that each value stands for, several where they overlap; the first has none. None
            where values speak for themselves.
    """

    values: np.ndarray
    geometry: Geometry
    coloured: bool = False
    palette: dict[int, int] = field(default_factory=dict)
    parts: tuple[tuple[Path, Geometry], ...] = ()
    below: dict[Path, float] = field(default_factory=dict)
    segments: list[tuple[Segment, ...]] | None = None

    def raw(self, value: int) -> RawValue:
        """A value as it is compared between cases: the number or colour, or the names of the structures."""
        return value if self.segments is None else tuple(sorted(one.name for one in self.segments[value]))


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
        """The mask as it is coded in the file.

        Args:
            as_colours: Read any picture as colours: the rest of its dataset is.
            threshold: Give 1 above it and 0 elsewhere. Only so may a mask be a JPEG, whose values are not exact.

        Raises:
            SamunetError: If a file cannot be read, is a JPEG, has values that are not whole numbers, or, as the file of
                one class, several besides 0, or another shape than the first.
        """
        if self.class_files:
            return _joined(self.class_files, threshold)
        return _read_mask(self.mask, as_colours=as_colours, threshold=threshold)

    def write_image(self, folder: Path, geometry: Geometry) -> None:
        """Write the image to ``folder`` (imagesTr or imagesTs) as ``NAME_0000.ending`` and so on.

        Files are copied byte for byte; a TIFF's spacing goes into a JSON file, DICOM becomes NIfTI, and a header with
        its data file becomes one file.
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
        problems: If there are some, the rest may be missing.
        shape, channels, geometry: Of its image; ``(z, y, x)``.
        grey: Whether three channels are equal everywhere.
        largest: Highest intensity.
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

    @property
    def grid(self) -> Grid:
        """Of its image."""
        return Grid(self.case.files[0], self.shape, self.geometry)


def inspect_all(
    training: Sequence[Case], test: Sequence[Case], options: Options
) -> tuple[list[Inspection], list[Inspection]]:
    """Read all cases once, before anything is written.

    Masks are read as colours if any of them needs it: if one has colours, or if palettes give one index different
    colours.

    Returns:
        Training and test cases, in their order.
    """
    jobs = {case.name: case for case in training} | {f"{_TEST}{case.name}": case for case in test}

    def run(names: Sequence[str], as_colours: bool) -> dict[str, Inspection]:
        arguments = [(jobs[name], as_colours, options) for name in names]
        found = dict(map_cases(_inspect, names, arguments, num_workers=options.workers, description="Reading"))
        for name, one in found.items():
            one.problems = [replace(problem, where=name) for problem in one.problems]
        return found

    found = run(list(jobs), options.as_colours)
    palette: dict[int, int] = {}
    needed = any(one.coloured for one in found.values()) or any(
        palette.setdefault(index, colour) != colour for one in found.values() for index, colour in one.palette.items()
    )
    if needed and not options.as_colours:
        found |= run([name for name, one in found.items() if one.values and not one.coloured], True)
    return [found[case.name] for case in training], [found[f"{_TEST}{case.name}"] for case in test]


def _inspect(case: Case, as_colours: bool, options: Options) -> Inspection:
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
        mask = _mask_on(found, as_colours, options.threshold)
    except MemoryError:
        raise
    except Exception as error:  # whatever a library raises on a damaged file, the other cases are still to be read
        found.problems.append(unusable(case.name, file, error))
        return found
    for file, geometry in mask.parts or [(case.files[0].with_name(case.mask_name), mask.geometry)]:
        own = Grid(file, mask.values.shape, geometry)
        found.problems += grid_differences(case.name, own, found.grid, options.tolerate_geometry)
    fix = "if something is drawn there, the threshold is too high for it"
    for file, highest in mask.below.items():
        detail = f"{file} has values up to {highest:g}"
        found.problems.append(Problem("nothing is above `threshold`:", case.name, detail, fix, warning=True))
    for value, voxels in count_values(mask.values).items():
        found.values[mask.raw(value)] = found.values.get(mask.raw(value), 0) + voxels
    found.coloured, found.palette = mask.coloured, mask.palette
    found.segments = {one for segments in mask.segments or () for one in segments}
    return found


def mask_for(found: Inspection, coloured: bool, threshold: float | None) -> RawMask:
    """A case's mask once more, as :func:`inspect_all` has read it, on the grid of the image.

    Raises:
        SamunetError: If its shape has changed since.
    """
    mask = _mask_on(found, coloured, threshold)
    fit = fitted(mask.values, Grid(Path(), mask.values.shape, mask.geometry), found.grid)
    if fit is None and mask.values.shape != found.shape:
        raise SamunetError(f"{found.case.mask_name} has changed while it was read", "run the same command again")
    return mask if fit is None else replace(mask, values=fit)


def _mask_on(found: Inspection, as_colours: bool, threshold: float | None) -> RawMask:
    """A case's mask; a segmentation, which Slicer crops to what is drawn, on the grid of its image."""
    mask = found.case.read_mask(as_colours=as_colours, threshold=threshold)
    if mask.segments is None or mask.parts or mask.values.shape == found.shape:
        return mask
    values = fitted(mask.values, Grid(Path(), mask.values.shape, mask.geometry), found.grid)
    return mask if values is None else replace(mask, values=values, geometry=found.geometry)


def _read_mask(file: Path, *, as_colours: bool = False, threshold: float | None = None) -> RawMask:
    """A mask in its own coding.

    Numbers and indices of a palette are taken as they are; a picture whose red, green and blue differ, or that is
    transparent somewhere, is read as colours.
    """
    reader = image_reader_for(file, READERS[0])
    if threshold is not None:
        image = reader.read_image([file])
        brightness = image.array.mean(axis=0)
        below = {file: float(brightness.max())} if brightness.any() and brightness.max() <= threshold else {}
        return RawMask((brightness > threshold).astype(np.int32), image.geometry, below=below)
    check_file(file)
    with file.open("rb") as stream:
        start = stream.read(2)
    if is_lossy(file) or start == _JPEG_START:
        raise SamunetError(
            f"{file} is a JPEG, which changes label values",
            f"{_LOSSLESS}; where one structure is drawn in white on black and they are all there is: `threshold=127`",
        )
    if as_colours:
        return _as_colours(reader, file)
    segmentation = reader.read_segmentation(file)
    if segmentation is not None:
        numbers, meanings = drawn(segmentation.layers, segmentation.segments, file)
        return RawMask(numbers.astype(np.int32), segmentation.geometry, segments=meanings)
    try:
        values, geometry = reader.read_label(file)
    except SamunetError:
        if reader.kind == "volume" or count_channels(file, reader) != 3:
            raise
        return _as_colours(reader, file)
    colours = reader.palette(file)
    used = [index for index in np.unique(values).tolist() if index < len(colours)] if colours else []
    return RawMask(values, geometry, palette={index: _code(*colours[index]) for index in used})


def _as_colours(reader: Reader, file: Path) -> RawMask:
    image = reader.read_colours(file)
    if len(image.array) not in (1, 3) or image.array.max() > 255 or image.array.min() < 0:
        raise SamunetError(
            f"{file} cannot be read as colours, which other masks have: it has {len(image.array)} channels with values "
            f"from {image.array.min():g} to {image.array.max():g}",
            "save all masks in the same way",
        )
    colours = np.broadcast_to(image.array, (3, *image.array.shape[1:])).astype(np.int32)
    return RawMask(_code(*colours), image.geometry, coloured=True)


def _code(red, green, blue):
    return (red << 16) + (green << 8) + blue


def _joined(files: Sequence[tuple[str, Path]], threshold: float | None) -> RawMask:
    """The masks of a case that has a file for each class, joined; any colour but black is the class."""
    order = list(dict.fromkeys(name for name, _ in files))
    values, first, parts, below = None, None, [], {}
    meanings: dict[tuple[Segment, ...], int] = {(): 0}
    for name, file in files:
        mask = _read_mask(file, threshold=threshold)
        found = [value for value in count_values(mask.values) if value]
        if len(found) > 1:
            listed = shortened([f"#{value:06x}" if mask.coloured else str(value) for value in found])
            raise SamunetError(
                f"{file} is the file of one class, but has {len(found)} values besides 0: {listed}", _ONE_VALUE
            )
        own, inside = Grid(file, mask.values.shape, mask.geometry), mask.values != 0
        if first is None:
            first, values = own, np.zeros(own.shape, np.int32)
        # Where it cannot be turned to the first's grid, its own place is compared with the image's.
        fit = fitted(inside, own, first)
        if fit is None and own.shape != first.shape:
            found = difference(own, first)
            raise SamunetError(found.text, found.fix)
        inside = inside if fit is None else fit
        segment = Segment(name, order.index(name) + 1, 0)
        before = values[inside]
        table = np.arange(len(meanings), dtype=np.int32)
        for number, there in enumerate(list(meanings)):
            if segment not in there and (before == number).any():
                table[number] = meanings.setdefault((*there, segment), len(meanings))
        values[inside] = table[before]
        parts.append((file, mask.geometry if fit is None else first.geometry))
        below |= mask.below
    return RawMask(values, parts[0][1], parts=tuple(parts), below=below, segments=list(meanings))
