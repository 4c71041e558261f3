"""The one error type that reaches a user as a sentence instead of a traceback."""

from __future__ import annotations

import functools
import math
import re
import shlex
from collections.abc import Callable
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

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


class SamunetError(Exception):
    """Something the user can understand and repair.

    Args:
        message: What was found, naming the file, key or case, and what is allowed.
        hint: What to type or change next. Printed on a line of its own.
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
        name: As the user writes it.
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
    raise UsageError(f"{name} must be {' and '.join(limits) or 'a finite number'}, got {value!s:.40}")


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


# Whether the user typed a command: then remedies name flags, which an API function turns into its arguments.
COMMAND_LINE: ContextVar[bool] = ContextVar("COMMAND_LINE", default=False)

_SWITCHES = {
    "--clean": "clean=True", "--continue_prediction": "skip_existing=True", "--disable_postprocessing":
    "postprocessing=False", "--disable_tta": "tta=False", "--force": "overwrite=True", "--npz":
    "save_probabilities=True", "--not_strict": "strict=False", "--overwrite": "overwrite=True", "--random_weights":
    "random_weights=True", "--save_probabilities": "save_probabilities=True", "--save_uncertainty":
    "save_uncertainty=True", "--tolerate_geometry": "tolerate_geometry=True", "--val": "validation_only=True",
    "--val_best": "validate_best=True", "--verify_dataset_integrity": "verify=True", "--no_pp": "store=False",
}  # fmt: skip
_VALUES = {
    "--batch_size": "batch_size", "--checkpoint": "checkpoint", "--epochs": "epochs", "--feature_cache":
    "feature_cache", "--iterations": "iterations", "--lr": "learning_rate", "--num_cases": "num_cases",
    "--num_workers": "num_workers", "--pixel_statistics": "pixel_statistics", "--pretrained": "pretrained", "--seed":
    "seed", "--time_budget": "seconds", "-adaptation": "adaptation", "-c": "configuration", "-chk": "checkpoint", "-d":
    "dataset", "-dataset_json": "dataset_json", "-device": "device", "-djfile": "dataset_json", "-encoder": "encoder",
    "-f": "folds", "-gpu_memory_target": "gpu_memory_target_gb", "-image_size": "image_size", "-m": "model_folder",
    "-np": "num_workers", "-overwrite_plans_name": "plans_name", "-p": "plans_name", "-step_size": "step_size",
    "-tolerance": "tolerance",
}  # fmt: skip
_COMMAND_OR_FLAG = re.compile(
    r"samunet_[a-z]\w* [^,;()\n]*|(?<![\w-])(--?[a-z]\w*)( (?!or\b|and\b|for\b|of\b|to\b)[\w./:]+)?"
)


def in_api_terms(text: str) -> str:
    """A remedy with arguments of the API in place of flags: ``device="cpu"`` for ``-device cpu``.

    Whole commands stay as they are: they can be typed.
    """

    def argument(match: re.Match[str]) -> str:
        flag, value = match[1], match[2]
        if flag in _SWITCHES:
            return _SWITCHES[flag] + (value or "")
        if flag not in _VALUES:
            return match[0]
        if value is None:
            return _VALUES[flag]
        word = value.strip()
        number = re.fullmatch(r"\d+(\.\d+)?|[A-Z]+", word)  # NAME and the like stand for what the user fills in
        return f"{_VALUES[flag]}={word}" if number else f'{_VALUES[flag]}="{word}"'

    return _COMMAND_OR_FLAG.sub(argument, text)


def with_arguments(function: Callable) -> Callable:
    """``function``, whose errors name arguments where the remedies of commands name flags."""

    @functools.wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except SamunetError as error:
            if not COMMAND_LINE.get():
                error.hint = error.hint and in_api_terms(error.hint)
            raise

    return called
