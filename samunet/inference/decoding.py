"""From probabilities to label values, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError


def mask_type(labels: Labels) -> type[np.unsignedinteger]:
    """The number type of predicted masks."""
    return np.uint8 if labels.values[-1] <= np.iinfo(np.uint8).max else np.uint16


def decode_probabilities(probabilities: np.ndarray, labels: Labels) -> np.ndarray:
    """Label values ``(y, x)`` of a slice from probabilities ``(outputs, y, x)``; as
    :func:`samunet.inference.logits.decode` does from logits.
    """
    if not labels.has_regions:
        return probabilities.argmax(0).astype(mask_type(labels))
    painted = np.zeros(probabilities.shape[1:], dtype=mask_type(labels))
    for inside, value in zip(probabilities > 0.5, labels.class_order):
        painted[inside] = value
    return painted


def average(predictions: Sequence[np.ndarray], labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Average the probabilities of several models, slice by slice.

    Args:
        predictions: Each ``(outputs, z, y, x)``, as ``--save_probabilities`` keeps them.
        labels: The dataset's.

    Returns:
        The mask ``(z, y, x)``, decoded before rounding, and the mean in half precision.

    Raises:
        SamunetError: If shapes differ from each other or from the number of outputs.
    """
    first = predictions[0]
    for other in predictions:
        if other.shape != first.shape or other.ndim != 4 or len(other) != labels.num_outputs:
            raise SamunetError(
                f"probabilities have the shapes {first.shape} and {other.shape}, expected are {labels.num_outputs} "
                "outputs of one volume",
                "predict both folders from the same images, with models of the same labels",
            )
    mask = np.empty(first.shape[1:], dtype=mask_type(labels))
    mean = np.empty(first.shape, dtype=np.float16)
    for z in range(first.shape[1]):
        part = np.mean([one[:, z].astype(np.float32) for one in predictions], axis=0)
        mask[z] = decode_probabilities(part, labels)
        mean[:, z] = part
    return mask, mean
