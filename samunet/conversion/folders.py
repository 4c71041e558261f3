"""Folders of images with their masks, named as people name them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from samunet.conversion.coding import CodingOptions, colours_of
from samunet.conversion.draft import Draft, Options, make_draft
from samunet.conversion.pairing import Pairs, find_pairs, group_by_pattern
from samunet.conversion.patterns import names_in
from samunet.dataset.problems import shortened
from samunet.errors import UsageError
from samunet.imageio.registry import is_companion

log = logging.getLogger(__name__)


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

    Args:
        name: Such as ``Dataset012_Vessels``.
        images, masks: Folders or patterns; see :func:`samunet.conversion.pairing.find_pairs`.
        options: What the user says about the data.
        channel_texts: What stands for each channel where a pattern has ``{channel}``.
        class_texts: By name of a class, where it is not the name itself: what stands for ``{class}`` in the pattern of
            masks; where that has none, the colour of the class.
        patient_pattern: See :func:`samunet.conversion.groups.group_by_pattern`.
        test_images, test_masks: The same for imagesTs.

    Raises:
        SamunetError: If images and masks do not fit together, or are not understood.
        UsageError: If a folder, a pattern or an option is wrong.
    """
    _check(images, masks, test_images, test_masks)
    coding, given = options.coding, class_texts or {}
    if "class" in names_in(masks):
        coding = replace(coding, class_files=True)
    elif given:
        if coding.remap is not None or coding.threshold is not None:
            raise UsageError(
                "--labels NAME=COLOUR says what masks hold; --remap or --threshold says it once more", "leave one out"
            )
        coding = replace(coding, remap=colours_of(coding.labels or (), given), as_colours=True)
    options = replace(options, coding=coding)
    if coding.class_files and coding.remap is not None:
        raise UsageError(
            "--remap numbers the values of masks, but with {class} each class has a file of its own",
            "leave out --remap: classes are numbered in the order of --labels",
        )
    texts = {name: given.get(name, name) for name in coding.labels or ()} if coding.class_files else {}
    training = find_pairs(images, masks, channel_texts, texts)
    _check_classes(masks, training, options.coding)
    test = Pairs([], [], [], [], 0)
    if test_images is not None:
        test = find_pairs(test_images, test_masks, channel_texts, texts, training.naming)
    others = training.other_classes + test.other_classes
    if others:
        listed = shortened([str(file) for file in others])
        log.warning("left alone, since --labels does not name their class: %s", listed)
    ignored = [file for file in training.ignored + test.ignored if not _states_spacing(file)]
    if ignored:
        log.warning("left alone, since they are no images: %s", shortened([str(file) for file in ignored]))
    cases = training.cases
    if patient_pattern is not None:
        cases = group_by_pattern(cases, patient_pattern)
    problems = training.problems + [replace(problem, kind=f"test {problem.kind}") for problem in test.problems]
    return make_draft(name, cases, test.cases, options, problems=problems, where=images)


def _check(images: str, masks: str, test_images: str | None, test_masks: str | None) -> None:
    if test_masks is not None and test_images is None:
        raise UsageError("--test_masks are masks of --test_images, which are missing", "add --test_images FOLDER")
    for place, name, fix in (
        (images, "class", "images have no classes: write {class} in the pattern of masks"),
        (test_images, "class", "images have no classes: write {class} in the pattern of masks"),
        (masks, "channel", "a case has one mask for all channels: leave {channel} out"),
        (test_masks, "channel", "a case has one mask for all channels: leave {channel} out"),
    ):
        if place is not None and name in names_in(place):
            raise UsageError(f"{place}: {{{name}}} does not belong there", fix)
    if test_masks is not None and ("class" in names_in(masks)) != ("class" in names_in(test_masks)):
        raise UsageError(
            f"{masks} and {test_masks}: either both or none may have {{class}}",
            "masks for training and for testing must come in the same form",
        )


def _check_classes(masks: str, training: Pairs, coding: CodingOptions) -> None:
    if not coding.class_files:
        return
    found = {name for case in training.cases for name, _ in case.class_files}
    lacking = [name for name in coding.labels if name not in found]
    if lacking:
        others = shortened([str(file) for file in training.other_classes]) or "none"
        raise UsageError(
            f"{masks}: no file is of the class {lacking[0]}; files of classes that --labels does not name: {others}",
            f"say what stands in the names of files, --labels {lacking[0]}=TEXT, or leave the class out",
        )


def _states_spacing(file: Path) -> bool:
    """Whether a file belongs to a TIFF beside it, whose spacing it states."""
    return is_companion(file)
