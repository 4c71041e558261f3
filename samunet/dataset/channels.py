"""Whether a case's files hold the channels that the dataset has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samunet.dataset.description import Description
from samunet.dataset.problems import Problem
from samunet.errors import SamunetError
from samunet.imageio.base import Reader
from samunet.imageio.registry import image_reader_for


def channel_problem(
    name: str, channels: dict[int, Path], description: Description, preferred: Reader, fix: str, *, thorough: bool
) -> Problem | None:
    """What is wrong with the channels of a case: a file for each of them, or one file that holds all.

    Args:
        name: The case's.
        channels: Its files by channel number, sorted.
        description: Tells the channels that there must be.
        preferred: The reader to be tried first.
        fix: What to say where numbers are wrong.
        thorough: Read the header of every file, and pictures whose number of channels leaves open whether they fit;
            else only headers without which the number of channels is unknown.
    """
    expected = len(description.channel_names)
    wanted, got, files = list(range(expected)), list(channels), list(channels.values())
    if got not in ([0], wanted):
        lacking = ", ".join(f"{channel:04d}" for channel in wanted if channel not in got)
        surplus = ", ".join(f"{channel:04d}" for channel in got if channel not in wanted)
        wrong = "; ".join(part for part in (lacking and f"lacks {lacking}", surplus and f"{surplus} too many") if part)
        listed = ", ".join(f"{channel:04d}" for channel in got)
        return Problem("wrong channels:", name, f"{name} has {listed} ({wrong})", fix)
    if got == wanted and not thorough:
        return None
    return number_problem(name, files, description, preferred, fix, thorough=thorough)


def number_problem(
    name: str, files: Sequence[Path], description: Description, preferred: Reader, fix: str, *, thorough: bool
) -> Problem | None:
    """As :func:`channel_problem` where not names but the order of ``files`` tells the channels."""
    try:
        return _wrong_number(name, files, len(description.channel_names), preferred, fix, thorough)
    except SamunetError as error:
        return Problem("unreadable:", name, error.message, error.hint or "")


def count_channels(file: Path, preferred: Reader) -> int:
    """Channels of one file by its header; 0 if it cannot be read."""
    try:
        return image_reader_for(file, preferred).count_channels(file)
    except SamunetError:
        return 0


def _wrong_number(
    name: str, files: Sequence[Path], expected: int, preferred: Reader, fix: str, thorough: bool
) -> Problem | None:
    readers = [image_reader_for(file, preferred) for file in files]
    count = sum(reader.count_channels(file) for reader, file in zip(readers, files))
    if count == expected:
        return None
    if expected / len(files) in (1, 3) and all(reader.fits_channels for reader in readers):
        if thorough:
            readers[0].read_image(files, channels=expected)
        return None
    what = f"{name} has {count} channel{'s' * (count != 1)} in {', '.join(file.name for file in files)}"
    return Problem(f"{expected} channel{'s' * (expected != 1)} expected:", name, what, fix)
