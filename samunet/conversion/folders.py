"""Folders of images with their masks, named as people name them: cases by names of files, or by patterns.

``scans/{case}_ct.nii.gz``, a pattern, says where in a path the case, patient, channel and class are named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samunet.conversion.case import Case, Options
from samunet.conversion.coding import colours_of
from samunet.conversion.draft import Draft, make_draft
from samunet.dataset.cases import channel_gaps, duplicate, files_below, group, name_below
from samunet.dataset.names import case_and_channel, unusable_names
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError, UsageError, argument
from samunet.imageio.registry import IMAGE_ENDINGS, ending_of, is_companion

log = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"\{(\w*)\}|(\*)")
_KNOWN = ("case", "patient", "channel", "class")
# Usual additions to the names of images and masks. Anything else needs a pattern.
_MASK_WORDS = "masks?|segmentations?|segs?|labels?|labelmap|gt|groundtruth|ground_truth|manual|annotations?"
_IMAGE_WORDS = "images?|img|im|scan|volume|ct|mri?|us|training|test"
_EXAMPLE = "for example 'scans/{case}_ct.nii.gz' or 'patients/{case}/{channel}.nii.gz'"
_PATTERN_HINT = (
    "say with {case} where the name of the case stands, for example 'images/{case}_ct.nii.gz' "
    "'masks/{case}_seg.nii.gz'; and where each class has a file of its own, with {class} where its name stands: "
    "'masks/{class}/{case}.png' `labels=['liver', 'tumour']`"
)
_SEVERAL_IMAGES = (
    "a case is one image with one mask. Where the files are its channels, write {channel} for what tells them apart; "
    "where they are slices under one mask, save them as one volume, such as .nii.gz; where each has a mask of its own: "
    "'images/{patient}/{case}.png' 'masks/{patient}/{case}.png'"
)
_MASK_HINT = (
    "keep one of the files; or, where they are of different classes, put {class} where the name of the class stands"
)
_PATIENT_HINT = "for cases called p07_left and p07_right: `patient_pattern='p[0-9]+'` or `patient_pattern='^[^_]+'`"

_Naming = Callable[[str], tuple[str, int | None]]


@dataclass(frozen=True)
class _Match:
    """A file, or folder with a DICOM series; ``channel`` and ``label`` are indices of channels and classes."""

    file: Path
    case: str
    patient: str | None = None
    channel: int | None = None
    label: int | None = None


@dataclass(frozen=True)
class _Pairs:
    """Cases found, files left alone, and how names of images were read, as an index of ways."""

    cases: Sequence[Case] = ()
    problems: Sequence[Problem] = ()
    ignored: Sequence[Path] = ()
    other_classes: Sequence[Path] = ()
    naming: int = 0


def draft_of_folders(
    name: str,
    images: str,
    masks: str,
    options: Options,
    *,
    channel_texts: Sequence[str] = (),
    class_texts: Mapping[str, str] | None = None,
    patient_pattern: str | None = None,
    test_images: str | None = None,
    test_masks: str | None = None,
) -> Draft:
    """Find images and masks, read them, and decide how to make a dataset of them.

    In folders (subfolders included), an image and its mask have the same name; or the mask's, or both, have a usual
    ending such as ``_mask``, ``_seg`` or ``_image``; or images are numbered by channel, as ``case_0000.nii.gz`` is. A
    case in a subfolder is called ``FOLDER_NAME``. All else is said with patterns: paths with ``{case}``, and if need be
    ``{patient}``, ``{channel}``, ``{class}`` and ``*``, each for a part of a file's or folder's name.

    Args:
        name: Such as ``Dataset012_Vessels``.
        images, masks: Folders or patterns.
        options: What the user says about the data.
        channel_texts: What stands for each channel where a pattern has ``{channel}``.
        class_texts: By name of a class, where it is not the name itself: what stands for ``{class}`` in the pattern of
            masks, several with commas between them, of each of which a case with the class has a file (``leftMask,
            rightMask`` for lungs); where that has none, the colour of the class.
        patient_pattern: See :func:`group_by_pattern`.
        test_images, test_masks: The same for imagesTs.

    Raises:
        SamunetError: If images and masks do not fit together, or are not understood.
        UsageError: If a folder, a pattern or an option is wrong.
    """
    _check_options(images, masks, test_images, test_masks)
    given = class_texts or {}
    texts: dict[str, list[str]] = {}
    if "class" in _names_in(masks):
        if options.remap is not None:
            raise UsageError(
                "`remap` numbers the values of masks, but with {class} each class has a file of its own",
                "leave out `remap`: classes are numbered in the order of `labels`",
            )
        if options.not_annotated is not None:
            raise UsageError(
                "with {class} each class has a file of its own, and 0 is what is not of the class: nothing there says "
                "what is not annotated",
                "leave out `not_annotated` or `zero_is_not_annotated`; or join the files to one for each case",
            )
        options = replace(options, class_files=True)
        texts = {name: given.get(name, name).split(",") for name in options.labels or ()}
    elif given:
        if options.remap is not None or options.threshold is not None:
            raise UsageError(
                "`labels=['NAME=COLOUR']` says what masks hold; `remap` or `threshold` says it once more",
                "leave one out",
            )
        options = replace(options, remap=colours_of(options.labels or (), given), as_colours=True)
    training = _find_pairs(images, masks, channel_texts, texts)
    _check_classes(masks, training, options)
    test = _Pairs()
    if test_images is not None:
        test = _find_pairs(test_images, test_masks, channel_texts, texts, training.naming)
    for files, why in (
        ([*training.other_classes, *test.other_classes], "`labels` does not name their class"),
        ([*training.ignored, *test.ignored], "they are no images"),
    ):
        if files:
            log.warning("left alone, since %s: %s", why, shortened([str(file) for file in files]))
    cases = training.cases if patient_pattern is None else group_by_pattern(training.cases, patient_pattern)
    problems = [*training.problems, *(replace(problem, kind=f"test {problem.kind}") for problem in test.problems)]
    return make_draft(name, cases, test.cases, options, problems=problems, where=images)


def group_by_pattern(cases: Sequence[Case], pattern: str) -> list[Case]:
    """Take the patient of every case from its name.

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
        raise UsageError(f"`patient_pattern`: {pattern!r} is no regular expression: {error}", _PATIENT_HINT) from None
    if any(case.group is not None for case in cases):
        raise UsageError("`patient_pattern` and {patient} both tell the patient", "leave one of them out")
    matches = {case.name: expression.search(case.name) for case in cases}
    found = {name: match[1 if expression.groups else 0] if match else None for name, match in matches.items()}
    missing = [name for name, patient in found.items() if not patient]
    if missing:
        what = "no case" if len(missing) == len(found) else f"{len(missing)} of {len(found)} cases not"
        raise UsageError(f"`patient_pattern` {pattern!r} matches {what}: {shortened(missing)}", _PATIENT_HINT)
    if len(set(found.values())) == 1 and len(found) > 1:
        log.warning(
            "`patient_pattern` %r gives all %d cases to one patient, so no folds are possible", pattern, len(found)
        )
    return [replace(case, group=found[case.name]) for case in cases]


