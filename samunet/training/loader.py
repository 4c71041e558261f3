"""Training batches from stored slices: item ``index`` of batch ``iteration`` depends on the seed alone."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np

from samunet.errors import SamunetError, UsageError
from samunet.plans import ConfigurationPlan, NetworkPlan
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.planes import SlicingPlane, slab, slice_with_context
from samunet.preprocessing.store import StoredCase
from samunet.signals import interrupts_held, prepare_worker
from samunet.training.augmentation import seeded
from samunet.training.recipes.recipe import Recipe
from samunet.training.synthesis import Bank, Exemplar, Synthesis, planned_share

_SYNTHESIS = 1  # its own numbers, so that without it all others stay as they are
Batch = dict[str, np.ndarray]


class SliceLoader:
    """Batches of slices of stored cases.

    Cases are drawn evenly with replacement, and of the plan's planes one to slice the case along. With the plan's
    probability, decided item by item, a slice and the window on it are centred on a voxel of a class drawn from those
    the case has; otherwise both are drawn evenly. With a recipe of passes every slice comes once in a pass instead, in
    an order drawn for each pass; its last batch is what is left.

    Args:
        cases: Training cases by name.
        configuration, network: Plans.
        batch_size: Items per batch.
        seed: With iteration and index, all that randomness depends on.
        ignore: Label value of voxels without annotation; with one, every window is centred on an annotated voxel.
        recipe: Gives the order of slices and the augmentation; of a slab of neighbouring slices an item holds, those
            beyond the volume are its last one.
        unlabelled: Stored images whose labels are not read; batches then have as many items of them as well.

    Attributes:
        variants: None, or how many windows and augmentations a slice comes in, so that features of it can be used
            again. A class on which a window is centred has variants of its own.
    """

    def __init__(
        self,
        cases: dict[str, StoredCase],
        configuration: ConfigurationPlan,
        network: NetworkPlan,
        batch_size: int,
        seed: int,
        ignore: int | None = None,
        recipe: type[Recipe] = Recipe,
        unlabelled: dict[str, StoredCase] | None = None,
    ) -> None:
        self.cases, self.batch_size = cases, batch_size
        self.names = sorted(cases)
        self.network = network
        self.foreground_share = configuration.foreground_share
        self.neighbours = network.input_channels == "neighbours"
        self.seed = seed
        self.ignore = ignore
        self.slices = slices = recipe.slices_for(network)
        self.labelled, self.unlabelled, self.first_index = True, None, 0
        if unlabelled:
            self.unlabelled = SliceLoader(unlabelled, configuration, network, batch_size, seed, recipe=recipe)
            self.unlabelled.labelled, self.unlabelled.first_index = False, batch_size
        self.variants: int | None = None
        masked = [channel for channel, used in enumerate(configuration.use_mask_for_norm) if used]
        self.masks_neighbours = self.neighbours and bool(masked)
        if self.masks_neighbours:
            masked = [0, 1, 2]
        channels = 3 if self.neighbours else len(configuration.use_mask_for_norm)
        masked = [channel + one * channels for one in range(slices) for channel in masked]
        self.planes = [SlicingPlane(tuple(axes)) for axes in configuration.planes]
        self.transforms = [
            recipe.transforms(
                shape=network.input_shape,
                mirror_axes=plane.mirrored(configuration.mirror_axes),
                masked=masked,
                per_channel=not self.neighbours and slices == 1,
                rotation=configuration.rotation,
                ignore=ignore,
                strong=network.augmentation == "strong",
            )
            for plane in self.planes
        ]
        self.synthesis = self._synthesis()
        self.slices_of_a_pass: list[tuple[int, int]] = []  # number of the case, and slice
        if recipe.passes:
            self.slices_of_a_pass = [
                (number, z) for number, name in enumerate(self.names) for z in _slices(cases[name], recipe.needs_target)
            ]

    @property
    def batches_of_a_pass(self) -> int | None:
        """How many batches hold every slice once; None where slices are drawn."""
        return -(-len(self.slices_of_a_pass) // self.batch_size) or None

    def batch(self, iteration: int) -> Batch:
        """Batch number ``iteration``: ``data`` ``(b, channels, H, W)`` float32, ``seg`` ``(b, H, W)`` int64.

        With several ``slices``, ``(b, slices, channels, H, W)`` and ``(b, slices, H, W)``. With ``unlabelled`` cases,
        ``unlabelled`` as ``data``.
        """
        indices = range(self.batch_size)
        chosen = [None for _ in indices]
        if self.slices_of_a_pass:
            passes, number = divmod(iteration, self.batches_of_a_pass)
            order = np.random.default_rng((self.seed, passes)).permutation(len(self.slices_of_a_pass))
            order = order[number * self.batch_size : (number + 1) * self.batch_size]
            chosen = [self.slices_of_a_pass[place] for place in order]
        items = [self._item(iteration, self.first_index + index, one) for index, one in enumerate(chosen)]
        seg = np.concatenate([item["seg"] for item in items]).astype(np.int64)
        batch = {"data": np.concatenate([item["data"] for item in items]), "seg": np.maximum(seg, 0)}
        if self.unlabelled:
            batch["unlabelled"] = self.unlabelled.batch(iteration)["data"]
        return batch

    def _item(self, iteration: int, index: int, chosen: tuple[int, int] | None = None) -> Batch:
        """An item; ``chosen`` says of which case and slice, where they are not to be drawn."""
        draw = np.random.default_rng((self.seed, iteration, index))
        number = chosen[0] if chosen else int(draw.integers(len(self.names)))
        side = int(draw.integers(len(self.planes))) if len(self.planes) > 1 else 0
        case = self.cases[self.names[number]].along(self.planes[side])
        depth, height, width = case.shape
        network = self.network
        grid = SliceGrid.of((height, width), case.spacing, network.spacing, network.input_shape, network.stretch)
        centre, value, key = None, None, (self.seed, iteration, index)
        places = {}
        if self.labelled and not chosen:
            places = self.places(case, draw.random() < self.foreground_share)
        if chosen:
            z = chosen[1]
        elif places:
            value = int(draw.choice(sorted(places)))
            z, *centre = (int(place) for place in places[value][draw.integers(len(places[value]))])
        else:
            z = int(draw.integers(depth))
        if self.variants is not None:
            around = value + 1 if value is not None and grid.is_free() else 0
            key = (self.seed, number, side, z, around, int(draw.integers(self.variants)))
            draw = np.random.default_rng(key)
            if centre:  # another place of the same slice, which depends on the variant
                inside = places[value][places[value][:, 0] == z]
                centre = [int(position) for position in inside[draw.integers(len(inside)), 1:]]
        start = _window_start(grid, centre, draw)
        around_it = slab(z, depth, self.slices)
        images = [slice_with_context(case.image, one, depth, self.neighbours) for one in around_it]
        labels = [self._label(case, one, images[0].shape[1:]) for one in around_it]
        if self.synthesis and self.labelled and side == 0:
            self._add_something_new(images, labels, case, (number, z), key)
        with seeded(*key):
            item = self.transforms[side](
                data=np.concatenate(images)[None], seg=np.concatenate(labels)[None], window=grid.window(start)
            )
        image, label = item["data"], item["seg"]
        if self.slices == 1:
            return {"data": image, "seg": label[:, len(labels[0]) // 2]}
        slabs = (1, self.slices, -1, *image.shape[2:])
        return {"data": image.reshape(slabs), "seg": label.reshape(slabs)[:, :, len(labels[0]) // 2]}

    def _synthesis(self) -> Synthesis | None:
        """Of the plan; None without one, or where the rule says that there are slices enough."""
        plan = self.network.synthesis
        share = planned_share(plan.share, sum(case.shape[0] for case in self.cases.values())) if plan else 0.0
        if not share:
            return None
        if self.slices > 1:
            raise UsageError(
                "`synthesis` makes single slices, but this network learns from several neighbouring ones at a time",
                "leave out `synthesis`, or plan another adaptation or recipe",
            )
        places = [(number, z) for number, name in enumerate(self.names) for z in _slices(self.cases[name], True)]
        return Synthesis(plan, Bank(places, self._exemplar, self.ignore), share)

    def _exemplar(self, place: tuple[int, int]) -> Exemplar:
        number, z = place
        case = self.cases[self.names[number]].along(self.planes[0])
        image = slice_with_context(case.image, z, case.shape[0], self.neighbours)
        return Exemplar(image, case.label(z, z + 1)[0], case.spacing)

    def _add_something_new(
        self,
        images: list[np.ndarray],
        labels: list[np.ndarray],
        case: StoredCase,
        place: tuple[int, int],
        key: tuple[int, ...],
    ) -> None:
        """Put something of the exemplars into a slice, if its own chance has it so."""
        middle = len(labels[0]) // 2  # where neighbours are masked, each has a label
        own = Exemplar(images[0], labels[0][middle], case.spacing)
        made = self.synthesis(own, place, np.random.default_rng((*key, _SYNTHESIS)))
        if made is not None:
            images[0], labels[0] = made.image, labels[0].copy()
            labels[0][middle] = made.label

    def _label(self, case: StoredCase, z: int, shape: tuple[int, ...]) -> np.ndarray:
        """Label of a slice, ``(1, y, x)``; where neighbours are masked, each by its own, as it was normalised."""
        if not self.labelled:
            return np.zeros((3 if self.masks_neighbours else 1, *shape), np.int16)
        return slice_with_context(
            lambda first, last: case.label(first, last)[None], z, case.shape[0], self.masks_neighbours
        )

    def places(self, case: StoredCase, foreground: bool) -> dict[int, np.ndarray]:
        """Places by class, of which one becomes the centre; none where any slice and window will do.

        Args:
            case: Where to look.
            foreground: Whether the item is one of those that are centred on a class.
        """
        if foreground:
            found = {value: places for value, places in case.class_locations.items() if value > 0}
            if found:
                return found
        # Elsewhere in a sparsely annotated volume, most windows would teach nothing.
        return case.class_locations if self.ignore is not None else {}


def _slices(case: StoredCase, with_target: bool) -> list[int]:
    """Indices of a case's slices: all, or those on which some class is."""
    if not with_target:
        return list(range(case.shape[0]))
    return sorted({int(z) for value, places in case.class_locations.items() if value > 0 for z in places[:, 0]})


