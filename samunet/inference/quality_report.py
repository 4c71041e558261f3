"""The last step of a prediction with uncertainty: which of its cases a person should look at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from samunet.evaluation.quality_table import write_quality
from samunet.models.folder import Fold, ModelFolder

log = logging.getLogger(__name__)


def assess(
    masks: Path, model: ModelFolder, folds: Sequence[Fold], checkpoint: str, cases: Sequence[str] | None
) -> None:
    """Write ``quality.csv`` and ``quality.json`` into the folder of the masks, and say what they hold.

    Args:
        masks: The folder.
        model, folds, checkpoint: What predicted.
        cases: Names of the cases to list; None for all that lie in the folder.
    """
    # Validation, and with it the calibration, is done with the final checkpoint.
    calibrated = [model.fold(fold) for fold in folds] if checkpoint == "final" else []
    quality = write_quality(masks, calibrated, cases)
    marked = [row["case"] for row in quality["cases"] if row["look"]]
    listed = ": " + ", ".join(marked[:5]) + (", …" if len(marked) > 5 else "") if marked else ""
    log.info("%s: %s", masks / "quality.csv", quality["calibration"]["about"])
    log.info("%d of %d cases to look at%s", len(marked), len(quality["cases"]), listed)
