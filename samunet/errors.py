"""Errors that reach a user as a sentence instead of a traceback.

Messages and hints name arguments and calls of :mod:`samunet.api`, as Python in backticks, and never flags or commands:
a Python program shows them as they are, and ``samunet.commands.typed`` turns them into what is typed. Texts for the log
do the same.

============================================================  ===================================================
in the text                                                   on the command line
============================================================  ===================================================
```device='cpu'```, ```overwrite=True```, ```num_cases=N```   ``-device cpu``, ``--overwrite``, ``--num_cases N``
```step_size```                                               ``-step_size``
```seed=N, overwrite=True```                                  ``--seed N --overwrite``
```lora={'rank': 8}```                                        ``-lora_rank 8``
```api.predict```                                             ``samunet_predict``
```api.train(27, '2d', 0, overwrite=True)```                  ``samunet_train 27 2d 0 --overwrite``
```api.train(..., validation_only=True)```                    ``samunet_train … --val``
```api.preprocess(ID)```                                      ``samunet_preprocess -d ID``
============================================================  ===================================================

Where values are known, :func:`argument` and :func:`call` write this, with quotes where they belong. A name that stands
for what the user fills in (``ID``, ``FOLDER``) has none; in :func:`argument` and :func:`call` it is a :class:`Blank`.
An argument alone is one of the command that runs; one of another function stands in a call of it. The flags of an
argument are in the table of commands (``dest`` of :class:`samunet.commands.table.Flag`).
"""

from __future__ import annotations

import math
import re
import shlex
from numbers import Integral, Real

# Control characters, ends of lines, those that turn the direction of writing, and halves of characters.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, keep: str = "") -> str:
    """Text that shows what it holds: control characters and those that change the direction of writing as escapes.

    Args:
        text: May come from a stranger: a case's or a class's name, a licence.
        keep: Characters to leave as they are, such as a line's end.
    """
    return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), str(text))


def _escaped(char: str) -> str:
    # What stands in for a byte that is not UTF-8 is shown as that byte.
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else repr(char)[1:-1]


def quoted(word: object) -> str:
    """A word of a command as a shell takes it, whatever a path or a name has in it. Commands in messages are pasted."""
    return shlex.quote(str(word))


class Blank(str):
    """A word that stands for what the user fills in, such as ``ID``; without quotes in calls and arguments."""


def argument(name: str, *value: object) -> str:
    """An argument of the API for a message: ```device='cpu'```, or without a value ```device```."""
    return f"`{name}={_literal(*value)}`" if value else f"`{name}`"


def call(function: str, *arguments: object, **keywords: object) -> str:
    """A call of the API for a message: ``call("train", "027", "2d", 0)`` is ```api.train('027', '2d', 0)```."""
    given = [*map(_literal, arguments), *(f"{name}={_literal(value)}" for name, value in keywords.items())]
    return f"`api.{function}({', '.join(given)})`"


def _literal(value: object) -> str:
    if value is ...:
        return "..."
    if isinstance(value, Blank):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Real):
        return repr(value if isinstance(value, bool) else int(value) if isinstance(value, Integral) else float(value))
    return "None" if value is None else repr(str(value)).replace("`", "\\x60")  # a path may have any character in it


class SamunetError(Exception):
    """Something the user can understand and repair.

    Args:
        message: What was found, naming the file, key or case, and what is allowed.
        hint: What to do next, see the top of this module. Printed on a line of its own.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  -> {self.hint}"

    def __reduce__(self):
        # Exceptions travel between processes by pickling their constructor arguments.
        return type(self), (self.message, self.hint)


class UsageError(SamunetError):
    """The command line (or the arguments of an API function) asks for something that does not exist."""

    exit_status = 2


def check_number(
    name: str, value: float, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> None:
    """Check that an option is a finite number within its range.

    Args:
        name: The argument.
        value: What was given.
        above, least, most: Limits, of which the first is not itself allowed; None for no limit.

    Raises:
        UsageError: If not; says what is allowed.
    """
    right = isinstance(value, Integral) or (isinstance(value, Real) and math.isfinite(value))
    right = right and (above is None or value > above) and (least is None or value >= least)
    if right and (most is None or value <= most):
        return
    limits = [f"{word} {limit:g}" for word, limit in (("above", above), ("at least", least)) if limit is not None]
    limits += [] if most is None else [f"at most {most:g}"]
    raise UsageError(f"{argument(name)} must be {' and '.join(limits) or 'a finite number'}, got {value!s:.40}")


class FatalError(SamunetError):
    """The machine fails, and not a case: a full disk, no memory. With several cases the work stops at once."""


class CasesFailed(SamunetError):
    """Some of several cases failed; the others are done.

    Attributes:
        failures: Case to what was wrong with it.
    """

    def __init__(self, message: str, hint: str | None = None, failures: dict[str, SamunetError] | None = None) -> None:
        super().__init__(message, hint)
        self.failures = failures or {}


def raise_failures(failures: dict[str, SamunetError], total: int, hint: str) -> None:
    """Raise one error that lists all cases that failed, each with its reason and remedy; without any, nothing.

    Args:
        failures: Case to its error.
        total: Cases that were to be done; where there was only one, its own error is raised.
        hint: What to do next.

    Raises:
        CasesFailed: If there are failures.
    """
    if not failures:
        return
    first = next(iter(failures.values()))
    if total == 1:
        raise first
    listed = "\n".join(f"  {str(error).replace(chr(10), chr(10) + '  ')}" for error in failures.values())
    done = "the others are done" if len(failures) < total else "none is done"
    message = f"{len(failures)} of {total} cases failed, {done}:\n{listed}"
    raise CasesFailed(message, hint, failures) from first
