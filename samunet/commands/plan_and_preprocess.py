"""``samunet_plan_and_preprocess``: fingerprint, plans and stored slices in one go."""

from __future__ import annotations

import argparse
import shlex
import sys

from samunet.commands import flags
from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_plan_and_preprocess", description="Measure a raw dataset, plan, and store its slices."
    )
    flags.add_dataset(parser)
    flags.add_fingerprint(parser)
    flags.add_geometry(parser)
    flags.add_planner(parser)
    flags.add_showing(parser)
    flags.add_preprocess(parser)
    flags.add_workers(parser, nargs="+", action=flags.OneNumber)
    parser.add_argument("--no_pp", action="store_true", help="stop after planning")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api, paths
    from samunet.dataset.splits import FILE_NAME as SPLITS_FILE
    from samunet.dataset.splits import read_splits
    from samunet.plans import DEFAULT_PLANS_NAME

    for dataset in arguments.d:
        if arguments.dry_run:
            flags.show_plans(api.plan_experiment(dataset, flags.planner_options(arguments), dry_run=True), arguments)
            continue
        plans = api.plan_and_preprocess(
            dataset,
            flags.planner_options(arguments),
            arguments.c,
            clean=arguments.clean,
            verify=arguments.verify_dataset_integrity,
            no_groups=arguments.no_groups,
            tolerate_geometry=arguments.tolerate_geometry,
            store=not arguments.no_pp,
            num_workers=arguments.np,
        )
        splits = read_splits(paths.preprocessed_folder() / plans.dataset_name / SPLITS_FILE)
        fold = 0 if splits else "all"
        words = ["samunet_train", dataset, next(iter(plans.configurations)), str(fold)]
        words += [] if plans.plans_name == DEFAULT_PLANS_NAME else ["-p", plans.plans_name]
        flags.show_plans(plans, arguments)
        print(f"next: {shlex.join(words)}", file=sys.stderr if arguments.json else sys.stdout)
