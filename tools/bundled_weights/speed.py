"""How fast a pretraining on synthetic images is: images a second, and which share of an update its images take to make.

    PYTHONPATH=tools python -m bundled_weights.speed --objective dense mix --updates 40

Every objective trains the small encoder from random weights, as the command does, in turn with the others: a round of
eight updates each, which is a batch of every kind. The first round of each warms up and is not counted. Images are made
in the same process as they are trained on; their share is the time that making them took over the time of the whole.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from bundled_weights.images import OBJECTIVES, SyntheticImages, SyntheticOptions
from samunet.training.pretraining.options import PERIOD, PretrainingOptions
from samunet.training.pretraining.run import Pretraining


class TimedImages(SyntheticImages):
    """Synthetic images that know how long they took."""

    seconds = 0.0

    def batch(self, options: PretrainingOptions, iteration: int, device: torch.device):
        """See :class:`samunet.training.pretraining.run.Work`."""
        synchronize(device)
        start = time.perf_counter()
        made = super().batch(options, iteration, device)
        synchronize(device)
        self.seconds += time.perf_counter() - start
        return made


class Contestant:
    """A pretraining that is run for some updates at a time."""

    def __init__(self, objective: str, batch_size: int, device: str) -> None:
        self.images = TimedImages()
        options = SyntheticOptions(objective=objective, iterations=1, batch_size=batch_size, device=device)
        self.pretraining = Pretraining(Path(tempfile.gettempdir()), options, self.images)
        self.batches = self.pretraining.batches()
        self.forget()

    def forget(self) -> None:
        """Count anew from here."""
        self.seconds = self.images.seconds = 0.0
        self.seen = self.updates = 0

    def run(self, updates: int) -> None:
        """Go on by so many updates."""
        state, options = self.pretraining.state, self.pretraining.options
        start = time.perf_counter()
        for _ in range(updates):
            self.pretraining._step(next(self.batches))
            self.seen += options.shape(state.iteration)[0]
            state.iteration += 1
        synchronize(self.pretraining.device)
        self.seconds += time.perf_counter() - start
        self.updates += updates

    def result(self) -> dict:
        """Of the updates since :meth:`forget`."""
        return {
            "updates": self.updates,
            "images": self.seen,
            "images_per_second": round(self.seen / self.seconds, 1),
            "seconds_per_update": round(self.seconds / self.updates, 4),
            "share_of_making_images": round(self.images.seconds / self.seconds, 3),
        }


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> dict:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=["dense"])
    parser.add_argument("--updates", type=int, default=40, help="of each objective, in rounds of eight (default: 40)")
    parser.add_argument("--batch_size", type=int, default=SyntheticOptions.batch_size)
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: a GPU if there is one)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parsed = parser.parse_args(arguments)
    round_length = PERIOD * len(SyntheticOptions.image_sizes)
    contestants = {name: Contestant(name, parsed.batch_size, parsed.device) for name in parsed.objective}
    for number in range(1 + max(1, round(parsed.updates / round_length))):
        for contestant in contestants.values():
            contestant.run(round_length)
            if number == 0:
                contestant.forget()
    result = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "device": str(next(iter(contestants.values())).pretraining.device),
        "threads": torch.get_num_threads(),
        "batch_size": parsed.batch_size,
        "objectives": {name: contestant.result() for name, contestant in contestants.items()},
    }
    print(json.dumps(result, indent=2))
    if parsed.json:
        parsed.json.write_text(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
