"""The classes of a dataset, from ``labels`` in dataset.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from samunet.errors import SamunetError

_EXAMPLE = 'write "labels": {"background": 0, "first structure": 1, "second structure": 2}'


@dataclass(frozen=True)
class Labels:
    """Names of the classes in the order of their values: ``names[0]`` is the background."""

    names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.names)

    @property
    def foreground(self) -> list[tuple[str, int]]:
        """``(name, value)`` of every class but the background."""
        return [(name, value) for value, name in enumerate(self.names) if value > 0]

    @staticmethod
    def from_json(data: dict[str, int | list[int]], where: str = "dataset.json") -> Labels:
        """Read ``labels`` of a dataset.json.

        Args:
            data: Name to value.
            where: The file, for messages.

        Raises:
            SamunetError: If the background is missing or not 0, values are not 0, 1, 2, ... each used once, there is no
                foreground, or the labels use regions or an ignore label.
        """
        _refuse_what_is_not_values(data, where)
        for name, value in data.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise SamunetError(
                    f'{where}: labels: "{name}" has the value {value!r}, it must be an integer', _EXAMPLE
                )
        if data.get("background") != 0:
            got = f"it has the value {data['background']}" if "background" in data else f"there are {_listed(data)}"
            raise SamunetError(f'{where}: labels: "background" must exist and be 0, but {got}', _EXAMPLE)
        by_value = sorted(data, key=data.__getitem__)
        values = [data[name] for name in by_value]
        if values != list(range(len(values))):
            raise SamunetError(
                f"{where}: labels: the values must be 0, 1, 2, ... without gaps and each used once, got {values}",
                "number the labels consecutively, in dataset.json and in the label files",
            )
        if len(values) == 1:
            raise SamunetError(f"{where}: labels: there is nothing to segment besides the background", _EXAMPLE)
        return Labels(tuple(by_value))

    def check(self, values: Iterable[int], file: Path | str) -> None:
        """Check the values that occur in a label file.

        Raises:
            SamunetError: If a value is none of the dataset's.
        """
        found = sorted({int(value) for value in values})
        unknown = [value for value in found if not 0 <= value < self.num_classes]
        if not unknown:
            return
        known = ", ".join(f"{value} = {name}" for value, name in enumerate(self.names))
        listed = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise SamunetError(
            f"{file} contains label values that dataset.json does not list: {listed}", self._hint(found, known)
        )

    def _hint(self, found: list[int], known: str) -> str:
        if found in ([0, 255], [255]):
            return (
                "the mask is coded 0/255, as pictures often are: save it with 1 in place of 255, for example "
                "(mask > 0).astype('uint8'), in every file of the labels folder"
            )
        return f"dataset.json has {known}: correct the file, or add the missing labels to dataset.json"


def _refuse_what_is_not_values(data: dict[str, int | list[int]], where: str) -> None:
    if not isinstance(data, dict) or not data:
        raise SamunetError(f"{where}: labels must be an object that maps names to values, got {data!r}", _EXAMPLE)
    if all(isinstance(value, str) for value in data.values()):
        raise SamunetError(
            f"{where}: labels map values to names, as in the Medical Segmentation Decathlon and nnU-Net v1",
            f"turn them round: {_EXAMPLE}",
        )
    regions = [name for name, value in data.items() if isinstance(value, list)]
    if regions:
        raise SamunetError(
            f"{where}: labels: {_listed(regions)} consist of several values (regions), support for which comes in a "
            "later version of samunet",
            "give every label one integer for now; regions can be joined after prediction",
        )
    if "ignore" in data:
        raise SamunetError(
            f'{where}: labels: "ignore" marks voxels without annotation, support for which comes in a later version of '
            "samunet",
            "annotate these voxels and remove the label, or leave out the cases that use it",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
