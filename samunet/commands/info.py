"""``samunet_info``: this machine, the folders, and what is in them."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samunet.commands.common import CommandParser, add_common_flags, run_command

_OTHER_JSON = ("dataset.json", "dataset_fingerprint.json", "splits_final.json", "integrity_report.json")


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_info", description="Show versions, the machine, the folders, and the datasets and models in them."
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.files import to_json

    found = information()
    print(to_json(found).rstrip() if arguments.json else _text(found))


def information() -> dict[str, Any]:
    """All that the command shows, for JSON; sizes in bytes."""
    from samunet import __version__, paths

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
    from samunet import paths
    from samunet.errors import SamunetError

    value = paths.setting(name)
    if value is None:
        raise SamunetError(f"the environment variable {name} is not set")
    return Path(value).expanduser().absolute()


def _folder(function: Callable[[], Path]) -> dict[str, Any]:
    from samunet.errors import SamunetError

    try:
        path = function()
    except SamunetError as error:
        return {"path": None, "exists": False, "problem": error.message}
    if not path.is_dir():
        return {"path": str(path), "exists": False, "problem": "not there yet"}
    return {"path": str(path), "exists": True, "bytes": size_of(path), "bytes_free": shutil.disk_usage(path).free}


def _machine() -> dict[str, Any]:
    import torch

    from samunet.devices import fast_dtype

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
    from samunet.models.folder import ModelFolder

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


def _text(found: dict[str, Any]) -> str:
    from samunet.models.downloads import format_bytes

    machine = found["machine"]
    memory = format_bytes(machine["memory_bytes"]) if machine["memory_bytes"] else "not known"
    lines = [
        f"samunet {found['samunet']}, torch {machine['torch']}, Python {machine['python']}",
        f"system:  {machine['system']}, {machine['cores']} cores, memory {memory}",
    ]
    lines += [
        f"device:  {name}, {what}, {machine['number_formats'][name]}" for name, what in machine["devices"].items()
    ]
    for name, folder in found["folders"].items():
        if folder["exists"]:
            told = f"{folder['path']} ({format_bytes(folder['bytes'])}; free {format_bytes(folder['bytes_free'])})"
        else:
            told = folder["problem"] if folder["path"] is None else f"{folder['path']} ({folder['problem']})"
        lines.append(f"{name + ':':22}{told}")
    if not found["datasets"]:
        lines.append("no datasets")
    for name, dataset in found["datasets"].items():
        lines.append(f"{name}: {dataset['stage']}, {format_bytes(dataset['bytes'])}")
        for model, folds in dataset["models"].items():
            told = [f"fold {', '.join(folds[key])} {key}" for key in ("trained", "begun") if folds[key]]
            lines.append(f"  {model}: {'; '.join(told) or 'no folds'}, {format_bytes(folds['bytes'])}")
    return "\n".join(lines)
