"""Time samunet's spatial transform against batchgenerators' own, on the same slice in one run.

    python benchmarks/augmentation.py [--size 224] [--channels 3] [--repeats 100] [--json FILE]

Both rotate and scale every image (probability 1) and cut out the network's input, bilinearly, with the label beside it.
Calls alternate, so that a busy machine slows both; the figures are milliseconds per image.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import date

import numpy as np
import torch
from batchgenerators.transforms.spatial_transforms import SpatialTransform

from samunet.training.augmentation import AffineWindowTransform, seeded


def milliseconds(transform, item: dict[str, np.ndarray], seed: int) -> float:
    """Time of one call on a copy of ``item``."""
    copy = {key: value.copy() for key, value in item.items()}
    with seeded(seed):
        begin = time.perf_counter()
        transform(**copy)
        return 1000 * (time.perf_counter() - begin)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    size = (arguments.size, arguments.size)
    rng = np.random.default_rng(0)
    item = {
        "data": rng.standard_normal((1, arguments.channels, *size)).astype(np.float32),
        "seg": rng.integers(0, 4, (1, 1, *size)).astype(np.int16),
        "window": np.eye(3),
    }
    ours = AffineWindowTransform(size, p_rotation=1, p_scale=1)
    theirs = SpatialTransform(
        size, do_elastic_deform=False, angle_x=(-np.pi, np.pi), scale=(0.7, 1.4), order_data=1, order_seg=1,
        border_mode_data="constant", random_crop=False,
    )  # fmt: skip
    times: dict[str, list[float]] = {"samunet": [], "batchgenerators": []}
    for index in range(arguments.repeats + 3):
        for name, transform in (("samunet", ours), ("batchgenerators", theirs)):
            elapsed = milliseconds(transform, item, index)
            if index >= 3:  # the first calls warm up
                times[name].append(elapsed)
    result = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "size": arguments.size,
        "channels": arguments.channels,
        "median_ms": {name: round(statistics.median(values), 2) for name, values in times.items()},
    }
    result["ratio"] = round(result["median_ms"]["batchgenerators"] / result["median_ms"]["samunet"], 1)
    print(json.dumps(result, indent=2))
    if arguments.json:
        with open(arguments.json, "w") as stream:
            json.dump(result, stream, indent=2)


if __name__ == "__main__":
    main()
