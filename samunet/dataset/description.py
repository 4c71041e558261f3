"""dataset.json: what a raw dataset says about itself. Keys and meaning are nnU-Net v2's, ``groups`` is samunet's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.files import read_json

_EXAMPLE = (
    'dataset.json needs at least {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "tumour": 1}, '
    '"numTraining": 20, "file_ending": ".nii.gz"}'
)


@dataclass
class Description:
    """The content of a dataset.json, checked.

    Attributes:
        channel_names: By channel index; the names select the normalisation.
        labels: The classes.
        file_ending: Of images and labels, with the leading dot.
        num_training: ``numTraining``; None if not given.
        groups: Case to patient (or whatever must not be spread over training and validation); None if not given.
        reader_override: ``overwrite_image_reader_writer``; None if not given.
        raw: The JSON as read, unknown keys included.
    """

    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str
    num_training: int | None
    groups: dict[str, str] | None
    reader_override: str | None
    raw: dict[str, Any]


def read_description(folder: Path) -> Description:
    """Read ``folder``/dataset.json.

    Raises:
        SamunetError: If it is missing, not JSON, or wrong; the message names the key.
    """
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise SamunetError(f"there is no dataset.json in {folder}", _EXAMPLE)
    return description_from_json(read_json(path), str(path))


def description_from_json(raw: dict[str, Any], where: str) -> Description:
    """Check the content of a dataset.json.

    Args:
        raw: The parsed JSON. ``modality``, nnU-Net's older name, may stand for ``channel_names``.
        where: The file it comes from, for messages.

    Raises:
        SamunetError: If a key is missing or has the wrong type; the message names it.
    """
    if not isinstance(raw, dict):
        raise SamunetError(f"{where} must hold a JSON object, got {type(raw).__name__}", _EXAMPLE)
    channels_key = "channel_names" if "channel_names" in raw or "modality" not in raw else "modality"
    missing = [key for key in (channels_key, "labels", "file_ending") if key not in raw]
    if missing:
        raise SamunetError(f"{where} lacks {', '.join(missing)}", _EXAMPLE)
    return Description(
        channel_names=_channel_names(raw[channels_key], f"{where}: {channels_key}"),
        labels=Labels.from_json(raw["labels"], where),
        file_ending=_file_ending(raw["file_ending"], where),
        num_training=_num_training(raw.get("numTraining"), where),
        groups=_groups(raw.get("groups"), where),
        reader_override=_reader_override(raw.get("overwrite_image_reader_writer"), where),
        raw=raw,
    )


def _channel_names(value: Any, where: str) -> tuple[str, ...]:
    hint = 'write one entry per channel, numbered from 0: {"0": "T1", "1": "T2"}'
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value.values()):
        raise SamunetError(f"{where} must map channel numbers to names, got {value!r}", hint)
    wanted = [str(index) for index in range(len(value))]
    if set(value) != set(wanted):
        raise SamunetError(f"{where} must have the keys {', '.join(wanted)}, got {', '.join(value)}", hint)
    return tuple(value[index] for index in wanted)


def _file_ending(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) < 2 or not value.startswith("."):
        raise SamunetError(
            f"{where}: file_ending must be a file ending with its dot, got {value!r}", 'for example ".nii.gz" or ".png"'
        )
    return value


def _num_training(value: Any, where: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise SamunetError(f"{where}: numTraining must be the number of training cases, got {value!r}")
    return value


def _groups(value: Any, where: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value or not all(isinstance(group, (str, int)) for group in value.values()):
        raise SamunetError(
            f"{where}: groups must map case names to patients, got {value!r:.80}",
            'for example {"case_01": "patient_a", "case_02": "patient_a", "case_03": "patient_b"}',
        )
    return {case: str(group) for case, group in value.items()}


def _reader_override(value: Any, where: str) -> str | None:
    # Some tools write the string "None" where they mean that nothing is overwritten.
    if value in (None, "None"):
        return None
    if not isinstance(value, str):
        raise SamunetError(f"{where}: overwrite_image_reader_writer must be the name of a reader, got {value!r}")
    return value
