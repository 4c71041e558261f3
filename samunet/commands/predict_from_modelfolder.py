"""``samunet_predict_from_modelfolder``: masks with a model that lies anywhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands import prediction
from samunet.commands.common import CommandParser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_predict_from_modelfolder",
        description="Predict masks with a model that is given by its folder. Needs no environment variable.",
    )
    prediction.add_input_and_output(parser)
    parser.add_argument(
        "-m", type=Path, required=True, metavar="FOLDER", help="the model's folder, with plans.json and fold_0"
    )
    prediction.add_prediction(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on=prediction.GO_ON)


def _run(arguments: argparse.Namespace) -> None:
    prediction.predict(arguments, model_folder=arguments.m)
