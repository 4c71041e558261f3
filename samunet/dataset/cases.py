"""Cases and the search for their files: ``case_0000.ending`` for images, ``case.ending`` for labels and masks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samunet.dataset.description import Description
from samunet.dataset.names import case_stem, ending_in, is_text, one_spelling
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError, UsageError, printable
from samunet.imageio.base import Reader
from samunet.imageio.dicom import is_dicom_folder, patient_id
from samunet.imageio.registry import MASK_ENDINGS, companions, ending_of, image_reader_for

_LEVELS = 3  # of folders between a patient's and a series' files, such as studies

Files = dict[str, dict[int | None, Path]]  # by case, then by channel number; None: the name has none


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
    """A raw dataset with its training cases, sorted by name; problems are those of keys, names and channels."""

    name: str  # such as Dataset027_ACDC
    folder: Path
    description: Description
    cases: dict[str, Case]
    problems: list[Problem] = field(default_factory=list)


def visible(folder: Path) -> list[Path]:
    """Content of a folder, sorted, without hidden entries such as unfinished writes; empty if it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def entries(folder: Path) -> list[Path]:
    """As :func:`visible`; raises a SamunetError if links among them lead nowhere."""
    found = visible(folder)
    refuse_broken([entry for entry in found if not entry.exists()])
    return found


def files_below(folder: Path, without: Path | None = None, broken: list[Path] | None = None) -> list[Path]:
    """All files of a folder and its subfolders, sorted, without hidden ones and those below ``without``.

    Links to folders are followed, except those back to a folder that contains them. A subfolder with DICOM files stands
    for these; other files in it are listed as well.

    Raises:
        SamunetError: If a subfolder cannot be opened, or a link leads nowhere, unless ``broken`` is there to get it.
    """
    found = list(_walk(folder, without, ()))
    links = [file for file in found if not file.exists()]
    if broken is None:
        refuse_broken(links)
    else:
        broken += links
    files = [file for file in found if file.is_file()]
    strange = {file.parent for file in files if ending_of(file) is None}
    series = {parent for parent in strange if parent != folder and is_dicom_folder(parent)}
    return sorted({file.parent if file.parent in series and ending_of(file) is None else file for file in files})


def _walk(folder: Path, without: Path | None, above: tuple[str, ...]) -> Iterator[Path]:
    own = os.path.realpath(folder)
    if own in above or folder == without:
        return
    try:
        found = visible(folder)
    except OSError as error:
        raise SamunetError(
            f"the folder {folder} cannot be opened: {error.strerror}",
            "ask for the permission to read it, or move it away",
        ) from error
    for entry in found:
        if entry.name == "__MACOSX":  # macOS adds it to zip files
            continue
        if entry.is_dir():
            yield from _walk(entry, without, (*above, own))
        else:
            yield entry


def refuse_broken(links: Sequence[Path]) -> None:
    """Raise a SamunetError that lists links that lead nowhere; without any, nothing."""
    if links:
        listed = shortened([f"{link} -> {os.readlink(link)}" for link in links])
        raise SamunetError(
            f"links that lead nowhere: {listed}",
            "is the disk they lead to there? Correct them, or remove them to leave these cases out",
        )


def name_below(folder: Path, file: Path) -> str:
    """The name of a case by its place: ``anna/03.png`` is ``anna_03``.

    That of a DICOM series begins with its patient's folder even where ``folder`` lies further below, if a folder that
    is called like the patient's ID shows which one it is.
    """
    if file.is_dir():
        file = file.resolve() if file.name in ("", "..") else file.absolute()
        folder = folder.absolute() if folder.absolute() in file.parents else file.parent
        patient = patient_id(file)
        above = [place for place in list(file.parents)[:_LEVELS] if place.name and place.name == patient]
        if above and above[0].parent in folder.parents:
            folder = above[0].parent
    return "_".join((*map(one_spelling, file.relative_to(folder).parts[:-1]), case_stem(file)))


def group(found: Iterable[tuple[str, int | None, Path]]) -> tuple[Files, list[Problem]]:
    """Files by case and channel number, both sorted, and which of them would be the same.

    Args:
        found: Case, channel number (None for a name without one), and file.
    """
    cases: Files = {}
    problems = []
    for name, channel, file in found:
        first = cases.setdefault(name, {}).setdefault(channel, file)
        if first != file:
            problems.append(duplicate(name, [first, file]))
    by_channel = {name: dict(sorted(cases[name].items(), key=lambda item: item[0] or 0)) for name in sorted(cases)}
    return by_channel, problems


