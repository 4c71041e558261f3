"""Checks that need only file names and headers; they run whenever a dataset is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from samunet.dataset.cases import Case, Dataset, files_with_ending
from samunet.dataset.description import Description
from samunet.errors import SamunetError
from samunet.imageio.registry import reader_for

_SHOWN = 5


def quick_check(dataset: Dataset) -> None:
    """Check that images, labels and dataset.json agree, without reading voxels.

    Raises:
        SamunetError: Listing all problems at once: no training cases, wrong file names, missing or surplus channels,
            images without label, labels without image, ``numTraining`` other than the number of cases.
    """
    description, number = dataset.description, len(dataset.cases)
    problems = image_problems(dataset.folder / "imagesTr", dataset.cases, description)
    problems += _label_problems(dataset)
    hint = naming_hint(description) if problems else f'if none is missing, write "numTraining": {number}'
    announced = description.num_training
    if number and announced not in (None, number):
        problems.append(f"dataset.json announces {announced} training cases (numTraining), imagesTr has {number}")
    raise_problems(problems, dataset.folder, hint)


def image_problems(folder: Path, cases: dict[str, Case], description: Description) -> list[str]:
    """What is wrong with the files of a folder of images; one sentence per kind of problem.

    Args:
        folder: Such as imagesTr or imagesTs.
        cases: The cases found in it.
        description: Tells the channels and the ending.
    """
    if not folder.is_dir():
        return [f"the folder {folder.name} is missing"]
    files = files_with_ending(folder, description.file_ending)
    if not files:
        return [f"{folder.name} has no file ending in {description.file_ending}{_other_endings(folder)}"]
    used = {file for case in cases.values() for file in case.images}
    problems = _problem("names without channel number:", [file.name for file in files if file not in used])
    return problems + _problem("wrong channels:", _wrong_channels(cases.values(), description))


def naming_hint(description: Description) -> str:
    """What the files of a case must be called."""
    ending, last = description.file_ending, len(description.channel_names) - 1
    images = f"case_0000{ending}"
    if last:
        images += f" to case_{last:04d}{ending} (or one file case_0000{ending} that holds all channels)"
    return f"channels {', '.join(description.channel_names)}: a case's images must be {images}, its label case{ending}"


def raise_problems(problems: Sequence[str], folder: Path, hint: str) -> None:
    """Raise one SamunetError that lists ``problems``; without any, do nothing."""
    if problems:
        listed = problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        raise SamunetError(f"{folder}: {listed}", hint)


def _label_problems(dataset: Dataset) -> list[str]:
    folder, ending = dataset.folder / "labelsTr", dataset.description.file_ending
    if not folder.is_dir():
        return ["the folder labelsTr is missing"]
    if not dataset.cases:
        return []
    lacking = [f"{case.name}{ending}" for case in dataset.cases.values() if case.label is None]
    names = [file.name for file in files_with_ending(folder, ending)]
    surplus = [name for name in names if name.removesuffix(ending) not in dataset.cases]
    return _problem("images without label: labelsTr lacks", lacking) + _problem("labels without image:", surplus)


def _wrong_channels(cases: Iterable[Case], description: Description) -> list[str]:
    wanted = [f"{index:04d}" for index in range(len(description.channel_names))]
    reader = reader_for(description.file_ending, description.reader_override)
    wrong = []
    for case in cases:
        got = [file.name[len(case.name) + 1 :].removesuffix(description.file_ending) for file in case.images]
        if got == wanted:
            continue
        if got == wanted[:1] and reader.count_channels(case.images[0]) == len(wanted):
            continue
        wrong.append(f"{case.name} has {', '.join(got)}")
    return wrong


def _problem(what: str, offenders: Sequence[str]) -> list[str]:
    if not offenders:
        return []
    rest = f" and {len(offenders) - _SHOWN} more" if len(offenders) > _SHOWN else ""
    return [f"{what} {'; '.join(offenders[:_SHOWN])}{rest}"]


def _other_endings(folder: Path) -> str:
    names = [file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    if not names:
        return " (it is empty)"
    return f" (but {len(names)} others, such as {min(names)}: does file_ending in dataset.json fit?)"