def _check_options(images: str, masks: str, test_images: str | None, test_masks: str | None) -> None:
    if test_masks is not None and test_images is None:
        raise UsageError("`test_masks` are masks of `test_images`, which are missing", "add `test_images=FOLDER`")
    for places, name, fix in (
        ((images, test_images), "class", "images have no classes: write {class} in the pattern of masks"),
        ((masks, test_masks), "channel", "a case has one mask for all channels: leave {channel} out"),
    ):
        for place in places:
            if place is not None and name in _names_in(place):
                raise UsageError(f"{place}: {{{name}}} does not belong there", fix)
    if test_masks is not None and ("class" in _names_in(masks)) != ("class" in _names_in(test_masks)):
        raise UsageError(
            f"{masks} and {test_masks}: either both or none may have {{class}}",
            "masks for training and for testing must come in the same form",
        )


def _check_classes(masks: str, training: _Pairs, options: Options) -> None:
    found = {name for case in training.cases for name, _ in case.class_files}
    missing = [name for name in options.labels if name not in found] if options.class_files else []
    if missing:
        others = shortened([str(file) for file in training.other_classes]) or "none"
        raise UsageError(
            f"{masks}: no file is of the class {missing[0]}; files of classes that `labels` does not name: {others}",
            f"say what stands in its file names, {argument('labels', [f'{missing[0]}=TEXT'])}, or leave the class out",
        )


