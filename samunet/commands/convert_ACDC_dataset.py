"""``samunet_convert_ACDC_dataset``: the ACDC challenge's download as a raw dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands import converting
from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_convert_ACDC_dataset",
        description="Make a dataset of the ACDC challenge's download: end-diastole and end-systole, by patient.",
    )
    parser.add_argument(
        "-i", type=Path, required=True, metavar="FOLDER", help="the download, with training/patient001 and so on"
    )
    converting.add_target(parser, name="ACDC", number=27)
    converting.add_writing(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on=converting.NOTHING_WRITTEN)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.conversion.acdc import draft_of_acdc

    name = converting.target_name(arguments)
    draft = draft_of_acdc(name, arguments.i, converting.options(arguments))
    converting.finish(draft, arguments, "samunet_convert_ACDC_dataset")
