"""Class logits for whole volumes, slice by slice: windows, mirroring, folds, and one interpolation back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations

import numpy as np
import torch
from torch import Tensor, nn

from samunet.preprocessing.context import slice_with_context
from samunet.preprocessing.grid import SliceGrid, sample, shift

_GAUSSIAN_SIGMA = 1 / 8  # of the window's side, as nnU-Net weighs its tiles


class SlicePredictor:
    """Runs one or several models over the slices of prepared cases.

    Memory does not grow with classes times volume: logits exist for one batch of slices at a time.

    Args:
        models: Their logits are averaged (the folds of a cross-validation).
        neighbours: Whether the network takes neighbouring slices as channels.
        device: Where the models are.
        dtype: Autocast type, or None for float32.
        mirror_axes: In-plane axes (0: y, 1: x) over which predictions are mirrored and averaged; empty for none.
        step_size: Distance of windows as a share of their side, where a slice is larger than the network's input.
        batch_size: Slices per forward pass.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        neighbours: bool,
        device: torch.device,
        dtype: torch.dtype | None,
        mirror_axes: Sequence[int] = (),
        step_size: float = 0.5,
        batch_size: int = 8,
    ) -> None:
        self.models = models
        self.neighbours = neighbours
        self.device = device
        self.dtype = dtype
        axes = [2 + axis for axis in mirror_axes]
        self.flips = list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))
        self.step_size = step_size
        self.batch_size = batch_size

    @torch.inference_mode()
    def logits(self, image: np.ndarray, grid: SliceGrid, shape: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(z, logits)`` for every slice, in order.

        Args:
            image: Prepared ``(channels, z, y, x)`` float.
            grid: Places the network's input over these slices.
            shape: In-plane shape on which logits are wanted.

        Yields:
            Slice index and ``(classes, *shape)`` float32 on the predictor's device.
        """
        depth = image.shape[1]
        for first in range(0, depth, self.batch_size):
            indices = range(first, min(first + self.batch_size, depth))
            slices = [slice_with_context(lambda a, b: image[:, a:b], z, depth, self.neighbours) for z in indices]
            batch = torch.from_numpy(np.stack(slices).astype(np.float32, copy=False)).to(self.device)
            canvas, origin = self._canvas(batch, grid)
            to_canvas = shift(-origin[0], -origin[1]) @ grid.from_slice_of(shape)
            for z, logits in zip(indices, canvas):
                yield z, sample(logits[None], to_canvas, shape, outside="border")[0]

    def mask(self, image: np.ndarray, grid: SliceGrid, shape: tuple[int, int]) -> np.ndarray:
        """Class of the largest logit: ``(z, *shape)``, uint8 (uint16 above 255 classes)."""
        mask = None
        for z, logits in self.logits(image, grid, shape):
            if mask is None:
                mask = np.empty((image.shape[1], *shape), dtype=np.uint8 if len(logits) <= 256 else np.uint16)
            mask[z] = logits.argmax(0).cpu().numpy()
        return mask

    def _canvas(self, batch: Tensor, grid: SliceGrid) -> tuple[Tensor, tuple[float, float]]:
        """Logits over the whole zoomed slices, and where the canvas starts in them."""
        starts = grid.window_starts(self.step_size)
        height, width = grid.input_shape
        if len(starts) == 1:
            return self._window(batch, grid, starts[0]), starts[0]
        origin = tuple(min(axis) for axis in zip(*starts))
        canvas_shape = tuple(
            round(max(axis) - low) + side for axis, low, side in zip(zip(*starts), origin, (height, width))
        )
        weight = _gaussian(grid.input_shape).to(self.device)
        total = torch.zeros(canvas_shape, device=self.device)
        canvas = None
        for y, x in starts:
            logits = self._window(batch, grid, (y, x))
            if canvas is None:
                canvas = torch.zeros((*logits.shape[:2], *canvas_shape), device=self.device)
            row, column = round(y - origin[0]), round(x - origin[1])
            canvas[:, :, row : row + height, column : column + width] += logits * weight
            total[row : row + height, column : column + width] += weight
        return canvas / total, origin

    def _window(self, batch: Tensor, grid: SliceGrid, start: tuple[float, float]) -> Tensor:
        """Mean logits of all models and mirrorings for one window: ``(batch, classes, height, width)`` float32."""
        window = sample(batch, grid.window(start), grid.input_shape)
        total = 0
        for flip in self.flips:
            flipped = window.flip(flip) if flip else window
            for model in self.models:
                with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                    logits = model(flipped).float()
                total = total + (logits.flip(flip) if flip else logits)
        return total / (len(self.flips) * len(self.models))


def _gaussian(shape: tuple[int, int]) -> Tensor:
    """Weights of a window: a Gaussian around its centre, never zero."""
    axes = []
    for side in shape:
        distance = (torch.arange(side, dtype=torch.float32) - (side - 1) / 2) / (side * _GAUSSIAN_SIGMA)
        axes.append(torch.exp(-0.5 * distance**2))
    return torch.outer(*axes).clamp_min(1e-4)
