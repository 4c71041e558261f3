"""dataset.json: what a raw dataset says about itself. Keys and meaning are nnU-Net v2's, ``groups`` is samunet's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from samunet.dataset.labels import Labels
from samunet.dataset.names import one_spelling
from samunet.errors import SamunetError, printable
from samunet.files import read_json

_EXAMPLE = (
    'dataset.json needs at least {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "tumour": 1}, '
    '"numTraining": 20, "file_ending": ".nii.gz"}'
)
_FILES_EXAMPLE = 'for example "dataset": {"case_01": {"images": ["scans/01_t1.nii.gz"], "label": "masks/01.nii.gz"}}'
_MOST_CHANNELS = 1000
_READ_KEYS = (
    "channel_names", "modality", "labels", "file_ending", "numTraining", "regions_class_order", "groups", "dataset",
    "overwrite_image_reader_writer",
)  # fmt: skip
# nnU-Net writes these, and they are nobody's misspelling.
_KNOWN_UNREAD = ("name", "reference", "release", "licence", "license", "description", "citation", "converted_by")


@dataclass(frozen=True)
class CaseFiles:
    """A case of the key ``dataset``: paths as written, relative to the dataset's folder or absolute."""

    images: tuple[str, ...]
    label: str | None


@dataclass
class Description:
    """The content of a dataset.json, checked.

    Attributes:
        channel_names: By channel index; the names select the normalisation.
        labels: The classes or regions, and the ignore label.
        file_ending: Of labels and, unless they have another one, of images; with the leading dot.
        num_training: ``numTraining``; None if not given.
        groups: Case to patient (or whatever must not be spread over training and validation); None if not given, empty
            where cases have nothing to do with each other.
        files: ``dataset``, which lists the training cases' files in place of imagesTr and labelsTr; None if not given.
        reader_override: ``overwrite_image_reader_writer``; None if not given.
        raw: The JSON as read, unknown keys included.
    """

    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str
    num_training: int | None
    groups: dict[str, str] | None
    files: dict[str, CaseFiles] | None
    reader_override: str | None
    raw: dict[str, Any]

    def without_lists(self) -> Description:
        """What reading a case needs, without what lists all cases: worker processes get it with every case."""
        return replace(self, groups=None, files=None, raw={})


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
        SamunetError: If a key is missing, misspelt or has the wrong type; the message names it.
    """
    if not isinstance(raw, dict):
        raise SamunetError(f"{where} must hold a JSON object, got {type(raw).__name__}", _EXAMPLE)
    channels_key = "channel_names" if "channel_names" in raw or "modality" not in raw else "modality"
    missing = [key for key in (channels_key, "labels", "file_ending") if key not in raw]
    if missing:
        meant = {right: wrong for wrong, right in misspelt_keys(raw).items()}
        if "modality" in meant:
            meant.setdefault("channel_names", meant["modality"])
        renames = [f'rename the key "{meant[key]}" to "{key}"' for key in missing if key in meant]
        raise SamunetError(f"{where} lacks {', '.join(missing)}", "; ".join(renames) or _EXAMPLE)
    return Description(
        channel_names=_channel_names(raw[channels_key], f"{where}: {channels_key}"),
        labels=Labels.from_json(raw["labels"], where, raw.get("regions_class_order")),
        file_ending=_file_ending(raw["file_ending"], where),
        num_training=_num_training(raw.get("numTraining"), where),
        groups=_groups(raw.get("groups"), where),
        files=_files(raw.get("dataset"), where),
        reader_override=_reader_override(raw.get("overwrite_image_reader_writer"), where),
        raw=raw,
    )


def misspelt_keys(raw: dict[str, Any]) -> dict[str, str]:
    """Keys that nothing reads but that are nearly one that is lacking, with the one that is meant."""
    lacking = {key.casefold(): key for key in _READ_KEYS if key not in raw}
    found = {}
    for key in raw:
        if key not in _READ_KEYS and key not in _KNOWN_UNREAD:
            close = get_close_matches(str(key).casefold(), list(lacking), n=1, cutoff=0.85)
            if close:
                found[key] = lacking[close[0]]
    return found


def _channel_names(value: Any, where: str) -> tuple[str, ...]:
    hint = 'write one entry per channel, numbered from 0: {"0": "T1", "1": "T2"}'
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value.values()):
        raise SamunetError(f"{where} must map channel numbers to names, got {value!r:.200}", hint)
    if len(value) > _MOST_CHANNELS:
        raise SamunetError(f"{where} has {len(value)} channels, and an image can have {_MOST_CHANNELS}", hint)
    if unseen := next((name for name in value.values() if printable(name) != name), None):
        raise SamunetError(f"{where}: the name {unseen!r} has characters that cannot be seen", "write it with letters")
    wanted = [str(index) for index in range(len(value))]
    if set(value) != set(wanted):
        raise SamunetError(f"{where} must have the keys {', '.join(wanted)}, got {', '.join(value)}", hint)
    return tuple(value[index] for index in wanted)


def _file_ending(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) < 2 or not value.startswith("."):
        raise SamunetError(
            f"{where}: file_ending must be a file ending with its dot, got {value!r:.200}",
            'for example ".nii.gz" or ".png"',
        )
    return value


def _num_training(value: Any, where: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise SamunetError(
            f"{where}: numTraining must be the number of training cases, got {value!r:.200}",
            'write it without quotes: "numTraining": 20; or leave it out',
        )
    return value


def _groups(value: Any, where: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or any(
        isinstance(group, bool) or not isinstance(group, (str, int)) for group in value.values()
    ):
        raise SamunetError(
            f"{where}: groups must map case names to patients, got {value!r:.80}",
            'for example {"case_01": "patient_a", "case_02": "patient_a", "case_03": "patient_b"}',
        )
    return {one_spelling(case): str(group) for case, group in value.items()}


def _files(value: Any, where: str) -> dict[str, CaseFiles] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise SamunetError(f"{where}: dataset must map case names to their files, got {value!r:.80}", _FILES_EXAMPLE)
    return {one_spelling(name): _case_files(name, value[name], where) for name in sorted(value)}


def _case_files(name: str, value: Any, where: str) -> CaseFiles:
    if not name.strip() or name.startswith(".") or set(name) & set("/\\:") or printable(name) != name:
        raise SamunetError(
            f"{where}: dataset: {name!r} cannot be a case's name, because its masks are named after it",
            "use letters, digits, - and _",
        )
    images, label = (value.get("images"), value.get("label")) if isinstance(value, dict) else (None, None)
    listed = isinstance(images, list) and images and all(isinstance(image, str) and image for image in images)
    if not listed or not (label is None or (isinstance(label, str) and label)):
        raise SamunetError(
            f'{where}: dataset: {name} must have "images", a list of files in channel order, and "label", a file; '
            f"got {value!r:.200}",
            _FILES_EXAMPLE,
        )
    return CaseFiles(tuple(images), label)


def _reader_override(value: Any, where: str) -> str | None:
    # Some tools write the string "None" where they mean that nothing is overwritten.
    if value in (None, "None"):
        return None
    if not isinstance(value, str):
        raise SamunetError(
            f"{where}: overwrite_image_reader_writer must be the name of a reader, got {value!r:.200}",
            "leave it out to have the reader chosen by file ending",
        )
    return value
