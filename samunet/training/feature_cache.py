"""Features of a frozen encoder on disk: one file for each image, under a limit; what is missing is computed again.

So that features are used again, window and augmentation of a slice are those of one of a few variants of it.
Nothing depends on what is in the cache: features that were just computed are rounded as stored ones are, and on a CPU
every image is computed alone, because the last digit depends on how many are computed together.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samunet.errors import SamunetError, UsageError
from samunet.files import atomic_path, make_folder, read_json, remove_leftovers, write_json
from samunet.network.encoders import Features
from samunet.network.heads import DetailHead
from samunet.network.model import SamunetModel
from samunet.plans import NetworkPlan, fingerprint_of
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.store import StoredCase
from samunet.training.loader import SliceLoader
from samunet.training.options import format_size

log = logging.getLogger(__name__)

_RECORD = "features.json"
_ENDING = ".npy"
RESERVE_BYTES = 10**9  # left free on the disk, for checkpoints and other programs
_HALF_MAX = 65504.0
_MOST_VARIANTS = 8
_LEAST_USES = 4  # of a variant on average: one that is used once saves nothing


def check_frozen(network: NetworkPlan) -> None:
    """Refuse a plan that trains anything before the encoder's output.

    Raises:
        UsageError: Says what trains.
    """
    trained = ""
    if network.components != "decoder":
        trained = f"these plans train the encoder ({network.adaptation.method})"
    elif network.input_channels == "projection":
        trained = "the combination of this dataset's channels, which comes before the encoder, is trained"
    if trained:
        raise UsageError(f"`feature_cache`: {trained}", "leave it out, or plan with `components='decoder'`")


class CachedEncoder:
    """Computes what a frozen image encoder's ``features`` computes, with a cache on disk.

    Makes the loader draw from a limited number of variants of every slice, as many as the cache holds.

    Args:
        model: Its encoder must be frozen; see :func:`check_frozen`.
        loader: Of the training.
        folder: For the cache.
        limit: Bytes that it may take.
        dtype: What autocast computes in, or None for float32. Features are stored in half precision with the former,
            unless they have values beyond its range, and exactly with the latter.
        draws: Images that the training will draw; None if that is not known.
        monitored: Cases of which every slice passes the network again and again.
    """

    def __init__(
        self,
        model: SamunetModel,
        loader: SliceLoader,
        folder: Path,
        limit: int,
        *,
        dtype: torch.dtype | None,
        draws: int | None,
        monitored: Iterable[StoredCase] = (),
    ) -> None:
        self.model, self.dtype = model, dtype
        self.detailed = isinstance(model.head, DetailHead)  # other heads want nothing but the embedding
        self.cache = FeatureCache(folder, fingerprint_of(_digest(model), str(dtype), torch.__version__), limit)
        self.shapes: list[torch.Size] = []
        self.numbers = (0, 0)  # of taps and of details
        device = next(model.parameters()).device
        size = self._compute(torch.zeros(1, 3, *loader.network.input_shape, device=device))[0].nbytes + 128
        images = images_per_variant(loader)
        room = limit - sum(case.shape[0] for case in monitored) * size
        self.variants = loader.variants = choose_variants(images, room // size, draws)
        self.images = self.variants * images
        self.read, self.computed = 0, 0
        log.info(
            "feature cache: %d images in %d variants each, and those of the monitored cases, take about %s of %s "
            "allowed, in %s until the fold is trained",
            self.images, self.variants, format_size(self.images * size + limit - room), format_size(limit), folder,
        )  # fmt: skip

    def __call__(self, prepared: Tensor) -> Features:
        """The encoder's output for ``(batch, 3, height, width)`` from the input layer."""
        keys = [_hash(image.numpy()) for image in prepared.detach().cpu()]
        found = [self.cache.read(key, (sum(shape.numel() for shape in self.shapes),)) for key in keys]
        missing = [index for index, features in enumerate(found) if features is None]
        if missing:
            for index, features in zip(missing, self._compute(prepared[missing])):
                found[index] = features
                self.cache.write(keys[index], features)
        self.computed, self.read = self.computed + len(missing), self.read + len(keys) - len(missing)
        numbers = torch.from_numpy(np.stack(found)).to(prepared.device).float()
        parts = numbers.split([shape.numel() for shape in self.shapes], dim=1)
        embedding, *others = (part.unflatten(1, shape) for part, shape in zip(parts, self.shapes))
        return Features(embedding, others[: self.numbers[0]], others[self.numbers[0] :])

    def saved_seconds(self, images: Tensor, draws: float) -> float:
        """Seconds that each image takes less than if its features were computed, on average over so many draws."""
        begin = time.monotonic()
        self._compute(self.model.input_layer(images))
        seconds = (time.monotonic() - begin) / len(images)
        different = self.images * (1 - math.exp(-draws / self.images))
        return seconds * (1 - different / draws)

    def close(self) -> dict[str, int]:
        """Remove the cache; returns what was read and computed since the training was last begun, for ``run.json``."""
        self.cache.remove()
        counts = {"images_read": self.read, "images_computed": self.computed}
        return {"variants": self.variants, **counts, "bytes": self.cache.bytes}

    @torch.no_grad()
    def _compute(self, prepared: Tensor) -> list[np.ndarray]:
        """Features of every image, one after the other in one row, in the number format in which they are stored."""
        device, half = prepared.device.type, self.dtype is not None
        rows = []
        for part in prepared.split(1 if device == "cpu" else len(prepared)):
            with torch.autocast(device, self.dtype or torch.bfloat16, enabled=half):
                features = self.model.image_encoder.features(part)
            kept = [features.taps, features.details] if self.detailed else [(), ()]
            tensors = [features.embedding, *kept[0], *kept[1]]
            self.numbers = (len(kept[0]), len(kept[1]))
            self.shapes = [tensor.shape[1:] for tensor in tensors]
            rows += torch.cat([tensor.float().flatten(1) for tensor in tensors], dim=1)
        fits = [half and float(row.abs().max()) <= _HALF_MAX for row in rows]
        return [(row.half() if fit else row).cpu().numpy() for row, fit in zip(rows, fits)]


