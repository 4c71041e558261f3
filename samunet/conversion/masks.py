"""Masks as people draw them: numbers, palettes, black and white, colours, named structures, a file for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from samunet.dataset.check import count_values
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError
from samunet.imageio.base import Geometry, Segment, Segmentation
from samunet.imageio.pictures import PICTURE_GEOMETRY
from samunet.imageio.registry import READERS, image_reader_for, is_lossy, kind_of
from samunet.imageio.same_grid import Grid, difference, fitted
from samunet.imageio.segments import drawn

_JPEG_START = b"\xff\xd8"
_LOSSLESS = "export the masks again without loss, as PNG; converting this file keeps its wrong values"


_ONE_VALUE = (
    "if all that is drawn in it is the class, as with numbered lesions: --threshold 0; if it was smoothed: --threshold "
    "127; a mask that holds several classes is named without {class}"
)

RawValue = int | tuple[str, ...]


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


def read_mask(file: Path, *, as_colours: bool = False, threshold: float | None = None) -> RawMask:
    """Read a mask in its own coding.

    Numbers and indices of a palette are taken as they are; a picture whose red, green and blue differ, or that is
    transparent somewhere, is read as colours. What is transparent is black.

    Args:
        file: In any format that a reader opens.
        as_colours: Read any picture as colours: the rest of its dataset is.
        threshold: Give 1 above it and 0 elsewhere. Only so may a mask be a JPEG, whose values are not exact.

    Raises:
        SamunetError: If the file cannot be read, is a JPEG, or has values that are not whole numbers.
    """
    if threshold is not None:
        image = image_reader_for(file, READERS[0]).read_image([file])
        brightness = image.array.mean(axis=0)
        below = {file: float(brightness.max())} if brightness.any() and brightness.max() <= threshold else {}
        return RawMask((brightness > threshold).astype(np.int32), image.geometry, below=below)
    _refuse_jpeg(file)
    if as_colours:
        return _read_colours(file)
    reader = image_reader_for(file, READERS[0])
    segmentation = reader.read_segmentation(file)
    if segmentation is not None:
        return _named(segmentation, file)
    try:
        values, geometry = reader.read_label(file)
    except SamunetError:
        if not _is_colour_picture(file):
            raise
        return _read_colours(file)
    return RawMask(values, geometry, palette=_palette(file, values))


def _named(segmentation: Segmentation, file: Path) -> RawMask:
    """A segmentation of 3D Slicer's, whose structures have names."""
    numbers, meanings = drawn(segmentation.layers, segmentation.segments, file)
    if meanings[0]:
        numbers, meanings = numbers + 1, [(), *meanings]
    return RawMask(numbers.astype(np.int32), segmentation.geometry, segments=meanings)


def join_class_files(files: Sequence[tuple[str, Path]], threshold: float | None) -> RawMask:
    """The masks of a case that has a file for each class, joined; colours are told apart from black alone.

    Args:
        files: Class and file.
        threshold: See :func:`read_mask`.

    Raises:
        SamunetError: If a file cannot be read, has several values besides 0, or another shape than the first.
    """
    order = list(dict.fromkeys(name for name, _ in files))
    values, first, parts, below = None, None, [], {}
    meanings: dict[tuple[Segment, ...], int] = {(): 0}
    for name, file in files:
        mask = read_mask(file, threshold=threshold)
        own, inside = Grid(file, mask.values.shape, mask.geometry), _inside(mask, file)
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


def _inside(mask: RawMask, file: Path) -> np.ndarray:
    found = [value for value in count_values(mask.values) if value]
    if len(found) > 1:
        listed = shortened([f"#{value:06x}" if mask.coloured else str(value) for value in found])
        raise SamunetError(
            f"{file} is the file of one class, but has {len(found)} values besides 0: {listed}", _ONE_VALUE
        )
    return mask.values != 0


def drawn_on(mask: RawMask, shape: tuple[int, ...], geometry: Geometry) -> RawMask:
    """A segmentation, which Slicer crops to what is drawn, on the grid of its image; other masks as they are."""
    if mask.segments is None or mask.parts or mask.values.shape == shape:
        return mask
    values = fitted(mask.values, Grid(Path(), mask.values.shape, mask.geometry), Grid(Path(), shape, geometry))
    return mask if values is None else replace(mask, values=values, geometry=geometry)


def _refuse_jpeg(file: Path) -> None:
    try:
        with open(file, "rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise SamunetError(f"could not read {file}: {error.strerror}", "check that you may read it") from error
    if is_lossy(file) or start == _JPEG_START:
        raise SamunetError(
            f"{file} is a JPEG, which changes label values",
            f"{_LOSSLESS}; where one structure is drawn in white on black and they are all there is: --threshold 127",
        )


def _is_colour_picture(file: Path) -> bool:
    if kind_of(file) == "volume":
        return False
    try:
        return image_reader_for(file, READERS[0]).count_channels(file) == 3
    except SamunetError:
        return False


def _read_colours(file: Path) -> RawMask:
    if kind_of(file) == "picture":
        drawn = _drawn_on_nothing(file)
        if drawn is not None:
            return drawn
    image = image_reader_for(file, READERS[0]).read_image([file])
    if len(image.array) not in (1, 3) or image.array.max() > 255 or image.array.min() < 0:
        raise SamunetError(
            f"{file} cannot be read as colours, which other masks have: it has {len(image.array)} channels with values "
            f"from {image.array.min():g} to {image.array.max():g}",
            "save all masks in the same way",
        )
    return RawMask(_codes(np.broadcast_to(image.array, (3, *image.array.shape[1:]))), image.geometry, coloured=True)


def _codes(colours: np.ndarray) -> np.ndarray:
    red, green, blue = colours.astype(np.int32)
    return (red << 16) + (green << 8) + blue


def _drawn_on_nothing(file: Path) -> RawMask | None:
    """A picture with transparency, whose transparent pixels are black; None for other pictures.

    Raises:
        SamunetError: If pixels are half transparent, as the borders of smoothed drawings are.
    """
    from PIL import Image as pillow
    from PIL import ImageOps

    try:
        with pillow.open(file, formats=["PNG"]) as picture:
            if picture.mode != "RGBA" and "transparency" not in picture.info:
                return None
            pixels = np.moveaxis(np.asarray(ImageOps.exif_transpose(picture).convert("RGBA")), -1, 0)[:, None]
    except Exception:
        return None  # the reader tells what is wrong with the file
    alpha = pixels[3]
    if not np.isin(alpha, (0, 255)).all():
        raise SamunetError(f"{file} has pixels that are half transparent", "draw with a hard brush, without smoothing")
    return RawMask(_codes(pixels[:3] * (alpha > 0)), PICTURE_GEOMETRY, coloured=True)


def _palette(file: Path, values: np.ndarray) -> dict[int, int]:
    """Colours of a palette's indices; empty for files without palette (those of TIFF are not looked at)."""
    if kind_of(file) != "picture":
        return {}
    from PIL import Image as pillow

    with pillow.open(file) as picture:
        if picture.mode != "P":
            return {}
        colours = np.reshape(picture.getpalette("RGB"), (-1, 3)).tolist()
    used = [index for index in np.unique(values).tolist() if index < len(colours)]
    return {index: (colours[index][0] << 16) + (colours[index][1] << 8) + colours[index][2] for index in used}
