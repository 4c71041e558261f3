"""Which way round the images of a dataset lie, told from its fingerprint and labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from samunet.dataset.labels import Labels
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.rules import Decision, fixed_order, mirror_axes
from samunet.preprocessing.orientation import UNKNOWN, common_orientation

_FEWEST_CASES = 5


def common_way_round(fingerprint: Fingerprint) -> Decision:
    """The orientation to which images are turned before anything else: that of the training images, if it is one."""
    orientations = [case.orientation for case in fingerprint.cases.values()]
    common = common_orientation(orientations)
    if common != UNKNOWN:
        return common, "all training images lie so, and the network sees no others"
    why = (
        "unknown (pictures, oblique volumes, or not stated)"
        if UNKNOWN in orientations
        else "not the same in all training images"
    )
    return UNKNOWN, f"{why}: axes are taken as the files have them"


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

    See :func:`samunet.planning.rules.fixed_order`. Cases are compared as their files have them: where some are turned
    round, the order is not the same in all.
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
