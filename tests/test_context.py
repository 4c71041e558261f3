"""A slice's neighbours as channels: order, and what stands in at both ends."""

import numpy as np
import pytest

from samunet.preprocessing.planes import slice_with_context


def context(z, depth, neighbours=True, channels=1):
    """Values of the chosen slices: channel c of slice z is 10 * c + z; and the ranges that were read."""
    volume = (10 * np.arange(channels)[:, None] + np.arange(depth)[None])[..., None, None] * np.ones((1, 1, 3, 4))
    ranges = []

    def read(first, last):
        ranges.append((first, last))
        return volume[:, first:last]

    result = slice_with_context(read, z, depth, neighbours)
    assert result.shape[1:] == (3, 4)
    return result[:, 0, 0].tolist(), ranges


@pytest.mark.parametrize(
    ("z", "depth", "expected"),
    [
        (2, 5, [1, 2, 3]),
        (0, 5, [0, 0, 1]),
        (4, 5, [3, 4, 4]),
        (0, 2, [0, 0, 1]),
        (1, 2, [0, 1, 1]),
        (0, 1, [0, 0, 0]),
    ],
)
def test_neighbours(z, depth, expected):
    assert context(z, depth)[0] == expected


def test_only_what_is_needed_is_read():
    assert context(2, 5)[1] == [(1, 4)]
    assert context(4, 5)[1] == [(3, 5)]
    assert context(2, 5, neighbours=False)[1] == [(2, 3)]


def test_without_neighbours_all_channels_of_the_slice():
    assert context(3, 5, neighbours=False, channels=3)[0] == [3, 13, 23]
