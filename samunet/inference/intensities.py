"""Warnings of images whose intensities lie far outside those of the training images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.models.folder import ModelFolder
from samunet.planning.fingerprint import FILE_NAME, read_fingerprint
from samunet.planning.intensities import UsualIntensities, doubts, usual_intensities, warning

log = logging.getLogger(__name__)


class IntensityWatch:
    """Looks at images as they are read; says at once of the first that is unusual, and of all when summed up.

    Args:
        usual: Of the training images; empty if unknown, then nothing is said.
    """

    def __init__(self, usual: Sequence[UsualIntensities] = ()) -> None:
        self.usual = usual
        self._unusual: dict[str, str] = {}

    @classmethod
    def of(cls, model: ModelFolder) -> IntensityWatch:
        """By a model's fingerprint, which has lost its cases where the model was handed on."""
        try:
            fingerprint = read_fingerprint(model.path / FILE_NAME)
            return cls(usual_intensities(fingerprint, list(model.description.channel_names)))
        except (SamunetError, IndexError):  # no prediction needs it
            return cls()

    def look(self, image: np.ndarray, file: Path) -> None:
        """Look at an image ``(channels, z, y, x)`` as it was read from ``file``."""
        doubt = doubts(self.usual, [(float(channel.min()), float(channel.max())) for channel in image])
        if doubt and not self._unusual:
            log.warning("%s", warning({str(file): doubt}, "image"))
        if doubt:
            self._unusual[str(file)] = doubt

    def sum_up(self) -> None:
        """Say how many there were, if there were several."""
        if len(self._unusual) > 1:
            log.warning("%s", warning(self._unusual, "image"))
