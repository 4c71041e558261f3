"""``samunet_make_dataset``: a raw dataset from folders of images and masks."""

from __future__ import annotations

import argparse

from samunet.commands import converting
from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_make_dataset",
        description="Make a dataset of images and their masks. The files given are only read.",
    )
    place = "a folder, or a pattern such as 'scans/{case}_ct.nii.gz'"
    parser.add_argument("images", help=place)
    parser.add_argument(
        "masks", help="the same for masks; with {class} where each class has a file of its own: '{case}_{class}.nii.gz'"
    )
    converting.add_target(parser)
    parser.add_argument(
        "--channel_names",
        nargs="+",
        metavar="NAME[=TEXT]",
        help="what images show: CT, T2, ...; with {channel} in a pattern, NAME=TEXT gives the text of its file names",
    )
    converting.add_values(parser, class_files=True)
    parser.add_argument(
        "--paint_in_order",
        action="store_true",
        help="with {class} or Slicer's segmentations: where classes overlap, later --labels cover earlier ones",
    )
    converting.add_threshold(parser)
    converting.add_patients(parser)
    parser.add_argument("--test_images", metavar="IMAGES", help="images to predict later, for imagesTs")
    parser.add_argument("--test_masks", metavar="MASKS", help="their masks, for labelsTs")
    converting.add_writing(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on=converting.NOTHING_WRITTEN)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.conversion.folders import draft_of_folders

    name = converting.target_name(arguments)
    channels = [word.partition("=") for word in arguments.channel_names or ()]
    classes = [word.partition("=") for word in arguments.labels or ()]
    options = converting.options(
        arguments, tuple(channel for channel, _, _ in channels) or None, [label for label, _, _ in classes]
    )
    draft = draft_of_folders(
        name,
        arguments.images,
        arguments.masks,
        options,
        channel_texts=[text or channel for channel, _, text in channels],
        class_texts={label: text for label, _, text in classes if text},
        patient_pattern=arguments.patient_pattern,
        test_images=arguments.test_images,
        test_masks=arguments.test_masks,
    )
    converting.finish(draft, arguments, "samunet_make_dataset")
