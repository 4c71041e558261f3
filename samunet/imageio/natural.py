"""Photographs and other pictures without physical spacing, through Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio.base import (
    Geometry,
    Image,
    Reader,
    smallest_unsigned,
    stack_channels,
    to_label,
    without_z_if_2d,
)

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_GEOMETRY = Geometry(
    spacing=(1.0, 1.0, 1.0), physical=False, origin=(0.0, 0.0), direction=(1.0, 0.0, 0.0, 1.0), dimension=2
)
# Pillow's names of pixel formats: black and white, 8-bit grey, and three ways to hold 16-bit grey.
_GREY = ("1", "L", "I", "I;16", "I;16B")
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


class NaturalImageReader(Reader):
    """PNG and BMP: grey of 8 or 16 bit is one channel, colour (also by palette) is red, green and blue of 8 bit."""

    name = "NaturalImage2DIO"
    endings = (".png", ".bmp")

    def read_image(self, files: Sequence[Path]) -> Image:
        """See :meth:`Reader.read_image`. Pictures with transparency are refused."""
        return stack_channels([(Path(file), _read_picture(Path(file)), _GEOMETRY) for file in files])

    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """See :meth:`Reader.read_label`. A picture with a palette gives its indices; colours are refused."""
        file = Path(file)
        with _opened(file) as picture:
            if picture.mode not in (*_GREY, "P"):
                raise SamunetError(
                    f"{file} has the colour mode {picture.mode}; a label must be grey or have a palette",
                    "save it with one channel that holds the label's value 0, 1, 2, ...; with Pillow: "
                    "Image.fromarray(values.astype('uint8')).save(file)",
                )
            values = np.asarray(picture)
        return to_label(values[None, None], file), _GEOMETRY

    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`Reader.write_label`. Grey of 8 bit, or of 16 bit if a value is above 255 (PNG only)."""
        from PIL import Image as pillow

        file = Path(file)
        values = without_z_if_2d(smallest_unsigned(array), geometry)
        widest = np.uint8 if file.suffix == ".bmp" else np.uint16
        if values.max() > np.iinfo(widest).max:
            raise SamunetError(
                f"{file} cannot hold the label value {values.max()}; {file.suffix} goes up to {np.iinfo(widest).max}"
            )
        with atomic_path(file) as temporary:
            pillow.fromarray(values).save(temporary)

    def count_channels(self, file: Path) -> int:
        """See :meth:`Reader.count_channels`."""
        with _opened(Path(file)) as picture:
            return 1 if picture.mode in _GREY else 3


def _read_picture(file: Path) -> np.ndarray:
    """Pixels ``(channels, 1, y, x)``."""
    with _opened(file) as picture:
        if picture.mode in _WITH_ALPHA:
            plain = "L" if "L" in picture.mode else "RGB"
            raise SamunetError(
                f"{file} has an alpha channel (colour mode {picture.mode}); images must be grey or RGB",
                f"remove the transparency; with Pillow: Image.open(file).convert('{plain}').save(file)",
            )
        if picture.mode in _GREY:
            return np.asarray(picture)[None, None]
        if picture.mode not in ("RGB", "P"):
            raise SamunetError(
                f"{file} has the colour mode {picture.mode}; images must be grey or RGB",
                "convert it; with Pillow: Image.open(file).convert('RGB').save(file)",
            )
        return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)[:, None]


@contextmanager
def _opened(file: Path) -> Iterator[Picture]:
    """Open a picture; whatever Pillow raises on damaged files becomes an error that names the file."""
    from PIL import Image as pillow

    try:
        with pillow.open(file) as picture:
            yield picture
    except FileNotFoundError:
        raise SamunetError(f"{file} does not exist") from None
    except pillow.DecompressionBombError as error:
        raise SamunetError(f"{file} is too large: {error}", "cut the picture into smaller ones") from error
    # Pillow reports broken PNG chunks as SyntaxError and broken BMP headers as ValueError.
    except (OSError, SyntaxError, ValueError) as error:
        raise SamunetError(
            f"could not read {file}: {error}", "copy or export the file again, or remove the case"
        ) from error
