"""Whether masks of the highest expected Dice are better than argmax, told from a cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samunet.dataset.layout import Dataset
from samunet.evaluation.bootstrap import dice_table, difference_interval, mean_dice
from samunet.evaluation.summary import evaluate_files
from samunet.files import atomic_folder, write_json
from samunet.inference.decoding import DICE
from samunet.models.folder import ModelFolder
from samunet.selection.crossval import OutOfFold, write_model_facts
from samunet.selection.ensemble import ensemble_files

log = logging.getLogger(__name__)

FOLDER = "dice_decoding"


@dataclass(frozen=True)
class Decoded:
    """How the masks of the highest expected Dice did.

    Attributes:
        folder: Where they are.
        chosen: Whether they are better, by more than chance.
        decision: For people.
    """

    folder: Path
    chosen: bool
    decision: dict[str, Any]


def try_dice_decoding(
    folder: Path,
    model: ModelFolder,
    cases: Sequence[dict[str, OutOfFold]],
    dice: np.ndarray,
    patients: Sequence[str],
    dataset: Dataset,
    num_workers: int,
) -> Decoded | None:
    """Decode a candidate's probabilities anew, into ``dice_decoding`` in its folder, and compare.

    They are chosen if the 95 % interval of the paired difference of the mean Dice lies above 0: they cost memory for a
    case's probabilities, so chance alone must not choose them.

    Args:
        folder: The candidate's.
        model: Its first model.
        cases: Of each of its models the cases of the cross-validation.
        dice: ``(cases, classes)`` of its masks by argmax.
        patients: Of every case.
        dataset: The raw dataset.
        num_workers: Worker processes; 0 means this one.

    Returns:
        None where probabilities are missing.
    """
    if not all(case.probabilities.is_file() for own in cases for case in own.values()):
        return None
    labels, description = model.description.labels, dataset.description
    target = folder / FOLDER
    with atomic_folder(target) as temporary:
        files = {
            name: ([own[name].probabilities for own in cases], case.mask, temporary / case.mask.name)
            for name, case in cases[0].items()
        }
        reader = description.reader
        ensemble_files(files, labels, reader, False, num_workers, DICE)
        pairs = {name: (mask, cases[0][name].reference) for name, (_, _, mask) in files.items()}
        summary = evaluate_files(
            pairs, labels, description.file_ending, description.reader_override, num_workers, tolerate_geometry=True
        )
        for entry in summary["metric_per_case"]:
            entry["prediction_file"] = str(target / Path(entry["prediction_file"]).name)
        write_json(temporary / "summary.json", summary)
        write_model_facts(temporary, model)
    other = dice_table(summary)
    interval = difference_interval(other, dice, patients)
    chosen = interval.low is not None and interval.low > 0
    why = f"mean Dice {mean_dice(dice):.4f} by argmax, {mean_dice(other):.4f} so; difference {interval}"
    log.info("masks of the highest expected Dice: %s (%s)", "chosen" if chosen else "not chosen", why)
    return Decoded(target, chosen, {"step": "decoding for the highest expected Dice", "chosen": chosen, "why": why})
