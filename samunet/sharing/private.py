"""Takes out of a model's files what says whose images it was trained on: names of cases, and paths.

Files whose content is known lose the keys that list cases. Beyond that, in every file, the names of cases are taken out
of lists and objects, and of absolute paths only the last part stays.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from samunet.dataset.description import description_from_json
from samunet.files import read_as, read_json

# What dataset.json may say without naming a case; other keys are the user's own, and nobody knows what is in them.
_DATASET_KEYS = (
    "channel_names", "modality", "labels", "regions_class_order", "file_ending", "overwrite_image_reader_writer",
    "numTraining", "name", "description", "reference", "release", "licence", "license", "citation", "converted_by",
)  # fmt: skip
_CASE_LISTS = {
    "run.json": ("training_cases", "validation_cases", "monitored"),
    "dataset_fingerprint.json": ("cases", "empty_cases", "source"),
    "summary.json": ("metric_per_case",),
}
# One entry per case, without its name.
_PER_CASE = {"dataset_fingerprint.json": ("spacings", "shapes_after_crop")}
# An absolute path, of any system, up to the next space or quotation mark.
_PATH = re.compile(r"""(?<![\w.~$/\\:-])(?:file:/*(?=/)|~|[A-Za-z]:(?=[/\\])|\\)?(?:[/\\][^\s/\\"'<>|]+)+[/\\]?""")
# One in quotation marks, which may have spaces in it; a shell writes ' within them as '"'"'.
_QUOTED = re.compile(r"""(["'])((?:file:/+|~|[A-Za-z]:)?[/\\](?:[^"'\n]|'"'"')*)\1""")
_IS_PATH = re.compile(r"(file:/+|~|[A-Za-z]:)?[/\\]")
_SHORT_NUMBER = re.compile(r"\d{1,3}")  # says nothing about a patient, and could be a label's value


def case_names(folder: Path) -> set[str]:
    """Names of cases that a model's folder mentions, but for those that name a class or a channel as well."""
    names: set[str] = set()
    for path in [folder / "dataset_fingerprint.json", *folder.glob("fold_*/run.json")]:
        content = read_as(dict[str, Any], path) if path.is_file() else {}
        for key in _CASE_LISTS[path.name]:
            names |= set(content[key]) if isinstance(content.get(key), (list, dict)) else set()
    file = folder / "dataset.json"
    content = description_from_json(read_json(file), str(file)).raw
    for key in ("groups", "dataset"):
        names |= set(content[key]) if isinstance(content.get(key), dict) else set()
    channels = content.get("channel_names", content.get("modality", {}))
    names -= {*content["labels"], *map(str, channels.values())}
    return {name for name in names if not _SHORT_NUMBER.fullmatch(name)}


def without_cases(file: str, content: Any, cases: set[str], results: Path) -> Any:
    """A JSON file's content without cases and paths.

    Args:
        file: Its name.
        content: As read.
        cases: From :func:`case_names`.
        results: The folder of results, for which ``$samunet_results`` will stand.
    """
    if isinstance(content, dict):
        content = dict(content)
        if file == "dataset.json":
            content = {key: value for key, value in content.items() if key in _DATASET_KEYS}
        if file == "run.json" and isinstance(content.get("base"), dict):
            content["base"] = {key: value for key, value in content["base"].items() if key not in ("path", "copy")}
        for key in (*_CASE_LISTS.get(file, ()), *_PER_CASE.get(file, ())):
            if key in content:
                content[key] = type(content[key])()
    return _cleaned(content, cases, results)


def without_paths(text: str, results: Path) -> str:
    """Text with ``$samunet_results`` for the results folder, and only the last part of other absolute paths."""
    marked = re.sub(rf"{re.escape(str(results))}(?=[/\\]|\b)", "$samunet_results", text)
    marked = re.sub(r"'(\$samunet_results[^'\n]*)'", r'"\1"', marked)  # a shell fills it in between these
    marked = _QUOTED.sub(lambda match: f"{match[1]}{_last_part(match[2])}{match[1]}", marked)
    return _PATH.sub(lambda match: _last_part(match[0]), marked)


def _cleaned(value: Any, cases: set[str], results: Path) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(item, cases, results) for key, item in value.items() if key not in cases}
    if isinstance(value, list):
        kept = [item for item in value if not (isinstance(item, str) and item in cases)]
        return [_cleaned(item, cases, results) for item in kept]
    if isinstance(value, str):
        if _IS_PATH.match(value) and not value.startswith(str(results)):  # as a whole: it may have spaces in it
            value = _last_part(value)
        return "" if value in cases else without_paths(value, results)
    return value


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
