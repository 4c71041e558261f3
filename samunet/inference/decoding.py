"""Label values from probabilities, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError

ARGMAX, DICE = "argmax", "dice"
DECODINGS = (ARGMAX, DICE)


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


def decode_for_dice(probabilities: np.ndarray, labels: Labels) -> np.ndarray:
    """Label values ``(z, y, x)`` of a case that have the highest expected Dice.

    A class takes the voxels whose probability is above half of the Dice that it can expect with them (Dai and Li 2023,
    to first order): a lower bar than one half where the network is unsure. Where several classes are above theirs, the
    one that is so by the largest factor wins; where none is, there is background. A class that is nowhere the most
    probable one (a region: nowhere above one half) stays absent: the expected Dice says nothing of empty classes.

    Args:
        probabilities: ``(outputs, z, y, x)``.
    """
    plain = np.stack([decode_probabilities(part, labels) for part in np.moveaxis(probabilities, 1, 0)])
    first = 0 if labels.has_regions else 1
    bars = {}
    for index in range(first, labels.num_outputs):
        present = (probabilities[index] > 0.5).any() if labels.has_regions else (plain == index).any()
        if present:
            bars[index] = _dice_threshold(probabilities[index])
    mask = np.zeros_like(plain)
    for z in range(len(mask)):
        if labels.has_regions:
            for index, bar in bars.items():
                mask[z][probabilities[index, z] > bar] = labels.class_order[index]
            continue
        factor = np.ones(mask.shape[1:], dtype=np.float32)
        for index, bar in bars.items():
            own = probabilities[index, z].astype(np.float32) / bar
            mask[z][own > factor] = index
            np.maximum(factor, own, out=factor)
    return mask


def _dice_threshold(probability: np.ndarray) -> float:
    """Half of the largest ``2 sum(p of S) / (sum(p) + |S|)`` over sets S of voxels; by Dinkelbach's iteration."""
    total = float(probability.sum(dtype=np.float64))
    bar = 0.5
    for _ in range(50):
        taken = probability > bar
        expected = 2 * float(probability.sum(where=taken, dtype=np.float64)) / (total + np.count_nonzero(taken))
        if abs(expected / 2 - bar) < 1e-6:
            break
        bar = expected / 2
    return bar


def average(predictions: Sequence[np.ndarray], labels: Labels, decoding: str = ARGMAX) -> tuple[np.ndarray, np.ndarray]:
    """Average the probabilities of several models, slice by slice.

    Args:
        predictions: Each ``(outputs, z, y, x)``, as ``--save_probabilities`` keeps them.
        decoding: One of :data:`DECODINGS`.

    Returns:
        The mask ``(z, y, x)`` (by ``argmax`` decoded before rounding), and the mean in half precision.

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
    return (decode_for_dice(mean, labels) if decoding == DICE else mask), mean
