"""``samunet_plan_experiment``: plan from an existing fingerprint."""

from __future__ import annotations

import argparse

from samunet.commands import flags
from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser("samunet_plan_experiment", description="Plan from an existing fingerprint.")
    flags.add_dataset(parser)
    flags.add_planner(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api

    for dataset in arguments.d:
        api.plan_experiment(dataset, flags.planner_options(arguments))
