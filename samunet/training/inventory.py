"""What is on this machine: the folders, datasets and models in them, and what of it can go."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from samunet import __version__, paths
from samunet.devices import fast_dtype
from samunet.errors import SamunetError
from samunet.files import leftovers
from samunet.locks import LockHeld, exclusive
from samunet.models.folder import ModelFolder
from samunet.training.state import LATEST

_OTHER_JSON = ("dataset.json", "dataset_fingerprint.json", "splits_final.json", "integrity_report.json")


def info() -> dict[str, Any]:
    """This machine, the folders, and every dataset with the stage that it has reached and its models; for JSON.

    Returns:
        ``samunet`` (version), ``machine``, ``folders`` and ``datasets``; sizes in bytes.
    """
    folders = {
        name: _folder(function)
        for name, function in (
            ("samunet_raw", paths.raw_folder),
            ("samunet_preprocessed", lambda: _existing("samunet_preprocessed")),
            ("samunet_results", lambda: _existing("samunet_results")),
            ("samunet_checkpoints", paths.checkpoints_folder),
        )
    }
    names = {
        entry.name
        for folder in paths.known_folders()
        for entry in folder.iterdir()
        if entry.is_dir() and paths.DATASET_NAME.match(entry.name)
    }
    places = [Path(folder["path"]) if folder["exists"] else None for folder in list(folders.values())[:3]]
    return {
        "samunet": __version__,
        "machine": _machine(),
        "folders": folders,
        "datasets": {name: _dataset(*(place and place / name for place in places)) for name in sorted(names)},
    }


def _existing(name: str) -> Path:
    """The folder that a variable names, which is not made here."""
    value = paths.setting(name)
    if value is None:
        raise SamunetError(f"the environment variable {name} is not set")
    return Path(value).expanduser().absolute()


def _folder(function: Callable[[], Path]) -> dict[str, Any]:
    try:
        path = function()
    except SamunetError as error:
        return {"path": None, "exists": False, "problem": error.message}
    if not path.is_dir():
        return {"path": str(path), "exists": False, "problem": "not there yet"}
    return {"path": str(path), "exists": True, "bytes": size_of(path), "bytes_free": shutil.disk_usage(path).free}


def _machine() -> dict[str, Any]:
    import torch

    kinds = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    kinds += ["mps"] if torch.backends.mps.is_available() else []
    devices = {"cpu": _processor()} | {
        name: torch.cuda.get_device_name(name) if name != "mps" else platform.processor() for name in kinds
    }
    formats = {name: str(fast_dtype(torch.device(name)) or torch.float32).removeprefix("torch.") for name in devices}
    has_affinity = hasattr(os, "sched_getaffinity")
    has_pages = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if has_pages else None,
        "devices": devices,
        "number_formats": formats,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _dataset(raw: Path | None, preprocessed: Path | None, results: Path | None) -> dict[str, Any]:
    """How far a dataset has come, and its models with their folds."""
    files = sorted(preprocessed.iterdir()) if preprocessed and preprocessed.is_dir() else []
    stored = [path.name for path in files if next(path.glob("*.b2nd"), None)]
    plans = [path.stem for path in files if path.suffix == ".json" and path.name not in _OTHER_JSON]
    models = {}
    for path in sorted(results.glob("samunetTrainer__*__*/")) if results else ():
        begun = {folder.name.removeprefix("fold_") for folder in path.glob("fold_*/")}
        done = {str(fold) for fold in ModelFolder(path).finished_folds()}
        models[path.name] = {"trained": sorted(done), "begun": sorted(begun - done), "bytes": size_of(path)}
    stages = {
        "raw": raw is not None and (raw / "dataset.json").is_file(),
        "fingerprint": preprocessed is not None and (preprocessed / "dataset_fingerprint.json").is_file(),
        "planned": bool(plans),
        "preprocessed": bool(stored),
        "trained": any(model["trained"] for model in models.values()),
    }
    reached = [stage for stage, there in stages.items() if there]
    size = sum(size_of(place) for place in (raw, preprocessed, results) if place and place.is_dir())
    return {
        "stage": reached[-1] if reached else "empty", "plans": plans, "stored": stored, "models": models, "bytes": size,
    }  # fmt: skip


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size if path.exists() else 0
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            file = Path(folder, name)
            if file.exists():
                total += file.lstat().st_size
    return total


def clean(*, remove: bool = False, validation_masks: bool = False) -> Iterator[tuple[Path, int, str]]:
    """Find what can be made again or that nothing needs any more, and remove it if asked to.

    Raw datasets, plans, stored slices, trained models and scores are never touched, nor is a fold that is being
    trained.

    Args:
        remove: Whether it is removed, one by one as they are asked for, or only listed.
        validation_masks: Also masks and probabilities of finished folds' validation.

    Yields:
        Path, bytes, and why it can go.
    """
    for path, why in _found(validation_masks):
        size = size_of(path)
        if not remove or _remove(path):
            yield path, size, why


def _found(masks: bool) -> Iterator[tuple[Path, str]]:
    """What can go, each with the reason; nothing of a fold that is being trained."""
    places = [paths.setting(name) for name in ("samunet_preprocessed", "samunet_results")]
    for place in (Path(place).expanduser() for place in places if place):
        datasets = [entry for entry in place.glob("Dataset*") if paths.DATASET_NAME.match(entry.name)]
        for folder in (place, *(found for dataset in datasets for found in (dataset, *dataset.rglob("*/")))):
            if not folder.is_symlink() and not any(part.startswith(".tmp-") for part in folder.parts):
                yield from ((path, "left over by a process that was killed") for path in leftovers(folder))
    results = paths.setting("samunet_results")
    for fold in sorted(Path(results).expanduser().glob("Dataset*/samunetTrainer__*/fold_*/")) if results else ():
        validated = (fold / "validation" / "summary.json").is_file() or fold.name == "fold_all"
        if not (fold / "checkpoint_final.safetensors").is_file() or _in_use(fold):
            continue
        for name, what in ((LATEST, "state of a finished training"), ("features", "cache of a finished training")):
            if (fold / name).exists():
                yield fold / name, what
        if masks and validated:
            for folder in (fold / "validation", fold / "validation_best"):
                kept = [folder / name for name in ("summary.json", "dataset.json", "plans.json")]
                for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                    if path not in kept and not path.is_dir():
                        yield path, "of the validation"


def _in_use(fold: Path) -> bool:
    try:
        with exclusive(fold):
            return False
    except (LockHeld, OSError):
        return True


def _remove(path: Path) -> bool:
    """Remove a file or folder; another process may have done so."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    else:
        return False
    return True
