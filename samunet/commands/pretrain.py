"""``samunet_pretrain``: pretrain the bundled encoder on synthetic images, in as many pieces as there is time for."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import add_common_flags, run_command
from samunet.pretraining.options import OBJECTIVES


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        "samunet_pretrain",
        description="Pretrain the bundled encoder on randomised synthetic images; goes on from what the folder holds.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for checkpoints, log and weights")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--time_budget", metavar="T", help="length of this piece: 90s, 20m, 1.5h")
    length.add_argument("--iterations", type=int, metavar="N", help="updates over all pieces, or of the final decay")
    parser.add_argument(
        "--objective", default="mix", choices=OBJECTIVES, help="what the encoder is asked (default: mix)"
    )
    parser.add_argument("--final_decay", action="store_true", help="bring the rate to zero over this piece")
    parser.add_argument(
        "--batch_size", type=int, default=12, metavar="N", help="images of the largest size per update (default: 12)"
    )
    parser.add_argument(
        "--image_size", type=int, nargs="+", default=[112, 224], metavar="PX",
        help="sides of the images, in turn; of smaller images a batch has as many more (default: 112 224)",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate (default: 5e-4)")
    parser.add_argument("--seed", type=int, default=12345, help="all randomness depends on it (default: 12345)")
    parser.add_argument("-device", default="auto", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.pretraining.options import PretrainingOptions
    from samunet.pretraining.run import pretrain
    from samunet.training.schedule import parse_duration

    options = PretrainingOptions(
        objective=arguments.objective,
        iterations=arguments.iterations,
        seconds=parse_duration(arguments.time_budget) if arguments.time_budget else None,
        batch_size=arguments.batch_size,
        image_sizes=tuple(arguments.image_size),
        learning_rate=arguments.lr,
        final_decay=arguments.final_decay,
        seed=arguments.seed,
        device=arguments.device,
    )
    weights = pretrain(arguments.out, options)
    print(f"weights: {weights}")
    if not arguments.final_decay:
        print(f"next: the same again to go on, or samunet_pretrain --out {arguments.out} --final_decay --time_budget T")
