"""``samunet_install_pretrained_model_from_zip``: a model that somebody exported."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_install_pretrained_model_from_zip",
        description="Install a model that samunet_export_model_to_zip wrote. Everything in the zip is checked first, "
        "and nothing in it is run.",
    )
    parser.add_argument("zip", type=Path, help="the file")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="where to (default: samunet_results)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace models of the same names, each with its whole folder; the dataset's other results stay",
    )
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on="nothing was installed; start it again")


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api

    for folder in api.install_model(arguments.zip, arguments.o, overwrite=arguments.force):
        print(folder)
