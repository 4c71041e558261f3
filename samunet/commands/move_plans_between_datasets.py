"""``samunet_move_plans_between_datasets``: use one dataset's plans for another."""

from __future__ import annotations

import argparse

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.errors import quoted
from samunet.plans import DEFAULT_PLANS_NAME


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_move_plans_between_datasets", description="Write a dataset's plans for another dataset."
    )
    parser.add_argument("-s", required=True, metavar="ID", help="dataset that the plans are from")
    parser.add_argument("-t", required=True, metavar="ID", help="dataset that they are for; needs its fingerprint")
    parser.add_argument(
        "-sp", default=DEFAULT_PLANS_NAME, metavar="NAME", help=f"plans' name (default: {DEFAULT_PLANS_NAME})"
    )
    parser.add_argument("-tp", metavar="NAME", help="their name there (default: the same)")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.planning.move_plans import move_plans_between_datasets

    path = move_plans_between_datasets(arguments.s, arguments.t, arguments.sp, arguments.tp)
    print(path)
    print(f"next: samunet_preprocess -d {quoted(path.parent.name)} -p {quoted(path.stem)}")