def images_per_variant(loader: SliceLoader) -> int:
    """How many different images there are for each variant: slices, and with free windows their classes as well."""
    count, network = 0, loader.network
    for case in (case.along(plane) for case in loader.cases.values() for plane in loader.planes):
        depth, *shape = case.shape
        always = loader.places(case, False)  # with an ignore label every window is centred on a class
        slices = [set(places[:, 0].tolist()) for places in (always or loader.places(case, True)).values()]
        anywhere = set() if always else set(range(depth))
        grid = SliceGrid.of(tuple(shape), case.spacing, network.spacing, network.input_shape, network.stretch)
        count += sum(map(len, [anywhere, *slices])) if grid.is_free() else len(anywhere.union(*slices))
    return count


def choose_variants(images: int, fitting: int, draws: int | None) -> int:
    """Variants of every slice: as many as fit, at most 8, and so few that each is used four times on average.

    Args:
        images: From :func:`images_per_variant`.
        fitting: Images for whose features there is room.
        draws: Images drawn in the whole training; None if that is not known.
    """
    wanted = [_MOST_VARIANTS, fitting // images]
    if draws is not None:
        wanted.append(draws // (_LEAST_USES * images))
    return max(1, min(wanted))


def _hash(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).hexdigest()


def _digest(model: SamunetModel) -> str:
    """A hash of every value that an image's features depend on."""
    layer = [model.input_layer.mean.tolist(), model.input_layer.std.tolist()]
    state = model.image_encoder.state_dict()
    flat = {name: value.cpu().contiguous().flatten() for name, value in state.items()}
    return fingerprint_of(layer, {name: _hash(value.view(torch.uint8).numpy()) for name, value in flat.items()})


class FeatureCache:
    """A folder of arrays that only one process writes to: whoever holds the lock of the fold it lies in.

    Args:
        folder: Made if it is missing. What was made with another key is removed.
        key: A hash of everything but the image that the features depend on.
        limit: Bytes that the files may take.
    """

    def __init__(self, folder: Path, key: str, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.accepts = True
        if not _made_with(folder, key):
            if folder.exists():
                log.info("%s was made with other weights or another number format: removed", folder)
                _remove(folder)
            make_folder(folder)
            write_json(folder / _RECORD, {"key": key})
        remove_leftovers(folder, age=0)
        self._sizes = {path.stem: path.stat().st_size for path in folder.glob(f"[!.]*{_ENDING}")}
        self.bytes = sum(self._sizes.values())
        self._shrink(limit)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
        """An array; None if it is not there, damaged, or not of ``shape``."""
        if name not in self._sizes:
            return None
        try:
            array = np.load(self._path(name), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return array if shape is None or array.shape == shape else None

    def write(self, name: str, array: np.ndarray) -> None:
        """Keep an array, unless that passes the limit or the disk has no room: then nothing is kept from now on."""
        size = array.nbytes + 128  # numpy's header
        if not self.accepts or self.bytes - self._sizes.get(name, 0) + size > self.limit:
            self._stop(f"the feature cache is at its limit, {format_size(self.limit)}; the rest is computed every time")
            return
        free = shutil.disk_usage(self.folder).free
        if free < RESERVE_BYTES + size:
            self._stop(f"the disk of {self.folder} has only {format_size(free)} left: the feature cache takes no more")
            return
        try:
            with atomic_path(self._path(name)) as temporary:
                np.save(temporary, array, allow_pickle=False)
        except SamunetError as error:
            # A quota, which the free space does not tell of: the next checkpoint needs some of it.
            self._shrink(max(0, self.bytes - RESERVE_BYTES))
            self._stop(f"{error.message}; the feature cache takes no more and keeps {format_size(self.bytes)}")
            return
        self.bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def remove(self) -> None:
        """Delete the folder."""
        try:
            _remove(self.folder)
        except SamunetError as error:
            log.warning("%s; %s", error.message, error.hint)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_ENDING}"

    def _stop(self, message: str) -> None:
        if self.accepts:
            log.warning("%s; the training goes on", message)
        self.accepts = False

    def _shrink(self, enough: int) -> None:
        while self._sizes and self.bytes > enough:
            name, size = self._sizes.popitem()
            self._path(name).unlink(missing_ok=True)
            self.bytes -= size


def _made_with(folder: Path, key: str) -> bool:
    try:
        return read_json(folder / _RECORD) == {"key": key}
    except SamunetError:
        return False


def _remove(folder: Path) -> None:
    try:
        (folder / _RECORD).unlink(missing_ok=True)  # first: what a kill leaves behind is then still stale
        shutil.rmtree(folder)
    except OSError as error:
        raise SamunetError(f"could not remove {folder}: {error.strerror}", "delete this folder by hand") from error
