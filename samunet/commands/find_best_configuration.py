"""``samunet_find_best_configuration``: compare what is trained by its cross-validation, and record how to predict."""

from __future__ import annotations

import argparse

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_workers


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_find_best_configuration",
        description="Compare all trained configurations and their pairs by the Dice of cases that they had not seen, "
        "choose postprocessing for the best, and write the commands that predict with it.",
    )
    parser.add_argument("dataset", help="27, 027 or Dataset027_ACDC")
    parser.add_argument("-p", nargs="+", metavar="NAME", help="names of plans (default: all that are trained)")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="configurations (default: all that are trained)")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds (default: all of the dataset)")
    parser.add_argument("--disable_ensembling", action="store_true", help="do not look at pairs of configurations")
    parser.add_argument(
        "--disable_dice_decoding", action="store_true", help="do not try masks of the highest expected Dice"
    )
    parser.add_argument(
        "--no_overwrite", action="store_true", help="keep cross-validation results that are there already"
    )
    parser.add_argument("--json", action="store_true", help="print inference_information.json instead of the table")
    add_workers(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    import shlex

    from samunet import api, paths
    from samunet.files import to_json
    from samunet.models.choose import INSTRUCTIONS
    from samunet.workers import default_workers

    information = api.find_best_configuration(
        arguments.dataset,
        arguments.c,
        arguments.p,
        arguments.f,
        ensembling=not arguments.disable_ensembling,
        dice_decoding=not arguments.disable_dice_decoding,
        overwrite=not arguments.no_overwrite,
        num_workers=default_workers() if arguments.np is None else arguments.np,
    )
    if arguments.json:
        print(to_json(information).rstrip())
        return
    print("\n".join(information["report"]))
    print(f"\npostprocessing: {information['best_model_or_ensemble']['postprocessing']}")
    print("to predict:")
    for command in information["commands"]:
        print(f"  {shlex.join(command)}")
    print(f"written to: {paths.results_folder() / information['dataset_name_or_id'] / INSTRUCTIONS}")
