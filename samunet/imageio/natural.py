"""Photographs and other pictures without physical spacing, through Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio import tiff
from samunet.imageio.base import COPY_AGAIN, PICTURE_GEOMETRY, Geometry, Image, Reader, fit_channels
from samunet.imageio.border import check_size, reading
from samunet.workers import warn_once

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# MPO is what many telephones write into .jpg: a JPEG picture with a second one behind it.
_LOSSY_FORMATS = ("JPEG", "MPO")
_FORMATS = ("PNG", "BMP", "JPEG")
# Pillow's names of pixel formats: black and white, 8-bit grey, and three ways to hold 16-bit grey.
_GREY = ("1", "L", "I", "I;16", "I;16B")
_ALPHA = ("LA", "RGBA")
# Pillow stretches PNG's grey of 2 and 4 bits to 0...255.
_STRETCHED = {"L;2": 85, "L;4": 17}
_EXIF_ORIENTATION = 0x0112
# The largest numbers that a mask may have.
_WIDEST = {".png": np.uint16, ".bmp": np.uint8}
_SAVE_LABEL = (
    "save it with one channel that holds the label's value 0, 1, 2, ...; with Pillow: "
    "Image.fromarray(values.astype('uint8')).save(file)"
)


class NaturalImageReader(Reader):
    """PNG, BMP and 2D TIFF, and JPEG for images alone.

    Grey of 8 or 16 bit is one channel; colour (also by palette) is red, green and blue of 8 bit. Pictures that are
    stored turned (EXIF) are read, and get their masks, as they are shown.
    """

    name = "NaturalImage2DIO"
    kind = "picture"
    endings = (".png", ".bmp", *tiff.TIFF_ENDINGS)
    read_only: ClassVar = {".jpg": ".png", ".jpeg": ".png"}  # lossy: no label may have such values
    fits_channels = True

    def read_voxels(self, file: Path, wanted: int | None = None, label: bool = False) -> tuple[np.ndarray, Geometry]:
        """See :meth:`Reader.read_voxels`. A label's palette gives its indices; equal colour components count as grey.

        Pictures that are transparent somewhere are refused.
        """
        return _read(file, wanted, label), PICTURE_GEOMETRY

    def read_colours(self, file: Path) -> Image:
        """See :meth:`Reader.read_colours`."""
        from PIL import ImageOps

        if file.suffix.lower() not in tiff.TIFF_ENDINGS:
            with _opened(file) as picture:
                if picture.format == "PNG" and (picture.mode == "RGBA" or "transparency" in picture.info):
                    shown = np.asarray(ImageOps.exif_transpose(picture).convert("RGBA"))
                    *colours, alpha = np.moveaxis(shown, -1, 0)[:, None]
                    if not np.isin(alpha, (0, 255)).all():
                        fix = "draw with a hard brush, without smoothing"
                        raise SamunetError(f"{file} has pixels that are half transparent", fix)
                    return Image(np.stack(colours) * (alpha > 0), PICTURE_GEOMETRY)
        return self.read_image([file])

    def palette(self, file: Path) -> list[list[int]]:
        """See :meth:`Reader.palette`. Those of TIFF are not looked at."""
        if file.suffix.lower() in tiff.TIFF_ENDINGS:
            return []
        with _opened(file) as picture:
            return np.reshape(picture.getpalette("RGB"), (-1, 3)).tolist() if picture.mode == "P" else []

    def write_voxels(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`Reader.write_voxels`. Grey of 8 bit, or of 16 bit if a value is above 255 (not in BMP)."""
        from PIL import Image as pillow

        if file.suffix.lower() in tiff.TIFF_ENDINGS:
            tiff.write_pages(array, file)
            return
        widest = _WIDEST[file.suffix.lower()]
        if array.max() > np.iinfo(widest).max:
            raise SamunetError(
                f"{file} cannot hold the label value {array.max()}; {file.suffix} goes up to {np.iinfo(widest).max}"
            )
        with atomic_path(file) as temporary:
            pillow.fromarray(array).save(temporary)

    def check_mask(self, file: Path, geometry: Geometry) -> None:
        """See :meth:`Reader.check_mask`. PNG and BMP hold pictures, TIFF stacks too, and JPEG no mask."""
        ending = Path(file).suffix.lower()
        if ending in tiff.TIFF_ENDINGS:
            return
        if ending not in _WIDEST:
            raise SamunetError(f"{file}: masks cannot be written as {ending}", "write them as .png")
        if geometry.dimension != 2:
            raise SamunetError(
                f"{file}: the mask of a volume cannot be written as {ending}, which holds single pictures",
                "choose a format of volumes, such as .nii.gz",
            )

    def count_channels(self, file: Path) -> int:
        """See :meth:`Reader.count_channels`. Transparency does not count."""
        file = Path(file)
        if file.suffix.lower() in tiff.TIFF_ENDINGS:
            return tiff.Tiff3DReader().count_channels(file)
        with _opened(file) as picture:
            return 1 if picture.mode in (*_GREY, "LA") else 3


