"""Predictions averaged over slicing planes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from samunet.dataset.labels import Labels
from samunet.inference.logits import Band, Observer, SlicePredictor, decode_channels
from samunet.plans import NetworkPlan
from samunet.preprocessing.case import CaseRecord
from samunet.preprocessing.grid import SliceGrid, sample
from samunet.preprocessing.planes import SlicingPlane


class PlanePredictor:
    """Runs one or several models over the slices of a volume along each of several planes, and averages their logits.

    The mean is taken on the stored grid, where all planes meet; memory holds the logits of the whole volume in half
    precision, of one fold and of all.

    Args:
        slices: How single slices are predicted. Its ``batch_size`` may change at any time.
        planes: The first is the one that ``slices`` predicts along.
        network: Whose input is placed over the slices.
    """

    def __init__(
        self, slices: SlicePredictor, planes: Sequence[SlicingPlane], network: NetworkPlan, labels: Labels
    ) -> None:
        self.slices = slices
        self.planes = planes
        self.network = network
        self.labels = labels
        # Decisions as decode_channels gives them, in fewer bytes.
        self._channels = labels.num_outputs if labels.has_regions else 1
        self._decision = torch.bool if labels.has_regions else torch.int16

    def logits(self, image: np.ndarray, record: CaseRecord, shape: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(z, logits)`` for every slice, in order: ``(outputs, *shape)`` float32; see :meth:`bands`."""
        return ((band.z, band.logits) for band in self.bands(image, record, shape))

    @torch.inference_mode()
    def bands(
        self, image: np.ndarray, record: CaseRecord, shape: tuple[int, int], observer: Observer | None = None
    ) -> Iterator[Band]:
        """Yield the logits of all slices in order, each at once.

        Args:
            image: Prepared ``(channels, z, y, x)`` float.
            shape: In-plane shape on which logits are wanted.
            observer: Sees what every fold predicts, the slices of the volume as one batch; its views are the planes.
        """
        stored = image.shape[2:]
        volumes = self._mean(image, record, observer)
        to_stored = SliceGrid(stored, (1.0, 1.0), stored).from_slice_of(shape)
        for z in range(image.shape[1]):
            values = [volume[z].float() for volume in volumes]
            if shape != stored:
                values = [sample(value[None], to_stored, shape, outside="border")[0] for value in values]
            band = Band(z, slice(0, shape[0]), values[0], values[1][0] if len(values) > 1 else None)
            if observer is not None:
                observer.on_band(band)
            yield band

    def _mean(self, image: np.ndarray, record: CaseRecord, observer: Observer | None) -> list[Tensor]:
        """Mean over folds and planes, ``(z, outputs, y, x)``, and what the observer made of it, if anything."""
        models, (depth, *plane) = self.slices.models, image.shape[1:]
        share = torch.ones((1, 1, 1, 1), device=self.slices.device).expand(depth, 1, *plane)
        total: Tensor | None = None
        for index, model in enumerate(models):
            mean, decisions = self._fold(model, image, record, observer is not None)
            if observer is not None:
                observer.on_fold(index, decisions, mean.float(), share)
            mean /= len(models)
            total = mean if total is None else total.add_(mean)
        if observer is None:
            return [total]
        total = total.float()
        extra = observer.on_batch(total, share)
        return [total] if extra is None else [total, extra]

    def _fold(
        self, model: nn.Module, image: np.ndarray, record: CaseRecord, decide: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """One fold's mean over planes, ``(z, outputs, y, x)``, and on request what it decides along each."""
        shape, device = image.shape[1:], self.slices.device
        mean = torch.zeros((self.labels.num_outputs, *shape), dtype=torch.float16, device=device)
        decisions = []
        for plane in self.planes:
            _, *sides = plane.sides(shape)
            grid = SliceGrid.of(sides, plane.spacing(record), self.network.spacing, self.network.input_shape)
            if decide:
                decisions.append(torch.empty((self._channels, *shape), dtype=self._decision, device=device))
            for index, logits in self._predictor(model, plane).logits(plane.cut(image), grid, grid.stored_shape):
                plane.cut(mean)[:, index] += logits / len(self.planes)
                if decide:
                    decision = decode_channels(logits[None], self.labels)[0].to(self._decision)
                    plane.cut(decisions[-1])[:, index] = decision
        return mean.transpose(0, 1), [decision.transpose(0, 1) for decision in decisions]

    def _predictor(self, model: nn.Module, plane: SlicingPlane) -> SlicePredictor:
        slices = self.slices
        return SlicePredictor(
            [model],
            neighbours=slices.neighbours,
            slab=slices.slab,
            device=slices.device,
            dtype=slices.dtype,
            mirror_axes=plane.mirrored(slices.mirror_axes),
            step_size=slices.step_size,
            batch_size=slices.batch_size,
        )
