"""``samunet_evaluate_simple``: score predictions without a dataset.json, given only the label values."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.commands.evaluate_folder import DESCRIPTION, add_evaluation_flags, report_summary


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``samunet_evaluate_simple``."""
    parser = CommandParser(
        prog="samunet_evaluate_simple",
        description=DESCRIPTION + "\nVoxels with other values than those of -l count as background.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("gt_folder", type=Path, help="folder with the references; tells the file ending, too")
    parser.add_argument("pred_folder", type=Path, help="folder with the predictions, named like the references")
    parser.add_argument("-l", type=_label, nargs="+", required=True, metavar="VALUE", help="label values to score")
    add_evaluation_flags(parser)
    add_common_flags(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Evaluate as the command line asks."""
    from samunet.evaluation.detailed import check_targets
    from samunet.evaluation.summary import evaluate_folder
    from samunet.workers import default_workers

    check_targets(arguments.pred_folder, arguments.o, arguments.surface_metrics)
    labels, file_ending = list(dict.fromkeys(arguments.l)), _file_ending(arguments.gt_folder)
    failures: dict = {}
    summary = evaluate_folder(
        arguments.pred_folder,
        arguments.gt_folder,
        labels,
        file_ending,
        num_workers=default_workers() if arguments.np is None else arguments.np,
        allow_missing=arguments.chill,
        failures=failures,
        tolerate_geometry=arguments.tolerate_geometry,
    )
    report_summary(summary, arguments, labels, file_ending, failures)


def _label(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a foreground label is 1 or more, got {text}")
    return value


def _file_ending(folder: Path) -> str:
    """The one image ending that the files in ``folder`` have."""
    from samunet.dataset.cases import MASK_ENDINGS, visible
    from samunet.dataset.names import ending_in
    from samunet.errors import SamunetError, UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    present = {ending_in(file.name, MASK_ENDINGS) for file in visible(folder)} - {None}
    found = sorted({ending.lower() for ending in present}, key=lambda ending: (-len(ending), ending))
    if len(found) == 1:
        return found[0]
    got = "files ending in " + " and in ".join(found) if found else "no file with a known ending"
    allowed = ", ".join(MASK_ENDINGS)
    raise SamunetError(f"{folder} contains {got}; it must hold references of one kind ({allowed})")


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    return run_command(build_parser(), run, argv, go_on="nothing was written")
