"""Folders of images with their masks, named as people name them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from samunet.conversion.draft import Draft, Options, make_draft
from samunet.conversion.groups import group_by_pattern
from samunet.conversion.pairing import Pairs, find_pairs
from samunet.conversion.patterns import names_in
from samunet.dataset.problems import shortened
from samunet.errors import UsageError
from samunet.imageio.tiff import TIFF_ENDINGS

log = logging.getLogger(__name__)


def draft_of_folders(
    name: str,
    images: str,
    masks: str,
    options: Options,
    *,
    channel_texts: Sequence[str] = (),
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
        patient_pattern: See :func:`samunet.conversion.groups.group_by_pattern`.
        test_images, test_masks: The same for imagesTs.

    Raises:
        SamunetError: If images and masks do not fit together, or are not understood.
        UsageError: If a folder, a pattern or an option is wrong.
    """
    if test_masks is not None and test_images is None:
        raise UsageError("--test_masks are masks of --test_images, which are missing", "add --test_images FOLDER")
    if "channel" in names_in(masks):
        raise UsageError(f"{masks}: a case has one mask for all channels", "leave {channel} out")
    training = find_pairs(images, masks, channel_texts)
    test = Pairs([], [], [])
    if test_images is not None:
        test = find_pairs(test_images, test_masks, channel_texts, training.naming)
    ignored = [file for file in training.ignored + test.ignored if not _states_spacing(file)]
    if ignored:
        log.warning("left alone, since they are no images: %s", shortened([str(file) for file in ignored]))
    sources = training.sources
    if patient_pattern is not None:
        sources = group_by_pattern(sources, patient_pattern)
    problems = training.problems + [replace(problem, kind=f"test {problem.kind}") for problem in test.problems]
    return make_draft(name, sources, test.sources, options, problems=problems, where=images)


def _states_spacing(file: Path) -> bool:
    """Whether a file belongs to a TIFF beside it, whose spacing it states."""
    return file.suffix == ".json" and any(file.with_suffix(ending).is_file() for ending in TIFF_ENDINGS)
