"""Class logits of volumes, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.inference.decoding import mask_type
from samunet.inference.views import TTAView, gaussian, mirrored, shifted
from samunet.preprocessing.grid import SliceGrid, sample, shift
from samunet.preprocessing.planes import slab, slice_with_context

_BAND_NUMBERS = 1 << 22  # logits that are interpolated at a time


class Observer(Protocol):
    """Sees a case's prediction while it is made.

    For every batch of windows :meth:`on_fold` is called for each fold, then :meth:`on_batch`; :meth:`on_band` for every
    band of logits that is done.
    """

    labels: Labels

    def on_fold(self, index: int, views: list[Tensor], mean: Tensor, share: Tensor) -> None:
        """One fold's prediction of a batch.

        Args:
            index: Of the fold.
            views: :func:`decode_channels` of every view.
            mean: Mean logits over the views ``(batch, outputs, h, w)``; not to be changed.
            share: How much of every pixel counts, ``(batch, 1, h, w)``: windows overlap and have padding.
        """

    def on_batch(self, mean: Tensor, share: Tensor) -> Tensor | None:
        """All folds have predicted a batch, with these mean logits.

        Returns:
            A map ``(batch, 1, h, w)`` that :meth:`on_band` wants on the grid of the mask, or None.
        """

    def on_band(self, band: Band) -> None:
        """Some rows of a slice are done."""


class Band(NamedTuple):
    """Predicted rows of a slice.

    Attributes:
        z: Of the slice.
        rows: Which rows.
        logits: ``(outputs, rows, width)`` float32.
        extra: What :meth:`Observer.on_batch` returned, ``(rows, width)``; None without.
    """

    z: int
    rows: slice
    logits: Tensor
    extra: Tensor | None


class SlicePredictor:
    """Runs one or several models over the slices of prepared cases.

    Memory does not grow with classes times volume: logits exist for one batch of windows at a time, and for slices
    larger than the network's input on a canvas of its resolution, a few slices or one at a time.

    Args:
        models: Their logits are averaged (the folds of a cross-validation).
        neighbours: Whether the network takes neighbouring slices as channels.
        slab: Neighbouring slices that the network computes together, of which the middle one counts; 1 for each by
            itself.
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
        slab: int = 1,
        device: torch.device,
        dtype: torch.dtype | None,
        mirror_axes: Sequence[int] = (),
        window_shift: int = 0,
        step_size: float = 0.5,
        batch_size: int = 8,
    ) -> None:
        self.models = models
        self.neighbours = neighbours
        self.slab = slab
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

    def logits(self, image: np.ndarray, grid: SliceGrid, shape: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(z, logits)`` for every slice, in order: ``(outputs, *shape)`` float32; see :meth:`bands`."""
        return ((band.z, band.logits) for band in self.bands(image, grid, shape, whole=True))

    def mask(
        self,
        image: np.ndarray,
        grid: SliceGrid,
        shape: tuple[int, int],
        labels: Labels,
        observer: Observer | None = None,
    ) -> np.ndarray:
        """Label values: ``(z, *shape)``, uint8 (uint16 for values above 255); see :func:`decode`."""
        mask = np.empty((image.shape[1], *shape), dtype=mask_type(labels))
        for band in self.bands(image, grid, shape, observer):
            mask[band.z, band.rows] = decode(band.logits, labels).cpu().numpy()
        return mask

    @torch.inference_mode()
    def bands(
        self,
        image: np.ndarray,
        grid: SliceGrid,
        shape: tuple[int, int],
        observer: Observer | None = None,
        *,
        whole: bool = False,
    ) -> Iterator[Band]:
        """Yield the logits of all slices in order, of a large slice some rows at a time.

        Args:
            image: Prepared ``(channels, z, y, x)`` float.
            grid: Places the network's input over these slices.
            shape: In-plane shape on which logits are wanted.
            observer: Sees what every fold predicts.
            whole: Every slice at once, however large.
        """
        height, width = shape
        for z, canvas, to_canvas in self._canvases(image, grid, shape, observer):
            step = height if whole else max(1, _BAND_NUMBERS // (canvas.channels * width))
            for first in range(0, height, step):
                size, to_band = (min(step, height - first), width), to_canvas @ shift(first, 0)
                band = Band(z, slice(first, first + size[0]), *canvas.sampled(to_band, size))
                if observer is not None:
                    observer.on_band(band)
                yield band

    @torch.inference_mode()
    def embeddings(self, image: np.ndarray, grid: SliceGrid) -> np.ndarray:
        """The first model's image embedding of every slice, averaged over the slice.

        Args:
            image: Prepared ``(channels, z, y, x)`` float.
            grid: Places the network's input over these slices.

        Returns:
            ``(z, embedding)`` float32.
        """
        model, starts, depth = self.models[0], grid.window_starts(1.0), image.shape[1]
        means = []
        for z in range(depth):
            around = slab(z, depth, self.slab)
            slices = [slice_with_context(lambda a, b: image[:, a:b], at, depth, self.neighbours) for at in around]
            batch = torch.from_numpy(np.stack(slices).astype(np.float32, copy=False)).to(self.device)
            seen = []
            for start in starts:
                window = sample(batch, grid.window(start), grid.input_shape)
                with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                    features = model.image_encoder.features(model.input_layer(window))
                seen.append(features.embedding[self.slab // 2].float().mean((1, 2)))
            means.append(torch.stack(seen).mean(0).cpu().numpy())
        return np.stack(means)

    def _canvases(
        self, image: np.ndarray, grid: SliceGrid, shape: tuple[int, int], observer: Observer | None
    ) -> Iterator[tuple[int, _Canvas, np.ndarray]]:
        """Of every slice its index, its canvas, and the map from ``shape`` to it."""
        depth, starts = image.shape[1], grid.window_starts(self.step_size)
        views = self._views(grid, starts)
        shares = None if observer is None else pixel_shares(grid, starts, self.device)
        # Windows of one slice fill a batch as well as windows of several slices, and need one canvas only.
        together = max(1, self.batch_size // (self.slab * len(starts)))
        for first in range(0, depth, together):
            indices = range(first, min(first + together, depth))
            around = [one for z in indices for one in slab(z, depth, self.slab)]
            slices = [slice_with_context(lambda a, b: image[:, a:b], z, depth, self.neighbours) for z in around]
            batch = torch.from_numpy(np.stack(slices).astype(np.float32, copy=False)).to(self.device)
            canvas, origin = self._canvas(batch, grid, starts, views, observer, shares)
            to_canvas = shift(-origin[0], -origin[1]) @ grid.from_slice_of(shape)
            for index, z in enumerate(indices):
                yield z, canvas.of(index), to_canvas

    def _views(self, grid: SliceGrid, starts: Sequence[tuple[float, float]]) -> list[TTAView]:
        """Of every window; those that overlap are shifted already."""
        if self.mirror_axes or not self.window_shift or len(starts) > 1:
            return mirrored(self.mirror_axes)
        return shifted(self.window_shift, grid.input_shape, self.device)

    def _canvas(
        self,
        batch: Tensor,
        grid: SliceGrid,
        starts: list[tuple[float, float]],
        views: list[TTAView],
        observer: Observer | None,
        shares: dict[tuple[float, float], Tensor] | None,
    ) -> tuple[_Canvas, tuple[float, float]]:
        """Logits over the whole zoomed slices, and where the canvas starts in them.

        Args:
            batch: Slices ``(slab * n, channels, y, x)`` for the logits of ``n``.
        """
        count = len(batch) // self.slab
        if len(starts) == 1:
            windows = sample(batch, grid.window(starts[0]), grid.input_shape)
            share = shares and torch.stack([shares[starts[0]]] * count)
            return self._predict(windows, views, observer, share), starts[0]
        origin, canvas_shape = _canvas_of(grid, starts)
        weight = gaussian(grid.input_shape, self.device)
        total = torch.zeros(canvas_shape, device=self.device)
        canvas = None
        together = max(1, self.batch_size // len(batch))
        for first in range(0, len(starts), together):
            group = starts[first : first + together]
            windows = torch.cat([sample(batch, grid.window(start), grid.input_shape) for start in group])
            share = shares and torch.stack([shares[start] for start in group for _ in range(count)])
            predicted = self._predict(windows, views, observer, share)
            canvas = canvas or predicted.empty(count, canvas_shape)
            for index, start in enumerate(group):
                place = _place(start, origin, weight)
                canvas.add(predicted, slice(index * count, (index + 1) * count), place, weight)
                total[place] += weight
        return canvas.divided(total), origin

    def _predict(
        self, windows: Tensor, views: list[TTAView], observer: Observer | None, share: Tensor | None
    ) -> _Canvas:
        """Mean logits over all models and views: ``(batch, outputs, height, width)`` float32."""
        total = None
        for index, model in enumerate(self.models):
            # Around all passes of a fold: its weights are cast to the lower precision once, and forgotten before the
            # next fold's take their place (SharedFolds).
            with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                mean = self._mean_over_views(model, windows, views, index, observer, share)
            total = mean if total is None else total.add_(mean)
        total /= len(self.models)
        if not torch.isfinite(total.sum()):
            raise self._no_numbers(windows)
        return _Canvas(total, None if observer is None else observer.on_batch(total, share))

    def _no_numbers(self, windows: Tensor) -> SamunetError:
        """For logits with NaN or infinity, of which a mask without anything in it would be made."""
        if not torch.isfinite(windows).all():
            return SamunetError("the prepared image has values that are no numbers", "look for damaged voxels in it")
        number_format = "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return SamunetError(
            f"the model answers with values that are no numbers (computed in {number_format} on {self.device})",
            "compare the image's intensities with those of the training images; try another fold (`folds`) or device "
            "(`device`)",
        )

    def _mean_over_views(
        self,
        model: nn.Module,
        windows: Tensor,
        views: list[TTAView],
        index: int,
        observer: Observer | None,
        share: Tensor | None,
    ) -> Tensor:
        mean, decisions = None, []
        for view in views:
            logits = view.invert(model(view.apply(windows))[self.slab // 2 :: self.slab].float())
            if observer is not None:
                decisions.append(decode_channels(logits, observer.labels))
            part = logits * view.share
            mean = part if mean is None else mean.add_(part)
        if observer is not None:
            decision = decode_channels(mean, observer.labels)
            merged = [view.merge_mask(own, decision) for view, own in zip(views, decisions)]
            observer.on_fold(index, merged, mean, share)
        return mean


class _Canvas(NamedTuple):
    """Logits ``(batch, outputs, h, w)`` and what an observer made of them ``(batch, 1, h, w)``."""

    logits: Tensor
    extra: Tensor | None

    @property
    def channels(self) -> int:
        return sum(part.shape[1] for part in self if part is not None)

    def of(self, index: int) -> _Canvas:
        return _Canvas(*(None if part is None else part[index][None] for part in self))

    def empty(self, batch: int, shape: tuple[int, ...]) -> _Canvas:
        """Zeros for as many channels, of another shape."""
        return _Canvas(*(None if part is None else part.new_zeros((batch, part.shape[1], *shape)) for part in self))

    def add(self, other: _Canvas, items: slice, place: tuple[slice, slice], weight: Tensor) -> None:
        for own, part in zip(self, other):
            if own is not None:
                own[:, :, *place].addcmul_(part[items], weight)

    def divided(self, total: Tensor) -> _Canvas:
        return _Canvas(*(None if part is None else part.div_(total) for part in self))

    def sampled(self, matrix: np.ndarray, shape: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """``(outputs, *shape)`` and ``shape`` of a canvas of one slice."""
        logits, extra = (None if part is None else sample(part, matrix, shape, outside="border")[0] for part in self)
        return logits, None if extra is None else extra[0]


def decode(logits: Tensor, labels: Labels) -> Tensor:
    """Label values of a slice: the class of the largest logit; with regions, those with a probability above one half
    painted one after the other.

    Args:
        logits: ``(outputs, height, width)``.

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


def pixel_shares(
    grid: SliceGrid, starts: Sequence[tuple[float, float]], device: torch.device
) -> dict[tuple[float, float], Tensor]:
    """How much of every pixel counts in each window ``(1, h, w)``: nothing of padding, 1 together where windows
    overlap.
    """
    inside = torch.ones((1, 1, *grid.stored_shape), device=device)
    weights = window_weights(grid, starts, device)
    return {
        start: sample(inside, grid.window(start), grid.input_shape)[0] * weight
        for start, weight in zip(starts, weights, strict=True)
    }


def window_weights(grid: SliceGrid, starts: Sequence[tuple[float, float]], device: torch.device) -> list[Tensor]:
    """The share of every window in the pixels of its canvas, ``(h, w)`` each: 1 together wherever windows overlap."""
    if len(starts) == 1:
        return [torch.ones(grid.input_shape, device=device)]
    origin, canvas_shape = _canvas_of(grid, starts)
    weight = gaussian(grid.input_shape, device)
    total = torch.zeros(canvas_shape, device=device)
    places = [_place(start, origin, weight) for start in starts]
    for place in places:
        total[place] += weight
    return [weight / total[place] for place in places]


def _place(start: tuple[float, float], origin: tuple[float, ...], weight: Tensor) -> tuple[slice, ...]:
    """Where a window lies on its canvas."""
    first = [round(own - low) for own, low in zip(start, origin)]
    return tuple(slice(low, low + side) for low, side in zip(first, weight.shape))


def _canvas_of(grid: SliceGrid, starts: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Where the canvas of several windows starts in the zoomed slice, and its shape."""
    origin = tuple(min(axis) for axis in zip(*starts))
    shape = tuple(round(max(axis) - low) + side for axis, low, side in zip(zip(*starts), origin, grid.input_shape))
    return origin, shape
