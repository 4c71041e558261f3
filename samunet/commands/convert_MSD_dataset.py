"""``samunet_convert_MSD_dataset``: a task of the Medical Segmentation Decathlon as a raw dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands import converting
from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_convert_MSD_dataset", description="Make a dataset of a task of the Medical Segmentation Decathlon."
    )
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="the task, such as Task04_Hippocampus")
    parser.add_argument("-overwrite_id", type=int, metavar="ID", help="another number than the task's")
    converting.add_writing(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on=converting.NOTHING_WRITTEN)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.conversion.msd import draft_of_msd, msd_name

    name = converting.free_name(msd_name(arguments.i, arguments.overwrite_id), arguments)
    draft = draft_of_msd(name, arguments.i, converting.options(arguments))
    converting.finish(draft, arguments, "samunet_convert_MSD_dataset")
