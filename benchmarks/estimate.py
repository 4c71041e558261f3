"""How long a training was announced to take, and how long it took.

    samunet_plan_and_preprocess -d 027
    python benchmarks/estimate.py 027 --iterations 200 --json result.json
    python benchmarks/estimate.py 027 --time_budget 5m

One fold of a dataset that was planned is trained and validated by the code that users run, into a folder that is
removed afterwards. What ``samunet_train`` announced after its first steps stands beside what was measured in the end:
seconds of the training, or under a budget of time its iterations; seconds of a step; seconds of the validation. An
announcement is good where it is at most 15 % off. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from timed import machine

LIMIT = 0.15


def compare(run: dict[str, Any], points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Announced and measured by name, with how far the announcement is off, relative to what was measured.

    Args:
        run: A fold's ``run.json``.
        points: Its ``training_log.json``.
    """
    said = run["estimate"]
    # Of all points but the first, which hold the device's preparations: images of each, and the seconds they took.
    rated = [
        (entry["iteration"] - before["iteration"], entry["images_per_second"])
        for before, entry in zip(points, points[1:])
        if before["iteration"] >= 2
    ]
    batch = run["setup"]["batch_size"]
    steps, seconds = sum(count for count, _ in rated), sum(count * batch / rate for count, rate in rated)
    pairs = {"seconds of a step": (said["step"], seconds / steps)} if steps else {}
    if run["setup"]["time_budget"]:
        pairs["iterations"] = (said["iterations"], run["iterations"])
    else:
        pairs["seconds of the training"] = (said["training"], run["training_seconds"])
    if run.get("validation_seconds"):
        pairs["seconds of the validation"] = (said["validation"], run["validation_seconds"])
    return {
        name: {"announced": announced, "measured": round(measured, 4), "off": round(announced / measured - 1, 4)}
        for name, (announced, measured) in pairs.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Train once and compare; 1 if an announcement is more than 15 % off."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("dataset", help="27, 027 or Dataset027_ACDC; planned and preprocessed")
    parser.add_argument("configuration", nargs="?", default="2d")
    parser.add_argument("--fold", type=int, default=0)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--iterations", type=int, default=None)
    length.add_argument("--time_budget", default=None, metavar="T")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)

    from samunet import api
    from samunet.files import read_json, write_json
    from samunet.training.schedule import parse_duration
    from samunet.workers import default_workers

    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("samunet").setLevel(logging.INFO)
    quiet = machine()
    seconds = parse_duration(arguments.time_budget) if arguments.time_budget else None
    options = api.TrainingOptions(
        iterations=None if seconds else arguments.iterations or 200, seconds=seconds, num_workers=default_workers()
    )
    before = os.environ.get("samunet_results")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["samunet_results"] = scratch
        try:
            folder = api.train(arguments.dataset, arguments.configuration, arguments.fold, options)
            run, points = read_json(folder / "run.json"), read_json(folder / "training_log.json")
        finally:
            if before is None:
                del os.environ["samunet_results"]
            else:
                os.environ["samunet_results"] = before
    found = compare(run, points)
    print(f"{'':<28}{'announced':>12}{'measured':>12}{'off':>8}")
    for name, row in found.items():
        print(f"{name:<28}{row['announced']:>12.2f}{row['measured']:>12.2f}{row['off']:>+8.0%}")
    if arguments.json:
        facts = {key: run[key] for key in ("dataset", "configuration", "encoder", "device", "threads", "dtype")}
        write_json(arguments.json, facts | {"machine": quiet, "estimate": run["estimate"], "compared": found})
    return int(any(abs(row["off"]) > LIMIT for row in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
