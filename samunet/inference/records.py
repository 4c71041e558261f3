"""Provenance of masks, and the masks of a folder that need not be made again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samunet.adaptations.lora import adapter_folders
from samunet.dataset.cases import Case, visible
from samunet.dataset.names import case_stem
from samunet.dataset.outputs import condition, read_record
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError
from samunet.files import file_hash
from samunet.imageio.registry import ending_of
from samunet.inference.options import PredictionOptions
from samunet.inference.postprocessing import Postprocessing
from samunet.models.folder import Fold, ModelFolder
from samunet.plans import fingerprint_of

_WORDS = {"model": "the model's files", "name": "the model", "tta": "test-time augmentation"}


@dataclass
class Sorted:
    """The cases of a prediction that is continued.

    Attributes:
        todo: To be predicted.
        kept: Names of those whose mask stays.
        edited: Those of ``kept`` whose mask a person has changed.
        otherwise: Names of those whose mask was made by another model or other options, and what differs.
    """

    todo: list[Case] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    otherwise: dict[str, list[str]] = field(default_factory=dict)


def made_by(
    model: ModelFolder,
    folds: Sequence[Fold],
    checkpoint: str,
    options: PredictionOptions,
    postprocessing: Postprocessing,
) -> dict[str, Any]:
    """All that a mask depends on besides its image, as plain data."""
    files = [model.path / "plans.json", model.path / "dataset.json"]
    for fold in folds:
        tensors = model.fold(fold) / f"checkpoint_{checkpoint}.safetensors"
        adapters = adapter_folders(tensors).values()
        files += [tensors, *(file for folder in adapters for file in sorted(folder.iterdir()) if file.is_file())]
    bases = [(model.run(fold).get("base") or {}).get("sha256") for fold in folds]
    return {
        "name": f"{model.path.parent.name}/{model.path.name}",
        "model": fingerprint_of([file_hash(file) for file in files], bases, asdict(postprocessing)),
        "folds": list(folds),
        "checkpoint": checkpoint,
        "tta": options.tta,
        "step_size": options.step_size,
        "postprocessing": postprocessing.describe(),
    }


def images_now(case: Case) -> list[list[Any]]:
    """Name, size and time of change of a case's files, those of a DICOM series included."""
    files = [
        file
        for image in case.images
        for file in (sorted(image.iterdir()) if image.is_dir() else [image])
        if file.is_file()
    ]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def sort_cases(
    cases: Iterable[Case],
    mask_of: Callable[[Case], Path],
    others_of: Callable[[Case], Iterable[Path]],
    made: dict[str, Any] | None,
) -> Sorted:
    """Which cases are to be predicted, by the records of their masks.

    Args:
        cases: All of them.
        mask_of: Where the mask of a case goes.
        others_of: What else is to be written for it.
        made: From :func:`made_by`; None where nothing is known of the model, and all are to be predicted.
    """
    found = Sorted()
    for case in cases:
        mask = mask_of(case)
        record = read_record(mask) if mask.is_file() else None
        state = condition(mask, record) if record else "damaged"
        if made is None or state == "damaged":
            found.todo.append(case)
        elif different := _differences(record.get("made") or {}, made):
            found.otherwise[case.name] = different
        elif record.get("images") not in (None, images_now(case)) or not all(
            file.is_file() for file in others_of(case)
        ):
            found.todo.append(case)
        else:
            found.kept.append(case.name)
            found.edited += [case.name] if state == "edited" else []
    return found


def made_of_others(cases: Iterable[Case], mask_of: Callable[[Case], Path]) -> list[str]:
    """Cases whose mask was made of other files than theirs: of another patient with the same name, or since changed."""
    found = []
    for case in cases:
        mask = mask_of(case)
        record = read_record(mask) if mask.is_file() else None
        if record and record.get("images") not in (None, images_now(case)):
            found.append(case.name)
    return found


def refuse_a_mix(found: Sorted, output: Path, made: dict[str, Any] | None) -> None:
    """Refuse to add masks to those of another model or of other options, whatever their cases.

    Raises:
        SamunetError: Naming what differs.
    """
    otherwise = dict(found.otherwise)
    again = {case.name for case in found.todo}
    for mask in visible(output) if made else []:
        record = read_record(mask) if mask.is_file() and ending_of(mask) else None
        name = case_stem(mask)
        different = _differences(record.get("made") or {}, made) if record and "file" in record else []
        if different and name not in again:
            otherwise[name] = different
    if not otherwise:
        return
    different = "; ".join(dict.fromkeys(text for texts in otherwise.values() for text in texts))
    raise SamunetError(
        f"{output} holds {len(otherwise)} masks that were made otherwise ({shortened(list(otherwise))}): {different}",
        "give the folds and options of then; or leave out `skip_existing` to make all again; or give another folder: "
        "`output='preds'`",
    )


def _differences(recorded: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """In words; version 0.1.0 recorded the model's name and not its content."""
    if "checkpoint" not in recorded:
        return ["they are no predictions of one model"]
    keys = [key for key in made if key in recorded and recorded[key] != made[key]]
    if "model" in recorded:
        keys = [key for key in keys if key != "name"]  # a model may be moved
        keys = [key for key in keys if key != "model"] or keys  # folds and so on say more
    return [
        f"{_WORDS[key]} changed since" if key == "model"
        else f"{_WORDS.get(key, key)} {_text(recorded[key])} then, {_text(made[key])} now"
        for key in keys
    ]  # fmt: skip


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
