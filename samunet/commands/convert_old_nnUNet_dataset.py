"""``samunet_convert_old_nnUNet_dataset``: a task of nnU-Net v1 as a raw dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands import converting
from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_convert_old_nnUNet_dataset", description="Make a dataset of a task in nnU-Net v1's raw format."
    )
    parser.add_argument("input_folder", type=Path, help="the task, such as nnUNet_raw_data/Task004_Hippocampus")
    parser.add_argument("output_dataset_name", help="such as Dataset004_Hippocampus")
    converting.add_writing(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on=converting.NOTHING_WRITTEN)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.conversion.msd import draft_of_old_nnunet

    name = converting.free_name(arguments.output_dataset_name, arguments)
    draft = draft_of_old_nnunet(name, arguments.input_folder, converting.options(arguments))
    converting.finish(draft, arguments, "samunet_convert_old_nnUNet_dataset")