def duplicate(name: str, files: Sequence[Path], fix: str = "keep one of the files, or rename one") -> Problem:
    """Files that would be the same case; with their folders where these differ."""
    apart = len({file.parent for file in files}) > 1
    shown = [str(file) if apart else file.name for file in files]
    listed = " and ".join(shown)
    if len({one_spelling(file) for file in shown}) < len(set(shown)):
        listed += " (the same letters, composed and with separate accents)"
    return Problem("the same case twice:", name, f"{name} is {listed}", fix)


def mask_files(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by case; empty if it holds none. Endings need not be the dataset's.

    Raises:
        UsageError: If it is no folder.
        SamunetError: If there are two for the same case, or links that lead nowhere.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "give a folder with masks")
    files = [file for file in entries(folder) if ending_in(file.name, MASK_ENDINGS) and file.is_file()]
    for file in files:
        if not is_text(file.name):
            raise SamunetError(
                f"{folder}: the name {printable(file.name)} is not UTF-8 or has control characters", "rename the file"
            )
    found, twice = group((case_stem(file), None, file) for file in files)
    if twice:
        raise SamunetError(f"{folder}: {twice[0].text}", twice[0].fix)
    return {name: files[None] for name, files in found.items()}


def with_sidecar(mask: Path) -> list[Path]:
    """A mask and, of a TIFF volume, the JSON file with its spacing."""
    return [mask, *companions(mask)]


def channel_gaps(cases: Mapping[str, Iterable[int | None]]) -> list[Problem]:
    """Cases whose channel numbers are not 0, 1, 2, ... (or None alone): the next file would become a wrong channel."""
    problems = []
    fix = "channels are 0000, 0001, ... without gaps: add the files that are missing, or rename those there are"
    for name, found in ((name, list(numbers)) for name, numbers in cases.items()):
        if found != [None] and found != list(range(len(found))):
            listed = ", ".join("no number" if number is None else f"{number:04d}" for number in found)
            problems.append(Problem("numbers of channels with gaps:", name, f"{name} has {listed}", fix))
    return problems


def channel_problem(
    name: str, channels: Mapping[int, Path], description: Description, fix: str, *, thorough: bool
) -> Problem | None:
    """The error in the channels of a case, which must be a file for each of them, or one file that holds all.

    Args:
        channels: Its files by channel number, sorted.
        fix: What to say where numbers are wrong.
        thorough: Read the header of every file, and pictures whose number of channels leaves open whether they fit;
            else only headers without which the number of channels is unknown.
    """
    wanted, got = list(range(len(description.channel_names))), list(channels)
    if got not in ([0], wanted):
        missing = ", ".join(f"{channel:04d}" for channel in wanted if channel not in got)
        surplus = ", ".join(f"{channel:04d}" for channel in got if channel not in wanted)
        wrong = "; ".join(part for part in (missing and f"lacks {missing}", surplus and f"{surplus} too many") if part)
        listed = ", ".join(f"{channel:04d}" for channel in got)
        return Problem("wrong channels:", name, f"{name} has {listed} ({wrong})", fix)
    if got == wanted and not thorough:
        return None
    return number_problem(name, list(channels.values()), description, fix, thorough=thorough)


def number_problem(
    name: str, files: Sequence[Path], description: Description, fix: str, *, thorough: bool
) -> Problem | None:
    """As :func:`channel_problem` where the order of ``files`` and not their names gives the channels."""
    expected = len(description.channel_names)
    try:
        readers = [image_reader_for(file, description.reader) for file in files]
        count = sum(reader.count_channels(file) for reader, file in zip(readers, files))
        if count == expected:
            return None
        # Pictures store grey as equal colours and colours as channels, so only their pixels show whether they fit.
        if expected / len(files) in (1, 3) and all(reader.fits_channels for reader in readers):
            if thorough:
                readers[0].read_image(files, channels=expected)
            return None
    except SamunetError as error:
        return Problem("unreadable:", name, error.message, error.hint or "")
    detail = f"{name} has {count} channel{'s' * (count != 1)} in {', '.join(file.name for file in files)}"
    return Problem(f"{expected} channel{'s' * (expected != 1)} expected:", name, detail, fix)


def count_channels(file: Path, preferred: Reader) -> int:
    """Channels of one file by its header; 0 if it cannot be read."""
    try:
        return image_reader_for(file, preferred).count_channels(file)
    except SamunetError:
        return 0
