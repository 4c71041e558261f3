"""``scans/{case}_ct.nii.gz``: patterns that say where in a path the names of case, patient and channel stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samunet.dataset.problems import shortened
from samunet.errors import UsageError

_PLACEHOLDER = re.compile(r"\{(\w*)\}|(\*)")
_KNOWN = ("case", "patient", "channel")


@dataclass(frozen=True)
class Match:
    """A file that a pattern describes.

    Attributes:
        file: Its path.
        case: ``PATIENT_CASE`` where the pattern names both.
        patient: None where the pattern names none.
        channel: Index in the channels; None where the pattern names none.
    """

    file: Path
    case: str
    patient: str | None
    channel: int | None


def is_pattern(text: str) -> bool:
    """Whether a path is a pattern and not a folder."""
    return "{" in text or "*" in text


def names_in(pattern: str) -> set[str]:
    """Placeholders of a pattern."""
    return {match[1] for match in _PLACEHOLDER.finditer(pattern) if match[1] is not None}


def find_matches(pattern: str, channels: Sequence[str]) -> list[Match]:
    """Files that a pattern describes, sorted.

    Args:
        pattern: A path with ``{case}``, and if need be ``{patient}``, ``{channel}`` and ``*``; each stands for a part
            of a file's or folder's name.
        channels: What may stand for ``{channel}``.

    Raises:
        UsageError: If the pattern has no ``{case}`` or unknown placeholders, its folder does not exist, or nothing
            matches.
    """
    _check(pattern, channels)
    parts = Path(pattern).expanduser().parts
    first = next(index for index, part in enumerate(parts) if is_pattern(part))
    root = Path(*parts[:first]) if first else Path()
    if not root.is_dir():
        raise UsageError(f"{pattern}: there is no folder {root}", "correct the path")
    expression = _expression("/".join(parts[first:]), channels)
    files = [file for file in sorted(root.rglob("*")) if not _hidden(file, root) and file.is_file()]
    found = []
    for file in files:
        match = expression.fullmatch(file.relative_to(root).as_posix())
        if match:
            named = match.groupdict()
            patient, channel = named.get("patient"), named.get("channel")
            case = named["case"] if patient is None else f"{patient}_{named['case']}"
            found.append(Match(file, case, patient, None if channel is None else list(channels).index(channel)))
    if not found:
        there = shortened([file.relative_to(root).as_posix() for file in files]) or "no files"
        raise UsageError(
            f"nothing matches {pattern}; {root} has {there}",
            "{case} stands for the part of a file's or folder's name that tells the case; write the rest as it is",
        )
    return found


def files_below(folder: Path, without: Path | None) -> list[Path]:
    """All files of a folder and its subfolders, sorted, without hidden ones and those below ``without``."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not _hidden(file, folder) and (without is None or without not in file.parents)
    ]


def _hidden(file: Path, root: Path) -> bool:
    # __MACOSX is what macOS puts into zip files beside the data.
    return any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(root).parts)


def _check(pattern: str, channels: Sequence[str]) -> None:
    unknown = names_in(pattern) - set(_KNOWN)
    example = "for example 'scans/{case}_ct.nii.gz' or 'patients/{case}/{channel}.nii.gz'"
    if unknown:
        raise UsageError(
            f"{pattern}: {{{sorted(unknown)[0]}}} is no placeholder; there are "
            f"{', '.join(f'{{{name}}}' for name in _KNOWN)} and *",
            example,
        )
    if "case" not in names_in(pattern):
        raise UsageError(f"{pattern}: a pattern must say with {{case}} where the name of the case stands", example)
    if "channel" in names_in(pattern) and not channels:
        raise UsageError(
            f"{pattern}: {{channel}} stands for the names of --channel_names, which are missing",
            "for example --channel_names FLAIR=flair T1c=t1ce, where flair and t1ce are what stands in file names",
        )


def _expression(pattern: str, channels: Sequence[str]) -> re.Pattern[str]:
    seen: set[str] = set()
    text, position = "", 0
    for match in _PLACEHOLDER.finditer(pattern):
        text += re.escape(pattern[position : match.start()])
        position = match.end()
        name = match[1]
        if name is None:
            text += "[^/]*"
        elif name in seen:
            text += f"(?P={name})"
        else:
            # The longest channel first: t1c must not be found in t1ce.
            one_of = "|".join(re.escape(channel) for channel in sorted(channels, key=len, reverse=True))
            text += f"(?P<{name}>{one_of if name == 'channel' else '[^/]+?'})"
            seen.add(name)
    return re.compile(text + re.escape(pattern[position:]))
