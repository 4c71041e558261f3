"""``samunet_export_onnx``: a trained fold for programs without PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_checkpoint
from samunet.plans import DEFAULT_PLANS_NAME


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_export_onnx",
        description="Write a trained fold as an ONNX graph, adapters merged, and compare both on real slices.",
    )
    parser.add_argument("dataset", help="27, 027 or Dataset027_ACDC")
    parser.add_argument("configuration", help="for example 2d")
    parser.add_argument("fold", help="0 to 4, or all")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="file to write: .onnx")
    parser.add_argument(
        "-i", type=Path, nargs="+", metavar="INPUT", help="images to compare on (default: the dataset's training cases)"
    )
    parser.add_argument(
        "-p", default=DEFAULT_PLANS_NAME, metavar="NAME", help=f"plans' name (default: {DEFAULT_PLANS_NAME})"
    )
    add_checkpoint(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on="nothing was written; start it again")


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api

    images = arguments.i
    api.export_onnx(
        arguments.dataset,
        arguments.configuration,
        arguments.fold,
        arguments.o,
        arguments.p,
        checkpoint=arguments.chk,
        images=images[0] if images and len(images) == 1 else images,
    )
    print(arguments.o)
