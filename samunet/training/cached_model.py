"""The network with what its frozen first part makes of an image kept on disk.

Nothing depends on what is in the cache: features that were just computed are rounded as stored ones are, and on a CPU
every image is computed alone, because the last digit depends on how many are computed together.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samunet.encoders import encoder_facts
from samunet.errors import UsageError
from samunet.network.encoders import Features
from samunet.network.frozen_prefix import FrozenPrefix
from samunet.network.heads import DetailHead
from samunet.network.model import SamunetModel
from samunet.plans import NetworkPlan, fingerprint_of
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.store import StoredCase
from samunet.training.feature_cache import FeatureCache
from samunet.training.loader import SliceLoader
from samunet.training.options import format_size
from samunet.training.variants import image_keys

log = logging.getLogger(__name__)

_HALF_MAX = 65504.0
_MOST_VARIANTS = 8
_LEAST_USES = 4  # of a variant on average: one that is used once saves nothing


def check_frozen(network: NetworkPlan) -> None:
    """Refuse a plan with which no block of the encoder comes before everything that trains.

    Raises:
        UsageError: Says what trains first and which plans have a frozen part.
    """
    settings = network.lora or network.adapter
    blocks = settings.blocks if settings else "all"
    frozen = network.components == "decoder"
    if network.adaptation != "full" and (blocks == "last_half" or (blocks != "all" and min(blocks) > 0)):
        frozen = True
    # MobileSAM's first stage is convolutional: no LoRA and no adapter begins before it.
    frozen |= network.adaptation != "full" and bool(encoder_facts(network.encoder).stages)
    if network.input_channels == "projection":
        raise UsageError(
            "--feature_cache: the trained combination of this dataset's channels comes before the encoder, so no "
            "features stay as they are",
            "leave it out",
        )
    if not frozen:
        raise UsageError(
            f"--feature_cache: these plans train the encoder from its first block on ({network.adaptation})",
            "leave it out, or plan with -components decoder, -lora_blocks last_half or -adapter_blocks last_half",
        )


class CachedModel:
    """Computes what :class:`samunet.network.model.SamunetModel` computes, with a cache between frozen and trained.

    Makes the loader draw from a limited number of variants of every slice, as many as the cache holds.

    Args:
        model: Its encoder must begin with frozen stages; see :func:`check_frozen`.
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
        self.model = model
        self.prefix = FrozenPrefix(model.image_encoder, embedding_only=not isinstance(model.head, DetailHead))
        self.dtype = dtype
        input_layer = [tensor.tolist() for tensor in (model.input_layer.mean, model.input_layer.std)]
        key = fingerprint_of(self.prefix.digest(), input_layer, str(dtype), torch.__version__)
        self.cache = FeatureCache(folder, key, limit)
        self.shapes: list[torch.Size] = []
        size = self._measure(loader)
        images = images_per_variant(loader)
        room = limit - sum(case.shape[0] for case in monitored) * size
        loader.variants = choose_variants(images, room // size, draws)
        self.variants = loader.variants
        self.images = loader.variants * images
        self.stored = 0  # images that came from the cache
        self.computed = 0
        log.info(
            "feature cache: %d of the encoder's %d parts are frozen; %d images in %d variants each, and those of the "
            "monitored cases, take about %s of %s allowed, in %s until the fold is trained",
            self.prefix.count, self.prefix.total, images, loader.variants,
            format_size(self.images * size + limit - room), format_size(limit), folder,
        )  # fmt: skip

    def __call__(self, image: Tensor, *, upsample: bool = True) -> Tensor:
        """As :meth:`samunet.network.model.SamunetModel.forward`; the images' keys are computed from them."""
        return self.with_keys(image_keys(image.cpu().numpy()))(image, upsample=upsample)

    def with_keys(self, keys: np.ndarray) -> Callable[..., Tensor]:
        """The network for images whose :func:`samunet.training.variants.image_keys` are known."""
        return partial(self.model, encode=partial(self._encode, list(keys)))

    def saved_seconds(self, images: Tensor, draws: float) -> float:
        """Seconds that each image takes less than if its features were computed, on average over so many draws."""
        begin = time.monotonic()
        self._features(self.model.input_layer(images))
        seconds = (time.monotonic() - begin) / len(images)
        different = self.images * (1 - math.exp(-draws / self.images))
        return seconds * (1 - different / draws)

    def close(self) -> dict[str, int]:
        """Remove the cache; returns what was read and computed since the training was last begun, for ``run.json``."""
        self.cache.remove()
        counts = {"images_read": self.stored, "images_computed": self.computed}
        return {"variants": self.variants, **counts, "bytes": self.cache.bytes}

    def _encode(self, keys: list[str], prepared: Tensor) -> Features:
        length = sum(shape.numel() for shape in self.shapes)
        found = [self.cache.read(key, (length,)) for key in keys]
        missing = [index for index, features in enumerate(found) if features is None]
        if missing:
            for index, features in zip(missing, self._features(prepared[missing])):
                found[index] = features
                self.cache.write(keys[index], features)
        self.computed += len(missing)
        self.stored += len(keys) - len(missing)
        numbers = torch.from_numpy(np.stack(found)).to(prepared.device).float()
        parts = numbers.split([shape.numel() for shape in self.shapes], dim=1)
        return self.prefix.finish(tuple(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)))

    def _features(self, prepared: Tensor) -> list[np.ndarray]:
        """Features of every image, one after the other in one row, in the number format in which they are stored."""
        device, half = prepared.device.type, self.dtype is not None
        together = 1 if device == "cpu" else len(prepared)
        with torch.autocast(device, self.dtype or torch.bfloat16, enabled=half):
            states = [self.prefix.features(part) for part in prepared.split(together)]
        self.shapes = [tensor.shape[1:] for tensor in states[0]]
        rows = [torch.cat([tensor.float().flatten(1) for tensor in state], dim=1) for state in states]
        computed = [image for part in rows for image in part]
        fits = [half and float(image.abs().max()) <= _HALF_MAX for image in computed]
        return [(image.half() if fit else image).cpu().numpy() for image, fit in zip(computed, fits)]

    def _measure(self, loader: SliceLoader) -> int:
        """Bytes that an image's features take; notes their shapes."""
        device = next(self.model.parameters()).device
        features = self._features(torch.zeros(1, 3, *loader.network.input_shape, device=device))[0]
        return features.nbytes + 128


def images_per_variant(loader: SliceLoader) -> int:
    """How many different images there are for each variant: slices, and with free windows their classes as well."""
    count, network = 0, loader.network
    for case in (case.along(plane) for case in loader.cases.values() for plane in loader.planes):
        depth, *shape = case.shape
        always = loader.places(case, False)  # with an ignore label every window is centred on a class
        slices = [set(places[:, 0].tolist()) for places in (always or loader.places(case, True)).values()]
        anywhere = set() if always else set(range(depth))
        grid = SliceGrid.of(tuple(shape), case.spacing, network.spacing, network.input_shape)
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
