"""``samunet_convert_finetune_SAM_dataset``: pictures listed in finetune-SAM's CSV files as a raw dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands import converting
from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_convert_finetune_SAM_dataset", description="Make a dataset of slices listed as for finetune-SAM."
    )
    folder = "folder that the lists' paths of {} are relative to"
    parser.add_argument("-img_folder", type=Path, required=True, metavar="FOLDER", help=folder.format("images"))
    parser.add_argument("-mask_folder", type=Path, required=True, metavar="FOLDER", help=folder.format("masks"))
    parser.add_argument("-train_img_list", type=Path, required=True, metavar="CSV", help="training: IMAGE,MASK")
    parser.add_argument("-val_img_list", type=Path, metavar="CSV", help="validation; makes the only fold")
    parser.add_argument("-test_img_list", type=Path, metavar="CSV", help="test, for imagesTs and labelsTs")
    converting.add_target(parser)
    parser.add_argument("--channel_names", nargs="+", metavar="NAME", help="what images show (default: told by them)")
    converting.add_values(parser)
    converting.add_threshold(parser)
    converting.add_patients(parser)
    converting.add_writing(parser, geometry=False)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on=converting.NOTHING_WRITTEN)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.conversion.finetune_sam import Lists, draft_of_lists

    name = converting.target_name(arguments)
    lists = Lists(
        arguments.img_folder,
        arguments.mask_folder,
        arguments.train_img_list,
        arguments.val_img_list,
        arguments.test_img_list,
    )
    channels = tuple(arguments.channel_names) if arguments.channel_names else None
    draft = draft_of_lists(name, lists, converting.options(arguments, channels), arguments.patient_pattern)
    converting.finish(draft, arguments, "samunet_convert_finetune_SAM_dataset")
