"""Manifest of a model that is handed on: ``samunet_model.json``, in its archive and in its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from samunet.errors import SamunetError, UsageError, printable
from samunet.files import as_kind, parse_json

FILE_NAME = "samunet_model.json"
FORMAT_VERSION = 1
_AGAIN = "get the archive again from where it came from"


@dataclass(frozen=True)
class BaseReference:
    """The frozen base weights that a model needs.

    Attributes:
        file, bytes, sha256: Of the file that the training began with.
        licence, url: Where that file is a published one.
        copy: Name of a copy of its tensors under ``base_weights/``; None where it is not handed on.
    """

    file: str
    bytes: int
    sha256: str
    licence: str | None = None
    url: str | None = None
    copy: str | None = None


@dataclass(frozen=True)
class ModelEntry:
    """One model folder of an archive.

    Attributes:
        folder: Its name, ``samunetTrainer__PLANS__CONFIGURATION``.
        encoder: Name of its encoder.
        folds: Numbers, or ``"all"``.
        checkpoints: Of every fold: ``final``, ``best`` or both.
        base: None where nothing but the folds' own files is needed.
        trained_with: Versions that the training recorded.
    """

    folder: str
    encoder: str
    folds: Annotated[list[int | str], Len(1, 100)]
    checkpoints: list[str]
    base: BaseReference | None = None
    trained_with: dict[str, str] = field(default_factory=dict)

    @property
    def configuration(self) -> str:
        """Name of the configuration."""
        return self.folder.split("__")[-1]


@dataclass(frozen=True)
class FileEntry:
    """One file of an archive, by its path there, with ``/`` between folders."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of an archive.

    Attributes:
        samunet_model: Version of this format.
        dataset: ``DatasetXXX_Name``.
        licence: Under which the models are handed on; None if nothing was said.
        dataset_licence: What dataset.json says about the data.
        case_ids: Whether names of cases, paths and logs are in it.
        versions: Of the programs that wrote the archive.
        models: The model folders.
        files: Everything in the archive but the manifest.
    """

    samunet_model: int
    dataset: str
    licence: str | None
    dataset_licence: str | None
    case_ids: bool
    versions: dict[str, str]
    models: Annotated[list[ModelEntry], Len(1, 100)]
    files: list[FileEntry]

    def model(self, configuration: str | None = None) -> ModelEntry:
        """The model of a configuration; without one, the only model.

        Raises:
            UsageError: If there is none, or several.
        """
        found = [model for model in self.models if configuration in (None, model.configuration)]
        if len(found) != 1:
            there = ", ".join(model.configuration for model in self.models)
            raise UsageError(
                f"the archive has {len(found) or 'no'} models"
                + (f" of the configuration {configuration!r}" if configuration else "")
                + f" (configurations: {there})",
                "name one of them",
            )
        return found[0]


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Check the content of a manifest.

    Args:
        content: The file.
        where: What to call it in messages.

    Raises:
        SamunetError: If it is no manifest, or one of a later format.
    """
    raw = parse_json(content, where, _AGAIN)
    version = raw.get("samunet_model") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        versions = raw.get("versions")
        by = versions.get("samunet") if isinstance(versions, dict) else None
        raise SamunetError(
            f"{where} has format {version}, and this samunet knows {FORMAT_VERSION}"
            + (f"; it was made by samunet {printable(by)}" if by else ""),
            "install a newer samunet",
        )
    return as_kind(Manifest, raw, where, _AGAIN)
