"""Which reader opens which file ending."""

from __future__ import annotations

import logging

from samunet.errors import SamunetError
from samunet.imageio.base import Reader
from samunet.imageio.natural import NaturalImageReader
from samunet.imageio.simpleitk import SimpleITKReader

log = logging.getLogger(__name__)

READERS: tuple[Reader, ...] = (SimpleITKReader(), NaturalImageReader())


def reader_for(file_ending: str, override: str | None = None) -> Reader:
    """The reader for a file ending.

    Args:
        file_ending: With the leading dot, as in dataset.json.
        override: A reader's name, ``overwrite_image_reader_writer`` in dataset.json. A name that only nnU-Net knows is
            ignored with a warning, as nnU-Net does with names that it does not know.

    Raises:
        SamunetError: If no reader opens the ending, or the one asked for does not.
    """
    named = [reader for reader in READERS if reader.name == override]
    if override is not None and not named:
        names = ", ".join(reader.name for reader in READERS)
        log.warning("there is no reader called %s (there are %s): choosing by file ending", override, names)
    for reader in named or READERS:
        if file_ending in reader.endings:
            return reader
    allowed = ", ".join(ending for reader in named or READERS for ending in reader.endings)
    who = f"the reader {override}" if named else "samunet"
    raise SamunetError(
        f"{who} cannot open files ending in {file_ending!r}; file_ending must be one of {allowed}",
        "convert the images and labels without loss (not to JPEG), and set file_ending in dataset.json",
    )