def _window_start(grid: SliceGrid, centre: list[int] | None, draw: np.random.Generator) -> tuple[float, float]:
    """Where a window begins on the zoomed slice: around ``centre`` (a stored pixel), or anywhere."""
    start = []
    for axis, (low, high) in enumerate(grid.free_range()):
        position = draw.uniform(low, high)
        if centre is not None:
            wanted = (centre[axis] + 0.5) * grid.zoom[axis] - grid.input_shape[axis] / 2
            position = min(max(wanted, low), high)
        # Whole pixels: where nothing is enlarged, half of one would blur the image and lose single annotated pixels.
        start.append(min(max(round(position), low), high))
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
                    with interrupts_held():
                        waiting.append(pool.submit(_worker_batch, iteration))
                    iteration += 1
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise SamunetError(
                "a process that prepares batches was killed, most likely because memory ran out",
                "the same command goes on from the last checkpoint; use fewer processes: `num_workers=1`",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker_loader: SliceLoader | None = None


def _start_worker(loader: SliceLoader) -> None:
    global _worker_loader
    import torch

    prepare_worker()
    # After a signal the training takes its last step, saves, and then ends its workers itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    _worker_loader = loader


def _worker_batch(iteration: int) -> Batch:
    return _worker_loader.batch(iteration)
