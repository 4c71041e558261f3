"""Pairs of images and masks, and their patients, by the names of files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samunet.conversion.case import Case
from samunet.conversion.patterns import Match, find_matches, is_pattern, names_in, other_classes
from samunet.dataset.cases import channel_gaps, duplicate, files_below, group, name_below
from samunet.dataset.names import case_and_channel, unusable_names
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError, UsageError
from samunet.imageio.registry import READERS, ending_of

# What people add to a name to tell images from masks. Anything else needs a pattern.
_MASK_WORDS = "masks?|segmentations?|segs?|labels?|labelmap|gt|groundtruth|ground_truth|manual|annotations?"
_IMAGE_WORDS = "images?|img|im|scan|volume|ct|mri?|us|training|test"
_PATTERN_HINT = (
    "say with {case} where the name of the case stands, for example 'images/{case}_ct.nii.gz' "
    "'masks/{case}_seg.nii.gz'; and where each class has a file of its own, with {class} where its name stands: "
    "'masks/{class}/{case}.png' --labels liver tumour"
)
_SEVERAL_IMAGES = (
    "a case is one image with one mask. Where the files are its channels, write {channel} for what tells them apart; "
    "where they are slices under one mask, save them as one volume, such as .nii.gz; where each has a mask of its own: "
    "'images/{patient}/{case}.png' 'masks/{patient}/{case}.png'"
)
_MASK_HINT = (
    "keep one of the files; or, where they are of different classes, put {class} where the name of the class stands"
)

_PATIENT_HINT = r"for cases called p07_left and p07_right: --patient_pattern 'p\d+' or --patient_pattern '^[^_]+'"

log = logging.getLogger(__name__)

_Key = tuple[str, int | None]
_Naming = Callable[[str], _Key]


@dataclass(frozen=True)
class Pairs:
    """Cases found, and what was not understood.

    Attributes:
        cases: Sorted by name.
        problems: Images without masks, masks without images, names that clash.
        ignored: Files in the folders that are no images.
        other_classes: Files that the pattern of masks describes, of classes that are not named.
        naming: How names of images were read, as an index of ways; for more images of the same kind.
    """

    cases: list[Case]
    problems: list[Problem]
    ignored: list[Path]
    other_classes: list[Path]
    naming: int


def find_pairs(
    images: str, masks: str | None, channels: Sequence[str], classes: Mapping[str, str], naming: int = 0
) -> Pairs:
    """Find cases.

    In folders (subfolders included), an image and its mask have the same name; or the mask's, or both, have a usual
    ending such as ``_mask``, ``_seg`` or ``_image``; or images are numbered by channel, as ``case_0000.nii.gz`` is. A
    case in a subfolder is called ``FOLDER_NAME``. All else is said with patterns.

    Args:
        images: A folder, or a pattern; see :func:`samunet.conversion.patterns.find_matches`.
        masks: The same; None for test images without reference.
        channels: What may stand for ``{channel}`` in the pattern of images.
        classes: Name to what stands for it as ``{class}`` in the pattern of masks.
        naming: Without masks: how names are read, as found with others that have masks.

    Raises:
        UsageError: If a folder does not exist or has no images, or a pattern is wrong or matches nothing.
        SamunetError: If no mask has the name of any image, or masks are DICOM.
    """
    _check_places(images, masks)
    others: list[Path] = []
    found, ignored = _find(images, masks, channels)
    reference, ignored_masks = ([], []) if masks is None else _find(masks, images, [], list(classes.values()))
    if masks is not None:
        _refuse_dicom(reference)
        # {case}.nrrd stands for case.seg.nrrd, too, which lies beside it.
        drawn = {match.file for match in reference if match.file.name.lower().endswith(".seg.nrrd")}
        found = [match for match in found if match.file not in drawn] or found
        others = other_classes(masks, reference, [match.file for match in found])
        found, reference, naming = _bring_together(found, reference, is_pattern(images), is_pattern(masks))
    elif not is_pattern(images):
        found = _rename(found, _IMAGE_NAMINGS[naming])
    by_case, problems = _by_case(found, is_pattern(images))
    if "channel" in names_in(images):
        problems += _incomplete(by_case, channels)
    else:
        problems += channel_gaps({case: [match.channel for match in matches] for case, matches in by_case.items()})
    masks_of: dict[str, list[Match]] = {}
    for match in reference:
        masks_of.setdefault(match.case, []).append(match)
    if masks is not None:
        problems += _unpaired(by_case, masks_of)
        problems += [
            duplicate(case, [match.file for match in matches], _MASK_HINT)
            for case, matches in masks_of.items()
            if len(matches) > 1 and matches[0].label is None
        ]
    cases = [_case(case, matches, masks_of.get(case, []), list(classes)) for case, matches in by_case.items()]
    return Pairs(cases, problems + unusable_names(by_case), ignored + ignored_masks, others, naming)


def _case(name: str, images: Sequence[Match], masks: Sequence[Match], classes: Sequence[str]) -> Case:
    case = Case(name, tuple(match.file for match in images), None, images[0].patient)
    if masks and masks[0].label is None:
        return replace(case, mask=masks[0].file)
    return replace(
        case,
        class_files=tuple((classes[label], file) for label, file in sorted((one.label, one.file) for one in masks)),
    )


def _refuse_dicom(masks: Sequence[Match]) -> None:
    folder = next((match.file for match in masks if match.file.is_dir()), None)
    if folder is not None:
        raise SamunetError(
            f"{folder} holds DICOM files, which cannot be read as masks",
            "save segmentations and structure sets on the grid of their images, as .nii.gz: 3D Slicer does it",
        )


def _check_places(images: str, masks: str | None) -> None:
    for place in (images, masks):
        if place is not None and not is_pattern(place) and not Path(place).expanduser().is_dir():
            raise UsageError(f"there is no folder {place}", f"give a folder, or a pattern: {_PATTERN_HINT}")
    if masks is None or is_pattern(images) or is_pattern(masks):
        return
    if Path(images).expanduser().resolve() == Path(masks).expanduser().resolve():
        raise UsageError(f"{images} is given as the folder of both images and masks", _PATTERN_HINT)


def _find(
    place: str, other: str | None, channels: Sequence[str], classes: Sequence[str] = ()
) -> tuple[list[Match], list[Path]]:
    """Images of a folder or pattern, and files that are none."""
    if is_pattern(place):
        matches = find_matches(place, channels, classes)
    else:
        folder = Path(place).expanduser()
        without = None if other is None or is_pattern(other) else _inside(folder, Path(other).expanduser())
        matches = [Match(file, name_below(folder, file)) for file in files_below(folder, without)]
    readable = [match for match in matches if ending_of(match.file) is not None or match.file.is_dir()]
    headers = {match.file.with_suffix("") for match in readable if match.file.suffix.lower() in (".mhd", ".nhdr")}
    ignored = [match.file for match in matches if ending_of(match.file) is None and not match.file.is_dir()]
    # The voxels of a header, which are read with it.
    ignored = [file for file in ignored if file.with_name(re.split(r"\.z?raw", file.name)[0]) not in headers]
    if not readable:
        endings = dict.fromkeys(ending for reader in READERS for ending in reader.image_endings)
        what = shortened([file.name for file in ignored]) or "it is empty"
        raise UsageError(
            f"{place} has no files that can be read: {what}",
            f"endings that can be read: {', '.join(endings)}; save others in one of these without loss. DICOM: a "
            "subfolder for each series; give the folder that they lie in",
        )
    return readable, ignored


def _inside(folder: Path, other: Path) -> Path | None:
    """``other`` as a path below ``folder``; None if it lies elsewhere."""
    below = folder.resolve() in other.resolve().parents
    return folder / other.resolve().relative_to(folder.resolve()) if below else None


def _same(name: str) -> _Key:
    return name, None


def _numbered(name: str) -> _Key:
    return case_and_channel(name) or (name, None)


def _without(words: str) -> _Naming:
    end, start = re.compile(rf"(?i)[ _.-]({words})\d?$"), re.compile(rf"(?i)^({words})[ _.-]")
    return lambda name: (start.sub("", end.sub("", name)) or name, None)


_IMAGE_NAMINGS: tuple[_Naming, ...] = (_same, _numbered, _without(_IMAGE_WORDS))
_MASK_NAMINGS: tuple[_Naming, ...] = (_same, _without(_MASK_WORDS))


def _rename(matches: Sequence[Match], naming: _Naming) -> list[Match]:
    renamed = []
    for match in matches:
        case, channel = naming(match.case)
        renamed.append(replace(match, case=case, channel=match.channel if channel is None else channel))
    return renamed


def _bring_together(
    images: list[Match], masks: list[Match], images_fixed: bool, masks_fixed: bool
) -> tuple[list[Match], list[Match], int]:
    """Names under which images and masks meet, and how the images' were read; patterns have said theirs already."""
    for mask_naming in (_same,) if masks_fixed else _MASK_NAMINGS:
        for index, image_naming in enumerate((_same,) if images_fixed else _IMAGE_NAMINGS):
            renamed, renamed_masks = _rename(images, image_naming), _rename(masks, mask_naming)
            if {match.case for match in renamed} & {match.case for match in renamed_masks}:
                return renamed, renamed_masks, index
    folders = {match.file.parent.name for match in images}
    if not images_fixed and {match.case for match in masks} <= folders:
        raise SamunetError(
            f"there is one mask for each folder of images, such as {masks[0].file} for {masks[0].case}/",
            _SEVERAL_IMAGES,
        )
    raise SamunetError(
        f"no mask has the name of an image: images are {shortened([match.case for match in images[:3]])}, masks are "
        f"{shortened([match.case for match in masks[:3]])}",
        _PATTERN_HINT if not (images_fixed and masks_fixed) else "use the same placeholders in both patterns",
    )


