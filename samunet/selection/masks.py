"""Folders of masks: which files belong to which case, and what lies beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

from samunet.dataset.cases import MASK_ENDINGS, mask_files
from samunet.dataset.description import Description, description_from_json
from samunet.errors import SamunetError
from samunet.files import atomic_path, read_json

BESIDE = ("dataset.json", "plans.json")


def masks_in(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by case.

    Raises:
        UsageError: If it is no folder.
        SamunetError: If there is none, or two for the same case.
    """
    found = mask_files(folder)
    if not found:
        raise SamunetError(
            f"{folder} holds no masks ({', '.join(MASK_ENDINGS)})", "give the folder that samunet_predict made"
        )
    return found


def description_beside(folder: Path, dataset_json: Path | None = None) -> Description:
    """The dataset.json that belongs to a folder of masks: given, or in it.

    Raises:
        SamunetError: If it is missing or wrong.
    """
    path = Path(dataset_json) if dataset_json is not None else Path(folder) / "dataset.json"
    if not path.is_file():
        raise SamunetError(
            f"{path} does not exist", "give the dataset's: -dataset_json /path/to/DatasetXXX_Name/dataset.json"
        )
    return description_from_json(read_json(path), str(path))


def copy_beside(source: Path, target: Path) -> None:
    """Copy dataset.json and plans.json, where they are, from one folder of masks to another."""
    for name in BESIDE:
        if (source / name).is_file():
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
