"""Draws training batches from stored slices: item ``index`` of batch ``iteration`` depends on the seed alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase

from samunet.plans import ConfigurationPlan, NetworkPlan
from samunet.preprocessing.context import slice_with_context
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.store import StoredCase
from samunet.training.augmentation import seeded, training_transforms

Batch = dict[str, np.ndarray]


class SliceLoader(SlimDataLoaderBase):
    """batchgenerators' loader interface over stored cases.

    Cases are drawn evenly with replacement. With the plan's probability, decided item by item, a slice and the window
    on it are centred on a voxel of a class drawn from those the case has; otherwise both are drawn evenly.

    Args:
        cases: Training cases by name.
        configuration, network: Plans.
        batch_size: Items per batch.
        seed: With iteration and index, all that randomness depends on.
        first: Iteration of the first batch.
    """

    def __init__(
        self,
        cases: dict[str, StoredCase],
        configuration: ConfigurationPlan,
        network: NetworkPlan,
        batch_size: int,
        seed: int,
        first: int = 0,
    ) -> None:
        super().__init__(cases, batch_size)
        self.names = sorted(cases)
        self.network = network
        self.foreground_share = configuration.foreground_share
        self.neighbours = network.input_channels == "neighbours"
        self.seed = seed
        self.next_iteration = first
        masked = [channel for channel, used in enumerate(configuration.use_mask_for_norm) if used]
        if self.neighbours and masked:
            masked = [0, 1, 2]
        self.transforms = training_transforms(
            network.input_shape, configuration.mirror_axes, masked, per_channel=not self.neighbours
        )

    def generate_train_batch(self) -> Batch:
        """The next batch; see :meth:`batch`."""
        self.next_iteration += 1
        return self.batch(self.next_iteration - 1)

    def batch(self, iteration: int) -> Batch:
        """Batch number ``iteration``: ``data`` ``(b, channels, H, W)`` float32, ``seg`` ``(b, H, W)`` int64."""
        items = [self._item(iteration, index) for index in range(self.batch_size)]
        seg = np.stack([item["seg"][0, 0] for item in items]).astype(np.int64)
        return {"data": np.concatenate([item["data"] for item in items]), "seg": np.maximum(seg, 0)}

    def _item(self, iteration: int, index: int) -> Batch:
        draw = np.random.default_rng((self.seed, iteration, index))
        case = self._data[self.names[draw.integers(len(self.names))]]
        depth, height, width = case.shape
        grid = SliceGrid.of((height, width), case.record.stored_spacing, self.network.spacing, self.network.input_shape)
        centre = None
        if case.class_locations and draw.random() < self.foreground_share:
            places = case.class_locations[draw.choice(sorted(case.class_locations))]
            z, *centre = (int(place) for place in places[draw.integers(len(places))])
        else:
            z = int(draw.integers(depth))
        start = _window_start(grid, centre, draw)
        image = slice_with_context(case.image, z, depth, self.neighbours)
        with seeded(self.seed, iteration, index):
            return self.transforms(data=image[None], seg=case.label(z, z + 1)[None], window=grid.window(start))


def _window_start(grid: SliceGrid, centre: list[int] | None, draw: np.random.Generator) -> tuple[float, float]:
    """Where a window begins on the zoomed slice: around ``centre`` (a stored pixel), or anywhere."""
    start = []
    for axis, (low, high) in enumerate(grid.free_range()):
        position = draw.uniform(low, high)
        if centre is not None:
            wanted = (centre[axis] + 0.5) * grid.zoom[axis] - grid.input_shape[axis] / 2
            position = min(max(wanted, low), high)
        start.append(position)
    return start[0], start[1]


def batches(loader: SliceLoader, first: int, num_workers: int) -> Iterator[Batch]:
    """Endless batches from iteration ``first`` on, the same whatever ``num_workers`` is.

    Workers are spawned processes that each make whole batches ahead of time; a failure in one is raised here as it is.
    """
    iteration = first
    if num_workers < 1:
        while True:
            yield loader.batch(iteration)
            iteration += 1
    with ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(loader,)
    ) as pool:
        waiting = deque()
        try:
            while True:
                while len(waiting) < 2 * num_workers:
                    waiting.append(pool.submit(_worker_batch, iteration))
                    iteration += 1
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker_loader: SliceLoader | None = None


def _start_worker(loader: SliceLoader) -> None:
    global _worker_loader
    import torch

    torch.set_num_threads(1)
    _worker_loader = loader


def _worker_batch(iteration: int) -> Batch:
    return _worker_loader.batch(iteration)
