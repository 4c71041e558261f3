"""Which images are to be predicted, and what their cases are called."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from samunet.dataset.below import files_below, name_below
from samunet.dataset.cases import Case, case_and_channel, duplicate, unusable_names, visible
from samunet.dataset.channels import channel_problem, count_channels, number_problem
from samunet.dataset.description import Description
from samunet.dataset.names import one_spelling
from samunet.dataset.problems import Problem, raise_problems, shortened
from samunet.dataset.training_files import image_endings
from samunet.errors import SamunetError, UsageError
from samunet.imageio.base import Reader
from samunet.imageio.registry import ending_of, image_reader_for, is_dicom_folder, reader_for

log = logging.getLogger(__name__)

Source = Path | Sequence[Path | Sequence[Path]]


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
        UsageError: If a path does not exist, or nothing is given.
        SamunetError: If nothing matches, two files would be the same case, or a case has not the model's channels; at
            most five offenders are listed.
    """
    preferred = reader_for(description.file_ending, description.reader_override)
    if isinstance(source, (str, Path)):
        path = _existing(source)
        if path.is_dir():
            return _cases(
                _images_of(path, description), path, description, preferred, failures, beside=False, root=path
            )
        found, where = [path], path
    elif not source:
        raise UsageError("there is nothing to predict: the list of files is empty")
    elif all(isinstance(item, (str, Path)) for item in source):
        found, where = [_existing(item) for item in source], Path(source[0]).parent
    else:
        return _cases_as_given(source, description, preferred, failures)
    for path in found:
        if path.is_dir() and not is_dicom_folder(path):
            raise UsageError(f"{path} is a folder, but no DICOM series", "give a folder of images alone: -i imagesTs")
        image_reader_for(path, preferred)  # raises for a file that nothing reads
    return _cases(found, where, description, preferred, failures, beside=True)


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
    """What the files of a case to be predicted must be called."""
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


def _images_of(folder: Path, description: Description) -> list[Path]:
    """The files and DICOM series in a folder; those of the training's kind alone if there are some."""
    below = files_below(folder)
    images = [file for file in below if file.parent == folder and file.is_file() and ending_of(file)]
    endings = image_endings(description)
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
    }
    for what, files in left_out.items():
        if files and chosen:
            listed = shortened([file.relative_to(folder).as_posix() for file in files])
            log.warning("%s: %d %s are left out: %s", folder, len(files), what, listed)
    if not chosen:
        names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in visible(folder)]
        got = f"it holds {shortened(names)}" if names else "it is empty"
        raise SamunetError(f"{folder} has no images: {got}", prediction_hint(description))
    return chosen


def _cases(
    found: Sequence[Path],
    where: Path,
    description: Description,
    preferred: Reader,
    failures: dict[str, SamunetError] | None,
    *,
    beside: bool,
    root: Path | None = None,
) -> dict[str, Case]:
    grouped, problems = _grouped(found, len(description.channel_names), preferred, beside, root)
    problems += unusable_names(grouped)
    hint = prediction_hint(description)
    wrong = {
        name: channel_problem(name, files, description, preferred, hint, thorough=True)
        for name, files in grouped.items()
    }
    cases = {name: Case(name, tuple(grouped[name].values()), None) for name in sorted(grouped)}
    return _without_failures(cases, wrong, problems, failures, where)


def _without_failures(
    cases: dict[str, Case],
    wrong: dict[str, Problem | None],
    problems: list[Problem],
    failures: dict[str, SamunetError] | None,
    where: Path | str,
) -> dict[str, Case]:
    """The cases that can be predicted; ``wrong`` is about one case each, ``problems`` about which file is whose."""
    bad = {name: problem for name, problem in wrong.items() if problem}
    if failures is None or len(bad) == len(cases):
        problems, bad = problems + list(bad.values()), {}
    raise_problems(problems, where)
    for name, problem in bad.items():
        failures[name] = SamunetError(f"case {name}: {problem.text}", problem.fix or None)
    return {name: case for name, case in cases.items() if name not in bad}


