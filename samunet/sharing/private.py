"""Content of a model's files that says nothing about whose images it was trained on.

Of every file only keys that are known to hold neither names of cases nor paths are handed on.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

_WHOLE, _EMPTY = object(), object()  # of a key: kept as it is, or emptied, as it lists cases
_POSTPROCESSING = {"decoding": _WHOLE, "steps": _WHOLE, "decisions": _WHOLE}
_BASE = dict.fromkeys(("file", "bytes", "sha256", "pixel_mean", "pixel_std"), _WHOLE)
# The keys of every file.
_PUBLIC: dict[str, Any] = {
    "dataset.json": dict.fromkeys(
        (
            "channel_names", "modality", "labels", "regions_class_order", "file_ending",
            "overwrite_image_reader_writer", "numTraining", "name", "description", "reference", "release", "licence",
            "license", "citation", "converted_by",
        ), _WHOLE,
    ),
    "dataset_fingerprint.json": {
        "cases": _EMPTY, "empty_cases": _EMPTY, "source": _EMPTY, "spacings": _EMPTY, "shapes_after_crop": _EMPTY,
    } | dict.fromkeys(
        (
            "foreground_intensity_properties_per_channel", "median_relative_size_after_cropping", "asymmetry",
            "physical_spacing", "orientation",
        ), _WHOLE,
    ),
    "postprocessing.json": _POSTPROCESSING,
    "run.json": {
        "training_cases": _EMPTY, "validation_cases": _EMPTY, "monitored": _EMPTY, "base": _BASE, "started_from": _BASE,
    } | dict.fromkeys(
        (
            "dataset", "configuration", "fold", "encoder", "family", "chosen_because", "versions", "machine", "device",
            "dtype", "seed", "setup", "threads", "trained_parameters", "estimate", "iterations", "training_seconds",
            "validation_seconds", "best_monitored_dice", "peak_memory_bytes", "micro_batch", "training_data",
            "imported_from", "plan", "recipe", "adaptation",
        ), _WHOLE,
    ),
    "calibration.json": {"tta": _WHOLE, "cases": _WHOLE},
    "summary.json": {"mean": _WHOLE, "foreground_mean": _WHOLE, "metric_per_case": _EMPTY},
    "inference_information.json": dict.fromkeys(
        (
            "dataset_name_or_id", "folds", "considered_models", "ensembling_allowed", "all_results", "all_intervals",
            "best_model_or_ensemble", "report",
        ), _WHOLE,
    ),
}  # fmt: skip
_INPUT = "imagesTs"  # in place of the folder of images in commands


def public(file: str, content: Any, results: Path) -> Any:
    """A JSON file's content without cases and paths.

    Args:
        file: Its name.
        content: As read.
        results: The folder of results, for which ``$samunet_results`` will stand in commands.
    """
    if file not in _PUBLIC:  # plans, all of whose keys are samunet's own
        return content
    kept = _only(content, _PUBLIC[file])
    if file == "inference_information.json" and isinstance(content.get("commands"), list):
        kept["commands"] = [_command(words, results, "$samunet_results/{}") for words in content["commands"]]
    return kept


def public_instructions(text: str, results: Path) -> str:
    """``inference_instructions.txt`` with commands that predict ``imagesTs`` by what lies in ``$samunet_results``."""
    lines = []
    for line in text.splitlines():
        if line.startswith("#") or not line:
            lines.append(line)
        elif line.startswith("samunet_"):  # others are not samunet's
            words = _command(shlex.split(line), results, "\0{}")
            lines.append(" ".join(_quoted(word) for word in words))
    return "\n".join(lines) + "\n"


def _only(content: Any, keys: Any) -> Any:
    if keys is _WHOLE or content is None:
        return content
    if keys is _EMPTY or not isinstance(content, dict):
        return type(content)()
    return {key: _only(content[key], inside) for key, inside in keys.items() if key in content}


def _command(words: list[str], results: Path, form: str) -> list[str]:
    """A command's words; a file in the results folder as ``form``, of any other path the last part."""
    public_words = []
    for before, word in zip(["", *words], words):
        path = Path(word)
        if before == "-i" and path.is_absolute():
            word = _INPUT
        elif path.is_relative_to(results):
            word = form.format(path.relative_to(results).as_posix())
        elif path.is_absolute():
            word = path.name
        public_words.append(word)
    return public_words


def _quoted(word: str) -> str:
    """A word for a shell, which fills in ``$samunet_results`` and nothing else."""
    if not word.startswith("\0"):
        return shlex.quote(word)
    return f'"$samunet_results"/{shlex.quote(word[1:])}'
