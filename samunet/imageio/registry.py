"""Which reader handles which files."""

from __future__ import annotations

from samunet.errors import SamunetError
from samunet.imageio.base import Reader
from samunet.imageio.natural import NaturalImageReader
from samunet.imageio.simpleitk import SimpleITKReader

READERS: tuple[Reader, ...] = (NaturalImageReader(), SimpleITKReader())


def reader_for(file_ending: str, override: str | None = None) -> Reader:
    """The reader for an ending, or the one that dataset.json names.

    Raises:
        SamunetError: If there is none; lists what there is.
    """
    if override is not None:
        for reader in READERS:
            if reader.name == override:
                return reader
        names = ", ".join(reader.name for reader in READERS)
        raise SamunetError(
            f"dataset.json asks for the reader {override!r}, which does not exist",
            f"set overwrite_image_reader_writer to one of {names}, or remove the key",
        )
    for reader in READERS:
        if file_ending.lower() in reader.endings:
            return reader
    endings = ", ".join(ending for reader in READERS for ending in reader.endings)
    raise SamunetError(f"no reader handles files ending in {file_ending!r}", f"convert them to one of {endings}")
