"""``samunet_import_samed``: a checkpoint that SAMed published, as a model to predict with."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, finite, run_command
from samunet.errors import quoted


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_import_samed", description="Make a model folder of a checkpoint that SAMed published."
    )
    parser.add_argument("file", type=Path, help="SAMed's .pth file")
    parser.add_argument("--encoder", default="vit_b", metavar="NAME", help="vit_b (default), vit_l or vit_h")
    parser.add_argument("--image_size", type=int, default=512, metavar="PX", help="side of its input (default: 512)")
    parser.add_argument("--num_classes", type=int, default=8, metavar="K", help="without background (default: 8)")
    parser.add_argument(
        "-d", default="Dataset900_SAMed", metavar="NAME", help="name for it in samunet_results (default: %(default)s)"
    )
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="the classes' names, in order")
    parser.add_argument(
        "--intensity_range",
        nargs=2,
        type=finite,
        default=(-125.0, 275.0),
        metavar=("LOW", "HIGH"),
        help="values that become 0 and 1 (default: -125 275, SAMed's for CT)",
    )
    parser.add_argument("--file_ending", default=".nii.gz", metavar="ENDING", help="of images (default: .nii.gz)")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api

    folder = api.import_samed(
        arguments.file,
        encoder=arguments.encoder,
        image_size=arguments.image_size,
        num_classes=arguments.num_classes,
        dataset=arguments.d,
        labels=arguments.labels,
        intensity_range=tuple(arguments.intensity_range),
        file_ending=arguments.file_ending,
    )
    print(f"model: {folder}")
    print(f"next: samunet_predict -i imagesTs -o preds -d {quoted(arguments.d)}")
