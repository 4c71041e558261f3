"""Case names: one spelling of each, and what may be one, because files are named after cases."""

from __future__ import annotations

import os
import unicodedata

from samunet import errors

MAX_NAME_BYTES = 225  # with "_fold_disagreement" and an ending, the 255 that file systems allow


def one_spelling(name: str) -> str:
    """The composed form of a name: macOS writes é as e and an accent, which elsewhere is another name."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """A file name with what cannot be printed, such as bytes that are not UTF-8, written so that it can be."""
    return errors.printable(os.fsencode(name).decode("utf-8", "backslashreplace"))
