"""Class logits for whole volumes, slice by slice: windows, views, folds, and one interpolation back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.inference.decoding import mask_type
from samunet.inference.views import View, gaussian, mirrored, shifted
from samunet.preprocessing.context import slice_with_context
from samunet.preprocessing.grid import SliceGrid, sample, shift

_BAND_NUMBERS = 1 << 22  # logits that are interpolated at a time


class SlicePredictor:
    """Runs one or several models over the slices of prepared cases.

    Memory does not grow with classes times volume: logits exist for one batch of windows at a time, and for slices
    larger than the network's input on a canvas of its resolution, a few slices or one at a time. Beside image and mask,
    memory depends on the batch, the classes and the network's input, not on the number of slices.

    Args:
        models: Their logits are averaged (the folds of a cross-validation).
        neighbours: Whether the network takes neighbouring slices as channels.
        device: Where the models are.
        dtype: Autocast type, or None for float32.
        mirror_axes: In-plane axes (0: y, 1: x) over which predictions are mirrored and averaged; empty for none.
        window_shift: Pixels by which inputs are shifted along both diagonals, to average over five of them where
            nothing is mirrored and a slice is no larger than the network's input; 0 for none.
        step_size: Distance of windows as a share of their side, where a slice is larger than the network's input.
        batch_size: Windows per forward pass.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        neighbours: bool,
        device: torch.device,
        dtype: torch.dtype | None,
        mirror_axes: Sequence[int] = (),
        window_shift: int = 0,
        step_size: float = 0.5,
        batch_size: int = 8,
    ) -> None:
        self.models = models
        self.neighbours = neighbours
        self.device = device
        self.dtype = dtype
        self.mirror_axes = mirror_axes
        self.window_shift = window_shift
        self.step_size = step_size
        self.batch_size = batch_size

    @property
    def averages_views(self) -> bool:
        """Whether inputs are mirrored or, where a slice fits into one, shifted."""
        return bool(self.mirror_axes) or self.window_shift > 0

    @torch.inference_mode()
    def logits(
        self, image: np.ndarray, grid: SliceGrid, shape: tuple[int, int], watch: Watch | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(z, logits)`` for every slice, in order.

        Args:
            image: Prepared ``(channels, z, y, x)`` float.
            grid: Places the network's input over these slices.
            shape: In-plane shape on which logits are wanted.
            watch: Is shown what every fold says of every window.

        Yields:
            Slice index and ``(classes, *shape)`` float32 on the predictor's device.
        """
        for z, canvas, to_canvas in self._canvases(image, grid, shape, watch):
            values = sample(canvas, to_canvas, shape, outside="border")[0]
            yield z, values if watch is None else watch.draw(z, 0, values)

    @torch.inference_mode()
    def mask(
        self,
        image: np.ndarray,
        grid: SliceGrid,
        shape: tuple[int, int],
        labels: Labels,
        watch: Watch | None = None,
    ) -> np.ndarray:
        """Label values: ``(z, *shape)``, uint8 (uint16 for values above 255); see :func:`decode`.

        A large slice is interpolated and decoded some rows at a time, so that not even one slice has all its classes
        on the grid wanted.
        """
        mask = np.empty((image.shape[1], *shape), dtype=mask_type(labels))
        height, width = shape
        for z, canvas, to_canvas in self._canvases(image, grid, shape, watch):
            rows = max(1, _BAND_NUMBERS // (canvas.shape[1] * width))
            for first in range(0, height, rows):
                band = (min(rows, height - first), width)
                values = sample(canvas, to_canvas @ shift(first, 0), band, outside="border")[0]
                logits = values if watch is None else watch.draw(z, first, values)
                mask[z, first : first + rows] = decode(logits, labels).cpu().numpy()
        return mask

    def _canvases(
        self, image: np.ndarray, grid: SliceGrid, shape: tuple[int, int], watch: Watch | None = None
    ) -> Iterator[tuple[int, Tensor, np.ndarray]]:
        """Of every slice its index, logits ``(1, classes, h, w)`` on a canvas, and the map from ``shape`` to it."""
        depth, starts = image.shape[1], grid.window_starts(self.step_size)
        views = self._views(grid, starts)
        if watch is not None:
            watch.start(grid, starts, self.device)
        # Windows of one slice fill a batch as well as windows of several slices, and need one canvas only.
        together = max(1, self.batch_size // len(starts))
        for first in range(0, depth, together):
            indices = range(first, min(first + together, depth))
            slices = [slice_with_context(lambda a, b: image[:, a:b], z, depth, self.neighbours) for z in indices]
            batch = torch.from_numpy(np.stack(slices).astype(np.float32, copy=False)).to(self.device)
            canvas, origin = self._canvas(batch, grid, starts, views, watch)
            to_canvas = shift(-origin[0], -origin[1]) @ grid.from_slice_of(shape)
            for z, logits in zip(indices, canvas):
                yield z, logits[None], to_canvas

    def _views(self, grid: SliceGrid, starts: Sequence[tuple[float, float]]) -> list[View]:
        """Of every window; those that overlap are shifted already."""
        if self.mirror_axes or not self.window_shift or len(starts) > 1:
            return mirrored(self.mirror_axes)
        return shifted(self.window_shift, grid.input_shape, self.device)

    def _canvas(
        self,
        batch: Tensor,
        grid: SliceGrid,
        starts: list[tuple[float, float]],
        views: list[View],
        watch: Watch | None,
    ) -> tuple[Tensor, tuple[float, float]]:
        """Logits over the whole zoomed slices, and where the canvas starts in them."""
        if len(starts) == 1:
            windows = sample(batch, grid.window(starts[0]), grid.input_shape)
            return self._mean_logits(windows, views, watch, starts * len(batch)), starts[0]
        height, width = grid.input_shape
        origin, canvas_shape = _canvas_of(grid, starts)
        weight = gaussian(grid.input_shape, self.device)
        total = torch.zeros(canvas_shape, device=self.device)
        canvas = None
        together = max(1, self.batch_size // len(batch))
        for first in range(0, len(starts), together):
            group = starts[first : first + together]
            windows = torch.cat([sample(batch, grid.window(start), grid.input_shape) for start in group])
            logits = self._mean_logits(windows, views, watch, [start for start in group for _ in batch])
            if canvas is None:
                canvas = torch.zeros((len(batch), logits.shape[1], *canvas_shape), device=self.device)
            for (y, x), part in zip(group, logits.split(len(batch))):
                row, column = round(y - origin[0]), round(x - origin[1])
                canvas[:, :, row : row + height, column : column + width].addcmul_(part, weight)
                total[row : row + height, column : column + width] += weight
        return canvas.div_(total), origin

    def _mean_logits(
        self, windows: Tensor, views: list[View], watch: Watch | None, starts: list[tuple[float, float]]
    ) -> Tensor:
        """Mean over all models and views: ``(batch, classes, height, width)`` float32."""
        total = None
        if watch is not None:
            watch.open(starts)
        for index, model in enumerate(self.models):
            # Around all passes of a fold: its weights are cast to the lower precision once, and forgotten before the
            # next fold's take their place (SharedFolds).
            with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                mean = self._mean_over_views(model, windows, views, index, watch)
            total = mean if total is None else total.add_(mean)
        total /= len(self.models)
        if not torch.isfinite(total.sum()):
            raise self._no_numbers(windows)
        return total if watch is None else watch.close(total)

    def _no_numbers(self, windows: Tensor) -> SamunetError:
        """For logits with NaN or infinity, of which a mask without anything in it would be made."""
        if not torch.isfinite(windows).all():
            return SamunetError("the prepared image has values that are no numbers", "look for damaged voxels in it")
        number_format = "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return SamunetError(
            f"the model answers with values that are no numbers (computed in {number_format} on {self.device})",
            "compare the image's intensities with those of the training images; try another fold (-f) or device "
            "(-device)",
        )

    def _mean_over_views(
        self, model: nn.Module, windows: Tensor, views: list[View], index: int, watch: Watch | None
    ) -> Tensor:
        mean, members = None, []
        for view in views:
            logits = view.bring_back(model(view.show(windows)).float())
            if watch is not None:
                members.append(decode_channels(logits, watch.labels))
            part = logits * view.share
            mean = part if mean is None else mean.add_(part)
        if watch is not None:
            decision = decode_channels(mean, watch.labels)
            watch.fold(index, [view.sees(member, decision) for view, member in zip(views, members)], mean)
        return mean


class Watch(ABC):
    """Is shown a case's prediction while it is made: what every fold says of every window, and the mean on each slice.

    Attributes:
        labels: The dataset's.
    """

    labels: Labels

    @abstractmethod
    def start(self, grid: SliceGrid, starts: Sequence[tuple[float, float]], device: torch.device) -> None:
        """A case begins, whose slices are covered by windows at ``starts``."""

    @abstractmethod
    def open(self, starts: Sequence[tuple[float, float]]) -> None:
        """A batch of windows begins; ``starts`` of each."""

    @abstractmethod
    def open_volume(self, shape: tuple[int, int, int], device: torch.device) -> None:
        """Instead of both: a case begins that is shown as a whole, its slices as the batch."""

    @abstractmethod
    def fold(self, index: int, members: list[Tensor], mean: Tensor) -> None:
        """What one fold says of the batch.

        Args:
            index: Of the fold.
            members: :func:`decode_channels` of every view.
            mean: Mean logits over them ``(batch, outputs, h, w)``; not to be changed.
        """

    @abstractmethod
    def close(self, mean: Tensor) -> Tensor:
        """The batch ends: takes the mean logits over folds, and gives them back with any channels of its own behind."""

    @abstractmethod
    def draw(self, z: int, row: int, values: Tensor) -> Tensor:
        """Rows from ``row`` of slice ``z`` on the grid wanted: takes what :meth:`close` gave, gives back the logits."""


def decode(logits: Tensor, labels: Labels) -> Tensor:
    """Label values of a slice: the class of the largest logit; with regions, those with a probability above one half
    painted one after the other.

    Args:
        logits: ``(outputs, height, width)``.
        labels: The dataset's.

    Returns:
        ``(height, width)`` integer.
    """
    if not labels.has_regions:
        return logits.max(0).indices  # what argmax gives, several times faster on a CPU
    painted = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    for inside, value in zip(logits > 0, labels.class_order):
        painted[inside] = value
    return painted


def decode_channels(logits: Tensor, labels: Labels) -> Tensor:
    """What is predicted on a batch of windows ``(batch, outputs, h, w)``.

    Returns:
        The class of the largest logit, ``(batch, 1, h, w)`` integer; with regions, which may overlap, booleans
        ``(batch, outputs, h, w)``.
    """
    return logits > 0 if labels.has_regions else logits.max(1, keepdim=True).indices


def probabilities(logits: Tensor, labels: Labels, axis: int = 0) -> Tensor:
    """Probability of every class (softmax) or region (sigmoid), in the shape of ``logits``; ``axis``: classes."""
    return torch.sigmoid(logits) if labels.has_regions else logits.softmax(axis)


def window_weights(grid: SliceGrid, starts: Sequence[tuple[float, float]], device: torch.device) -> list[Tensor]:
    """The share of every window in the pixels of its canvas, ``(h, w)`` each: 1 together wherever windows overlap."""
    if len(starts) == 1:
        return [torch.ones(grid.input_shape, device=device)]
    origin, canvas_shape = _canvas_of(grid, starts)
    weight = gaussian(grid.input_shape, device)
    total = torch.zeros(canvas_shape, device=device)
    parts = []
    for y, x in starts:
        top, left = round(y - origin[0]), round(x - origin[1])
        parts.append(total[top : top + weight.shape[0], left : left + weight.shape[1]])
        parts[-1] += weight
    return [weight / part for part in parts]


def _canvas_of(grid: SliceGrid, starts: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Where the canvas of several windows starts in the zoomed slice, and its shape."""
    origin = tuple(min(axis) for axis in zip(*starts))
    shape = tuple(round(max(axis) - low) + side for axis, low, side in zip(zip(*starts), origin, grid.input_shape))
    return origin, shape