def _read(file: Path, wanted: int | None, label: bool) -> np.ndarray:
    """Pixels ``(channels, 1, y, x)``, fitted to ``wanted``; those of a label are indices, not colours."""
    if file.suffix.lower() in tiff.TIFF_ENDINGS:
        pages = tiff.read_pages(file, wanted, label)
        if pages.dimension != 2:
            raise SamunetError(
                f"{file} is a stack of {pages.pixels.shape[1]} pictures; NaturalImage2DIO reads single ones",
                'remove "overwrite_image_reader_writer" from dataset.json, or set it to Tiff3DIO',
            )
        return fit_channels(pages.pixels, wanted, pages.alpha, file)
    with _opened(file) as picture:
        # Known only until the pixels are loaded, which reading EXIF may do.
        raw_mode = _raw_mode(picture)
        _refuse(picture, raw_mode, file, label)
        pixels = _pixels(_as_shown(picture, file), label)
    if label:
        pixels = pixels // _STRETCHED.get(raw_mode, 1)
    fitted = fit_channels(pixels, wanted, len(pixels) in (2, 4), file)
    if label and len(fitted) != 1:
        raise SamunetError(f"{file} is a colour picture; a label must be grey or have a palette", _SAVE_LABEL)
    return fitted


def _pixels(picture: Picture, label: bool) -> np.ndarray:
    """``(channels, 1, y, x)``; the last of two or four channels is transparency."""
    transparent = picture.info.get("transparency")
    if picture.mode in _GREY:
        grey = np.asarray(picture)
        if transparent is None or label:
            return grey[None, None]
        # PNG can declare one grey value to be transparent.
        opaque = np.iinfo(grey.dtype).max if grey.dtype != bool else 1
        return np.stack([grey, np.where(grey == transparent, 0, opaque)]).astype(grey.dtype)[:, None]
    if picture.mode == "P":
        if label:
            return np.asarray(picture)[None, None]
        picture = picture.convert("RGB" if transparent is None else "RGBA")
    elif picture.mode == "RGB" and transparent is not None:
        picture = picture.convert("RGBA")
    return np.moveaxis(np.asarray(picture), -1, 0)[:, None]


def _refuse(picture: Picture, raw_mode: str, file: Path, label: bool) -> None:
    """Raise a SamunetError for what Pillow would open, but not as the values that the file holds."""
    if label and picture.format in _LOSSY_FORMATS:
        raise SamunetError(
            f"{file} is a JPEG, which changes label values; labels must be stored without loss",
            "export the labels again as PNG; a JPEG that was only renamed or converted keeps its wrong values",
        )
    if picture.mode not in (*_GREY, *_ALPHA, "P", "RGB"):
        raise SamunetError(
            f"{file} has the colour mode {picture.mode}; it must be grey or RGB",
            "convert it and save it as PNG; with Pillow: Image.open(file).convert('RGB').save('case_0000.png')",
        )
    # Pillow keeps the upper eight bits of such pictures and says nothing.
    if picture.mode in ("RGB", *_ALPHA) and "16" in raw_mode:
        raise SamunetError(
            f"{file} has 16 bits per colour; pictures with 16 bits must be grey",
            "save one grey picture per channel (case_0000.png, case_0001.png, ...), or 8 bits per colour, or a TIFF",
        )


def _as_shown(picture: Picture, file: Path) -> Picture:
    """The picture as viewers show it, turned by its EXIF orientation, with one warning for each folder."""
    from PIL import ImageOps

    if picture.getexif().get(_EXIF_ORIENTATION, 1) in (0, 1):
        return picture
    warn_once(
        f"{file.parent}: photographs that are stored turned (EXIF) are read as they are shown; their masks must be "
        "drawn on what is shown"
    )
    return ImageOps.exif_transpose(picture)


def _raw_mode(picture: Picture) -> str:
    """Pillow's name of the pixels' storage in the file, such as ``RGB;16B``."""
    mode = picture.tile[0][3] if picture.tile else ""
    return mode if isinstance(mode, str) else str(mode[0]) if mode else ""


@contextmanager
def _opened(file: Path) -> Iterator[Picture]:
    """Open a picture; whatever Pillow raises on damaged files becomes an error that names the file."""
    from PIL import Image as pillow

    with reading(file):
        try:
            with warnings.catch_warnings():
                # Of large pictures: those that are too large for this machine are refused.
                warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
                with pillow.open(file, formats=_FORMATS) as picture:
                    check_size((len(picture.getbands()), *picture.size), file)
                    yield picture
        except pillow.UnidentifiedImageError:
            raise SamunetError(f"{file} is not a picture in PNG, BMP or JPEG format", COPY_AGAIN) from None
        except pillow.DecompressionBombError as error:
            raise SamunetError(f"{file} is too large: {error}", "cut the picture into smaller ones") from error
