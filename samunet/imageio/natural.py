"""Pictures: PNG and BMP, grey with 8 or 16 bits, or RGB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_path
from samunet.imageio.base import Geometry, Image, Reader, smallest_unsigned, stack_channels

_NOWHERE = Geometry((1.0, 1.0, 1.0), False, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), 2)


class NaturalImageReader(Reader):
    """Pictures without physical spacing. An RGB picture is one file with three channels."""

    name = "NaturalImage2DIO"
    endings = (".png", ".bmp")

    def read_image(self, files: Sequence[Path]) -> Image:
        """See :meth:`samunet.imageio.base.Reader.read_image`."""
        arrays = []
        for file in files:
            array, mode = _read(file)
            if mode not in ("L", "1", "RGB", "I;16", "I"):
                raise SamunetError(
                    f"{file} is a picture of mode {mode}; grey (8 or 16 bit) and RGB are allowed",
                    "convert it, for example with ImageMagick: convert IN.png -alpha off PNG24:OUT.png",
                )
            arrays.append(np.moveaxis(array, -1, 0)[:, None] if array.ndim == 3 else array[None, None])
        return stack_channels(arrays, [_NOWHERE] * len(arrays), files)

    def read_label(self, file: Path) -> tuple[np.ndarray, Geometry]:
        """See :meth:`samunet.imageio.base.Reader.read_label`; a palette picture gives its indices."""
        array, mode = _read(file)
        if array.ndim != 2:
            raise SamunetError(
                f"{file} is a label with {array.shape[2]} channels (mode {mode}); one is allowed",
                "store class numbers in a grey or palette picture",
            )
        return array.astype(np.int32)[None], _NOWHERE

    def write_label(self, array: np.ndarray, file: Path, geometry: Geometry) -> None:
        """See :meth:`samunet.imageio.base.Reader.write_label`."""
        from PIL import Image as Picture

        with atomic_path(file) as temporary:
            Picture.fromarray(smallest_unsigned(array[0])).save(temporary, format=file.suffix[1:])


def _read(file: Path) -> tuple[np.ndarray, str]:
    from PIL import Image as Picture
    from PIL import UnidentifiedImageError

    try:
        with Picture.open(file) as picture:
            return np.asarray(picture), picture.mode
    except FileNotFoundError:
        raise SamunetError(f"{file} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise SamunetError(
            f"{file} cannot be read: it is empty, truncated or no picture", "restore the file"
        ) from error
