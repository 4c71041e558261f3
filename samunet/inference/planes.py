"""Predictions averaged over slices along several axes of a volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from samunet.dataset.labels import Labels
from samunet.inference.logits import SlicePredictor, Watch, decode_channels
from samunet.plans import NetworkPlan
from samunet.preprocessing.case import CaseRecord
from samunet.preprocessing.grid import SliceGrid, sample
from samunet.preprocessing.planes import Plane


class PlanePredictor:
    """Runs one or several models over the slices of a volume along each of several planes, and averages their logits.

    The mean is taken on the stored grid, where all planes meet; memory holds the logits of the whole volume in half
    precision, of one fold and of all.

    Args:
        slices: How single slices are predicted. Its ``batch_size`` may change at any time.
        planes: The first is the one that ``slices`` predicts along.
        network: Whose input is placed over the slices.
        labels: The dataset's.
    """

    def __init__(self, slices: SlicePredictor, planes: Sequence[Plane], network: NetworkPlan, labels: Labels) -> None:
        self.slices = slices
        self.planes = planes
        self.network = network
        self.labels = labels
        # Decisions as decode_channels gives them, in fewer bytes.
        self._channels = labels.num_outputs if labels.has_regions else 1
        self._decision = torch.bool if labels.has_regions else torch.int16

    @torch.inference_mode()
    def logits(
        self, image: np.ndarray, record: CaseRecord, shape: tuple[int, int], watch: Watch | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(z, logits)`` for every slice, in order.

        Args:
            image: Prepared ``(channels, z, y, x)`` float.
            record: Of the prepared case.
            shape: In-plane shape on which logits are wanted.
            watch: Is shown what every fold says of the volume; its views are the planes.

        Yields:
            Slice index and ``(classes, *shape)`` float32 on the predictor's device.
        """
        stored = image.shape[2:]
        volume = self._mean(image, record, watch)
        to_stored = SliceGrid(stored, (1.0, 1.0), stored).from_slice_of(shape)
        for z in range(image.shape[1]):
            values = volume[z].float()
            if shape != stored:
                values = sample(values[None], to_stored, shape, outside="border")[0]
            yield z, values if watch is None else watch.draw(z, 0, values)

    def _mean(self, image: np.ndarray, record: CaseRecord, watch: Watch | None) -> Tensor:
        """Mean over folds and planes, ``(z, classes, y, x)``, with what ``watch`` puts behind."""
        if watch is not None:
            watch.open_volume(image.shape[1:], self.slices.device)
        models = self.slices.models
        total: Tensor | None = None
        for index, model in enumerate(models):
            mean, members = self._fold(model, image, record, watch)
            if watch is not None:
                watch.fold(index, members, mean.float())
            mean /= len(models)
            total = mean if total is None else total.add_(mean)
        return total if watch is None else watch.close(total.float())

    def _fold(
        self, model: nn.Module, image: np.ndarray, record: CaseRecord, watch: Watch | None
    ) -> tuple[Tensor, list[Tensor]]:
        """One fold's mean over planes, ``(z, classes, y, x)``, and with ``watch`` what it decides along each."""
        shape, device = image.shape[1:], self.slices.device
        mean = torch.zeros((self.labels.num_outputs, *shape), dtype=torch.float16, device=device)
        members = []
        for plane in self.planes:
            _, *sides = plane.sides(shape)
            grid = SliceGrid.of(sides, plane.spacing(record), self.network.spacing, self.network.input_shape)
            member = (
                torch.empty((self._channels, *shape), dtype=self._decision, device=device)
                if watch is not None
                else None
            )
            for index, logits in self._predictor(model, plane).logits(plane.cut(image), grid, grid.stored_shape):
                plane.cut(mean)[:, index] += logits / len(self.planes)
                if watch is not None:
                    plane.cut(member)[:, index] = decode_channels(logits[None], self.labels)[0].to(self._decision)
            if watch is not None:
                members.append(member.transpose(0, 1))
        return mean.transpose(0, 1), members

    def _predictor(self, model: nn.Module, plane: Plane) -> SlicePredictor:
        slices = self.slices
        return SlicePredictor(
            [model],
            neighbours=slices.neighbours,
            device=slices.device,
            dtype=slices.dtype,
            mirror_axes=plane.mirrored(slices.mirror_axes),
            step_size=slices.step_size,
            batch_size=slices.batch_size,
        )
