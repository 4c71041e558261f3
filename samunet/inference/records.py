"""Prediction of several cases into one folder, whose masks know what they were made of and may not need it again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samunet.adaptations.lora import adapter_folders
from samunet.dataset.cases import Case, visible
from samunet.dataset.names import case_stem
from samunet.dataset.outputs import check_folder, claim_folder, condition, read_record
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError
from samunet.files import file_hash, make_folder
from samunet.imageio.registry import ending_of
from samunet.inference.options import PredictionOptions
from samunet.inference.postprocessing import Postprocessing
from samunet.models.folder import Fold, ModelFolder
from samunet.plans import fingerprint_of
from samunet.workers import collecting_failures

if TYPE_CHECKING:
    from samunet.inference.predictor import Predictor

log = logging.getLogger(__name__)

GO_ON = "mend or remove what is named, then run the same again with `skip_existing=True` for what is missing"
_WORDS = {"model": "the model's files", "name": "the model", "tta": "test-time augmentation"}


@dataclass
class _Sorted:
    """The cases of a prediction that is continued.

    Attributes:
        todo: To be predicted.
        edited: Names of those whose mask stays, as a person has changed it.
        otherwise: Names of those whose mask was made by another model or other options, and what differs.
    """

    todo: list[Case] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    otherwise: dict[str, list[str]] = field(default_factory=dict)


def cases_to_do(predictor: Predictor, cases: dict[str, Case], output: Path, *, own: bool = False) -> list[Case]:
    """The cases to be predicted, once ``output`` was found to be a place for their masks, and made.

    Args:
        predictor: What predicts, with its options.
        cases: All that are asked for.
        output: Folder for the masks.
        own: See :meth:`samunet.inference.predictor.Predictor.predict_cases`.

    Raises:
        SamunetError: If the folder is no place for them, or holds masks of another model or of other options beside
            which new ones were to be put.
    """
    todo, options = list(cases.values()), predictor.options
    if own:
        make_folder(output)
    else:
        check_folder(output, overwrite=options.overwrite)
        claim_folder(output)
    if options.skip_existing:
        found = _sort_cases(predictor, todo, output)
        if own:
            todo = found.todo + [cases[name] for name in found.otherwise]
        else:
            _refuse_a_mix(found, output, predictor.made)
            todo = found.todo
        if found.edited:
            log.info("%d masks were edited since they were written, and are kept", len(found.edited))
    if not own:
        targets = [predictor.mask_file(case, output).name for case in todo]
        check_folder(output, targets=targets, overwrite=options.overwrite)
        if others := made_of_others(todo, lambda case: predictor.mask_file(case, output)):
            log.warning(
                "%s: masks of these names were made of other images, or of images that changed since, and are "
                "replaced: %s; images of another patient want another `output`",
                output,
                shortened(others),
            )
    return todo


def predict_into(
    predictor: Predictor, todo: Sequence[Case], output: Path, failures: dict[str, SamunetError], *, progress: bool
) -> list[str]:
    """Predict cases one after the other; those that fail are put into ``failures``. Returns the names of the others.

    Raises:
        FatalError: If the machine fails: a full disk, no memory.
    """
    from tqdm import tqdm

    for case in tqdm(todo, desc="Predicting", unit="case", disable=None if progress else True, leave=False):
        with collecting_failures(failures, case.name):
            predictor.predict_case(case, predictor.mask_file(case, output))
    predictor.intensities.sum_up()
    return [case.name for case in todo if case.name not in failures]


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


def _sort_cases(predictor: Predictor, cases: Iterable[Case], output: Path) -> _Sorted:
    """Which cases are to be predicted, by the records of their masks; all where nothing is known of the model."""
    found, made = _Sorted(), predictor.made
    for case in cases:
        mask = predictor.mask_file(case, output)
        record = read_record(mask) if mask.is_file() else None
        state = condition(mask, record) if record else "damaged"
        if made is None or state == "damaged":
            found.todo.append(case)
        elif different := _differences(record.get("made") or {}, made):
            found.otherwise[case.name] = different
        elif record.get("images") not in (None, images_now(case)) or not all(
            file.is_file() for file in predictor.files_beside(case, output)
        ):
            found.todo.append(case)
        elif state == "edited":
            found.edited.append(case.name)
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


def _refuse_a_mix(found: _Sorted, output: Path, made: dict[str, Any] | None) -> None:
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
