"""The four folders samunet works in, named by environment variables, and how datasets are named inside them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from samunet.errors import SamunetError

_QUOTES = "\"'“”‘’"
DATASET_NAME = re.compile(r"^Dataset(\d{3,})_\S.*$")


def raw_folder() -> Path:
    """Folder with the raw datasets: ``samunet_raw``, else nnU-Net's ``nnUNet_raw``."""
    return _from_environment("samunet_raw", "nnUNet_raw")


def raw_folder_to_write() -> Path:
    """``samunet_raw``, for commands that make datasets: nnU-Net's folder is only read."""
    return _from_environment("samunet_raw", create=True)


def preprocessed_folder() -> Path:
    """Folder for fingerprints, plans, splits and stored slices: ``samunet_preprocessed``."""
    return _from_environment("samunet_preprocessed", create=True)


def results_folder() -> Path:
    """Folder for trained models: ``samunet_results``."""
    return _from_environment("samunet_results", create=True)


def checkpoints_folder() -> Path:
    """Folder for pretrained SAM checkpoints: ``samunet_checkpoints``, else ``~/.cache/samunet``. May not exist yet."""
    value = setting("samunet_checkpoints")
    return _absolute(value) if value else Path.home() / ".cache" / "samunet"


def known_folders() -> list[Path]:
    """Those of the raw, preprocessed and results folders that are set and exist (to look up dataset names)."""
    values = [setting("samunet_raw") or setting("nnUNet_raw")]
    values += [setting("samunet_preprocessed"), setting("samunet_results")]
    return [_absolute(value) for value in values if value and _absolute(value).is_dir()]


def raw_folder_problem() -> tuple[str, str] | None:
    """What is wrong with the setting of the raw folder, and what to do; None if it names a folder."""
    try:
        raw_folder()
    except SamunetError as error:
        return error.message, error.hint
    return None


def setting(name: str) -> str | None:
    """The value of an environment variable without blanks and quotes around it; None for nothing."""
    value = os.environ.get(name, "").strip()
    if len(value) > 1 and value[0] in _QUOTES and value[-1] in _QUOTES:
        value = value[1:-1].strip()
    return value or None


def number_in(name: str) -> str:
    """``027`` of ``Dataset027_ACDC``: how the commands are told the dataset."""
    return name.removeprefix("Dataset").split("_")[0]


def _from_environment(name: str, fallback: str | None = None, *, create: bool = False) -> Path:
    if fallback and not setting(name) and setting(fallback):
        name = fallback
    value = setting(name)
    if not value:
        also = f" (nor {fallback})" if fallback else ""
        raise SamunetError(
            f"the environment variable {name} is not set{also}", f"type: export {name}=/path/to/{name.split('_')[1]}"
        )
    path = _absolute(value)
    if path.is_dir():
        return path
    if path.exists():
        raise SamunetError(f"{name} is {path}, which is not a folder", f"set it to a folder: export {name}=/path/to/it")
    if not create:
        raise SamunetError(
            f"{name} is {path}, and there is no such folder",
            f"make the folder, or set another: export {name}=/path/to/it",
        )
    if not Path(value).expanduser().is_absolute():
        raise SamunetError(
            f"{name} is {value!r}, a relative path, and {path} does not exist",
            f"set the whole path, which holds in every working folder: export {name}={path}",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SamunetError(
            f"{name} is {path}, which cannot be created: {error.strerror}",
            f"set it to a folder that you may write to: export {name}=/path/to/it",
        ) from error
    return path


def _absolute(value: str) -> Path:
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:  # the home folder of a user who does not exist
        raise SamunetError(f"{value} is no folder: {error}", "write the whole path") from error