def _find_pairs(
    images: str, masks: str | None, channels: Sequence[str], classes: Mapping[str, Sequence[str]], naming: int = 0
) -> _Pairs:
    """Cases; ``naming`` says how names are read where there are no masks, as found with others that have masks."""
    for place in (images, masks):
        if place is not None and not _is_pattern(place) and not Path(place).expanduser().is_dir():
            raise UsageError(f"there is no folder {place}", f"give a folder, or a pattern: {_PATTERN_HINT}")
    by_pattern, others = _is_pattern(images), []
    found, ignored = _find(images, masks, channels)
    reference: list[_Match] = []
    names = [name for name, texts in classes.items() for _ in texts]  # of the class, for each text
    texts = [text for own in classes.values() for text in own]
    if masks is not None:
        if not (by_pattern or _is_pattern(masks)) and _resolved(images) == _resolved(masks):
            raise UsageError(f"{images} is given as the folder of both images and masks", _PATTERN_HINT)
        reference, ignored_masks = _find(masks, images, [], texts)
        ignored += ignored_masks
        series = next((match.file for match in reference if match.file.is_dir()), None)
        if series is not None:
            raise SamunetError(
                f"{series} holds DICOM files, which cannot be read as masks",
                "save segmentations and structure sets on the grid of their images, as .nii.gz: 3D Slicer does it",
            )
        # {case}.nrrd stands for case.seg.nrrd, too, which lies beside it.
        drawn = {match.file for match in reference if match.file.name.lower().endswith(".seg.nrrd")}
        found = [match for match in found if match.file not in drawn] or found
        if "class" in _names_in(masks):
            known = {match.file for match in (*reference, *found)}
            others = [file for file, _ in _texts(masks, {}) if file not in known]
        found, reference, naming = _bring_together(found, reference, by_pattern, _is_pattern(masks))
    elif not by_pattern:
        found = _renamed(found, _IMAGE_NAMINGS[naming])
    of_file = {match.file: match for match in found}
    files, problems = group((match.case, match.channel, match.file) for match in found)
    if by_pattern:
        problems = [replace(problem, fix=_SEVERAL_IMAGES) for problem in problems]
    by_case = {case: [of_file[file] for file in own.values()] for case, own in files.items()}
    if "channel" in _names_in(images):
        problems += _incomplete(by_case, channels)
    else:
        problems += channel_gaps({case: [match.channel for match in matches] for case, matches in by_case.items()})
    masks_of: dict[str, list[_Match]] = {}
    for match in reference:
        masks_of.setdefault(match.case, []).append(match)
    if masks is not None:
        problems += _unpaired(by_case, masks_of) + _lacking_parts(masks_of, names, texts)
        problems += [
            duplicate(case, [match.file for match in matches], _MASK_HINT)
            for case, matches in masks_of.items()
            if len(matches) > 1 and matches[0].label is None
        ]
    cases = [_case(case, matches, masks_of.get(case, []), names) for case, matches in by_case.items()]
    return _Pairs(cases, problems + unusable_names(by_case), ignored, others, naming)


def _resolved(folder: str) -> Path:
    return Path(folder).expanduser().resolve()


def _case(name: str, images: Sequence[_Match], masks: Sequence[_Match], classes: Sequence[str]) -> Case:
    case = Case(name, tuple(match.file for match in images), None, images[0].patient)
    if masks and masks[0].label is None:
        return replace(case, mask=masks[0].file)
    files = sorted((match.label, match.file) for match in masks)
    return replace(case, class_files=tuple((classes[label], file) for label, file in files))


def _find(
    place: str, other: str | None, channels: Sequence[str], classes: Sequence[str] = ()
) -> tuple[list[_Match], list[Path]]:
    """Images of a folder or pattern, and files that are none and belong to none."""
    if _is_pattern(place):
        matches = _find_matches(place, channels, classes)
    else:
        folder, without = Path(place).expanduser(), None
        if other is not None and not _is_pattern(other) and folder.resolve() in _resolved(other).parents:
            without = folder / _resolved(other).relative_to(folder.resolve())
        matches = [_Match(file, name_below(folder, file)) for file in files_below(folder, without)]
    is_image = {match.file: match.file.is_dir() or ending_of(match.file) is not None for match in matches}
    readable = [match for match in matches if is_image[match.file]]
    ignored = [file for file, image in is_image.items() if not image and not is_companion(file)]
    if not readable:
        what = shortened([file.name for file in ignored]) or "it is empty"
        raise UsageError(
            f"{place} has no files that can be read: {what}",
            f"endings that can be read: {', '.join(IMAGE_ENDINGS)}; save others in one of these without loss. DICOM: a "
            "subfolder for each series; give the folder that they lie in",
        )
    return readable, ignored


