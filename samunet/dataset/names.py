"""Names of cases: one spelling of each, and which ones can be used, because files are named after cases."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from samunet.dataset.problems import Problem
from samunet.errors import printable
from samunet.imageio.registry import ending_of

MAX_NAME_BYTES = 225  # with "_fold_disagreement" and an ending, the 255 that file systems allow
_NUMBERED = re.compile(r"(.+)_(\d{4})")


def one_spelling(name: str) -> str:
    """The composed form of a name: macOS writes é as e and an accent, which elsewhere is another name."""
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a file name is text that can be printed: no bytes that are not UTF-8, no control characters."""
    return printable(name) == name


def ending_in(name: str, endings: Iterable[str]) -> str | None:
    """The longest of ``endings`` with which a file name ends, as it is written there; None if there is none."""
    found = [ending for ending in endings if name.casefold().endswith(ending) and len(name) > len(ending)]
    return name[-len(max(found, key=len)) :] if found else None


def case_stem(file: Path) -> str:
    """Name of an image or mask without its ending; of a DICOM series, its folder's name."""
    file = Path(file)
    name = file.resolve().name if file.name in ("", "..") else file.name
    ending = None if file.is_dir() else ending_of(file)
    return one_spelling(name[: -len(ending)] if ending else name)


def case_and_channel(stem: str) -> tuple[str, int] | None:
    """``scan_0001`` is channel 1 of the case ``scan``; None for names without channel number."""
    match = _NUMBERED.fullmatch(stem)
    return (one_spelling(match[1]), int(match[2])) if match else None


def unusable_names(names: Iterable[str]) -> list[Problem]:
    """Case names that cannot be kept apart, cannot be written, or are too long for the files named after them."""
    problems, alike = [], {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(name)
    kind = "names that differ only by upper and lower case:"
    fix = "rename one of them: Windows and macOS take them for the same file"
    problems += [Problem(kind, same[0], " and ".join(same), fix) for same in alike.values() if len(same) > 1]
    for name in (name for same in alike.values() for name in same):
        if not is_text(name):
            kind, fix = (
                "names that are not UTF-8 or have control characters:",
                "rename the file: many programs cannot open it",
            )
            problems.append(Problem(kind, printable(name), printable(name), fix))
        if (length := len(os.fsencode(name))) > MAX_NAME_BYTES:
            fix = f"rename its files: a case's name may have {MAX_NAME_BYTES} bytes, because more is added to it"
            problems.append(Problem("names that are too long:", name, f"{name} ({length} bytes)", fix))
    return problems
