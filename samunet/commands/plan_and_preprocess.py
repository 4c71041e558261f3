"""``samunet_plan_and_preprocess``: fingerprint, plans and stored slices in one go."""

from __future__ import annotations

import argparse

from samunet.commands import flags
from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.errors import quoted


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_plan_and_preprocess", description="Measure a raw dataset, plan, and store its slices."
    )
    flags.add_dataset(parser)
    flags.add_fingerprint(parser)
    flags.add_geometry(parser)
    flags.add_planner(parser)
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
        name = "" if plans.plans_name == DEFAULT_PLANS_NAME else f" -p {quoted(plans.plans_name)}"
        print(f"next: samunet_train {quoted(dataset)} {quoted(next(iter(plans.configurations)))} {fold}{name}")