def _same(name: str) -> tuple[str, int | None]:
    return name, None


def _without(words: str) -> _Naming:
    end, start = re.compile(rf"(?i)[ _.-]({words})\d?$"), re.compile(rf"(?i)^({words})[ _.-]")
    return lambda name: (start.sub("", end.sub("", name)) or name, None)


_IMAGE_NAMINGS: tuple[_Naming, ...] = (
    _same,
    lambda name: case_and_channel(name) or (name, None),
    _without(_IMAGE_WORDS),
)
_MASK_NAMINGS: tuple[_Naming, ...] = (_same, _without(_MASK_WORDS))


def _renamed(matches: Sequence[_Match], naming: _Naming) -> list[_Match]:
    renamed = []
    for match in matches:
        case, channel = naming(match.case)
        renamed.append(replace(match, case=case, channel=match.channel if channel is None else channel))
    return renamed


def _bring_together(
    images: list[_Match], masks: list[_Match], images_fixed: bool, masks_fixed: bool
) -> tuple[list[_Match], list[_Match], int]:
    """Names under which images and masks meet, and how the images' were read; patterns have said theirs already."""
    for mask_naming in (_same,) if masks_fixed else _MASK_NAMINGS:
        for index, image_naming in enumerate((_same,) if images_fixed else _IMAGE_NAMINGS):
            renamed, renamed_masks = _renamed(images, image_naming), _renamed(masks, mask_naming)
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


def _incomplete(cases: dict[str, list[_Match]], channels: Sequence[str]) -> list[Problem]:
    problems = []
    for case, matches in cases.items():
        missing = [name for index, name in enumerate(channels) if index not in {match.channel for match in matches}]
        if missing:
            fix = "add the files, or move the other files of these cases away"
            problems.append(Problem("channels are missing:", case, f"{case} lacks {', '.join(missing)}", fix))
    return problems


def _lacking_parts(masks: dict[str, list[_Match]], names: Sequence[str], texts: Sequence[str]) -> list[Problem]:
    """Cases that have some, but not all of the files that make up a class."""
    problems = []
    for case, matches in masks.items():
        there = {match.label for match in matches if match.label is not None}
        for name in dict.fromkeys(names[label] for label in sorted(there)):
            lacking = [texts[part] for part, own in enumerate(names) if own == name and part not in there]
            if lacking:
                what = f"{case} lacks {', '.join(lacking)}"
                fix = "add the files (empty masks where there is nothing to mark), or move the others of the case away"
                problems.append(Problem(f"parts of {name} are missing:", case, what, fix))
    return problems


def _unpaired(images: dict[str, list[_Match]], masks: dict[str, list[_Match]]) -> list[Problem]:
    return [
        Problem(kind, case, str(matches[0].file), fix)
        for kind, own, others, fix in (
            (
                "images without mask:",
                images,
                masks,
                "add the mask, or move the image away; healthy images need a mask that is empty",
            ),
            ("masks without image:", masks, images, "add the image, or move the mask away"),
        )
        for case, matches in own.items()
        if case not in others
    ]


def _is_pattern(text: str) -> bool:
    return "{" in text or "*" in text


def _names_in(pattern: str) -> set[str]:
    """Placeholders of a pattern."""
    return {match[1] for match in _PLACEHOLDER.finditer(pattern) if match[1] is not None}


