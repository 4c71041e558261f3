"""Choice among images or slices without labels: by doubt and class, by variety, and by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

BY_CLASS = 0.66  # of what is chosen: for each class in turn, by the doubt about this class; the rest by all doubt
SHORTLIST = 3  # times as many as a stratum still has to choose: among these the one most unlike those known
FOREGROUND = 3  # every third one drawn by chance shows a class
_HIGHEST_BETA = 100.0


@dataclass(frozen=True)
class Pool:
    """What is known of the images or slices to choose from.

    Attributes:
        entropy: ``(n,)``, mean over pixels.
        class_scores: ``(n, classes)``, mean over pixels of entropy times the probability of the class.
        shown: ``(n, classes)`` boolean: whether the class is predicted in it.
        embeddings: ``(n, d)``.
        known: Embeddings of what is labelled already, ``(m, d)``.
    """

    entropy: np.ndarray
    class_scores: np.ndarray
    shown: np.ndarray
    embeddings: np.ndarray
    known: np.ndarray

    def __len__(self) -> int:
        return len(self.entropy)


@dataclass(frozen=True)
class Choice:
    """One that is chosen.

    Attributes:
        index: In the pool.
        stratum: Index of the class for which; None for none.
        distance: From the nearest embedding that was labelled or chosen before; NaN without any.
    """

    index: int
    stratum: int | None
    distance: float


def entropy_and_class_scores(probability: np.ndarray, *, regions: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Predictive entropy, and entropy times the probability of every output (ClaSP PE, arXiv:2601.13677).

    Args:
        probability: ``(outputs, ...)``.
        regions: Whether outputs are regions, each with a probability of its own; then entropies are summed.

    Returns:
        ``(...)`` in nats, and ``(outputs, ...)``.
    """
    parts = _entr(probability) + (_entr(1 - probability) if regions else 0)
    entropy = parts.sum(axis=0)
    return entropy, entropy * probability


def gumbel_noise(shape: tuple[int, ...], round_: int, rounds: int, rng: Generator) -> np.ndarray:
    """Noise on the logarithm of scores that fades from round to round.

    Args:
        shape: Of the scores.
        round_: From 1 to ``rounds``.
        rounds: How many are planned; in a single one there is no noise.

    Returns:
        Gumbel(0, 1 / beta), with beta from 1 to 100, geometrically over the rounds.
    """
    if rounds == 1:
        return np.zeros(shape)
    return rng.gumbel(size=shape) / noise_beta(round_, rounds)


def noise_beta(round_: int, rounds: int) -> float:
    """Beta of :func:`gumbel_noise`: for five rounds 1, 3.16, 10, 31.6, 100."""
    return _HIGHEST_BETA ** ((round_ - 1) / (rounds - 1))


def strata(number: int, classes: Sequence[int]) -> list[int | None]:
    """For which class each of ``number`` is chosen, in order; None for the doubt about all.

    Two thirds are divided evenly over the classes; what is left over goes to the first of them.
    """
    of_classes = round(BY_CLASS * number) if classes else 0
    in_turn = [classes[place % len(classes)] for place in range(of_classes)]
    return [*in_turn, *[None] * (number - of_classes)]


def choose_uncertain(pool: Pool, number: int, noise: np.ndarray) -> list[Choice]:
    """Choose by doubt and class, and among those of much doubt what is unlike the others.

    The strata are those of ClaSP PE (arXiv:2601.13677); variety among the most doubtful as in suggestive annotation
    (arXiv:1706.04737). Classes that are seldom predicted come first.

    Args:
        pool: At least ``number``.
        number: How many.
        noise: ``(n, classes + 1)``, added to the logarithm of the class scores and, last, of the entropy.
    """
    scores = np.column_stack([pool.class_scores, pool.entropy])
    with np.errstate(divide="ignore"):
        order = np.argsort(-(np.log(scores) + noise), axis=0, kind="stable")
    classes = pool.class_scores.shape[1]
    rare_first = np.argsort(pool.shown.sum(axis=0), kind="stable").tolist()
    turns = strata(number, rare_first)
    nearest, taken, chosen = _distances(pool.embeddings, pool.known), np.zeros(len(pool), bool), []
    for place, stratum in enumerate(turns):
        column = classes if stratum is None else stratum
        left = [index for index in order[:, column] if not taken[index]]
        shortlist = left[: SHORTLIST * turns[place:].count(stratum)]
        index = max(shortlist, key=lambda one: nearest[one])  # the first of equals: the most doubtful
        chosen.append(Choice(int(index), stratum, _finite(nearest[index])))
        taken[index] = True
        nearest = np.minimum(nearest, _distances(pool.embeddings, pool.embeddings[[index]]))
    return chosen


def k_centre(embeddings: np.ndarray, known: np.ndarray, number: int) -> list[Choice]:
    """Choose one after the other what lies farthest from all that are known or chosen (arXiv:1708.00489).

    Args:
        embeddings: ``(n, d)``; at least ``number``.
        known: ``(m, d)``; without any, what is nearest to the mean comes first.
        number: How many.
    """
    nearest, chosen = _distances(embeddings, known), []
    if not len(known):
        # Of the first nothing is known but that it should stand for most.
        nearest = np.where(np.arange(len(embeddings)) == _most_typical(embeddings), math.inf, 0)
    for _ in range(number):
        index = int(np.argmax(nearest))
        chosen.append(Choice(index, None, _finite(nearest[index])))
        own = _distances(embeddings, embeddings[[index]])
        nearest = own if len(chosen) == 1 and not len(known) else np.minimum(nearest, own)
        nearest[[choice.index for choice in chosen]] = -1
    return chosen


def random_foreground(shown: np.ndarray, number: int, rng: Generator) -> list[Choice]:
    """Draw by chance, every third one with a class that is drawn first: the base line of nnActive (arXiv:2511.19183).

    Args:
        shown: ``(n, classes)`` boolean; at least ``number``.
        number: How many.
        rng: Draws.
    """
    taken, chosen = np.zeros(len(shown), bool), []
    for place in range(number):
        left = shown & ~taken[:, None]
        classes = np.flatnonzero(left.any(axis=0))
        stratum = int(rng.choice(classes)) if place % FOREGROUND == 0 and len(classes) else None
        index = int(rng.choice(np.flatnonzero(~taken if stratum is None else left[:, stratum])))
        chosen.append(Choice(index, stratum, math.nan))
        taken[index] = True
    return chosen


def standardised(embeddings: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings with mean 0 and deviation 1 along each dimension, over both sets together."""
    both = np.concatenate([embeddings, known])
    spread = both.std(axis=0)
    both = (both - both.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return both[: len(embeddings)], both[len(embeddings) :]


def _most_typical(embeddings: np.ndarray) -> int:
    return int(np.argmin(np.linalg.norm(embeddings - embeddings.mean(axis=0), axis=1)))


def _distances(embeddings: np.ndarray, others: np.ndarray) -> np.ndarray:
    """From the nearest of the others; infinite without any."""
    nearest = np.full(len(embeddings), math.inf)
    for other in others:
        np.minimum(nearest, np.linalg.norm(embeddings - other, axis=1), out=nearest)
    return nearest


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _entr(probability: np.ndarray) -> np.ndarray:
    """``-p ln p``, 0 where p is 0."""
    from scipy.special import entr

    return entr(np.clip(probability, 0, 1))
