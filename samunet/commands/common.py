"""What every console script shares: flags, messages on stderr, and exit statuses.

Exit statuses: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C or SIGTERM).
"""

from __future__ import annotations

import argparse
import difflib
import logging
import math
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from samunet.commands.nnunet_flags import instead_of
from samunet.errors import COMMAND_LINE, SamunetError, UsageError, printable

INTERRUPTED = 130

# The threads of torch's OpenMP (GNU's, on Linux) wait for each other in a loop that takes a core. Where another program
# needs that core, a training step then takes many times as long. A short loop cost whole trainings nothing that could
# be measured (documentation/lab/notebook.md, Threads). Read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: a scheduler or container wants the process to stop. Handled like Ctrl-C."""


class CommandParser(argparse.ArgumentParser):
    """A parser of flags written out: no abbreviations, and no value glued to a flag of one letter.

    argparse takes ``-pretrained_weights x`` for ``-p retrained_weights x``, also where abbreviations are not allowed.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords, allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse; every unknown flag is refused first, with what is there in its place.

        Raises:
            UsageError: If a word that looks like a flag is none.
        """
        words = sys.argv[1:] if args is None else list(args)
        for word in words[: words.index("--")] if "--" in words else words:
            if re.match(r"--?[A-Za-z]", word) and " " not in word:  # argparse, too, takes words with blanks for values
                self._check_flag(word.partition("=")[0])
        return super().parse_known_args(words, namespace)

    def _check_flag(self, flag: str) -> None:
        known = self._option_string_actions
        if flag in known:
            return
        instead = instead_of(self.prog, flag)
        if instead:
            raise UsageError(*instead)
        bare = {name.lstrip("-").replace("_", "-"): name for name in known}
        near = difflib.get_close_matches(flag.lstrip("-").replace("_", "-"), bare, n=1, cutoff=0.75)
        hint = f"did you mean {bare[near[0]]}? " if near else ""
        raise UsageError(f"{self.prog} has no flag {flag}", f"{hint}{self.prog} -h shows all of them")


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command has."""
    parser.add_argument(
        "--verbose", action="store_true", help="print details while working, and the traceback if something fails"
    )


def finite(text: str) -> float:
    """A number on a command line: neither NaN nor infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


def run_command(
    parser: argparse.ArgumentParser,
    function: Callable[[argparse.Namespace], int | None],
    argv: list[str] | None,
    *,
    go_on: str = "the same command goes on from here",
) -> int:
    """Parse ``argv`` (default: the command line), call ``function`` with the result, and return the exit status.

    Everything that goes wrong ends in one readable message on stderr; the traceback appears with ``--verbose`` only.
    ``go_on`` tells what to do after an interruption.
    """
    try:
        arguments = parser.parse_args(argv)
    except UsageError as error:
        return _report(f"error: {error}", False, error.exit_status)
    except SystemExit as stop:  # argparse has printed its help (0) or what is wrong with the usage (2)
        return stop.code if isinstance(stop.code, int) else 0
    verbose = getattr(arguments, "verbose", False)
    with _logging_to_stderr(verbose), _termination_as_exception(), _flags_in_remedies():
        try:
            status = function(arguments) or 0
            sys.stdout.flush()
            return status
        except KeyboardInterrupt as interrupt:
            reason = "terminated" if isinstance(interrupt, Terminated) else "interrupted"
            return _report(f"{reason}; {go_on}", verbose, INTERRUPTED)
        except SamunetError as error:
            return _report(f"error: {error}", verbose, error.exit_status)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_has_left():
                return 1
            if isinstance(error, OSError) and error.filename is not None and error.strerror:
                advice = "check that it is there, that you may read and write there, and that the disk is not full"
                return _report(f"error: {error.filename}: {error.strerror}\n  -> {advice}", verbose, 1)
            if isinstance(error, MemoryError):
                return _report("error: memory ran out\n  -> close other programs, or use fewer processes", verbose, 1)
            first_line = next(iter(str(error).splitlines()), "")
            name = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
            advice = "" if verbose else " (run again with --verbose for the traceback)"
            return _report(f"error: {name}{advice}", verbose, 1)


def _report(message: str, verbose: bool, status: int) -> int:
    if verbose:
        traceback.print_exc()
    print(printable(message, keep="\n\t"), file=sys.stderr)
    return status


def _reader_has_left() -> bool:
    """Whether the program that reads our output (``| head``) is gone; then nothing more is written, even at exit."""
    try:
        print(flush=True)  # a failed write leaves nothing in the buffer, so flushing alone would not tell
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record), keep="\n\t")
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


@contextmanager
def _logging_to_stderr(verbose: bool) -> Iterator[None]:
    logger = logging.getLogger("samunet")
    if logger.handlers:  # a command that runs other commands, like the demo, has set this up already
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter())
    level_before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)


@contextmanager
def _flags_in_remedies() -> Iterator[None]:
    token = COMMAND_LINE.set(True)
    try:
        yield
    finally:
        COMMAND_LINE.reset(token)


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Turn SIGTERM into :class:`Terminated`, so that files and worker processes are cleaned up as after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # Python sets signal handlers in the main thread only
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a forked worker inherits this handler but must simply die when told to
            os._exit(128 + number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
