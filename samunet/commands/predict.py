"""``samunet_predict``: masks for a folder of images, or for single files."""

from __future__ import annotations

import argparse

from samunet.commands import prediction
from samunet.commands.common import CommandParser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_predict",
        description="Predict masks for a folder of images or for single files. "
        "Finds the model itself where only one fits.",
    )
    prediction.add_input_and_output(parser)
    parser.add_argument("-d", metavar="ID", help="dataset the model was trained on")
    parser.add_argument("-c", metavar="CONFIGURATION", help="configuration, for example 2d")
    parser.add_argument("-p", metavar="NAME", help="plans' name")
    prediction.add_prediction(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on=prediction.GO_ON)


def _run(arguments: argparse.Namespace) -> None:
    prediction.predict(arguments, dataset=arguments.d, configuration=arguments.c, plans_name=arguments.p)
