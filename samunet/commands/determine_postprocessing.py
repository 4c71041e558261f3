"""``samunet_determine_postprocessing``: which postprocessing helps a folder of masks."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_geometry, add_workers


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_determine_postprocessing",
        description="Find which largest components to keep, from masks of cases that the model had not seen, and write "
        "postprocessing.json into their folder.",
    )
    parser.add_argument("-i", type=Path, required=True, metavar="MASKS", help="folder with the masks")
    parser.add_argument("-ref", type=Path, required=True, metavar="LABELS", help="folder with their labels")
    parser.add_argument("-dataset_json", type=Path, metavar="FILE", help="default: the one in MASKS")
    parser.add_argument("-plans_json", type=Path, metavar="FILE", help="accepted as in nnU-Net; not needed")
    parser.add_argument(
        "--remove_postprocessed", action="store_true", help="write no postprocessed masks, only postprocessing.json"
    )
    add_geometry(parser, "where a mask and its label differ in origin or direction")
    add_workers(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api
    from samunet.evaluation.bootstrap import mean_dice
    from samunet.inference.postprocessing import FILE_NAME
    from samunet.workers import default_workers

    chosen = api.determine_postprocessing(
        predictions=arguments.i,
        references=arguments.ref,
        dataset_json=arguments.dataset_json,
        keep_masks=not arguments.remove_postprocessed,
        tolerate_geometry=arguments.tolerate_geometry,
        num_workers=default_workers() if arguments.np is None else arguments.np,
    )
    print(f"postprocessing: {chosen.postprocessing.describe()}")
    print(f"mean Dice: {mean_dice(chosen.before):.4f} without, {mean_dice(chosen.after):.4f} with")
    print(f"written to: {arguments.i / FILE_NAME}")
