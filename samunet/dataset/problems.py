"""Findings about a dataset, and the error that lists several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samunet.errors import SamunetError, printable

_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        kind: What is wrong, as the beginning of a sentence that ``detail`` ends; the same for all findings alike.
        where: The case, file or key.
        detail: What was found there.
        fix: What to do about it.
        warning: Whether work can go on all the same.
    """

    kind: str
    where: str
    detail: str
    fix: str
    warning: bool = False

    @property
    def text(self) -> str:
        """Kind and detail as one sentence."""
        return f"{self.kind} {self.detail}"

    def to_json(self) -> dict[str, str]:
        """As plain data."""
        severity = "warning" if self.warning else "error"
        return {"severity": severity, "where": self.where, "problem": self.text, "fix": self.fix}


def shortened(names: Sequence[str], separator: str = ", ") -> str:
    """At most five names, and how many there are besides."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + rest


def raise_problems(problems: Sequence[Problem], folder: Path | str) -> None:
    """Raise one SamunetError that lists all errors among ``problems``, at most five of each kind; without any, nothing.

    Args:
        problems: Warnings among them are left out.
        folder: Named at the beginning of the message.
    """
    errors = [problem for problem in problems if not problem.warning]
    if not errors:
        return
    details: dict[str, list[str]] = {}
    for problem in errors:
        details.setdefault(problem.kind, []).append(printable(problem.detail))
    lines = [f"{kind} {shortened(found, '; ')}" for kind, found in details.items()]
    listed = lines[0] if len(lines) == 1 else "".join(f"\n  - {line}" for line in lines)
    fixes = list(dict.fromkeys(problem.fix for problem in errors if problem.fix))
    raise SamunetError(f"{folder}: {listed}", "\n  -> ".join(fixes[:_SHOWN]) or None)
