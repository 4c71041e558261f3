"""Images to be predicted, and the names of their cases."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from samunet.dataset.cases import (
    Case,
    Files,
    channel_problem,
    count_channels,
    duplicate,
    files_below,
    group,
    name_below,
    number_problem,
    refuse_broken,
    visible,
)  # fmt: skip
from samunet.dataset.description import Description
from samunet.dataset.names import case_and_channel, case_stem, unusable_names
from samunet.dataset.problems import Problem, raise_problems, shortened
from samunet.errors import SamunetError, UsageError, argument
from samunet.imageio.registry import ending_of, image_reader_for, is_dicom_folder

log = logging.getLogger(__name__)

Source = Path | Sequence[Path | Sequence[Path]]
# Cases, what is wrong with all, and what is wrong with one of them.
_Found = tuple[dict[str, Case], list[Problem], dict[str, Problem | None]]


def list_cases(
    source: Source, description: Description, failures: dict[str, SamunetError] | None = None
) -> dict[str, Case]:
    """The cases to predict, without labels, sorted by name.

    A case's name is its files' name without ending and channel number: ``scan`` for ``scan_0000.nii.gz`` and, where one
    file holds all channels, for ``scan.nii.gz``. A DICOM series is a folder, and its case is named like the folder; in
    a tree of patients and series like both, ``anna_axial`` for ``anna/axial``, as in a dataset made from it. Endings
    may be other ones than the training's.

    Args:
        source: A folder of images; a folder that is a DICOM series, or below which there are some; one file; a list of
            files, whose names tell which belong together (channels that lie beside a file need not be listed); or a
            list of lists, each with the files of one case in channel order.
        description: Of the dataset that the model was trained on.
        failures: Where given, a case that cannot be read or has not the model's channels is put there, with what is
            wrong with it, and left out; unless no case would remain.

    Raises:
        UsageError: If a path does not exist, nothing is given, or labels are given in place of images.
        SamunetError: If nothing matches, two files would be the same case, or a case has not the model's channels; at
            most five offenders are listed.
    """
    broken: list[Path] = []
    root, where = None, "the cases given"
    if isinstance(source, (str, Path)):
        where = _existing(source)
        root = where if where.is_dir() else None
        found = [where] if root is None else _images_of(root, description, broken)
    elif not source:
        raise UsageError("there is nothing to predict: the list of files is empty")
    elif all(isinstance(item, (str, Path)) for item in source):
        found, where = [_existing(item) for item in source], Path(source[0]).parent
    else:
        found = None
    if found is None:
        cases, problems, wrong = _cases_as_given(source, description)
    else:
        for path in found if root is None else ():
            if path.is_dir() and not is_dicom_folder(path):
                fix = "give a folder of images alone: `source='imagesTs'`"
                raise UsageError(f"{path} is a folder, but no DICOM series", fix)
            image_reader_for(path, description.reader)  # raises for a file that nothing reads
        cases, problems, wrong = _cases_by_name(found, description, root, broken)
    # Problems are about which file is whose; what is wrong with one case need not stop the others.
    bad = {name: problem for name, problem in wrong.items() if problem}
    problems += unusable_names(cases)
    if failures is None or not cases.keys() - bad.keys():
        problems, bad = problems + list(bad.values()), {}
    raise_problems(problems, where)
    for name, problem in bad.items():
        failures[name] = SamunetError(f"case {name}: {problem.text}", problem.fix or None)
    return {name: cases[name] for name in sorted(cases) if name not in bad}


def as_paths(source: Any) -> Any:
    """``source`` with every text as a path."""
    if isinstance(source, (str, Path)):
        return Path(source)
    return [as_paths(item) for item in source]


def flat(sources: Sequence[Any]) -> Iterator[Path]:
    """The paths of nested sequences, one after the other."""
    for item in sources:
        yield from [item] if isinstance(item, Path) else flat(item)


def prediction_hint(description: Description) -> str:
    """Names of the files of a case to be predicted, as a sentence."""
    ending, names = description.file_ending, description.channel_names
    if len(names) == 1:
        return f"images must be called case_0000{ending} or case{ending}, one for each case"
    return (
        f"the model expects {len(names)} channels ({', '.join(names)}): case_0000{ending} to "
        f"case_{len(names) - 1:04d}{ending}, or one file case{ending} that holds all of them"
    )


def _existing(item: str | Path) -> Path:
    path = Path(item).expanduser()
    if not path.exists():
        raise UsageError(f"{item} does not exist", "give a folder of images, or image files")
    return path


def _images_of(folder: Path, description: Description, broken: list[Path]) -> list[Path]:
    """The files and DICOM series in a folder; only those of the training's kind if there are some.

    Links that lead nowhere and may be images are put into ``broken``.
    """
    real = folder.resolve()
    beside = real.with_name(real.name.replace("labels", "images"))
    if real.name in ("labelsTr", "labelsTs") and beside.is_dir():
        raise UsageError(f"{folder} holds labels, not images", f"give the images: {argument('source', beside)}")
    links: list[Path] = []
    below = files_below(folder, broken=links)
    broken += [link for link in links if ending_of(link) or not link.suffix]
    images = [file for file in below if file.parent == folder and file.is_file() and ending_of(file)]
    endings = description.image_endings
    like_training = [image for image in images if ending_of(image) in endings]
    if not like_training and is_dicom_folder(folder):
        return [folder]
    series = [item for item in below if item.is_dir()]
    chosen = like_training + series or images
    left_out = {
        f"images of another kind than {description.file_ending}": [one for one in images if one not in chosen],
        "images in subfolders": [one for one in below if one.parent != folder and one.is_file() and ending_of(one)],
        "files that are no images": [
            one for one in below if one.is_file() and not ending_of(one) and one.suffix.lower() != ".json"
        ],
        "links that lead nowhere": [link for link in links if link not in broken],
    }
    for what, files in left_out.items():
        if files and chosen:
            listed = shortened([file.relative_to(folder).as_posix() for file in files])
            log.warning("%s: %d %s are left out: %s", folder, len(files), what, listed)
    if not chosen:
        refuse_broken(links)
        names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in visible(folder)]
        got = f"it holds {shortened(names)}" if names else "it is empty"
        raise SamunetError(f"{folder} has no images: {got}", prediction_hint(description))
    return chosen


def _cases_by_name(
    found: Sequence[Path], description: Description, root: Path | None, broken: Sequence[Path]
) -> _Found:
    """Cases of files whose names say which belong together; ``root``: the folder that was given, if it was one."""
    grouped, problems = _grouped(found, description, root)
    hint = prediction_hint(description)
    wrong = {name: channel_problem(name, grouped[name], description, hint, thorough=True) for name in grouped}
    for link in broken:
        stem = name_below(root, link)
        parsed = case_and_channel(stem)
        name = parsed[0] if parsed and (parsed[1] == 0 or len(description.channel_names) > 1) else stem
        fix = "is the disk it leads to there? Correct the link, or remove it to leave this case out"
        wrong[name] = Problem("links that lead nowhere:", name, f"{link} -> {os.readlink(link)}", fix)
    return {name: Case(name, tuple(files.values()), None) for name, files in grouped.items()}, problems, wrong


def _grouped(found: Sequence[Path], description: Description, root: Path | None) -> tuple[Files, list[Problem]]:
    """Files by case and channel number.

    The four digits at the end of a name need not be a channel's number: where a case would lack channel 0000 and each
    of its files holds all channels, they belong to the name (``frame_0017.png``).
    """
    channels, reader = len(description.channel_names), description.reader
    stems = {path: _name(path, root) for path in sorted(dict.fromkeys(found))}
    keys = {path: case_and_channel(stem) for path, stem in stems.items()}
    numbered, problems = group((*key, path) for path, key in keys.items() if key)
    plain = [(stem, 0, path) for path, stem in stems.items() if keys[path] is None]
    for name, files in list(numbered.items()):
        if root is None and channels > 1:
            _add_channels_beside(name, files, description)
        if 0 not in files and (
            channels == 1 or all(count_channels(file, reader) == channels for file in files.values())
        ):
            plain += [(stems[path], 0, path) for path in numbered.pop(name).values()]
    as_numbered = [(name, channel, path) for name, files in numbered.items() for channel, path in files.items()]
    grouped, twice = group(as_numbered + plain)
    return grouped, problems + twice


def _add_channels_beside(name: str, files: dict[int | None, Path], description: Description) -> None:
    """Complete a case of which some channels are given with those that lie in the same folder."""
    channels, given = len(description.channel_names), next(iter(files.values()))
    if set(files) == set(range(channels)) or count_channels(given, description.reader) == channels:
        return
    for path in visible(given.parent):
        parsed = case_and_channel(case_stem(path)) if ending_of(path) or path.is_dir() else None
        if parsed and parsed[0] == name and parsed[1] < channels and (path.is_dir() == given.is_dir()):
            files.setdefault(parsed[1], path)


def _cases_as_given(source: Sequence[Path | Sequence[Path]], description: Description) -> _Found:
    """Cases of which each one's files are listed."""
    cases: dict[str, Case] = {}
    problems: list[Problem] = []
    wrong: dict[str, Problem | None] = {}
    hint = prediction_hint(description)
    for item in source:
        files = tuple(_existing(path) for path in ([item] if isinstance(item, (str, Path)) else item))
        if not files:
            raise UsageError("a case without files was given", hint)
        name = _name(files[0])
        parsed = case_and_channel(name)
        # Of a single file, only 0000 is surely a channel's number.
        name = parsed[0] if parsed and (len(files) > 1 or parsed[1] == 0) else name
        if name in cases:
            problems.append(duplicate(name, [cases[name].images[0], files[0]]))
        cases[name] = Case(name, files, None)
        wrong[name] = number_problem(name, files, description, hint, thorough=True)
    return cases, problems, wrong


def _name(path: Path, root: Path | None = None) -> str:
    """The name of a file or folder without its ending; below ``root``, with those of the folders between."""
    return name_below(path.parent if root is None or path == root else root, path)
