"""3D Slicer's segmentations (``.seg.nrrd``): named segments, in layers where they overlap, cropped to what is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from samunet.errors import Blank, SamunetError, call
from samunet.imageio.base import Segment
from samunet.imageio.volume import integer, wrong

_KEY = re.compile(r"Segment(\d{1,4})_(Name|LabelValue|Layer)")
_MAKE = call("make_dataset", Blank("IMAGES"), Blank("MASKS"), name=Blank("NAME"), id=Blank("ID"))
_CONVERT = f"{_MAKE} reads it by the names of its segments; or export it from Slicer as a label map"


def has_segments(keys: Mapping[str, str]) -> bool:
    """Whether a NRRD file's own keys describe segments."""
    return any(_KEY.fullmatch(key) for key in keys)


def segments_of(keys: Mapping[str, str], layers: int, file: Path) -> tuple[Segment, ...]:
    """The segments that a NRRD file's own keys describe, in their order; none if it is no segmentation.

    Raises:
        SamunetError: If two have one name, or the same value in the same layer, or a layer is not there.
    """
    found: dict[int, dict[str, str]] = {}
    for key, text in keys.items():
        match = _KEY.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = text.strip()
    segments = []
    for number, own in sorted(found.items()):
        value = integer(own.get("LabelValue", "1"), file, f"Segment{number}_LabelValue")
        # Slicer up to 4.10 wrote each segment into a layer of its own, and neither value nor layer.
        alone = str(number) if layers > 1 and "LabelValue" not in own else "0"
        layer = integer(own.get("Layer", alone), file, f"Segment{number}_Layer")
        if not 0 <= layer < layers:
            raise wrong(file, f"Segment{number}_Layer", str(layer), f"0 to {layers - 1}, the layers that there are")
        segments.append(Segment(own.get("Name", f"Segment_{number + 1}"), value, layer))
    for what, known in (("name", [one.name for one in segments]), ("place", [one[1:] for one in segments])):
        if len(set(known)) < len(known):
            raise SamunetError(
                f"{file}: two of its segments have the same {what}: {', '.join(one.name for one in segments)}",
                "rename them in Slicer, or save the segmentation again",
            )
    return tuple(segments)


def drawn(voxels: np.ndarray, segments: Sequence[Segment], file: Path) -> tuple[np.ndarray, list[tuple[Segment, ...]]]:
    """Segments of each voxel of ``(layers, z, y, x)``.

    Returns:
        ``(z, y, x)`` numbers, and for each number the segments that it stands for; 0 stands for none.

    Raises:
        SamunetError: If a voxel has a value that no segment has.
    """
    numbers, meanings = np.zeros(voxels.shape[1:], np.int64), [()]
    for layer, own in enumerate(voxels):
        here = [one for one in segments if one.layer == layer]
        values, places = np.unique(own, return_inverse=True)
        known = {one.value: place for place, one in enumerate(here, 1)}
        lost = [value for value in values.tolist() if value and value not in known]
        if lost:
            raise SamunetError(f"{file} has the value {lost[0]:g}, which none of its segments has", _CONVERT)
        place = np.array([known.get(value, 0) for value in values.tolist()])[places].reshape(own.shape)
        combined, numbers = np.unique(numbers * (len(here) + 1) + place, return_inverse=True)
        numbers = numbers.reshape(own.shape)
        pairs = [divmod(both, len(here) + 1) for both in combined.tolist()]
        meanings = [(*meanings[before], *(here[at - 1 : at] if at else ())) for before, at in pairs]
    return (numbers + 1, [(), *meanings]) if meanings[0] else (numbers, meanings)


def flat(voxels: np.ndarray, segments: Sequence[Segment], file: Path) -> np.ndarray:
    """The layers of a segmentation as one label map ``(1, z, y, x)`` of the segments' own values.

    Raises:
        SamunetError: If segments overlap, or share a value.
    """
    values = [one.value for one in segments]
    numbers, meanings = drawn(voxels, segments, file)
    both = next((found for found in meanings if len(found) > 1), None)
    if both or len(set(values)) < len(values):
        what = " and ".join(one.name for one in both) + " overlap" if both else "some share a value"
        raise SamunetError(f"{file} is a segmentation in layers that are no label map: {what}", _CONVERT)
    return np.array([found[0].value if found else 0 for found in meanings], np.int32)[numbers][None]
