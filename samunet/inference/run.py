"""Prediction of the cases that were found: masks, their provenance, and their quality table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samunet import __version__
from samunet.dataset.cases import Case
from samunet.dataset.outputs import ARGUMENTS, check_file, check_folder
from samunet.dataset.prediction_input import flat
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError, UsageError, raise_failures
from samunet.evaluation.quality import write_quality
from samunet.files import write_json
from samunet.imageio.registry import ending_of, mask_ending
from samunet.inference.colour_table import write_colour_table
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.inference.records import GO_ON, cases_to_do, predict_into
from samunet.models.folder import Fold, ModelFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSelection:
    """What predicts: a model, which of its folds, and ``final`` or ``best``."""

    model: ModelFolder
    folds: Sequence[Fold]
    checkpoint: str


def check_request(sources: object, output: Path, options: PredictionOptions, part: tuple[int, int]) -> Path:
    """The first file or folder of the input, after a look at what needs no model.

    Raises:
        UsageError: If there is no input, some of it does not exist, there is no such part, or ``output`` is no place
            for masks.
    """
    first = next(flat([sources]), None)
    if first is None:
        raise UsageError("there is nothing to predict: the list of files is empty")
    missing = next((path for path in flat([sources]) if not path.exists()), None)
    if missing is not None:
        raise UsageError(f"{missing} does not exist", "give a folder of images, or image files: `source='imagesTs'`")
    index, number = part
    if number < 1:
        raise UsageError(f"there must be at least one part (num_parts), got {number}")
    if not 0 <= index < number:
        raise UsageError(f"`part` must be 0 to {number - 1} of {number}, got {index}")
    check = check_file if _is_file(output) else check_folder
    check(output, flat([sources]), overwrite=options.overwrite)
    return first


def _is_file(output: Path) -> bool:
    """Whether a single mask is asked for."""
    return ending_of(output) is not None and not output.is_dir()


def predict_found(
    chosen: ModelSelection,
    found: dict[str, Case],
    failures: dict[str, SamunetError],
    output: Path,
    options: PredictionOptions,
    part: tuple[int, int],
    given: str,
    progress: bool,
) -> list[str]:
    """Predict a part of the cases.

    Args:
        chosen: What predicts.
        found: All cases that can be predicted.
        failures: Those that cannot, with the reason; those of this part are told at the end.
        output: Folder for the masks; for a single case also a file.
        options: How to predict.
        part: ``(index, number)`` of the share of the cases.
        given: The input as it was given, for the record beside the masks.

    Returns:
        Names of the cases predicted now.

    Raises:
        UsageError: If several cases are to become one file, or a mask would replace an image.
        SamunetError: At the end, if cases failed: of several a :class:`samunet.errors.CasesFailed` that lists them.
    """
    to_file, total = _is_file(output), len(found) + len(failures)
    if to_file and total > 1:
        raise UsageError(f"{output} is one file, but there are {total} cases", "give a folder: `output='preds'`")
    _check_images_stay(found, output, to_file)
    index, number = part
    names = sorted([*found, *failures])[index::number]
    cases = {name: found[name] for name in names if name in found}
    failures = {name: failures[name] for name in names if name in failures}
    predictor = Predictor.from_folder(chosen.model.path, chosen.folds, chosen.checkpoint, options)
    if to_file:
        done = _to_file(predictor, cases, output)
    else:
        todo = cases_to_do(predictor, cases, output)
        _write_record(chosen, predictor, output, options, given)
        done = predict_into(predictor, todo, output, failures, progress=progress)
        kept = len(cases) - len(todo)
        log.info("%d masks written to %s%s", len(done), output, f", {kept} were there already" if kept else "")
    if options.save_uncertainty:
        folder, listed = (output.parent, None) if to_file else (output, list(found))
        _write_quality(folder, chosen, listed)
    raise_failures(failures, len(names), GO_ON)
    return done


def _check_images_stay(found: dict[str, Case], output: Path, to_file: bool) -> None:
    """An image of one channel may have just the name that its mask gets."""
    images = {image.resolve() for case in found.values() for image in case.images}
    for name, case in found.items():
        mask = output if to_file else output / f"{name}{mask_ending(case.images[0])}"
        if mask.resolve() in images:
            raise UsageError(
                f"the mask of {name} would replace the image {mask}", "write somewhere else: `output='preds'`"
            )


def _to_file(predictor: Predictor, cases: dict[str, Case], output: Path) -> list[str]:
    for case in cases.values():  # one, or none if it belongs to another part
        predictor.predict_case(case, output)
        log.info("mask written to %s", output)
    return list(cases)


def _write_quality(masks: Path, chosen: ModelSelection, cases: Sequence[str] | None) -> None:
    """Write ``quality.csv`` and ``quality.json`` into the folder of the masks, and log what they say."""
    # Validation, and with it the calibration, is done with the final checkpoint.
    calibrated = [chosen.model.fold(fold) for fold in chosen.folds] if chosen.checkpoint == "final" else []
    quality = write_quality(masks, calibrated, cases)
    marked = [row["case"] for row in quality["cases"] if row["look"]]
    listed = f": {shortened(marked)}" if marked else ""
    log.info("%s: %s", masks / "quality.csv", quality["calibration"]["about"])
    log.info("%d of %d cases to look at%s", len(marked), len(quality["cases"]), listed)


def _write_record(
    chosen: ModelSelection, predictor: Predictor, output: Path, options: PredictionOptions, given: str
) -> None:  # fmt: skip
    """Copy plans and dataset.json beside the masks, with what was asked for (as nnU-Net does), and a colour table."""
    path = chosen.model.path
    arguments = {"input": given, "model": path.name, "dataset": path.parent.name}
    arguments |= {"configuration": chosen.model.configuration_name}
    arguments |= {"folds": chosen.folds, "checkpoint": chosen.checkpoint, **vars(options)}
    arguments |= {"postprocessing": predictor.postprocessing.describe()}
    arguments |= {"samunet_version": __version__}
    chosen.model.plans.write(output / "plans.json")
    write_json(output / "dataset.json", chosen.model.description.raw)
    write_json(output / ARGUMENTS, arguments)
    write_colour_table(output, chosen.model.description.labels)
