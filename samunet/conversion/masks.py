"""Masks as people draw them: numbers, palettes, black and white, colours. Here they are read as they are coded."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import Geometry, Segment, Segmentation
from samunet.imageio.pictures import PICTURE_GEOMETRY
from samunet.imageio.registry import READERS, image_reader_for, is_lossy, kind_of
from samunet.imageio.segments import drawn

# Codes of segments' names lie above the numbers of classes.
_FIRST, _CODE = 1 << 30, (1 << 30) - 1
_JPEG_START = b"\xff\xd8"
_LOSSLESS = "export the masks again without loss, as PNG; converting this file keeps its wrong values"


@dataclass(frozen=True)
class RawMask:
    """A mask before its values have been given a meaning.

    Attributes:
        values: ``(z, y, x)`` integers: numbers, or colours as 65536 red + 256 green + blue.
        geometry: Of the file.
        coloured: Whether ``values`` are colours.
        palette: Colour of every index that occurs, if the file has a palette and ``values`` are its indices.
        parts: The files that ``values`` were joined of, and their geometries; none where it is one file.
        below: Files in which something is drawn, but nothing above the threshold; with their highest value.
        segments: The named segments that each value but 0 stands for, where the file names such.
    """

    values: np.ndarray
    geometry: Geometry
    coloured: bool = False
    palette: dict[int, int] = field(default_factory=dict)
    parts: tuple[tuple[Path, Geometry], ...] = ()
    below: dict[Path, float] = field(default_factory=dict)
    segments: dict[int, tuple[Segment, ...]] = field(default_factory=dict)


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
        return _coded(segmentation, file)
    try:
        values, geometry = reader.read_label(file)
    except SamunetError:
        if not _is_colour_picture(file):
            raise
        return _read_colours(file)
    return RawMask(values, geometry, palette=_palette(file, values))


def _coded(segmentation: Segmentation, file: Path) -> RawMask:
    """A segmentation of 3D Slicer's, with codes of the segments' names as values."""
    numbers, meanings = drawn(segmentation.layers, segmentation.segments, file)
    codes = [zlib.crc32("\0".join(sorted(one.name for one in found)).encode()) & _CODE | _FIRST for found in meanings]
    values = np.array([code if found else 0 for code, found in zip(codes, meanings)], np.int32)[numbers]
    named = {code: found for code, found in zip(codes, meanings) if found}
    return RawMask(values, segmentation.geometry, segments=named)


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
