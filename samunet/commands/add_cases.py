"""``samunet_add_cases``: take over what changed in a raw dataset since it was preprocessed."""

from __future__ import annotations

import argparse

from samunet.commands import flags
from samunet.commands.common import add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        "samunet_add_cases",
        description="Put new cases of a dataset into its folds, take removed ones out, and store what changed; plans "
        "and all other cases stay as they are.",
    )
    flags.add_dataset(parser)
    flags.add_geometry(parser)
    flags.add_workers(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api

    for dataset in arguments.d:
        joined = api.add_cases(dataset, tolerate_geometry=arguments.tolerate_geometry, num_workers=arguments.np)
        for case, where in joined.items():
            print(f"{case}: {where}")
        if not joined:
            print("no new cases")
        print("folds trained before do not know of the change: samunet_train --overwrite trains one anew")
