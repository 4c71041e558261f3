"""Case names: one spelling of each, and what may be one, because files are named after cases."""

from __future__ import annotations

import unicodedata

from samunet.errors import printable

MAX_NAME_BYTES = 225  # with "_fold_disagreement" and an ending, the 255 that file systems allow


def one_spelling(name: str) -> str:
    """The composed form of a name: macOS writes é as e and an accent, which elsewhere is another name."""
    return unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a file name is text that can be printed: no bytes that are not UTF-8, no control characters."""
    return printable(name) == name
