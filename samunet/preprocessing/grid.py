"""Geometry between stored slices, network input and original slices.

Pixels have integer centres; a slice of ``n`` pixels covers ``[-0.5, n - 0.5]``. Every map between two grids is affine,
written as a 3 x 3 matrix from output to input positions ``(y, x, 1)``, so that maps compose and one interpolation does
the work of several.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_ZOOM = 1 / 4  # of images without spacing: reduced further, small structures would be lost


def scaling(zoom: tuple[float, float]) -> np.ndarray:
    """Map from a grid that is ``zoom`` times finer (y, x) to the grid it covers."""
    (zoom_y, zoom_x) = zoom
    return np.array([[1 / zoom_y, 0, 0.5 / zoom_y - 0.5], [0, 1 / zoom_x, 0.5 / zoom_x - 0.5], [0, 0, 1.0]])


def shift(y: float, x: float) -> np.ndarray:
    """Map from a window to the grid in which the window's first pixel lies at ``(y, x)``."""
    return np.array([[1.0, 0, y], [0, 1.0, x], [0, 0, 1.0]])


def about_centre(shape: tuple[int, int], angle: float, scale: float) -> np.ndarray:
    """Map from a turned and scaled image to the image itself, about its centre.

    Args:
        shape: Of both, ``(height, width)``.
        angle: In radians.
        scale: Size of the content relative to the image's own.
    """
    centre_y, centre_x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    return np.array(
        [
            [cosine, -sine, centre_y - cosine * centre_y + sine * centre_x],
            [sine, cosine, centre_x - sine * centre_y - cosine * centre_x],
            [0, 0, 1],
        ]
    )


def flipped(shape: tuple[int, int], axis: int) -> np.ndarray:
    """Map from a flipped image of ``shape`` to the image itself; ``axis`` 0 turns it upside down, 1 left to right."""
    matrix = np.eye(3)
    matrix[axis, axis], matrix[axis, 2] = -1.0, shape[axis] - 1.0
    return matrix


def sample(images: Tensor, matrix: np.ndarray, shape: tuple[int, int], *, outside: str = "zeros") -> Tensor:
    """Interpolate images at affinely mapped positions, bilinearly.

    Where the map reduces, every output pixel averages as many input positions as it covers, so nothing aliases.

    Args:
        images: ``(batch, channels, h, w)`` float.
        matrix: ``3 x 3``, output position to input position.
        shape: Output ``(height, width)``.
        outside: ``zeros`` or ``border``.

    Returns:
        ``(batch, channels, height, width)``.
    """
    factors = tuple(max(1, round(float(np.linalg.norm(matrix[:2, axis])))) for axis in (0, 1))
    if factors != (1, 1):
        matrix = matrix @ scaling(factors)
        shape = (shape[0] * factors[0], shape[1] * factors[1])
    grid = _normalized_grid(matrix, shape, images.shape[2:], images.device, clamp=outside == "border")
    grid = grid.expand(len(images), -1, -1, -1).to(images.dtype)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled if factors == (1, 1) else F.avg_pool2d(sampled, factors)


def sample_label(
    label: np.ndarray, matrix: np.ndarray, shape: tuple[int, int], *, outside: int, ignore: int | None = None
) -> np.ndarray:
    """Interpolate one label slice: of the four neighbours of a position, the class with the largest bilinear weight.

    The result equals interpolating every class's indicator linearly and taking the largest, at a cost that does not
    grow with the number of classes.

    Args:
        label: ``(h, w)`` integer.
        matrix: ``3 x 3``, output position to input position.
        shape: Output ``(height, width)``.
        outside: Value beyond the slice.
        ignore: Value of pixels without annotation, which have no vote: a position has it where the nearest pixel has.
    """
    height, width = label.shape
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    y = (matrix[0, 0] * rows + matrix[0, 2])[:, None] + (matrix[0, 1] * columns)[None]
    x = (matrix[1, 0] * rows + matrix[1, 2])[:, None] + (matrix[1, 1] * columns)[None]
    y0, x0 = np.floor(y), np.floor(x)
    padded = np.pad(label, 1, constant_values=outside).ravel()
    stride = width + 2
    first = np.clip(y0.astype(np.intp) + 1, 0, height) * stride + np.clip(x0.astype(np.intp) + 1, 0, width)
    values = [padded[first + step] for step in (0, 1, stride, stride + 1)]
    # Clipping puts positions far outside on the padding's edge, whose neighbours inside must then not count.
    far = (y <= -1) | (y >= height) | (x <= -1) | (x >= width)
    best = np.where(far, values[0].dtype.type(outside), values[0])
    # Away from borders the four agree, and there is nothing to weigh.
    mixed = (values[0] != values[1]) | (values[0] != values[2]) | (values[0] != values[3])
    places = np.flatnonzero(mixed & ~far)
    fy, fx = ((side.take(places) - low.take(places)).astype(np.float32) for side, low in ((y, y0), (x, x0)))
    best.put(places, _largest_share([value.take(places) for value in values], fy, fx, ignore))
    return best


