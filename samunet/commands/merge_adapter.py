"""``samunet_merge_adapter``: a trained fold as a plain SAM checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_checkpoint
from samunet.plans import DEFAULT_PLANS_NAME


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_merge_adapter", description="Write a trained fold in SAM's layout, with LoRA folded into the weights."
    )
    parser.add_argument("dataset", help="27, 027 or Dataset027_ACDC")
    parser.add_argument("configuration", help="for example 2d")
    parser.add_argument("fold", help="0 to 4, or all")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="file to write: .pth or .safetensors")
    parser.add_argument(
        "-p", default=DEFAULT_PLANS_NAME, metavar="NAME", help=f"plans' name (default: {DEFAULT_PLANS_NAME})"
    )
    add_checkpoint(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api

    print(
        api.merge_adapter(
            arguments.dataset,
            arguments.configuration,
            arguments.fold,
            arguments.o,
            arguments.p,
            checkpoint=arguments.chk,
        )
    )
