"""Postprocessing of masks: the largest component of all foreground, or of one class (nnU-Net's two rules).

Which of these steps help is decided by :mod:`samunet.selection.determine`; here they are stored, read and applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import Interval, Len
from pydantic import Strict
from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.files import read_as, write_json
from samunet.inference.decoding import ARGMAX, DICE

FILE_NAME = "postprocessing.json"
_RULE = "keep_largest_component"
_HINT = "restore the file, or make it again: `api.find_best_configuration` or `api.determine_postprocessing`"


_Value = Annotated[int, Strict(), Interval(ge=0, le=65535)]


class _Step(TypedDict):
    rule: Literal["keep_largest_component"]
    of: NotRequired[str]
    values: Annotated[list[_Value], Len(1)]
    removed_voxels_become: list[_Value]


class _File(TypedDict):
    """A ``postprocessing.json``."""

    decoding: NotRequired[Literal["argmax", "dice"]]
    steps: list[_Step]


@dataclass(frozen=True)
class Step:
    """Keep the largest connected component of some label values.

    Attributes:
        name: Of the class or region, or ``foreground``.
        values: Label values that count as inside; components touch by faces, edges or corners.
        becomes: What voxels of the other components become, for each of ``values``: the background, or with regions
            the value of what still contains them.
    """

    name: str
    values: tuple[int, ...]
    becomes: tuple[int, ...]

    def apply(self, mask: np.ndarray) -> np.ndarray:
        """A mask ``(z, y, x)`` without the smaller components; the very same array where there is nothing to remove.

        Of several components of the largest size all are kept, as in nnU-Net.
        """
        from acvl_utils.morphology.morphology_helper import remove_all_but_largest_component

        inside = np.isin(mask, self.values)
        if not inside.any():
            return mask
        removed = inside & ~remove_all_but_largest_component(inside)
        if not removed.any():
            return mask
        table = np.zeros(max(self.values) + 1, dtype=mask.dtype)
        table[list(self.values)] = self.becomes
        result = mask.copy()
        result[removed] = table[mask[removed]]
        return result


@dataclass(frozen=True)
class Postprocessing:
    """What is done with a network's probabilities, and then with the mask.

    Attributes:
        steps: Applied to the mask one after the other; none leaves it as it is.
        decoding: How probabilities become the mask, one of :data:`samunet.inference.decoding.DECODINGS`.
    """

    steps: tuple[Step, ...] = ()
    decoding: str = ARGMAX

    def apply(self, mask: np.ndarray) -> np.ndarray:
        """A mask ``(z, y, x)`` after all steps; the array that was given is not changed."""
        for step in self.steps:
            mask = step.apply(mask)
        return mask

    def describe(self) -> str:
        """For people, such as ``only the largest component of RV and of LV``."""
        said = ["decoded for the highest expected Dice"] if self.decoding == DICE else []
        if self.steps:
            said.append("only the largest component of " + " and of ".join(step.name for step in self.steps))
        return ", ".join(said) or "none"

    def write(self, path: Path, decisions: Any = None) -> None:
        """Write as JSON.

        Args:
            path: The file.
            decisions: What led to the steps, for people; not read again.
        """
        steps = [
            {"rule": _RULE, "of": step.name, "values": step.values, "removed_voxels_become": step.becomes}
            for step in self.steps
        ]
        write_json(path, {"decoding": self.decoding, "steps": steps, "decisions": decisions})


def read_postprocessing(path: Path) -> Postprocessing:
    """Read what :meth:`Postprocessing.write` wrote.

    Raises:
        SamunetError: If the file is missing, damaged, or holds something else; names the key.
    """
    data = read_as(_File, path, _HINT)
    steps = []
    for index, entry in enumerate(data["steps"]):
        values, becomes = tuple(entry["values"]), tuple(entry["removed_voxels_become"])
        if len(values) != len(becomes):
            where = f"{path}: steps.{index}"
            raise SamunetError(f"{where}: values and removed_voxels_become must be lists of the same length", _HINT)
        steps.append(Step(entry.get("of", ""), values, becomes))
    return Postprocessing(tuple(steps), data.get("decoding", ARGMAX))


def foreground_step(labels: Labels) -> Step:
    """Keep the largest component of all foreground together."""
    values = tuple(sorted({value for _, region in labels.foreground for value in region}))
    return Step("foreground", values, (0,) * len(values))


def class_step(labels: Labels, index: int) -> Step:
    """Keep the largest component of one class or region.

    nnU-Net gives the voxels it removes from a region to the background, and so tears holes into the regions around
    it. Here they become what is painted where this region, and all that lie in it, are not.

    Args:
        index: Of the class or region in ``labels.foreground``.
    """
    name, region = labels.foreground[index]
    if not labels.has_regions:
        return Step(name, region, (0,))
    painted = list(zip(labels.regions, labels.class_order, strict=True))
    becomes = tuple(
        next((value for other, value in reversed(painted) if own in other and value not in region), 0) for own in region
    )
    return Step(name, region, becomes)
