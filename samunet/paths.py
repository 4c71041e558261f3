"""The four folders samunet works in, named by environment variables, and how datasets are named inside them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from samunet.errors import SamunetError

DATASET_NAME = re.compile(r"^Dataset(\d{3,})_\S.*$")


def raw_folder() -> Path:
    """Folder with the raw datasets: ``samunet_raw``, else nnU-Net's ``nnUNet_raw``."""
    return _from_environment("samunet_raw", "nnUNet_raw")


def preprocessed_folder() -> Path:
    """Folder for fingerprints, plans, splits and stored slices: ``samunet_preprocessed``."""
    return _from_environment("samunet_preprocessed", create=True)


def results_folder() -> Path:
    """Folder for trained models: ``samunet_results``."""
    return _from_environment("samunet_results", create=True)


def checkpoints_folder() -> Path:
    """Folder for pretrained SAM checkpoints: ``samunet_checkpoints``, else ``~/.cache/samunet``. May not exist yet."""
    value = os.environ.get("samunet_checkpoints")
    return Path(value).expanduser() if value else Path.home() / ".cache" / "samunet"


def known_folders() -> list[Path]:
    """Those of the raw, preprocessed and results folders that are set and exist (to look up dataset names)."""
    values = [os.environ.get("samunet_raw") or os.environ.get("nnUNet_raw")]
    values += [os.environ.get("samunet_preprocessed"), os.environ.get("samunet_results")]
    return [Path(value).expanduser() for value in values if value and Path(value).expanduser().is_dir()]


def _from_environment(name: str, fallback: str | None = None, *, create: bool = False) -> Path:
    value = os.environ.get(name) or (os.environ.get(fallback) if fallback else None)
    if not value:
        also = f" (nor {fallback})" if fallback else ""
        raise SamunetError(
            f"the environment variable {name} is not set{also}", f"type: export {name}=/path/to/{name.split('_')[1]}"
        )
    path = Path(value).expanduser()
    if create:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SamunetError(f"{name} is {path}, which cannot be created: {error.strerror}") from error
    if not path.is_dir():
        raise SamunetError(f"{name} is {path}, which is not a folder", f"create it or set {name} to another folder")
    return path
