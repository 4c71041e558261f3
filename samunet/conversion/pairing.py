"""Which mask belongs to which image, by the names of files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from samunet.conversion.class_files import ClassFilesSource
from samunet.conversion.patterns import Match, find_matches, is_pattern, names_in, other_classes
from samunet.conversion.source import FileSource
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
_MASK_HINT = (
    "keep one of the files; or, where they are of different classes, put {class} where the name of the class stands"
)

_Key = tuple[str, int | None]
_Naming = Callable[[str], _Key]


@dataclass(frozen=True)
class Pairs:
    """Cases found.

    Attributes:
        sources: Sorted by name.
        problems: Images without masks, masks without images, names that clash.
        ignored: Files in the folders that are no images.
        other_classes: Files that the pattern of masks describes, of classes that are not named.
        naming: How names of images were read, as an index of ways; for more images of the same kind.
    """

    sources: list[FileSource]
    problems: list[Problem]
    ignored: list[Path]
    other_classes: list[Path] = field(default_factory=list)
    naming: int = 0


def find_pairs(
    images: str, masks: str | None, channels: Sequence[str], classes: Sequence[str] = (), naming: int = 0
) -> Pairs:
    """Find cases.

    In folders (subfolders included), an image and its mask have the same name; or the mask's, or both, have a usual
    ending such as ``_mask``, ``_seg`` or ``_image``; or images are numbered by channel, as ``case_0000.nii.gz`` is. A
    case in a subfolder is called ``FOLDER_NAME``. All else is said with patterns.

    Args:
        images: A folder, or a pattern; see :func:`samunet.conversion.patterns.find_matches`.
        masks: The same; None for test images without reference.
        channels: What may stand for ``{channel}`` in the pattern of images.
        classes: What may stand for ``{class}`` in the pattern of masks.
        naming: Without masks: how names are read, as found with others that have masks.

    Raises:
        UsageError: If a folder does not exist or has no images, or a pattern is wrong or matches nothing.
        SamunetError: If no mask has the name of any image, or masks are DICOM.
    """
    _check_places(images, masks)
    others: list[Path] = []
    found, ignored = _find(images, masks, channels)
    reference, ignored_masks = ([], []) if masks is None else _find(masks, images, [], classes)
    if masks is not None:
        _refuse_dicom(reference)
        # {case}.nrrd stands for case.seg.nrrd, too, which lies beside it.
        drawn = {match.file for match in reference if match.file.name.lower().endswith(".seg.nrrd")}
        found = [match for match in found if match.file not in drawn] or found
        others = other_classes(masks, reference, [match.file for match in found])
        found, reference, naming = _bring_together(found, reference, is_pattern(images), is_pattern(masks))
    elif not is_pattern(images):
        found = _rename(found, _IMAGE_NAMINGS[naming])
    by_case, problems = _by_case(found)
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
    sources = [_source(case, matches, masks_of.get(case, [])) for case, matches in by_case.items()]
    return Pairs(sources, problems + unusable_names(by_case), ignored + ignored_masks, others, naming)


def _source(case: str, images: Sequence[Match], masks: Sequence[Match]) -> FileSource:
    files, patient = tuple(match.file for match in images), images[0].patient
    if not masks:
        return FileSource(case, files, None, patient)
    if masks[0].label is None:
        return FileSource(case, files, masks[0].file, patient)
    of_class = tuple(sorted((match.label + 1, match.file) for match in masks))
    return ClassFilesSource(case, files, of_class[0][1], patient, of_class)


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
    raise SamunetError(
        f"no mask has the name of an image: images are {shortened([match.case for match in images[:3]])}, masks are "
        f"{shortened([match.case for match in masks[:3]])}",
        _PATTERN_HINT if not (images_fixed and masks_fixed) else "use the same placeholders in both patterns",
    )


def _by_case(matches: Sequence[Match]) -> tuple[dict[str, list[Match]], list[Problem]]:
    """Files of every case in the order of channels."""
    of_file = {match.file: match for match in matches}
    cases, problems = group((match.case, match.channel, match.file) for match in matches)
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
