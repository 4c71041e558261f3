"""``samunet_accumulate_crossval_results``: the validation masks of all folds in one folder, scored together."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_workers
from samunet.plans import DEFAULT_PLANS_NAME


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_accumulate_crossval_results",
        description="Gather the validation masks of a model's folds in one folder and score them together.",
    )
    parser.add_argument("dataset", help="27, 027 or Dataset027_ACDC")
    parser.add_argument("-c", default="2d", metavar="CONFIGURATION", help="configuration (default: 2d)")
    parser.add_argument(
        "-o", type=Path, metavar="OUTPUT", help="new folder (default: crossval_results_folds_0_1_… beside the folds)"
    )
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds (default: all of the dataset)")
    parser.add_argument(
        "-p", default=DEFAULT_PLANS_NAME, metavar="NAME", help=f"plans' name (default: {DEFAULT_PLANS_NAME})"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
    add_workers(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api
    from samunet.evaluation.summary import format_table
    from samunet.files import to_json
    from samunet.workers import default_workers

    summary = api.accumulate_crossval_results(
        arguments.dataset,
        arguments.c,
        arguments.f,
        arguments.p,
        output=arguments.o,
        num_workers=default_workers() if arguments.np is None else arguments.np,
    )
    if arguments.json:
        print(to_json(summary).rstrip())
        return
    print(format_table(summary))
    print(f"masks: {Path(summary['metric_per_case'][0]['prediction_file']).parent}")
