"""Console scripts: a table of commands over argparse, and texts for a terminal.

A command is its flags, its text and one call of :mod:`samunet.api`, in one of this folder's files.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samunet.commands.table import Command

# The commands of each file, without samunet_. setup.py reads this as text and makes the console scripts of it.
FILES = {
    "prepare": (
        "plan_and_preprocess", "extract_fingerprint", "plan_experiment", "preprocess", "add_cases",
        "plot_overlay_pngs", "move_plans_between_datasets",
    ),
    "train": ("train",),
    "pretrain": ("pretrain",),
    "predict": (
        "predict", "predict_from_modelfolder", "ensemble", "apply_postprocessing", "evaluate_folder",
        "evaluate_simple", "report",
    ),
    "select": ("accumulate_crossval_results", "find_best_configuration", "determine_postprocessing", "next"),
    "share": (
        "download_checkpoint", "export_model_to_zip", "install_pretrained_model_from_zip", "export_onnx",
        "merge_adapter", "import_samed",
    ),
    "convert": (
        "make_dataset", "convert_MSD_dataset", "convert_old_nnUNet_dataset", "convert_ACDC_dataset",
        "convert_finetune_SAM_dataset", "convert_SAMed_dataset",
    ),
    "machine": ("info", "clean"),
    "demo": ("demo",),
}  # fmt: skip
COMMANDS = {f"samunet_{name}": file for file, names in FILES.items() for name in names}


def command_named(name: str) -> Command:
    """A command, such as ``samunet_train``."""
    return getattr(import_module(f"samunet.commands.{COMMANDS[name]}"), name.removeprefix("samunet_"))


def build_parser(name: str) -> argparse.ArgumentParser:
    """The flags of a command, such as ``samunet_train``, or of ``samunet`` alone."""
    return _own_parser() if name == "samunet" else command_named(name).parser()


def run_command(name: str, argv: Sequence[object]) -> int:
    """Run a command in this process, such as ``run_command("samunet_train", ["27", "2d", "0"])``; its exit status."""
    words = [str(word) for word in argv]
    return main(words) if name == "samunet" else command_named(name)(words)


def main(argv: list[str] | None = None) -> int:
    """``samunet``: all commands under one name; ``samunet train 027 2d 0`` is ``samunet_train 027 2d 0``."""
    from samunet.commands.table import run

    words = sys.argv[1:] if argv is None else argv
    name = f"samunet_{words[0].removeprefix('samunet_')}" if words else ""
    if name in COMMANDS:
        return command_named(name)(words[1:])
    if words and not words[0].startswith("-"):
        words = words[:1]  # what follows an unknown command is meant for it
    return run(_own_parser(), _show_commands, words)


def _own_parser() -> argparse.ArgumentParser:
    from samunet import __version__
    from samunet.commands.table import CommandParser

    listed = "\n".join(f"  {name.removeprefix('samunet_'):35}{command_named(name).summary}" for name in COMMANDS)
    parser = CommandParser(
        "samunet",
        usage="samunet [-h] [--version] command [...]",
        description="Self-configuring medical image segmentation with an adapted Segment Anything Model.",
        epilog=f"commands (samunet COMMAND -h shows the flags of one):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", help="one of those below; samunet train is samunet_train")
    parser.add_argument("--version", action="version", version=f"samunet {__version__}", help="show the version")
    return parser


def _show_commands(arguments: argparse.Namespace) -> None:
    from samunet.errors import UsageError

    if arguments.command is None:
        _own_parser().print_help()
        return
    names = [name.removeprefix("samunet_") for name in COMMANDS]
    near = difflib.get_close_matches(arguments.command, names, n=1)
    meant = f"did you mean samunet {near[0]}? " if near else ""
    raise UsageError(f"there is no command {arguments.command}", f"{meant}samunet -h lists all of them")
