"""Commands over argparse: flags as data, one way to run, messages on stderr, and exit statuses."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from samunet.commands.nnunet_flags import instead_of
from samunet.errors import SamunetError, UsageError, printable
from samunet.signals import Terminated, termination_as_exception

INTERRUPTED = 130  # exit statuses: 0 done, 1 failed, 2 wrong usage
GO_ON = "the same command goes on from here"
NOTHING_WRITTEN = "nothing was written; start it again"

# The threads of torch's OpenMP (GNU's, on Linux) wait for each other in a loop that takes a core. Where another program
# needs that core, a training step then takes many times as long. A short loop cost whole trainings nothing that could
# be measured (documentation/lab/notebook.md, Threads). Read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class Flag:
    """A flag or positional argument: what ``add_argument`` takes.

    ``dest`` is the argument of the API that it gives; it can be left out where it is called the same. By it a message
    that names the argument gets the flag (:mod:`samunet.commands.typed`).

    Args:
        names: As ``add_argument``.
        also: Further arguments of the API that it gives, such as ``fold`` where ``dest`` is ``folds``.
        options: As ``add_argument``.
    """

    def __init__(self, *names: str, also: tuple[str, ...] = (), **options: Any) -> None:
        self.names, self.also, self.options = names, also, options
        if names[0][0] == "-" and "dest" in options and not options.keys() & {"metavar", "choices", "action"}:
            options["metavar"] = names[0].lstrip("-").upper()

    def add_to(self, parser: Any) -> None:
        """Add it to a parser or to a group of one."""
        parser.add_argument(*self.names, **self.options).also = self.also


class Switch(Flag):
    """A flag without a value; the argument of the API becomes ``sets``, and is the opposite without the flag."""

    def __init__(self, *names: str, sets: bool = True, **options: Any) -> None:
        super().__init__(*names, action="store_true" if sets else "store_false", **options)


class Group:
    """Flags under a title of their own in ``-h``; without a title, flags of which one at most may be given."""

    def __init__(self, title: str | None, *flags: Flag) -> None:
        self.title, self.flags = title, flags

    def add_to(self, parser: Any) -> None:
        """Add them to a parser."""
        group = parser.add_argument_group(self.title) if self.title else parser.add_mutually_exclusive_group()
        for flag in self.flags:
            flag.add_to(group)


VERBOSE = Switch("--verbose", help="print details while working, and the traceback if something fails")


@dataclass(frozen=True)
class Command:
    """A console script.

    Attributes:
        name: As it is typed, such as ``samunet_train``.
        summary: What it does: a phrase for lists of commands.
        flags: All but ``--verbose`` and ``-h``.
        function: Does it; takes what the flags give by the names of the API, and may return an exit status.
        description: A sentence or more; None for the summary as one.
        examples: Calls, for the reference page.
        see: Where the documentation tells more, in Markdown, for the reference page.
        go_on: What to do after an interruption.
        calls: Functions of :mod:`samunet.api` that messages name in place of this command, each with the flag that it
            needs, if any.
    """

    name: str
    summary: str
    flags: tuple[Flag | Group, ...]
    function: Callable[..., int | None]
    description: str | None = None
    examples: tuple[str, ...] = ()
    see: str | None = None
    go_on: str = GO_ON
    calls: tuple[str, ...] = ()

    def parser(self) -> CommandParser:
        """Its flags."""
        description = self.description or f"{self.summary[:1].upper()}{self.summary[1:]}."
        parser = CommandParser(self.name, description=description)
        for flag in (*self.flags, VERBOSE):
            flag.add_to(parser)
        return parser

    def __call__(self, argv: list[str] | None = None) -> int:
        """Run it with ``argv`` (default: the command line); returns the exit status."""

        def function(arguments: argparse.Namespace) -> int | None:
            return self.function(**{name: value for name, value in vars(arguments).items() if name != "verbose"})

        return run(self.parser(), function, argv, go_on=self.go_on)


def command(summary: str, *flags: Flag | Group, **options: Any) -> Callable[[Callable], Command]:
    """Decorator that makes a function ``train`` the command ``samunet_train``; see :class:`Command`."""

    def made(function: Callable[..., int | None]) -> Command:
        name = function.__name__
        return Command(f"samunet_{name}", summary, flags, function, **({"calls": (name,)} | options))

    return made


class CommandParser(argparse.ArgumentParser):
    """A parser of flags written out: no abbreviations, and no value glued to a flag of one letter.

    argparse takes ``-pretrained_weights x`` for ``-p retrained_weights x``, also where abbreviations are not allowed.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords, allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse; every unknown flag is refused first, with what is there in its place.

        Raises:
            UsageError: If a word that looks like a flag is none, or a dataset is given without ``-d``.
        """
        words = sys.argv[1:] if args is None else list(args)
        for word in words[: words.index("--")] if "--" in words else words:
            if re.match(r"--?[A-Za-z]", word) and " " not in word:  # argparse, too, takes words with blanks for values
                self._check_flag(word.partition("=")[0])
        takes_words = any(not action.option_strings for action in self._actions)
        if words and words[0][:1] != "-" and "-d" in self._option_string_actions and not takes_words:
            given = words[1:] if "-d" in words else ["-d", *words]
            meant = shlex.join([self.prog, *given])
            raise UsageError(f"{self.prog} takes flags only, and got {words[0]!r}", f"did you mean {meant}?")
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


def run(
    parser: argparse.ArgumentParser,
    function: Callable[[argparse.Namespace], int | None],
    argv: list[str] | None = None,
    *,
    go_on: str = GO_ON,
) -> int:
    """Parse ``argv`` (default: the command line), call ``function`` with the result, and return the exit status.

    Everything that goes wrong ends in one readable message on stderr; the traceback appears with ``--verbose`` only.
    """
    try:
        arguments = parser.parse_args(argv)
    except UsageError as error:
        return _fail(f"error: {as_typed(str(error), parser)}", False, error.exit_status)
    except SystemExit as stop:  # argparse has printed its help (0) or what is wrong with the usage (2)
        return stop.code if isinstance(stop.code, int) else 0
    verbose = getattr(arguments, "verbose", False)
    with _logging_to_stderr(verbose, parser), termination_as_exception():
        try:
            status = function(arguments) or 0
            sys.stdout.flush()
            return status
        except KeyboardInterrupt as interrupt:
            reason = "terminated" if isinstance(interrupt, Terminated) else "interrupted"
            return _fail(f"{reason}; {go_on}", verbose, INTERRUPTED)
        except SamunetError as error:
            return _fail(f"error: {as_typed(str(error), parser)}", verbose, error.exit_status)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_has_left():
                return 1
            if isinstance(error, OSError) and error.filename is not None and error.strerror:
                advice = "check that it is there, that you may read and write there, and that the disk is not full"
                return _fail(f"error: {error.filename}: {error.strerror}\n  -> {advice}", verbose, 1)
            if isinstance(error, MemoryError):
                return _fail("error: memory ran out\n  -> close other programs, or use fewer processes", verbose, 1)
            first_line = next(iter(str(error).splitlines()), "")
            name = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
            advice = "" if verbose else " (run again with --verbose for the traceback)"
            return _fail(f"error: {name}{advice}", verbose, 1)


def as_typed(text: str, parser: argparse.ArgumentParser) -> str:
    """:func:`samunet.commands.typed.as_typed`, imported where there is something to put in other words."""
    if "`" not in text:
        return text
    from samunet.commands import typed

    return typed.as_typed(text, parser)


def _fail(message: str, verbose: bool, status: int) -> int:
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


class _Formatter(logging.Formatter):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser

    def format(self, record: logging.LogRecord) -> str:
        text = printable(as_typed(super().format(record), self.parser), keep="\n\t")
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


@contextmanager
def _logging_to_stderr(verbose: bool, parser: argparse.ArgumentParser) -> Iterator[None]:
    logger = logging.getLogger("samunet")
    if logger.handlers:  # a command that runs other commands, like the demo, has set this up already
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(parser))
    level_before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
