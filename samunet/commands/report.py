"""``samunet_report``: one self-contained page about a cross-validation or a prediction."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_window, window_of
from samunet.plans import DEFAULT_PLANS_NAME

if TYPE_CHECKING:
    from samunet.models.folder import ModelFolder


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_report",
        description="Write report.html about a cross-validation (give a dataset, or a model's folder) or about a "
        "prediction (give the folder of masks): one file without anything from elsewhere.",
    )
    parser.add_argument("source", help="a dataset (27, 027 or Dataset027_ACDC), a model's folder, or a folder of masks")
    parser.add_argument("-c", default="2d", metavar="CONFIGURATION", help="of a dataset: configuration (default: 2d)")
    parser.add_argument(
        "-p", default=DEFAULT_PLANS_NAME, metavar="NAME", help=f"of a dataset: plans (default: {DEFAULT_PLANS_NAME})"
    )
    parser.add_argument(
        "-i", type=Path, metavar="IMAGES", help="of a prediction: its images (default: where they were when predicted)"
    )
    parser.add_argument("-n", type=_count, default=6, metavar="N", help="cases to show in pictures (default: 6)")
    add_window(parser)
    parser.add_argument("-o", type=Path, metavar="FILE", help="where to write (default: report.html in the folder)")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on="nothing was written")


def _run(arguments: argparse.Namespace) -> None:
    from samunet.dataset.outputs import ARGUMENTS, check_place, check_replaced
    from samunet.files import write_text
    from samunet.report.crossval import crossval_report
    from samunet.report.prediction import prediction_report

    folder, window = Path(arguments.source), window_of(arguments.window)
    model = None if (folder / ARGUMENTS).is_file() else _model(folder, arguments)
    target = check_place(arguments.o) if arguments.o else (model.path if model else folder) / "report.html"
    check_replaced(target, "Made by samunet")
    if model is None:
        content = prediction_report(folder, arguments.i, arguments.n, window)
    else:
        content = crossval_report(model, arguments.n, window)
    write_text(target, content)
    print(f"report written to {target}", file=sys.stderr)


def _model(folder: Path, arguments: argparse.Namespace) -> ModelFolder:
    from samunet.dataset.layout import find_dataset
    from samunet.errors import UsageError
    from samunet.models.choose import trained_model
    from samunet.models.folder import ModelFolder

    if arguments.i is not None:
        raise UsageError("-i is for the report of a prediction", "give the folder that samunet_predict wrote")
    if folder.is_dir():
        if not (folder / "plans.json").is_file():
            raise UsageError(
                f"{folder} is neither a folder that samunet_predict wrote nor a model's folder",
                "give a dataset (samunet_report 027), a model's folder, or a folder of masks (samunet_report preds)",
            )
        return ModelFolder(Path(os.path.abspath(folder)))  # "." has no name
    return trained_model(find_dataset(arguments.source), arguments.c, arguments.p)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value