def _by_case(matches: Sequence[Match], by_pattern: bool) -> tuple[dict[str, list[Match]], list[Problem]]:
    """Files of every case in the order of channels."""
    of_file = {match.file: match for match in matches}
    cases, problems = group((match.case, match.channel, match.file) for match in matches)
    if by_pattern:
        problems = [replace(problem, fix=_SEVERAL_IMAGES) for problem in problems]
    return {case: [of_file[file] for file in files.values()] for case, files in cases.items()}, problems


def _incomplete(cases: dict[str, list[Match]], channels: Sequence[str]) -> list[Problem]:
    problems = []
    for case, matches in cases.items():
        lacking = [name for index, name in enumerate(channels) if index not in {match.channel for match in matches}]
        if lacking:
            fix = "add the files, or move the other files of these cases away"
            problems.append(Problem("channels are missing:", case, f"{case} lacks {', '.join(lacking)}", fix))
    return problems


def _unpaired(images: dict[str, list[Match]], masks: dict[str, list[Match]]) -> list[Problem]:
    fix = "add the mask, or move the image away; healthy images need a mask that is empty"
    problems = [
        Problem("images without mask:", case, str(matches[0].file), fix)
        for case, matches in images.items()
        if case not in masks
    ]
    fix = "add the image, or move the mask away"
    return problems + [
        Problem("masks without image:", case, str(matches[0].file), fix)
        for case, matches in masks.items()
        if case not in images
    ]


