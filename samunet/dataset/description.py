"""dataset.json as typed data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.files import read_json


@dataclass
class Description:
    """What dataset.json says (nnU-Net v2's keys).

    Attributes:
        channel_names: By channel index.
        labels: Classes.
        file_ending: Of images and labels, with its dot.
        num_training: Number of training cases it claims, or None.
        groups: Case to group (for example the patient): cases of one group stay together in a split. Samunet's own key.
        reader_override: Name of a reader, or None.
        raw: The JSON as it was read.
    """

    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str
    num_training: int | None
    groups: dict[str, str] | None
    reader_override: str | None
    raw: dict[str, Any]


def read_description(folder: Path) -> Description:
    """Read ``folder / dataset.json``.

    Raises:
        SamunetError: If it is missing, is not JSON, or has a missing key or a wrong value; names the key.
    """
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise SamunetError(f"{path} does not exist", "every dataset needs one: see documentation/dataset_format.md")
    return description_from_json(read_json(path), str(path))


def description_from_json(raw: Any, where: str) -> Description:
    """Check and convert the content of a dataset.json.

    Args:
        raw: The parsed JSON.
        where: The file, for messages.

    Raises:
        SamunetError: Naming the key.
    """
    if not isinstance(raw, dict):
        raise SamunetError(f"{where} must hold a JSON object, got {type(raw).__name__}")
    missing = [key for key in ("labels", "file_ending") if key not in raw]
    if "channel_names" not in raw and "modality" not in raw:
        missing.insert(0, "channel_names")
    if missing:
        raise SamunetError(f"{where} lacks {', '.join(missing)}", "see documentation/dataset_format.md for an example")
    if "dataset" in raw:
        raise SamunetError(
            f"{where}: the 'dataset' file map comes in a later version", "put the files into imagesTr and labelsTr"
        )
    ending = _typed(raw, "file_ending", str, where)
    if not ending.startswith("."):
        raise SamunetError(f"{where}: file_ending must begin with a dot, got {ending!r}", f'write ".{ending}"')
    groups = _typed(raw, "groups", dict, where)
    return Description(
        channel_names=_channels(raw.get("channel_names", raw.get("modality")), where),
        labels=Labels.from_json(raw["labels"], where),
        file_ending=ending,
        num_training=_typed(raw, "numTraining", int, where),
        groups=None if groups is None else {str(case): str(group) for case, group in groups.items()},
        reader_override=_typed(raw, "overwrite_image_reader_writer", str, where),
        raw=raw,
    )


def _channels(data: Any, where: str) -> tuple[str, ...]:
    example = 'for example "channel_names": {"0": "CT"}'
    if not isinstance(data, dict) or not data or not all(isinstance(name, str) for name in data.values()):
        raise SamunetError(f"{where}: channel_names must map channel numbers to names, got {data!r}", example)
    if sorted(data) != sorted(str(index) for index in range(len(data))):
        raise SamunetError(
            f"{where}: channel_names must have the keys 0 to {len(data) - 1}, got {sorted(data)}", example
        )
    return tuple(data[str(index)] for index in range(len(data)))


def _typed(raw: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = raw.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise SamunetError(f"{where}: {key} must be of type {kind.__name__}, got {value!r}")
    return value
