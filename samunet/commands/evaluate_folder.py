"""``samunet_evaluate_folder``: score predictions with the labels of the dataset they belong to."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_geometry

if TYPE_CHECKING:
    from samunet.dataset.labels import Labels

DESCRIPTION = """Compare predicted label maps with their references and write summary.json (nnU-Net's keys).

A class that is in neither the prediction nor the reference of a case has no score for that case (null) and is left
out of the means; a class that is predicted but not in the reference scores 0."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``samunet_evaluate_folder``."""
    parser = CommandParser(
        prog="samunet_evaluate_folder",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("gt_folder", type=Path, help="folder with the references (labelsTr, labelsTs)")
    parser.add_argument("pred_folder", type=Path, help="folder with the predictions, named like the references")
    parser.add_argument(
        "-djfile", type=Path, help="dataset.json (default: the one in pred_folder, else the one beside gt_folder)"
    )
    parser.add_argument("-pfile", type=Path, help="accepted as in nnU-Net; not needed")
    add_evaluation_flags(parser)
    add_common_flags(parser)
    return parser


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that both evaluation commands have."""
    parser.add_argument("-o", type=Path, help="file to write (default: pred_folder/summary.json)")
    parser.add_argument("-np", type=int, help="worker processes (default: by number of cores; 0: none)")
    parser.add_argument("--chill", action="store_true", help="leave out references that have no prediction")
    parser.add_argument(
        "--surface_metrics",
        action="store_true",
        help="also HD95, surface Dice and volume differences, in metrics.csv and metrics.json beside the summary",
    )
    parser.add_argument(
        "-tolerance",
        type=_millimetres,
        default=2.0,
        metavar="MM",
        help="of the surface Dice, in millimetres (default: 2)",
    )
    add_geometry(parser, "where a mask and its reference differ in origin or direction")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")


def run(arguments: argparse.Namespace) -> None:
    """Evaluate as the command line asks."""
    from samunet.dataset.description import description_from_json
    from samunet.evaluation.detailed import check_targets
    from samunet.evaluation.summary import evaluate_folder, find_dataset_json
    from samunet.files import read_json

    check_targets(arguments.pred_folder, arguments.o, arguments.surface_metrics)
    file = arguments.djfile or find_dataset_json(arguments.pred_folder, arguments.gt_folder)
    description = description_from_json(read_json(file), str(file))
    failures: dict = {}
    summary = evaluate_folder(
        arguments.pred_folder,
        arguments.gt_folder,
        description.labels,
        description.file_ending,
        reader_override=description.reader_override,
        num_workers=_workers(arguments),
        allow_missing=arguments.chill,
        failures=failures,
        tolerate_geometry=arguments.tolerate_geometry,
    )
    report_summary(
        summary, arguments, description.labels, description.file_ending, failures, description.reader_override
    )


def report_summary(
    summary: dict,
    arguments: argparse.Namespace,
    labels: Labels | Sequence[int],
    file_ending: str,
    failures: dict,
    reader_override: str | None = None,
) -> None:
    """Write ``summary`` to the file that ``arguments`` name and print it; the same with more metrics, if wanted.

    Raises:
        SamunetError: In the end, if there are failures.
    """
    from samunet.dataset.labels import Labels
    from samunet.errors import raise_failures
    from samunet.evaluation.summary import FAILED, format_table
    from samunet.files import to_json, write_json

    named = labels if isinstance(labels, Labels) else None
    target = arguments.o or arguments.pred_folder / "summary.json"
    write_json(target, summary)
    print(to_json(summary).rstrip() if arguments.json else format_table(summary, named))
    print(f"written to {target}", file=sys.stderr)
    if arguments.surface_metrics:
        from samunet.evaluation.detailed import detailed_metrics, format_detailed, write_detailed

        workers = _workers(arguments)
        metrics = detailed_metrics(
            summary, labels, file_ending, reader_override, arguments.tolerance, workers, arguments.tolerate_geometry
        )
        write_detailed(metrics, target.parent, named)
        if not arguments.json:
            print(f"\n{format_detailed(metrics, named)}")
        print(f"written to {target.parent / 'metrics.csv'} and metrics.json", file=sys.stderr)
    raise_failures(failures, len(failures) + len(summary["metric_per_case"]), FAILED)


def _millimetres(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more millimetres, got {text}")
    return value


def _workers(arguments: argparse.Namespace) -> int:
    from samunet.workers import default_workers

    return default_workers() if arguments.np is None else arguments.np


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    return run_command(build_parser(), run, argv, go_on="nothing was written")