def _largest_share(values: list[np.ndarray], fy: np.ndarray, fx: np.ndarray, ignore: int | None) -> np.ndarray:
    """Of four neighbours' values (upper left, upper right, lower left, lower right), the one that weighs most."""
    weights = [(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx]
    best, best_score = values[0].copy(), np.full(fy.shape, -1.0, dtype=np.float32)
    for value in values:
        score = sum(weight * (other == value) for weight, other in zip(weights, values))
        if ignore is not None:
            score[value == ignore] = -1
        wins = score > best_score
        best[wins], best_score[wins] = value[wins], score[wins]
    if ignore is not None:
        nearest = np.choose(np.argmax(np.stack(weights), axis=0), values)
        best[nearest == ignore] = ignore
    return best


@dataclass(frozen=True)
class SliceGrid:
    """Places network inputs over the slices of one case.

    Attributes:
        stored_shape: In-plane shape of the stored slices.
        zoom: Network pixels per stored pixel (y, x).
        input_shape: Network input ``(height, width)``.
    """

    stored_shape: tuple[int, int]
    zoom: tuple[float, float]
    input_shape: tuple[int, int]

    @staticmethod
    def of(
        stored_shape: tuple[int, int],
        stored_spacing: list[float] | None,
        network_spacing: float | None,
        input_shape: list[int],
        stretch: bool = False,
    ) -> SliceGrid:
        """The grid of a case: constant millimetres per network pixel, or, without spacing, the whole image fitted.

        An image that would have to be reduced more than fourfold to fit is reduced fourfold; what does not fit then is
        tiled in prediction and cropped in training, as a large slice with spacing is. With ``stretch`` every slice
        fills the input.
        """
        if stretch:
            zoom = (input_shape[0] / stored_shape[0], input_shape[1] / stored_shape[1])
        elif stored_spacing is None or network_spacing is None:
            fit = min(side / stored for side, stored in zip(input_shape, stored_shape))
            zoom = (max(fit, _SMALLEST_ZOOM),) * 2
        else:
            zoom = (stored_spacing[0] / network_spacing, stored_spacing[1] / network_spacing)
        return SliceGrid(tuple(stored_shape), zoom, tuple(input_shape))

    @property
    def covered_shape(self) -> tuple[int, int]:
        """Size of the slice in network pixels, rounded up."""
        # The subtracted hair keeps 224.0000001 from becoming 225.
        height, width = (math.ceil(side * zoom - 1e-3) for side, zoom in zip(self.stored_shape, self.zoom))
        return max(1, height), max(1, width)

    def window(self, start: tuple[float, float]) -> np.ndarray:
        """Map from the network input whose first pixel lies at ``start`` of the zoomed slice to the stored slice."""
        return scaling(self.zoom) @ shift(*start)

    def free_range(self) -> list[tuple[float, float]]:
        """Per axis, the smallest and largest start of a window: one centred start where the slice is smaller."""
        ranges = []
        for covered, side in zip(self.covered_shape, self.input_shape):
            ranges.append((0.0, float(covered - side)) if covered > side else ((covered - side) / 2,) * 2)
        return ranges

    def is_free(self) -> bool:
        """Whether the slice is larger than a window, so that windows on it differ."""
        return any(low < high for low, high in self.free_range())

    def window_starts(self, step: float) -> list[tuple[float, float]]:
        """Starts of the windows that cover a slice, evenly spread, at most ``step`` window sides apart."""
        per_axis = []
        for (low, high), side in zip(self.free_range(), self.input_shape):
            count = math.ceil((high - low) / (side * step)) + 1
            # Whole pixels, so that windows add up on a canvas; a single centred start may lie between two.
            per_axis.append([low] if count == 1 else [float(round(start)) for start in np.linspace(low, high, count)])
        return [(y, x) for y in per_axis[0] for x in per_axis[1]]

    def from_slice_of(self, shape: tuple[int, int]) -> np.ndarray:
        """Map from another sampling of the same slice, of ``shape`` pixels, to the zoomed slice."""
        zoom = tuple(side / (stored * zoom) for side, stored, zoom in zip(shape, self.stored_shape, self.zoom))
        return scaling(zoom)


def _normalized_grid(
    matrix: np.ndarray, shape: tuple[int, int], size: torch.Size, device: torch.device, *, clamp: bool
) -> Tensor:
    """Positions for ``grid_sample``: ``(1, height, width, 2)`` in x, y from -1 to 1 over the input.

    Clamped to the centres of the outer pixels they do what its padding ``border`` does, which does not exist on MPS.
    """
    rows = torch.arange(shape[0], dtype=torch.float32, device=device)[:, None]
    columns = torch.arange(shape[1], dtype=torch.float32, device=device)[None, :]
    grid = torch.empty(1, *shape, 2, device=device)
    for place, axis, side in ((0, 1, size[1]), (1, 0, size[0])):
        along_y, along_x, start = (2 * float(value) / side for value in matrix[axis])
        position = torch.add(along_y * rows + (start + 1 / side - 1), along_x * columns, out=grid[0, ..., place])
        if clamp:
            position.clamp_(1 / side - 1, 1 - 1 / side)
    return grid
