"""Pretraining of the small encoder on randomised synthetic images, in pieces.

PYTHONPATH=tools python -m bundled_weights --out pretraining --time_budget 2h
PYTHONPATH=tools python -m bundled_weights --out pretraining --time_budget 20m --final_decay
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bundled_weights.images import OBJECTIVES, SyntheticImages, SyntheticOptions
from samunet.commands.common import CommandParser, add_common_flags, finite, run_command
from samunet.training.pretraining.run import pretrain
from samunet.training.schedule import parse_duration


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = CommandParser(
        "bundled_weights",
        description="Pretrain the small encoder on randomised synthetic images; goes on from what the folder holds.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="weights of an earlier pretraining (default: random ones)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for checkpoints, log and weights")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--time_budget", metavar="T", help="length of this piece: 90s, 20m, 1.5h")
    length.add_argument("--iterations", type=int, metavar="N", help="updates over all pieces, or of the final decay")
    parser.add_argument("--objective", choices=OBJECTIVES, help="what the encoder is asked (default: dense)")
    parser.add_argument("--final_decay", action="store_true", help="bring the rate to zero over this piece")
    parser.add_argument(
        "--batch_size", type=int, metavar="N", help="images of the largest size per update (default: 12)"
    )
    parser.add_argument(
        "--image_size", type=int, nargs="+", metavar="PX",
        help="sides of the images, in turn; of smaller images a batch has as many more (default: 112 224)",
    )  # fmt: skip
    parser.add_argument("--lr", type=finite, help="learning rate (default: 5e-4)")
    parser.add_argument("--seed", type=int, default=12345, help="all randomness depends on it (default: 12345)")
    parser.add_argument("-device", default="auto", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
