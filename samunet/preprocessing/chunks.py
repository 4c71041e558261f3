"""Passes over large arrays in chunks, so that conditions and counts need no second array of their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_CHUNK = 1 << 18


def chunks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut arrays of the same number of elements into flat chunks that lie on each other.

    Args:
        arrays: Contiguous: then the chunks are views, through which the arrays can be changed.
    """
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _CHUNK):
        yield tuple(array[start : start + _CHUNK] for array in flat)


def unique_values(label: np.ndarray) -> list[int]:
    """The values that occur in an integer array, sorted."""
    return sorted(set().union(*(np.unique(chunk).tolist() for (chunk,) in chunks(label))))


def sample_positions(
    label: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray], choose: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Flat positions of some of the voxels that meet a condition.

    Args:
        label: Any shape, contiguous.
        wanted: The condition: from a flat chunk of ``label`` to booleans.
        choose: From the number of such voxels to the ranks among them to take, ascending; ranks may repeat.

    Returns:
        ``(n,)`` int64, ascending.
    """
    ends = np.cumsum([np.count_nonzero(wanted(chunk)) for (chunk,) in chunks(label)])
    ranks = choose(int(ends[-1]))
    found = [np.empty(0, dtype=np.int64)]
    before = start = 0
    for (chunk,), end, last in zip(chunks(label), ends, np.searchsorted(ranks, ends)):
        own = ranks[np.searchsorted(ranks, before) : last] - before
        if own.size:
            found.append(start + np.flatnonzero(wanted(chunk))[own])
        before, start = end, start + chunk.size
    return np.concatenate(found)
