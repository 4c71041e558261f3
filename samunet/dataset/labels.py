"""Classes of a dataset: names and consecutive values, background first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError


@dataclass(frozen=True)
class Labels:
    """Label names, in the order of their values 0, 1, 2, ...

    Attributes:
        names: ``("background", ...)``.
    """

    names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.names)

    @property
    def foreground(self) -> list[tuple[str, int]]:
        """``(name, value)`` of every class but background."""
        return [(name, value) for value, name in enumerate(self.names) if value > 0]

    @staticmethod
    def from_json(data: Any, where: str = "dataset.json") -> Labels:
        """Check and convert the value of dataset.json's ``labels``.

        Raises:
            SamunetError: If it is not an object of names to consecutive whole numbers with background 0; also for
                regions and the ignore label, which are understood but not yet trained.
        """
        if not isinstance(data, dict) or not data:
            raise SamunetError(f"{where}: labels must map names to numbers, got {data!r}", _EXAMPLE)
        if "background" not in data:
            raise SamunetError(f"{where}: labels has no 'background' (got {', '.join(map(str, data))})", _EXAMPLE)
        regions = [name for name, value in data.items() if isinstance(value, list) and len(value) > 1]
        if regions:
            raise SamunetError(
                f"{where}: {regions[0]!r} is a region of several labels; regions come in a later version",
                "give every label a number of its own",
            )
        values = {
            name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in data.items()
        }
        for name, value in values.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise SamunetError(f"{where}: label {name!r} must be a whole number, got {value!r}", _EXAMPLE)
        if values["background"] != 0:
            raise SamunetError(f"{where}: background must be 0, got {values['background']}", _EXAMPLE)
        if "ignore" in values:
            raise SamunetError(
                f"{where}: the ignore label comes in a later version", "remove it, and the voxels that carry it"
            )
        if sorted(values.values()) != list(range(len(values))):
            raise SamunetError(
                f"{where}: label values must be 0 to {len(values) - 1}, each once, got {sorted(values.values())}",
                _EXAMPLE,
            )
        if len(values) < 2:
            raise SamunetError(f"{where}: there is no label but background", _EXAMPLE)
        return Labels(tuple(sorted(values, key=values.__getitem__)))

    def check(self, values: Iterable[int], file: Path) -> None:
        """Check the values found in a label file.

        Raises:
            SamunetError: If some value is none of these labels.
        """
        found = sorted(values)
        unknown = [value for value in found if not 0 <= value < self.num_classes]
        if not unknown:
            return
        hint = "correct the file, or add the label to dataset.json"
        if found in ([0, 255], [255]) and self.num_classes == 2:
            hint = "this mask uses 255 for foreground: divide it by 255 and save it again"
        known = ", ".join(f"{value} {name}" for value, name in enumerate(self.names))
        raise SamunetError(f"{file} has label values {unknown[:10]} that dataset.json does not know ({known})", hint)


_EXAMPLE = 'for example "labels": {"background": 0, "tumour": 1}'
