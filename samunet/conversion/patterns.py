"""``scans/{case}_ct.nii.gz``: patterns that say where in a path the case, patient, channel and class are named."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samunet.dataset.cases import files_below
from samunet.dataset.problems import shortened
from samunet.errors import UsageError

log = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"\{(\w*)\}|(\*)")
_KNOWN = ("case", "patient", "channel", "class")


@dataclass(frozen=True)
class Match:
    """A file, or folder with a DICOM series, that a pattern describes.

    Attributes:
        file: Its path.
        case: ``PATIENT_CASE`` where the pattern names both.
        patient: None where the pattern names none.
        channel: Index in the channels; None where the pattern names none.
        label: Index in the classes; None where the pattern names none.
    """

    file: Path
    case: str
    patient: str | None = None
    channel: int | None = None
    label: int | None = None


def is_pattern(text: str) -> bool:
    """Whether a path is a pattern and not a folder."""
    return "{" in text or "*" in text


def names_in(pattern: str) -> set[str]:
    """Placeholders of a pattern."""
    return {match[1] for match in _PLACEHOLDER.finditer(pattern) if match[1] is not None}


def find_matches(pattern: str, channels: Sequence[str], classes: Sequence[str] = ()) -> list[Match]:
    """Files and DICOM folders that a pattern describes, sorted.

    Args:
        pattern: A path with ``{case}``, and if need be ``{patient}``, ``{channel}`` or ``{class}``, and ``*``; each
            stands for a part of a file's or folder's name.
        channels: What may stand for ``{channel}``.
        classes: What may stand for ``{class}``.

    Raises:
        UsageError: If the pattern has no ``{case}`` or unknown placeholders, its folder does not exist, or nothing
            matches.
    """
    _check(pattern, channels)
    if "class" in names_in(pattern) and not classes:
        found = list(dict.fromkeys(texts["class"] for _, texts in _texts(pattern, {})))
        raise UsageError(
            f"{pattern}: {{class}} stands for the names of --labels, which are missing; files have "
            f"{shortened(found) or 'no such name'}",
            "name those that are classes, in the order of their values, for example --labels liver tumour",
        )
    found = []
    for file, texts in _texts(pattern, {"channel": channels, "class": classes}):
        patient, channel, label = texts.get("patient"), texts.get("channel"), texts.get("class")
        case = texts["case"] if patient is None else f"{patient}_{texts['case']}"
        found.append(Match(file, case, patient, _place(channel, channels), _place(label, classes)))
    if found:
        _name_left_out(pattern, [match.file for match in found])
    else:
        root = _parts(pattern)[0]
        there = files_below(root)
        listed = shortened([file.relative_to(root).as_posix() for file in there]) or "no files"
        series = "; a DICOM series is named by its folder" if any(file.is_dir() for file in there) else ""
        text = f", {{class}} for {' or '.join(classes)}, or --labels NAME=TEXT says for what" if classes else ""
        raise UsageError(
            f"nothing matches {pattern}; {root} has {listed}",
            f"{{case}} stands for the part of a file's or folder's name that tells the case{text}; write the rest as "
            f"it is{series}",
        )
    return found


def other_classes(pattern: str, matches: Sequence[Match], without: Sequence[Path]) -> list[Path]:
    """Files that a pattern with ``{class}`` describes if any text may stand for it, but for those found, and others."""
    if "class" not in names_in(pattern):
        return []
    known = {match.file for match in matches} | set(without)
    return [file for file, _ in _texts(pattern, {}) if file not in known]


def _texts(pattern: str, allowed: Mapping[str, Sequence[str]]) -> list[tuple[Path, dict[str, str]]]:
    """Files that match, and what stands for each placeholder; ``allowed`` says what may stand for some."""
    root, rest = _parts(pattern)
    if not root.is_dir():
        raise UsageError(f"{pattern}: there is no folder {root}", "correct the path")
    expression = _expression(rest, allowed)
    matches = [(file, expression.fullmatch(file.relative_to(root).as_posix())) for file in files_below(root)]
    return [(file, match.groupdict()) for file, match in matches if match]


def _name_left_out(pattern: str, found: Sequence[Path]) -> None:
    """Warn of folders of cases or patients in which nothing was found."""
    root, rest = _parts(pattern)
    first, *deeper = rest.split("/")
    if not deeper or not names_in(first):
        return
    level, expression = len(root.parts), _expression(first, {})
    folders = {file.parts[level] for file in files_below(root) if len(file.parts) > level + 1}
    lost = sorted(folders - {file.parts[level] for file in found})
    lost = [name for name in lost if expression.fullmatch(name)]
    if lost:
        log.warning("left out, since nothing in them matches %s: %s", pattern, shortened(lost))


def _parts(pattern: str) -> tuple[Path, str]:
    """The folder that a pattern begins with, and the rest of it."""
    parts = Path(pattern).expanduser().parts
    first = next(index for index, part in enumerate(parts) if is_pattern(part))
    return Path(*parts[:first]) if first else Path(), "/".join(parts[first:])


def _place(text: str | None, texts: Sequence[str]) -> int | None:
    return None if text is None else list(texts).index(text)


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


def _expression(pattern: str, allowed: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
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
            # The longest first: t1c must not be found in t1ce.
            one_of = "|".join(re.escape(word) for word in sorted(allowed.get(name, ()), key=len, reverse=True))
            text += f"(?P<{name}>{one_of or '[^/]+?'})"
            seen.add(name)
    return re.compile(text + re.escape(pattern[position:]))
