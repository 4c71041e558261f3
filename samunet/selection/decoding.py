"""Choice between argmax and masks of the highest expected Dice, by cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samunet.dataset.layout import Dataset
from samunet.evaluation.bootstrap import dice_table, difference_interval, mean_dice
from samunet.inference.decoding import DICE
from samunet.models.folder import ModelFolder
from samunet.selection.crossval import OutOfFold
from samunet.selection.ensemble import ensemble_files
from samunet.selection.masks import write_model_facts, write_scored

log = logging.getLogger(__name__)

FOLDER = "dice_decoding"


@dataclass(frozen=True)
class DecodingChoice:
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
) -> DecodingChoice | None:
    """Decode a candidate's probabilities anew, into ``dice_decoding`` in its folder, and compare.

    They are chosen if the 95 % interval of the paired difference of the mean Dice lies above 0: they cost memory for a
    case's probabilities, so chance alone must not choose them.

    Args:
        folder: The candidate's.
        model: Its first model.
        cases: Of each of its models the cases of the cross-validation.
        dice: ``(cases, classes)`` of its masks by argmax.

    Returns:
        None where probabilities are missing.
    """
    if not all(case.probabilities.is_file() for own in cases for case in own.values()):
        return None
    labels, description = model.description.labels, dataset.description
    target = folder / FOLDER
    reader = description.reader

    def decode(files: dict[str, Path]) -> None:
        averaged = {
            name: ([own[name].probabilities for own in cases], cases[0][name].mask, file)
            for name, file in files.items()
        }
        ensemble_files(averaged, labels, reader, False, num_workers, DICE)

    pairs = {name: (case.mask, case.reference) for name, case in cases[0].items()}
    facts = partial(write_model_facts, model=model)
    summary = write_scored(target, pairs, decode, facts, labels, description, num_workers)
    other = dice_table(summary)
    interval = difference_interval(other, dice, patients)
    chosen = interval.low is not None and interval.low > 0
    why = f"mean Dice {mean_dice(dice):.4f} by argmax, {mean_dice(other):.4f} so; difference {interval}"
    log.info("masks of the highest expected Dice: %s (%s)", "chosen" if chosen else "not chosen", why)
    return DecodingChoice(
        target, chosen, {"step": "decoding for the highest expected Dice", "chosen": chosen, "why": why}
    )
