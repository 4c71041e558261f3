"""dataset.json, which describes a raw dataset. Keys and meaning are nnU-Net v2's; ``groups`` is samunet's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from samunet.dataset.labels import Labels, VisibleText
from samunet.dataset.names import one_spelling
from samunet.errors import SamunetError, printable
from samunet.files import as_kind, read_json
from samunet.imageio.base import Reader
from samunet.imageio.registry import READERS, reader_for

_EXAMPLE = (
    'dataset.json needs at least {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "tumour": 1}, '
    '"numTraining": 20, "file_ending": ".nii.gz"}'
)
_CHANNELS = 'write one entry per channel, numbered from 0: {"0": "T1", "1": "T2"}'
_HINTS = {
    "channel_names": _CHANNELS,
    "modality": _CHANNELS,
    "file_ending": 'a file ending begins with its dot, for example ".nii.gz" or ".png"',
    "numTraining": 'write the number of training cases without quotes: "numTraining": 20; or leave it out',
    "groups": 'map cases to patients: {"case_01": "patient_a", "case_02": "patient_a", "case_03": "patient_b"}',
    "dataset": 'for example "dataset": {"case_01": {"images": ["scans/01_t1.nii.gz"], "label": "masks/01.nii.gz"}}',
    "overwrite_image_reader_writer": "it is the name of a reader; leave it out to have one chosen by file ending",
}
# Keys nnU-Net writes and samunet ignores.
_KNOWN_UNREAD = ("name", "reference", "release", "licence", "license", "description", "citation", "converted_by")


def _numbered(channels: dict[str, str]) -> dict[str, str]:
    wanted = [str(index) for index in range(len(channels))]
    if set(channels) != set(wanted):
        raise ValueError(f"must have the keys {', '.join(wanted)}")
    return channels


def _file_name(name: str) -> str:
    if not name.strip() or name.startswith(".") or set(name) & set("/\\:") or printable(name) != name:
        raise ValueError("cannot be a case's name, because its masks are named after it: use letters, digits, - and _")
    return one_spelling(name)


_Spelt = Annotated[str, AfterValidator(one_spelling)]
# Numbers may stand for patients.
_Patient = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
_Path = Annotated[str, Field(min_length=1)]
_Channels = Annotated[
    dict[str, VisibleText],
    Field(min_length=1, max_length=1000),
    AfterValidator(_numbered),
]


@dataclass(frozen=True)
class CaseFiles:
    """A case of the key ``dataset``: paths as written, relative to the dataset's folder or absolute."""

    images: Annotated[tuple[_Path, ...], Field(min_length=1)]
    label: _Path | None = None


class _Keys(BaseModel):
    """The keys of dataset.json that are read, besides labels."""

    model_config = ConfigDict(strict=True)
    channel_names: _Channels | None = None
    modality: _Channels | None = None  # nnU-Net's older name
    file_ending: Annotated[str, Field(pattern=r"^\.[^\n]+$")]
    numTraining: int | None = None
    groups: dict[_Spelt, _Patient] | None = None
    dataset: Annotated[dict[Annotated[str, AfterValidator(_file_name)], CaseFiles], Field(min_length=1)] | None = None
    overwrite_image_reader_writer: str | None = None


_READ_KEYS = (*(key for key in _Keys.model_fields), "labels", "regions_class_order")


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

    @property
    def reader(self) -> Reader:
        """The reader of the dataset's labels, which is also tried first for its images."""
        return reader_for(self.file_ending, self.reader_override)

    @property
    def image_endings(self) -> tuple[str, ...]:
        """Endings that images may have: those of the reader, and of all pictures if the dataset holds pictures."""
        pictures = [ending for one in READERS if one.kind == "picture" for ending in one.image_endings]
        endings = self.reader.image_endings
        if self.reader_override is None and set(endings) & set(pictures):
            endings = (*endings, *pictures)
        return tuple(dict.fromkeys(endings))

    def without_lists(self) -> Description:
        """As needed for reading one case, without what lists all cases: worker processes get it with every case."""
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
    channels = "channel_names" if "channel_names" in raw or "modality" not in raw else "modality"
    missing = [key for key in (channels, "labels", "file_ending") if raw.get(key) is None]
    if missing:
        meant = {right: wrong for wrong, right in misspelt_keys(raw).items()}
        if "modality" in meant:
            meant.setdefault("channel_names", meant["modality"])
        renames = [f'rename the key "{meant[key]}" to "{key}"' for key in missing if key in meant]
        raise SamunetError(f"{where} lacks {', '.join(missing)}", "; ".join(renames) or _EXAMPLE)
    unread = {"labels", "regions_class_order", *({"modality"} - {channels})}
    keys = as_kind(_Keys, {key: raw[key] for key in _READ_KEYS if key in raw and key not in unread}, where, _HINTS)
    names = keys.modality if channels == "modality" else keys.channel_names
    override = keys.overwrite_image_reader_writer
    return Description(
        channel_names=tuple(names[str(index)] for index in range(len(names))),
        labels=Labels.from_json(raw["labels"], where, raw.get("regions_class_order")),
        file_ending=keys.file_ending,
        num_training=keys.numTraining,
        groups=keys.groups,
        files=keys.dataset and dict(sorted(keys.dataset.items())),
        # Some tools write the string "None" where they mean that nothing is overwritten.
        reader_override=None if override == "None" else override,
        raw=raw,
    )


def misspelt_keys(raw: dict[str, Any]) -> dict[str, str]:
    """Keys that nothing reads but that are nearly one that is missing, with the one that is meant."""
    missing = {key.casefold(): key for key in _READ_KEYS if key not in raw}
    found = {}
    for key in raw:
        if key not in _READ_KEYS and key not in _KNOWN_UNREAD:
            close = get_close_matches(str(key).casefold(), list(missing), n=1, cutoff=0.85)
            if close:
                found[key] = missing[close[0]]
    return found
