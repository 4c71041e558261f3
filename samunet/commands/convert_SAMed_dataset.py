"""``samunet_convert_SAMed_dataset``: SAMed's npz slices and h5 volumes as a raw dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands import converting
from samunet.commands.common import CommandParser, add_common_flags, finite, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_convert_SAMed_dataset", description="Make a dataset of SAMed's folders; slices become volumes."
    )
    parser.add_argument("--root_path", type=Path, required=True, metavar="FOLDER", help="train_npz")
    parser.add_argument("--volume_path", type=Path, metavar="FOLDER", help="test_vol_h5, for imagesTs and labelsTs")
    parser.add_argument(
        "--list_dir", type=Path, metavar="FOLDER", help="take what train.txt and test_vol.txt there name"
    )
    converting.add_target(parser)
    parser.add_argument(
        "--channel_names", nargs=1, default=["image"], metavar="NAME", help="what images show (default: image)"
    )
    parser.add_argument(
        "--spacing",
        nargs=3,
        type=finite,
        default=(1.0, 1.0, 1.0),
        metavar=("Z", "Y", "X"),
        help="of all volumes in mm, which the files do not tell (default: 1 1 1)",
    )
    converting.add_values(parser)
    converting.add_writing(parser, geometry=False)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on=converting.NOTHING_WRITTEN)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.conversion.samed import draft_of_samed

    name = converting.target_name(arguments)
    options = converting.options(arguments, tuple(arguments.channel_names))
    draft = draft_of_samed(
        name, arguments.root_path, arguments.volume_path, arguments.list_dir, options, arguments.spacing
    )  # fmt: skip
    converting.finish(draft, arguments, "samunet_convert_SAMed_dataset")
