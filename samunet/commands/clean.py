"""``samunet_clean``: remove what can be made again or that nothing needs any more."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_clean",
        description="List files among the preprocessed datasets and results that can go, with their sizes; with --yes, "
        "remove them. Raw datasets, plans and trained models are never touched.",
    )
    parser.add_argument("--yes", action="store_true", help="remove what is listed")
    parser.add_argument("--dry_run", action="store_true", help="only list, which is the default")
    parser.add_argument(
        "--validation_masks",
        action="store_true",
        help="also masks and probabilities of the folds' validation (samunet_train --val makes them again)",
    )
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.commands.info import size_of
    from samunet.errors import UsageError
    from samunet.models.downloads import format_bytes

    if arguments.yes and arguments.dry_run:
        raise UsageError("--yes and --dry_run exclude each other", "leave one of them out")
    total = 0
    for path, what in _found(arguments.validation_masks):
        size = size_of(path)
        if not arguments.yes or _remove(path):
            total += size
            print(f"{format_bytes(size):>10}  {path}  ({what})")
    if arguments.yes:
        print(f"removed: {format_bytes(total)}")
    elif total:
        more = " --validation_masks" if arguments.validation_masks else ""
        print(f"{format_bytes(total)} can be freed, and nothing was removed\nnext: samunet_clean{more} --yes")
    else:
        print("there is nothing to remove")


def _found(masks: bool) -> Iterator[tuple[Path, str]]:
    """What can go, each with the reason; nothing of a fold that is being trained."""
    from samunet import paths
    from samunet.files import leftovers
    from samunet.training.state import LATEST

    places = [paths.setting(name) for name in ("samunet_preprocessed", "samunet_results")]
    for place in (Path(place).expanduser() for place in places if place):
        datasets = [entry for entry in place.glob("Dataset*") if paths.DATASET_NAME.match(entry.name)]
        for folder in (place, *(found for dataset in datasets for found in (dataset, *dataset.rglob("*/")))):
            if not folder.is_symlink() and not any(part.startswith(".tmp-") for part in folder.parts):
                yield from ((path, "left over by a process that was killed") for path in leftovers(folder))
    results = paths.setting("samunet_results")
    for fold in sorted(Path(results).expanduser().glob("Dataset*/samunetTrainer__*/fold_*/")) if results else ():
        validated = (fold / "validation" / "summary.json").is_file() or fold.name == "fold_all"
        if not (fold / "checkpoint_final.safetensors").is_file() or _in_use(fold):
            continue
        for name, what in ((LATEST, "state of a finished training"), ("features", "cache of a finished training")):
            if (fold / name).exists():
                yield fold / name, what
        if masks and validated:
            for folder in (fold / "validation", fold / "validation_best"):
                kept = [folder / name for name in ("summary.json", "dataset.json", "plans.json")]
                for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                    if path not in kept and not path.is_dir():
                        yield path, "of the validation"


def _in_use(fold: Path) -> bool:
    from samunet.locks import LockHeld, exclusive

    try:
        with exclusive(fold):
            return False
    except (LockHeld, OSError):
        return True


def _remove(path: Path) -> bool:
    """Remove a file or folder; another process may have done so."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    else:
        return False
    return True
