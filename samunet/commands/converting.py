"""What the commands that make datasets share: flags, the table, and writing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from samunet.commands import flags
from samunet.commands.common import finite
from samunet.errors import quoted

if TYPE_CHECKING:
    from samunet.conversion.draft import Draft, Options

NOTHING_WRITTEN = "nothing has been written; run the same command again"


def add_target(parser: argparse.ArgumentParser, *, name: str | None = None, number: int | None = None) -> None:
    """``--name`` and ``--id``; required without defaults."""
    told = "" if name is None else f" (default: {name})"
    parser.add_argument(
        "--name", default=name, required=name is None, help=f"name of the dataset, such as Vessels{told}"
    )
    told = "" if number is None else f" (default: {number})"
    parser.add_argument(
        "--id", default=number, required=number is None, metavar="ID", help=f"its number, such as 12{told}"
    )


def add_values(parser: argparse.ArgumentParser, *, class_files: bool = False) -> None:
    """What the values of masks mean; ``class_files``: whether each class may have a file of its own."""
    told = (
        "; NAME=red or NAME=#ff0000 gives its colour in masks, or, with {class} in their pattern, the text of its files"
    )
    told = told if class_files else ""
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME[=TEXT]" if class_files else "NAME",
        help=f"names of the classes 1, 2, ... in this order{told}",
    )
    parser.add_argument(
        "--remap",
        nargs="*",
        action="extend",  # so that values below zero can be written: --remap=-1=0
        metavar="OLD=NEW",
        help="give values of the masks other numbers, such as 4=3 or '#ff0000=1'; alone: number them in order",
    )


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """``--threshold``."""
    parser.add_argument(
        "--threshold", type=finite, metavar="T", help="make one class of all mask values above T, such as 127"
    )


def add_patients(parser: argparse.ArgumentParser) -> None:
    """``--patient_pattern``."""
    parser.add_argument(
        "--patient_pattern",
        metavar="REGEX",
        help=r"what of a case's name is its patient, such as 'p\d+': folds never divide a patient's cases",
    )


def add_writing(parser: argparse.ArgumentParser, *, geometry: bool = True) -> None:
    """Flags of every command that writes a dataset; ``geometry``: whether its files may lie at different places."""
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of the same name")
    parser.add_argument("--dry_run", action="store_true", help="read everything, show the table, and write nothing")
    if geometry:
        flags.add_geometry(parser)
    flags.add_workers(parser)


def options(
    arguments: argparse.Namespace, channel_names: tuple[str, ...] | None = None, labels: Sequence[str] | None = None
) -> Options:
    """The :class:`samunet.conversion.draft.Options` that the flags ask for; ``labels``: in place of ``--labels``."""
    from samunet.conversion.coding import CodingOptions, parse_labels, parse_remap
    from samunet.conversion.draft import Options

    coding = CodingOptions(
        labels=parse_labels(labels or getattr(arguments, "labels", None)),
        remap=parse_remap(getattr(arguments, "remap", None)),
        threshold=getattr(arguments, "threshold", None),
        paint_in_order=getattr(arguments, "paint_in_order", False),
    )
    return Options(channel_names, coding, getattr(arguments, "tolerate_geometry", False), arguments.np)


def target_name(arguments: argparse.Namespace) -> str:
    """The dataset's full name from ``--name`` and ``--id``, free to be written."""
    from samunet.conversion.write import dataset_name

    return free_name(dataset_name(arguments.name, arguments.id), arguments)


def free_name(name: str, arguments: argparse.Namespace) -> str:
    """``name``, if it may be written: found out before all data are read. A dry run needs no place to write to."""
    from samunet.conversion.write import check_name, check_target

    check_name(name)
    if not arguments.dry_run:
        check_target(name, overwrite=arguments.overwrite)
    return name


def finish(draft: Draft, arguments: argparse.Namespace, command: str) -> None:
    """Show the table; unless it is a dry run, write the dataset and tell what comes next."""
    from samunet.conversion.write import write_dataset
    from samunet.paths import number_in

    print(draft.to_text(), flush=True)
    if arguments.dry_run:
        print("\nnothing was written: run the command again without --dry_run")
        return
    folder = write_dataset(draft, command)
    print(f"\nwritten to {folder}")
    if draft.splits:
        print(f"its folds are the source's; for five folds: rm {quoted(folder / 'splits_final.json')}")
    print(f"next: samunet_plan_and_preprocess -d {number_in(draft.name)} --verify_dataset_integrity")
