"""Console scripts: flags, and texts for a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module


def run_command(name: str, argv: Sequence[object]) -> int:
    """Run a command in this process, such as ``run_command("samunet_train", ["27", "2d", "0"])``; its exit status."""
    return _module(name).main([str(word) for word in argv])


def build_parser(name: str) -> argparse.ArgumentParser:
    """The flags of a command, such as ``samunet_train``."""
    return _module(name).build_parser()


def _module(name: str):
    return import_module(f"samunet.commands.{name.removeprefix('samunet_')}")
