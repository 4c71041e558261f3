"""Cases and the files that belong to them: ``case_0000.ending`` for images, ``case.ending`` for labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samunet.dataset.description import Description
from samunet.dataset.names import MAX_NAME_BYTES, is_text, one_spelling
from samunet.dataset.problems import Problem
from samunet.errors import printable

_NUMBERED = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Attributes:
        name: What remains of the file name without channel number and ending.
        images: One file per channel, in channel order; or one file that holds all channels (such as RGB).
        label: None if there is none.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass
class Dataset:
    """A raw dataset with its training cases, sorted by name.

    Attributes:
        name: Such as ``Dataset027_ACDC``.
        folder: Where dataset.json lies.
        description: Content of dataset.json.
        cases: By name.
        problems: What is wrong with keys, file names and numbers of channels.
    """

    name: str
    folder: Path
    description: Description
    cases: dict[str, Case]
    problems: list[Problem] = field(default_factory=list)


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden entries such as unfinished writes; empty if it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def ending_in(name: str, endings: Iterable[str]) -> str | None:
    """The longest of ``endings`` with which a file name ends, as it is written there; None if there is none."""
    found = [ending for ending in endings if name.casefold().endswith(ending) and len(name) > len(ending)]
    return name[-len(max(found, key=len)) :] if found else None


def case_and_channel(stem: str) -> tuple[str, int] | None:
    """``scan_0001`` is channel 1 of the case ``scan``; None for names without channel number."""
    match = _NUMBERED.fullmatch(stem)
    return (one_spelling(match[1]), int(match[2])) if match else None


def group_by_case(
    files: Sequence[Path], endings: Sequence[str]
) -> tuple[dict[str, dict[int, Path]], list[Problem], list[Path]]:
    """Sort images named ``case_0000.ending`` into cases.

    Args:
        files: Of one folder.
        endings: Endings of images; files with other ones are left alone.

    Returns:
        Case name to its files by channel number, both sorted; what is wrong with the names; and the files that have one
        of the endings but no channel number.
    """
    cases: dict[str, dict[int, Path]] = {}
    problems, unnumbered = [], []
    for file in sorted(files):
        ending = ending_in(file.name, endings)
        if ending is None:
            continue
        parsed = case_and_channel(file.name.removesuffix(ending))
        if parsed is None:
            unnumbered.append(file)
            continue
        name, channel = parsed
        first = cases.setdefault(name, {}).setdefault(channel, file)
        if first is not file:
            problems.append(duplicate(name, [first.name, file.name]))
    cases = {name: dict(sorted(cases[name].items())) for name in sorted(cases)}
    return cases, problems + unusable_names(cases), unnumbered


def duplicate(name: str, files: Sequence[str]) -> Problem:
    """Two files that would be the same case."""
    listed = " and ".join(files)
    if len({one_spelling(file) for file in files}) < len(set(files)):
        listed += " (the same letters, composed and with separate accents)"
    return Problem("the same case twice:", name, f"{name} is {listed}", "keep one of the files, or rename one")


def channel_gaps(cases: Mapping[str, Iterable[int | None]]) -> list[Problem]:
    """Cases whose channel numbers are not 0, 1, 2, ...: the next file would become a channel that it is not.

    Args:
        cases: Name to the numbers of its files; None stands for a name without number.
    """
    problems = []
    for name, numbers in cases.items():
        found = list(numbers)
        if found != [None] and found != list(range(len(found))):
            listed = ", ".join("no number" if number is None else f"{number:04d}" for number in found)
            fix = "channels are 0000, 0001, ... without gaps: add the files that are missing, or rename those there are"
            problems.append(Problem("numbers of channels with gaps:", name, f"{name} has {listed}", fix))
    return problems


def unusable_names(names: Iterable[str]) -> list[Problem]:
    """Case names that cannot be kept apart, cannot be written, or are too long for the files named after them."""
    names = list(names)
    long = [name for name in names if len(os.fsencode(name)) > MAX_NAME_BYTES]
    return [
        *_alike(names),
        *(
            Problem(
                "names that are not UTF-8 or have control characters:", printable(name), printable(name),
                "rename the file: many programs cannot open it",
            )
            for name in names
            if not is_text(name)
        ),
        *(
            Problem(
                "names that are too long:", name, f"{name} ({len(os.fsencode(name))} bytes)",
                f"rename its files: a case's name may have {MAX_NAME_BYTES} bytes, because more is added to it",
            )
            for name in long
        ),
    ]  # fmt: skip


def _alike(names: Iterable[str]) -> list[Problem]:
    """Names that differ only by upper and lower case, which many file systems take for one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.casefold(), []).append(name)
    return [
        Problem(
            "names that differ only by upper and lower case:", group[0], " and ".join(group),
            "rename one of them: Windows and macOS take them for the same file",
        )
        for group in groups.values()
        if len(group) > 1
    ]  # fmt: skip
