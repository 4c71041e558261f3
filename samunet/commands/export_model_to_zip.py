"""``samunet_export_model_to_zip``: trained models in one file, for others to install."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.flags import add_checkpoint
from samunet.plans import DEFAULT_PLANS_NAME


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_export_model_to_zip",
        description="Write trained models of a dataset into one zip. Names of cases, paths and logs stay out of it.",
    )
    parser.add_argument("-d", required=True, metavar="ID", help="27, 027 or Dataset027_ACDC")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="file to write: .zip")
    parser.add_argument(
        "-c", nargs="+", default=[], metavar="CONFIGURATION", help="configurations (default: all that are trained)"
    )
    parser.add_argument(
        "-p", default=DEFAULT_PLANS_NAME, metavar="NAME", help=f"plans' name (default: {DEFAULT_PLANS_NAME})"
    )
    parser.add_argument("-f", nargs="+", default=[], metavar="FOLD", help="folds (default: all that are finished)")
    add_checkpoint(parser, nargs="+", default=["final"], help="which model files (default: final)")
    parser.add_argument("-licence", metavar="NAME", help="under which the model is handed on, for example CC-BY-4.0")
    parser.add_argument("--not_strict", action="store_true", help="leave out what is asked for and not trained")
    parser.add_argument(
        "--with_base", action="store_true", help="put the frozen base weights in, and not only their name and hash"
    )
    parser.add_argument("--with_case_ids", action="store_true", help="keep names of cases, paths and logs")
    parser.add_argument(
        "--exp_cv_preds", action="store_true", help="also the masks of the folds' validation cases (--with_case_ids)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on="nothing was written; start it again")


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api

    options = api.ExportOptions(
        configurations=arguments.c,
        plans_name=arguments.p,
        folds=arguments.f,
        checkpoints=list(dict.fromkeys(arguments.chk)),
        strict=not arguments.not_strict,
        licence=arguments.licence,
        with_base=arguments.with_base,
        with_case_ids=arguments.with_case_ids,
        with_masks=arguments.exp_cv_preds,
        overwrite=arguments.force,
    )
    api.export_model(arguments.d, arguments.o, options)
    print(arguments.o)
