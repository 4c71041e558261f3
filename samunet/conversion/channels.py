"""What the channels are called, and in which format labels are written: decided for all cases together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from samunet.conversion.case import Inspection
from samunet.dataset.problems import Problem
from samunet.errors import SamunetError, UsageError
from samunet.imageio.registry import READERS, ending_of

_COLOURS = ("R", "G", "B")
_NAMES_HINT = (
    "CT selects clipping and normalisation in Hounsfield units; any other name, such as MRI, T2 or FLAIR, means a mean "
    "of 0 and a deviation of 1 per image: --channel_names CT"
)


def decide_channels(findings: Sequence[Inspection], given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the channels: those given, or those that pictures tell.

    Pictures are ``grayscale``, or ``R``, ``G``, ``B`` if one of them has colours; with more than 8 bits they are called
    ``intensity``, since no range of values is known then.

    Raises:
        UsageError: If the names must be given.
    """
    if given is not None:
        return tuple(given)
    counts = Counter(found.channels for found in findings)
    if any(found.case.kind == "volume" or found.shape[0] > 1 for found in findings):
        number = counts.most_common(1)[0][0]
        several = f" of the {number} channels, in their order" if number > 1 else ""
        raise UsageError(f"volumes do not tell what they show: the name{several} is missing", _NAMES_HINT)
    if set(counts) - {1, 3}:
        raise UsageError(
            f"pictures have {' or '.join(str(count) for count in sorted(counts))} channels, whose names are missing",
            "give a name for each: --channel_names blue green red infrared",
        )
    if any(found.channels == 3 and not found.grey for found in findings):
        return _COLOURS
    return ("grayscale",) if max(found.largest for found in findings) <= 255 else ("intensity",)


def wrong_channels(findings: Sequence[Inspection], names: Sequence[str]) -> list[Problem]:
    """Cases whose number of channels does not fit the names.

    Pictures are fitted to it where nothing is lost: grey is repeated for colours, and equal colours are one channel.
    """
    problems = []
    for found in findings:
        picture = found.case.kind != "volume" and found.shape[0] == 1
        fits = found.channels == len(names) or (
            picture and ((len(names) == 3 and found.channels == 1) or (len(names) == 1 and found.grey))
        )
        if not fits:
            fix = f"channels are {', '.join(names)}: give other --channel_names, or convert the image"
            detail = f"{found.case.name} has {found.channels}"
            problems.append(Problem(f"{len(names)} channels expected:", found.case.name, detail, fix))
    return problems


def decide_file_ending(findings: Sequence[Inspection]) -> str:
    """``file_ending`` of the dataset: the format of its labels, whose reader must open all images.

    Volumes keep the ending of their masks if it is the same for all, else they get ``.nii.gz``; TIFF stays ``.tif``;
    pictures get ``.png``.

    Raises:
        SamunetError: If the images are volumes and pictures.
    """
    by_kind: dict[str, list[Inspection]] = {}
    for found in findings:
        kind = "picture" if found.case.kind == "tiff" and found.shape[0] == 1 else found.case.kind
        by_kind.setdefault(kind, []).append(found)
    if len(by_kind) > 1:
        listed = ", ".join(f"{kind}s such as {found[0].case.files[0].name}" for kind, found in by_kind.items())
        raise SamunetError(
            f"images are of different kinds: {listed}", "make a dataset of each kind, or save all in one format"
        )
    if "picture" in by_kind:
        return ".tif" if all(found.case.kind == "tiff" for found in findings) else ".png"
    if "tiff" in by_kind:
        return ".tif"
    masks = {ending_of(file) for found in findings for file in found.case.masks}
    only = masks.pop() if len(masks) == 1 else None
    return only if any(only in reader.directed_endings for reader in READERS) else ".nii.gz"
