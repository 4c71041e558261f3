"""``samunet_preprocess``: store the slices of a planned dataset."""

from __future__ import annotations

import argparse

from samunet.commands import flags
from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.plans import DEFAULT_PLANS_NAME


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser("samunet_preprocess", description="Store the slices of a planned dataset.")
    flags.add_dataset(parser)
    parser.add_argument(
        "-p", "-plans_name", dest="p", default=DEFAULT_PLANS_NAME, metavar="NAME",
        help=f"plans' name (default: {DEFAULT_PLANS_NAME})",
    )  # fmt: skip
    flags.add_preprocess(parser)
    flags.add_geometry(parser)
    flags.add_workers(parser, nargs="+", action=flags.OneNumber)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api

    for dataset in arguments.d:
        api.preprocess(
            dataset,
            arguments.c,
            arguments.p,
            tolerate_geometry=arguments.tolerate_geometry,
            num_workers=arguments.np,
        )