def _find_matches(pattern: str, channels: Sequence[str], classes: Sequence[str]) -> list[_Match]:
    """Files and DICOM folders that a pattern describes, sorted; it must be right, and describe some."""
    _check_pattern(pattern, channels)
    if "class" in _names_in(pattern) and not classes:
        there = list(dict.fromkeys(texts["class"] for _, texts in _texts(pattern, {})))
        raise UsageError(
            f"{pattern}: {{class}} stands for the names of `labels`, which are missing; files have "
            f"{shortened(there) or 'no such name'}",
            "name those that are classes, in the order of their values, for example `labels=['liver', 'tumour']`",
        )
    found = []
    for file, texts in _texts(pattern, {"channel": channels, "class": classes}):
        patient = texts.get("patient")
        case = texts["case"] if patient is None else f"{patient}_{texts['case']}"
        channel = list(channels).index(texts["channel"]) if "channel" in texts else None
        label = list(classes).index(texts["class"]) if "class" in texts else None
        found.append(_Match(file, case, patient, channel, label))
    if found:
        _warn_of_left_out(pattern, [match.file for match in found])
        return found
    root = _parts(pattern)[0]
    there = files_below(root)
    listed = shortened([file.relative_to(root).as_posix() for file in there]) or "no files"
    series = "; a DICOM series is named by its folder" if any(file.is_dir() for file in there) else ""
    text = f", {{class}} for {' or '.join(classes)}, or `labels=['NAME=TEXT']` says for what" if classes else ""
    raise UsageError(
        f"nothing matches {pattern}; {root} has {listed}",
        f"{{case}} stands for the part of a file's or folder's name that tells the case{text}; write the rest as "
        f"it is{series}",
    )


def _check_pattern(pattern: str, channels: Sequence[str]) -> None:
    unknown = _names_in(pattern) - set(_KNOWN)
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in _KNOWN)
        raise UsageError(f"{pattern}: {{{sorted(unknown)[0]}}} is no placeholder; there are {known} and *", _EXAMPLE)
    if "case" not in _names_in(pattern):
        raise UsageError(f"{pattern}: a pattern must say with {{case}} where the name of the case stands", _EXAMPLE)
    if "channel" in _names_in(pattern) and not channels:
        raise UsageError(
            f"{pattern}: {{channel}} stands for the names of `channel_names`, which are missing",
            "for example `channel_names=['FLAIR=flair', 'T1c=t1ce']`, where file names have flair and t1ce",
        )


def _texts(pattern: str, allowed: Mapping[str, Sequence[str]]) -> list[tuple[Path, dict[str, str]]]:
    """Files that match, and the text of each placeholder; ``allowed`` lists the texts of some."""
    root, rest = _parts(pattern)
    if not root.is_dir():
        raise UsageError(f"{pattern}: there is no folder {root}", "correct the path")
    expression = _expression(rest, allowed)
    matches = [(file, expression.fullmatch(file.relative_to(root).as_posix())) for file in files_below(root)]
    return [(file, match.groupdict()) for file, match in matches if match]


def _warn_of_left_out(pattern: str, found: Sequence[Path]) -> None:
    """Warn of folders of cases or patients in which nothing was found."""
    root, rest = _parts(pattern)
    first, *deeper = rest.split("/")
    if not deeper or not _names_in(first):
        return
    level, expression = len(root.parts), _expression(first, {})
    folders = {file.parts[level] for file in files_below(root) if len(file.parts) > level + 1}
    lost = sorted(folders - {file.parts[level] for file in found})
    lost = [name for name in lost if expression.fullmatch(name)]
    if lost:
        log.warning("left out, since nothing in them matches %s: %s", pattern, shortened(lost))


def _parts(pattern: str) -> tuple[Path, str]:
    """The folder that a pattern begins with, and the rest of it."""
    parts = Path(pattern).expanduser().parts
    first = next(index for index, part in enumerate(parts) if _is_pattern(part))
    return Path(*parts[:first]) if first else Path(), "/".join(parts[first:])


def _expression(pattern: str, allowed: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
    seen: set[str] = set()
    text, position = "", 0
    for match in _PLACEHOLDER.finditer(pattern):
        text += re.escape(pattern[position : match.start()])
        position = match.end()
        name = match[1]
        if name is None:
            text += "[^/]*"
        elif name in seen:
            text += f"(?P={name})"
        else:
            # The longest first: t1c must not be found in t1ce.
            one_of = "|".join(re.escape(word) for word in sorted(allowed.get(name, ()), key=len, reverse=True))
            text += f"(?P<{name}>{one_of or '[^/]+?'})"
            seen.add(name)
    return re.compile(text + re.escape(pattern[position:]))