def group_by_pattern(cases: Sequence[Case], pattern: str) -> list[Case]:
    """Tell the patient of every case from its name.

    Args:
        cases: Of all patients.
        pattern: Regular expression that is searched in the names. What its first parentheses enclose, or without
            parentheses all that it matches, is the patient.

    Raises:
        UsageError: If it is no regular expression, matches the name of a case not at all or with nothing, or the
            cases have patients already.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--patient_pattern: {pattern!r} is no regular expression: {error}", _PATIENT_HINT) from None
    if any(case.group is not None for case in cases):
        raise UsageError("--patient_pattern and {patient} both tell the patient", "leave one of them out")
    found = {case.name: _group(expression.search(case.name)) for case in cases}
    lacking = [name for name, group in found.items() if not group]
    if lacking:
        what = "no case" if len(lacking) == len(found) else f"{len(lacking)} of {len(found)} cases not"
        raise UsageError(f"--patient_pattern {pattern!r} matches {what}: {shortened(lacking)}", _PATIENT_HINT)
    if len(set(found.values())) == 1 and len(found) > 1:
        log.warning(
            "--patient_pattern %r gives all %d cases to one patient, so no folds are possible", pattern, len(found)
        )
    return [replace(case, group=found[case.name]) for case in cases]


def _group(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    return match[1] if match.re.groups else match[0]
