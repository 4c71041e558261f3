"""``samunet_ensemble``: masks from the mean of saved probabilities."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_overwrite, add_workers


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_ensemble",
        description="Average the probabilities of several predictions of the same images, and write the masks.",
    )
    parser.add_argument(
        "-i",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folders made by samunet_predict --save_probabilities",
    )
    parser.add_argument("-o", type=Path, required=True, metavar="OUTPUT", help="another folder for the masks")
    parser.add_argument("--save_npz", action="store_true", help="also write the mean probabilities as CASE.npz")
    parser.add_argument(
        "-decoding",
        choices=("argmax", "dice"),
        default="argmax",
        help="dice: masks of the highest expected Dice (default: argmax)",
    )
    add_overwrite(parser)
    add_workers(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api
    from samunet.workers import default_workers

    done = api.ensemble(
        arguments.i,
        arguments.o,
        save_probabilities=arguments.save_npz,
        decoding=arguments.decoding,
        overwrite=arguments.overwrite,
        num_workers=default_workers() if arguments.np is None else arguments.np,
    )
    print(f"{len(done)} masks written to {arguments.o}")
