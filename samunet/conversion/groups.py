"""Patients: cases that must not be spread over training and validation."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from samunet.conversion.source import FileSource
from samunet.dataset.problems import shortened
from samunet.errors import UsageError

log = logging.getLogger(__name__)


def group_by_pattern(sources: Sequence[FileSource], pattern: str) -> list[FileSource]:
    """Tell the patient of every case from its name.

    Args:
        sources: Cases.
        pattern: Regular expression that is searched in the names. What its first parentheses enclose, or without
            parentheses all that it matches, is the patient.

    Raises:
        UsageError: If it is no regular expression, matches the name of a case not at all or with nothing, or the
            cases have patients already.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--patient_pattern: {pattern!r} is no regular expression: {error}", _EXAMPLE) from None
    if any(source.group is not None for source in sources):
        raise UsageError("--patient_pattern and {patient} both tell the patient", "leave one of them out")
    found = {source.name: _group(expression.search(source.name)) for source in sources}
    lacking = [name for name, group in found.items() if not group]
    if lacking:
        what = "no case" if len(lacking) == len(found) else f"{len(lacking)} of {len(found)} cases not"
        raise UsageError(f"--patient_pattern {pattern!r} matches {what}: {shortened(lacking)}", _EXAMPLE)
    if len(set(found.values())) == 1 and len(found) > 1:
        log.warning(
            "--patient_pattern %r gives all %d cases to one patient, so no folds are possible", pattern, len(found)
        )
    return [replace(source, group=found[source.name]) for source in sources]


_EXAMPLE = r"for cases called p07_left and p07_right: --patient_pattern 'p\d+' or --patient_pattern '^[^_]+'"


def _group(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    return match[1] if match.re.groups else match[0]
