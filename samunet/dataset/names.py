"""Case names: one spelling of each, and what may be one, because files are named after cases."""

from __future__ import annotations

import unicodedata

from samunet import errors

MAX_NAME_BYTES = 225  # with "_fold_disagreement" and an ending, the 255 that file systems allow


def one_spelling(name: str) -> str:
    """The composed form of a name: macOS writes é as e and an accent, which elsewhere is another name."""
    return unicodedata.normalize("NFC", name)


<<<<<<< HEAD
def printable(name: str) -> str:
    """A file name with what cannot be printed, such as bytes that are not UTF-8, written so that it can be."""
    return errors.printable(os.fsencode(name).decode("utf-8", "backslashreplace"))
=======
def is_utf8(name: str) -> bool:
    """Whether a file name is text; Python stands in for bytes that are none with lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
>>>>>>> main
