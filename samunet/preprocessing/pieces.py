"""Passes over large arrays a piece at a time, so that conditions and counts need no second array of their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_PIECE = 1 << 18


def pieces(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut arrays of the same number of elements into flat pieces that lie on each other.

    Args:
        arrays: Contiguous: then the pieces are views, through which the arrays can be changed.
    """
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _PIECE):
        yield tuple(array[start : start + _PIECE] for array in flat)


def values_in(label: np.ndarray) -> list[int]:
    """The values that occur in an integer array, sorted."""
    return sorted(set().union(*(np.unique(piece).tolist() for (piece,) in pieces(label))))


def places(
    label: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray], choose: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Flat positions of some of the voxels that meet a condition.

    Args:
        label: Any shape, contiguous.
        wanted: The condition: from a flat piece of ``label`` to booleans.
        choose: From the number of such voxels to the ranks among them to take, ascending; ranks may repeat.

    Returns:
        ``(n,)`` int64, ascending.
    """
    ends = np.cumsum([np.count_nonzero(wanted(piece)) for (piece,) in pieces(label)])
    ranks = choose(int(ends[-1]))
    found = [np.empty(0, dtype=np.int64)]
    before = start = 0
    for (piece,), end, last in zip(pieces(label), ends, np.searchsorted(ranks, ends)):
        own = ranks[np.searchsorted(ranks, before) : last] - before
        if own.size:
            found.append(start + np.flatnonzero(wanted(piece))[own])
        before, start = end, start + piece.size
    return np.concatenate(found)
