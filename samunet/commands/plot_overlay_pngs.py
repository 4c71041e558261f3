"""``samunet_plot_overlay_pngs``: a picture of every training case with its label."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, finite, run_command
from samunet.commands.flags import add_overwrite, add_window, add_workers, window_of
from samunet.plans import DEFAULT_PLANS_NAME


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_plot_overlay_pngs", description="Write a picture of every training case with its label drawn on it."
    )
    parser.add_argument("-d", required=True, metavar="ID", help="27, 027 or Dataset027_ACDC")
    parser.add_argument("-o", type=Path, required=True, metavar="OUTPUT", help="folder for the pictures")
    parser.add_argument(
        "-c", metavar="CONFIGURATION", help="show the slices stored for it (default: the raw images and labels)"
    )
    parser.add_argument("-p", default=DEFAULT_PLANS_NAME, metavar="NAME", help="plans' name, with -c")
    parser.add_argument("--use_raw", action="store_true", help="accepted as in nnU-Net: raw files are the default")
    parser.add_argument(
        "-channel_idx", type=int, metavar="N", help="channel to show (default: the first; colour pictures in colour)"
    )
    parser.add_argument(
        "-overlay_intensity", type=finite, default=0.6, metavar="SHARE", help="strength of the colours (default: 0.6)"
    )
    add_window(parser)
    add_overwrite(parser)
    add_workers(parser)
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.errors import UsageError
    from samunet.report.dataset_overlays import plot_overlays
    from samunet.workers import default_workers

    if arguments.use_raw and arguments.c:
        raise UsageError("--use_raw and -c exclude each other", "leave out -c for the raw images")
    files = plot_overlays(
        arguments.d,
        arguments.o,
        configuration=arguments.c,
        plans_name=arguments.p,
        channel=arguments.channel_idx,
        intensity=arguments.overlay_intensity,
        overwrite=arguments.overwrite,
        window=window_of(arguments.window),
        num_workers=default_workers() if arguments.np is None else arguments.np,
    )
    print(f"{len(files)} pictures written to {arguments.o}")
