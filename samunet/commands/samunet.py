"""``samunet``: all commands under one name; ``samunet train 027 2d 0`` is ``samunet_train 027 2d 0``."""

from __future__ import annotations

import argparse
import difflib
import pkgutil
import sys
from importlib import import_module

from samunet import __version__, commands
from samunet.commands.common import CommandParser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``samunet`` alone."""
    listed = "\n".join(f"  {name:35}{_summary(name)}" for name in command_names())
    parser = CommandParser(
        "samunet",
        usage="samunet [-h] [--version] command [...]",
        description="Self-configuring medical image segmentation with an adapted Segment Anything Model.",
        epilog=f"commands (samunet COMMAND -h shows the flags of one):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", help="one of those below; samunet train is samunet_train")
    parser.add_argument("--version", action="version", version=f"samunet {__version__}")
    return parser


def command_names() -> list[str]:
    """``train``, ``predict`` and all others: the modules beside this one that say which command they are."""
    modules = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    return [name for name in modules if _summary(name)]


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    name = words[0].removeprefix("samunet_") if words else ""
    if name in command_names():
        return import_module(f"samunet.commands.{name}").main(words[1:])
    if name and not name.startswith("-"):
        words = words[:1]  # what follows an unknown command is meant for it
    return run_command(build_parser(), _run, words)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.errors import UsageError

    if arguments.command is None:
        build_parser().print_help()
        return
    near = difflib.get_close_matches(arguments.command, command_names(), n=1)
    meant = f"did you mean samunet {near[0]}? " if near else ""
    raise UsageError(f"there is no command {arguments.command}", f"{meant}samunet -h lists all of them")


def _summary(name: str) -> str:
    """What a command does, from the first line of its module; nothing for a module that is no command."""
    text = (import_module(f"samunet.commands.{name}").__doc__ or "").partition("\n")[0]
    start = f"``samunet_{name}``: "
    return text.removeprefix(start) if text.startswith(start) else ""
