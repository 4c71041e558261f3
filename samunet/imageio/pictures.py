"""What pictures of all formats have in common: no place in space, and channels that are colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.base import Geometry

PICTURE_GEOMETRY = Geometry(
    spacing=(1.0, 1.0, 1.0), physical=False, origin=(0.0, 0.0), direction=(1.0, 0.0, 0.0, 1.0), dimension=2
)


def wanted_per_file(channels: int | None, files: int) -> int | None:
    """How many channels each file should give if all give the same number; None if that is not known."""
    return channels // files if channels is not None and channels % files == 0 else None


def fit_channels(pixels: np.ndarray, wanted: int | None, alpha: bool, file: Path) -> np.ndarray:
    """Fit a picture to the number of channels that is wanted, where nothing is lost by it.

    Args:
        pixels: ``(channels, z, y, x)``.
        wanted: None takes the picture as it is, without an opaque alpha channel.
        alpha: Whether the last channel is transparency. It is kept where ``wanted`` counts it.
        file: Named in the error.

    Returns:
        Its channels; another number than ``wanted`` if they cannot be fitted, which the caller must check.

    Raises:
        SamunetError: If the picture is really transparent.
    """
    if alpha and len(pixels) != wanted:
        opaque = 1 if pixels.dtype.kind in "bf" else np.iinfo(pixels.dtype).max
        share = float(np.mean(pixels[-1] != opaque))
        if share:
            plain = "L" if len(pixels) == 2 else "RGB"
            raise SamunetError(
                f"{file} has an alpha channel that is not opaque in {share:.1%} of its pixels; images must be grey or "
                "RGB",
                f"remove the transparency; with Pillow: Image.open(file).convert('{plain}').save(file)",
            )
        pixels = pixels[:-1]
    if wanted == 1 and len(pixels) == 3 and all(np.array_equal(pixels[0], other) for other in pixels[1:]):
        return pixels[:1]
    if wanted == 3 and len(pixels) == 1:
        return np.repeat(pixels, 3, axis=0)
    return pixels
