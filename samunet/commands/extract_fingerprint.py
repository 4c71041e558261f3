"""``samunet_extract_fingerprint``: measure a raw dataset."""

from __future__ import annotations

import argparse

from samunet.commands import flags
from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser("samunet_extract_fingerprint", description="Measure a raw dataset.")
    flags.add_dataset(parser)
    flags.add_fingerprint(parser)
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
        api.extract_fingerprint(
            dataset,
            clean=arguments.clean,
            verify=arguments.verify_dataset_integrity,
            no_groups=arguments.no_groups,
            tolerate_geometry=arguments.tolerate_geometry,
            num_workers=arguments.np,
        )
