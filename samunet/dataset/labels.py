"""The classes of a dataset, from ``labels`` in dataset.json: plain classes, overlapping regions, an ignore label."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from samunet.errors import SamunetError, printable
from samunet.files import as_kind

_EXAMPLE = 'write "labels": {"background": 0, "first structure": 1, "second structure": 2}'
MOST_CLASSES = 1000
_REGIONS_EXAMPLE = (
    'for example "labels": {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3} with '
    '"regions_class_order": [1, 2, 3]'
)


@dataclass(frozen=True)
class Labels:
    """The outputs of a network for the dataset, and the values that its label files may hold.

    Attributes:
        names: One per output of the network: the classes in the order of their values, background first; with regions
            the regions in the order of dataset.json, without background, which is where no region is.
        regions: The label values that make up each of ``names``.
        class_order: With regions only: the value that each region is painted with in a predicted mask, one after the
            other, so that a later region overwrites an earlier one. None without regions.
        ignore: Value of voxels without annotation, which neither train nor score; None if there is none.
    """

    names: tuple[str, ...]
    regions: tuple[tuple[int, ...], ...]
    class_order: tuple[int, ...] | None = None
    ignore: int | None = None

    @property
    def has_regions(self) -> bool:
        """Whether outputs may overlap (a sigmoid each) instead of excluding each other (one softmax)."""
        return self.class_order is not None

    @property
    def num_outputs(self) -> int:
        """Channels of the network's logits."""
        return len(self.names)

    @property
    def values(self) -> tuple[int, ...]:
        """Values of annotated voxels, ``0, 1, ..., n``."""
        return tuple(range(1 + max(value for region in self.regions for value in region)))

    @property
    def foreground(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and values of every class or region but the background: what is scored."""
        return [(name, region) for name, region in zip(self.names, self.regions) if region != (0,)]

    @property
    def names_in_masks(self) -> dict[int, str]:
        """Name of every value that a predicted mask may have: with regions, of the one that is painted with it."""
        painted = self.class_order if self.class_order is not None else range(len(self.names))
        return {0: "background"} | dict(zip(painted, self.names))

    @property
    def meanings(self) -> dict[int, str]:
        """Names of every value that a label file may have; of overlapping regions, all that it is part of."""
        known = {
            value: " and ".join(name for name, region in self.foreground if value in region) for value in self.values
        }
        return known | {0: "background"} | ({} if self.ignore is None else {self.ignore: "ignore"})

    @staticmethod
    def from_json(data: Any, where: str = "dataset.json", regions_class_order: Any = None) -> Labels:
        """Read ``labels`` and ``regions_class_order`` of a dataset.json.

        Args:
            data: Name to value, or to a list of values (a region); ``ignore`` may name the highest value of all.
            where: The file, for messages.
            regions_class_order: Values to paint regions with; needed where there are regions.

        Raises:
            SamunetError: If the background is missing or not 0, values are not 0, 1, 2, ... without gaps, there is no
                foreground, the ignore label is not the highest value, or the order of regions is missing or wrong.
        """
        given = _as_tuples(data, where)
        file, where = where, f"{where}: labels"
        if given.get("background") != (0,):
            value = given.get("background")
            got = f"got {_listed(given)}" if value is None else f"it has the value {_shown(value)}"
            raise SamunetError(f'{where}: "background" must exist and be 0, but {got}', _EXAMPLE)
        named = {name: region for name, region in given.items() if name != "ignore"}
        ignore = None
        if "ignore" in given:
            ignore = 1 + max(value for region in named.values() for value in region)
            if given["ignore"] != (ignore,):
                raise SamunetError(
                    f'{where}: "ignore" must be one more than the highest other value, {ignore}, got '
                    f"{_shown(given['ignore'])}",
                    f'give the voxels without annotation the value {ignore} and write "ignore": {ignore}',
                )
        if len(named) == 1:
            raise SamunetError(f"{where}: there is nothing to segment besides the background", _EXAMPLE)
        several = any(len(region) > 1 for region in named.values())
        used = [value for region in named.values() for value in region]
        values = sorted(set(used) if several else used)
        if values != list(range(len(values))):
            what, once = (
                ("the values of all regions together", "") if several else ("the values", " and each used once")
            )
            raise SamunetError(
                f"{where}: {what} must be 0, 1, 2, ... without gaps{once}, got {values}",
                "number the labels consecutively, in dataset.json and in the label files",
            )
        if not several:
            by_value = sorted(named, key=named.__getitem__)
            return Labels(tuple(by_value), tuple(named[name] for name in by_value), None, ignore)
        del named["background"]
        order = regions_class_order
        order = [_without_quotes(value) for value in order] if isinstance(order, list) else order
        _check_regions(named, order, file)
        return Labels(tuple(named), tuple(named.values()), tuple(order), ignore)

    def unknown(self, values: Iterable[int]) -> list[int]:
        """Those of ``values`` that a label file must not hold, sorted."""
        return sorted({int(value) for value in values} - self.meanings.keys())

    def check(self, values: Iterable[int], file: Path | str) -> None:
        """Check the values that occur in a label file.

        Raises:
            SamunetError: If a value is none of the dataset's.
        """
        found = sorted({int(value) for value in values})
        unknown = self.unknown(found)
        if unknown:
            listed = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise SamunetError(
                f"{file} contains label values that dataset.json does not list: {listed}", self._hint(found)
            )

    def _hint(self, found: list[int]) -> str:
        if found in ([0, 255], [255]):
            return (
                "the mask is coded 0/255, as pictures often are: save it with 1 in place of 255, for example "
                "(mask > 0).astype('uint8'), in every file of the labels folder"
            )
        listed = ", ".join(f"{value} = {name}" for value, name in sorted(self.meanings.items()))
        return f"dataset.json has {listed}: correct the file, or add the missing labels to dataset.json"


def _as_tuples(data: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Every label's values as a tuple."""
    if not isinstance(data, dict) or not data:
        raise SamunetError(f"{where}: labels must be an object that maps names to values, got {data!r:.200}", _EXAMPLE)
    if len(data) > MOST_CLASSES:
        raise SamunetError(
            f"{where}: labels has {len(data)} classes, and a network can have {MOST_CLASSES}",
            "leave out or join classes, in dataset.json and in the label files",
        )
    if all(isinstance(value, str) for value in data.values()) and all(name.strip().isdecimal() for name in data):
        raise SamunetError(
            f"{where}: labels map values to names, as in the Medical Segmentation Decathlon and nnU-Net v1",
            f"turn them round: {_EXAMPLE}",
        )
    several = any(isinstance(value, list) and len(value) > 1 for value in data.values())
    hint = _REGIONS_EXAMPLE if several else _EXAMPLE
    return as_kind(dict[str, dict[VisibleText, _Region]], {"labels": data}, where, hint)["labels"]


def _region(value: Any) -> list[int]:
    """The values of a class or region, sorted; ``"1"`` means 1."""
    values = [_without_quotes(item) for item in (value if isinstance(value, list) else [value])]
    if not values or any(type(item) is not int for item in values):
        raise ValueError("must be an integer, or a list of integers for a region")
    if len(set(values)) < len(values):
        raise ValueError("lists a value twice")
    return sorted(values)


def _visible(text: str) -> str:
    if printable(text) != text:
        raise ValueError("has characters that cannot be seen: write it with letters")
    return text


VisibleText = Annotated[str, AfterValidator(_visible)]
_Region = Annotated[tuple[int, ...], BeforeValidator(_region)]


def _without_quotes(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,5}\s*", value) else value


def _check_regions(regions: dict[str, tuple[int, ...]], order: Any, where: str) -> None:
    """Refuse regions with the background, and values to paint them with that do not fit them."""
    for name, region in regions.items():
        if 0 in region:
            raise SamunetError(f'{where}: labels: the region "{name}" contains the background, 0', _REGIONS_EXAMPLE)
    whole = isinstance(order, list) and all(isinstance(value, int) and not isinstance(value, bool) for value in order)
    if not whole or len(order) != len(regions):
        got = "it is missing" if order is None else f"got {order!r}"
        raise SamunetError(
            f"{where}: regions_class_order must list one value for each of the regions {_listed(regions)}, but {got}",
            _REGIONS_EXAMPLE,
        )
    names = list(regions)
    for index, (name, value) in enumerate(zip(names, order)):
        if value not in regions[name]:
            raise SamunetError(
                f'{where}: regions_class_order paints the region "{name}" with {value}, which is not one of its values '
                f"{_shown(regions[name])}",
                "list the values in the order of the regions, from the largest region to the smallest",
            )
        hiding = [later for later in names[index + 1 :] if set(regions[name]) <= set(regions[later])]
        if hiding:
            raise SamunetError(
                f'{where}: labels and regions_class_order: "{hiding[0]}" contains "{name}" and is painted after it, so '
                f'"{name}" would never be seen',
                "order regions from the largest to the smallest, in labels and in regions_class_order",
            )


def _shown(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else str(list(values))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
