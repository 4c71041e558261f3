"""Pretraining of the small encoder on randomised synthetic images, in pieces.

PYTHONPATH=tools python -m bundled_weights --out pretraining --time_budget 2h
PYTHONPATH=tools python -m bundled_weights --out pretraining --time_budget 20m --final_decay
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from bundled_weights.images import OBJECTIVES, SyntheticImages, SyntheticOptions
from samunet.commands.flags import DEVICE, SEED, finite
from samunet.commands.table import Command, Flag, Group, Switch
from samunet.training.pretraining.run import pretrain
from samunet.training.schedule import parse_duration


def _run(**flags: Any) -> None:
    arguments = argparse.Namespace(**flags)
    given = {
        "objective": arguments.objective,
        "iterations": arguments.iterations,
        "seconds": parse_duration(arguments.time_budget) if arguments.time_budget else None,
        "batch_size": arguments.batch_size,
        "image_sizes": arguments.image_size and tuple(arguments.image_size),
        "learning_rate": arguments.lr,
        "final_decay": arguments.final_decay,
        "seed": arguments.seed,
        "device": arguments.device,
    }
    options = SyntheticOptions(**{key: value for key, value in given.items() if value is not None})
    print(f"weights: {pretrain(arguments.out, options, SyntheticImages(arguments.checkpoint))}")
    if not arguments.final_decay:
        start = ["--checkpoint", str(arguments.checkpoint)] if arguments.checkpoint else []
        decay = ["python", "-m", "bundled_weights", "--out", str(arguments.out), *start, "--final_decay"]
        print(f"next: PYTHONPATH=tools {shlex.join([*decay, '--time_budget', '30m'])}")
        print("(or the same command again, to go on at a constant rate)")


COMMAND = Command(
    "bundled_weights",
    "pretrain the small encoder on randomised synthetic images; goes on from what the folder holds",
    (
        Flag("--checkpoint", type=Path, metavar="FILE", help="of an earlier pretraining (default: random weights)"),
        Flag("--out", type=Path, required=True, metavar="FOLDER", help="for checkpoints, log and weights"),
        Group(
            None,
            Flag("--time_budget", metavar="T", help="length of this piece: 90s, 20m, 1.5h"),
            Flag("--iterations", type=int, metavar="N", help="updates over all pieces, or of the final decay"),
        ),
        Flag("--objective", choices=OBJECTIVES, help="what the encoder is asked (default: dense)"),
        Switch("--final_decay", help="bring the rate to zero over this piece"),
        Flag("--batch_size", type=int, metavar="N", help="images of the largest size per update (default: 12)"),
        Flag(
            "--image_size",
            type=int,
            nargs="+",
            metavar="PX",
            help="sides of the images, in turn; of smaller images a batch has as many more (default: 112 224)",
        ),
        Flag("--lr", type=finite, help="learning rate (default: 5e-4)"),
        SEED,
        DEVICE,
    ),
    _run,
)
main = COMMAND


if __name__ == "__main__":
    sys.exit(main())
