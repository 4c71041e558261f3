"""Which way round the images of a dataset lie, told from its fingerprint and labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from samunet.dataset.labels import Labels
from samunet.dataset.problems import shortened
from samunet.planning.fingerprint import CaseFingerprint, Fingerprint
from samunet.planning.rules import Decision, fixed_order, mirror_axes
from samunet.preprocessing.orientation import UNKNOWN, common_orientation, flipped_axes, reorient_axes

_FEWEST_CASES = 5


def choose_orientation(fingerprint: Fingerprint) -> Decision:
    """The orientation to which images are turned before anything else: that of most training images."""
    orientations = [case.orientation for case in fingerprint.cases.values()]
    common = common_orientation(orientations)
    if common == UNKNOWN:
        return UNKNOWN, "unknown (pictures, oblique volumes, or not stated): axes are taken as the files have them"
    others = len(orientations) - orientations.count(common)
    if others:
        number = f"{len(orientations) - others} of {len(orientations)} training images lie so"
        return common, f"{number}; the others are turned to it, unless the files do not say how they lie"
    return common, "all training images lie so, and the network sees no others"


def turned_fingerprint(fingerprint: Fingerprint, orientation: str) -> Fingerprint:
    """The fingerprint with what belongs to axes as it is once images are turned to ``orientation``."""
    cases = {name: _turned_case(case, orientation) for name, case in fingerprint.cases.items()}
    return fingerprint.changed(
        cases=cases,
        spacings=[case.spacing for case in cases.values()],
        shapes_after_crop=[case.shape_after_crop for case in cases.values()],
    )


def otherwise(fingerprint: Fingerprint, orientation: str) -> str:
    """Which training images lie otherwise than ``orientation``, as a sentence; empty if none does."""
    groups: dict[str, list[str]] = {}
    for name, case in fingerprint.cases.items():
        if case.orientation != orientation:
            groups.setdefault(case.orientation, []).append(name)
    turned = "; ".join(f"{own}: {shortened(names)}" for own, names in sorted(groups.items()) if own != UNKNOWN)
    left = f"; as they lie remain, since their files do not say how: {shortened(groups.get(UNKNOWN, []))}"
    if not groups or orientation == UNKNOWN:
        return ""
    turning = f"are turned to {orientation} in training and prediction, as most lie: {turned or 'none'}"
    return f"images of different orientations {turning}{left if UNKNOWN in groups else ''}"


def _turned_case(case: CaseFingerprint, orientation: str) -> CaseFingerprint:
    if orientation in (UNKNOWN, case.orientation) or case.orientation == UNKNOWN:
        return case
    backwards = flipped_axes(case.orientation, orientation)

    def sides(numbers: Sequence[float]) -> list[float]:
        return reorient_axes(numbers, case.orientation, orientation)

    shape = sides(case.shape)

    def centre(place: Sequence[float]) -> list[float]:
        return [side - 1 - at if flip else at for at, side, flip in zip(sides(place), shape, backwards)]

    return case.changed(
        spacing=sides(case.spacing),
        shape=shape,
        shape_after_crop=sides(case.shape_after_crop),
        class_faces={value: sides(faces) for value, faces in case.class_faces.items()},
        class_centres={value: centre(place) if place else [] for value, place in case.class_centres.items()},
        class_spreads={value: sides(spread) if spread else [] for value, spread in case.class_spreads.items()},
        orientation=orientation,
    )


def mirrored_axes(labels: Labels, fingerprint: Fingerprint, order: Sequence[int]) -> Decision:
    """:func:`samunet.planning.rules.mirror_axes` of a dataset; fewer than five images may agree by chance."""
    enough = len(fingerprint.cases) >= _FEWEST_CASES
    return mirror_axes(
        labels.names,
        order,
        fingerprint.physical_spacing,
        ordered_labels(fingerprint, labels),
        fingerprint.asymmetry if enough else (0.0, 0.0, 0.0),
    )


def ordered_labels(fingerprint: Fingerprint, labels: Labels) -> dict[int, tuple[str, str]]:
    """By array axis the two labels that keep their order along it most clearly; axes without such labels are left out.

    See :func:`samunet.planning.rules.fixed_order`. Cases are compared as the fingerprint has them: turned to the common
    orientation, if there is one (:func:`turned_fingerprint`).
    """
    values = labels.values[1:]
    names = {region[0]: name for name, region in labels.foreground if len(region) == 1}
    centres, spreads = (
        np.array([[entry[str(value)] or [np.nan] * 3 for value in values] for entry in entries])
        for entries in zip(*((case.class_centres, case.class_spreads) for case in fingerprint.cases.values()))
    )
    found: dict[int, tuple[float, tuple[str, str]]] = {}
    for one, other in combinations(range(len(values)), 2):
        both = ~np.isnan(centres[:, one, 0] + centres[:, other, 0])
        offsets = centres[both, other] - centres[both, one]
        reaches = spreads[both, one] + spreads[both, other]
        for axis in range(3):
            if not fixed_order(offsets[:, axis], reaches[:, axis]):
                continue
            distance = float(np.median(offsets[:, axis]))
            pair = (one, other) if distance > 0 else (other, one)
            shown = tuple(names.get(values[index], f"label {values[index]}") for index in pair)
            found[axis] = max(found.get(axis, (0.0, shown)), (abs(distance), shown))
    return {axis: pair for axis, (_, pair) in found.items()}
