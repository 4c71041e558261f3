"""``samunet_apply_postprocessing``: apply chosen postprocessing to a folder of masks."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_overwrite, add_workers


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_apply_postprocessing", description="Write postprocessed copies of the masks of a folder."
    )
    parser.add_argument("-i", type=Path, required=True, metavar="MASKS", help="folder with the masks")
    parser.add_argument("-o", type=Path, required=True, metavar="OUTPUT", help="another folder for the results")
    parser.add_argument(
        "-pp_json", type=Path, metavar="FILE", help="what to apply (default: postprocessing.json in MASKS)"
    )
    parser.add_argument("-dataset_json", type=Path, metavar="FILE", help="default: the one in MASKS, if there is one")
    parser.add_argument("-plans_json", type=Path, metavar="FILE", help="accepted as in nnU-Net; not needed")
    add_overwrite(parser)
    add_workers(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api
    from samunet.workers import default_workers

    done = api.apply_postprocessing(
        arguments.i,
        arguments.o,
        arguments.pp_json,
        dataset_json=arguments.dataset_json,
        overwrite=arguments.overwrite,
        num_workers=default_workers() if arguments.np is None else arguments.np,
    )
    print(f"{len(done)} masks written to {arguments.o}")
