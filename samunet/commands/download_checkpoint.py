"""``samunet_download_checkpoint``: bring published weights into the checkpoints folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command
from samunet.errors import quoted


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_download_checkpoint",
        description="Download published weights; goes on where it stopped, and verifies the result.",
    )
    parser.add_argument("name", nargs="*", help="for example vit_b or medsam; --list shows all")
    parser.add_argument("--list", action="store_true", help="show what there is, and what of it is here")
    parser.add_argument("--folder", type=Path, help="where to (default: samunet_checkpoints, else ~/.cache/samunet)")
    parser.add_argument("--url", help="another source of the same file, for example a mirror in your network")
    parser.add_argument("--force", action="store_true", help="download again and replace the file that is there")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import paths
    from samunet.encoders import CHECKPOINTS
    from samunet.errors import UsageError
    from samunet.models.downloads import download

    folder = (arguments.folder or paths.checkpoints_folder()).expanduser()
    unknown = [name for name in arguments.name if name not in CHECKPOINTS]
    if unknown or not (arguments.name or arguments.list):
        what = f"there are no published weights called {unknown[0]!r}" if unknown else "no weights were named"
        raise UsageError(what, f"choose from: {', '.join(CHECKPOINTS)}; --list shows them")
    if arguments.url and len(arguments.name) != 1:
        raise UsageError("--url is the source of one file", "name one")
    for name in arguments.name:
        print(f"{name}: {download(CHECKPOINTS[name], folder, url=arguments.url, force=arguments.force)}")
    if arguments.list:
        _print_table(folder)
    if arguments.name and folder != paths.checkpoints_folder():
        print(f"for samunet_train to find it: export samunet_checkpoints={quoted(folder.resolve())}")


def _print_table(folder: Path) -> None:
    from samunet.encoders import CHECKPOINTS
    from samunet.models.downloads import format_bytes

    rows = [("name", "-encoder", "size", "licence", "file", f"in {folder}")]
    for name, facts in CHECKPOINTS.items():
        size = format_bytes(facts.checkpoint_bytes) if facts.checkpoint_bytes else "not known"
        licence = facts.checkpoint_licence or "not known"
        rows.append((name, facts.name, size, licence, facts.checkpoint_file, _presence(folder, facts)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _presence(folder: Path, facts) -> str:
    from samunet.models.downloads import format_bytes

    path = folder / facts.checkpoint_file
    part = path.with_name(path.name + ".part")
    if path.is_file():
        whole = facts.checkpoint_bytes in (None, path.stat().st_size)
        return "yes" if whole else f"another file: {format_bytes(path.stat().st_size)}"
    return f"{format_bytes(part.stat().st_size)} of it" if part.is_file() else "no"