def _grouped(
    found: Sequence[Path], channels: int, preferred: Reader, beside: bool, root: Path | None
) -> tuple[dict[str, dict[int, Path]], list[Problem]]:
    """Files by case and channel number.

    The four digits at the end of a name need not be a channel's number: where a case would lack channel 0000 and each
    of its files holds all channels, they belong to the name (``frame_0017.png``).
    """
    numbered: dict[str, dict[int, Path]] = {}
    plain: list[Path] = []
    problems: list[Problem] = []
    for path in sorted(dict.fromkeys(found)):
        parsed = case_and_channel(_stem(path, root))
        if parsed is None:
            plain.append(path)
            continue
        name, channel = parsed
        first = numbered.setdefault(name, {}).setdefault(channel, path)
        if first is not path:
            problems.append(duplicate(name, _told_apart(first, path)))
    for name, files in list(numbered.items()):
        if beside and channels > 1:
            _add_channels_beside(name, files, channels, preferred)
        if 0 not in files and (channels == 1 or all(count_channels(f, preferred) == channels for f in files.values())):
            plain += numbered.pop(name).values()
    for path in plain:
        name = _stem(path, root)
        first = numbered.setdefault(name, {0: path}).get(0, path)
        if first is not path:
            problems.append(duplicate(name, _told_apart(first, path)))
    return {name: dict(sorted(files.items())) for name, files in sorted(numbered.items())}, problems


def _add_channels_beside(name: str, files: dict[int, Path], channels: int, preferred: Reader) -> None:
    """Complete a case of which some channels are given with those that lie in the same folder."""
    given = next(iter(files.values()))
    if set(files) == set(range(channels)) or count_channels(given, preferred) == channels:
        return
    for path in visible(given.parent):
        parsed = case_and_channel(_stem(path)) if ending_of(path) or path.is_dir() else None
        if parsed and parsed[0] == name and parsed[1] < channels and (path.is_dir() == given.is_dir()):
            files.setdefault(parsed[1], path)


def _cases_as_given(
    source: Sequence[Path | Sequence[Path]],
    description: Description,
    preferred: Reader,
    failures: dict[str, SamunetError] | None,
) -> dict[str, Case]:
    """Cases of which each one's files are listed."""
    cases: dict[str, Case] = {}
    problems: list[Problem] = []
    wrong: dict[str, Problem | None] = {}
    hint = prediction_hint(description)
    for item in source:
        files = tuple(_existing(path) for path in ([item] if isinstance(item, (str, Path)) else item))
        if not files:
            raise UsageError("a case without files was given", hint)
        parsed = case_and_channel(_stem(files[0]))
        # Of a single file, only 0000 is surely a channel's number.
        name = parsed[0] if parsed and (len(files) > 1 or parsed[1] == 0) else _stem(files[0])
        if name in cases:
            problems.append(duplicate(name, _told_apart(cases[name].images[0], files[0])))
        cases[name] = Case(name, files, None)
        wrong[name] = number_problem(name, files, description, preferred, hint, thorough=True)
    cases = {name: cases[name] for name in sorted(cases)}
    return _without_failures(cases, wrong, problems + unusable_names(cases), failures, "the cases given")


def _stem(path: Path, root: Path | None = None) -> str:
    """The name of a file or folder without its ending; below ``root``, with those of the folders between."""
    if root is not None and path != root:
        return name_below(root, path)
    ending = None if path.is_dir() else ending_of(path)
    name = path.resolve().name if path.name in ("", "..") else path.name[: -len(ending)] if ending else path.name
    return one_spelling(name)


def _told_apart(first: Path, second: Path) -> list[str]:
    """Names of two files; with their folders if the names are the same."""
    return [first.name, second.name] if first.name != second.name else [str(first), str(second)]
