"""Which part of a volume is content, and the way to it and back."""

import numpy as np
import pytest

from samunet.preprocessing.crop import bounding_box, content_mask, crop, uncrop


def volume(border, shape=(4, 6, 7)):
    """One channel that is ``border`` but for two voxels: at (1, 2, 3) and (2, 4, 5)."""
    array = np.full((1, *shape), border, dtype=np.float32)
    array[0, 1, 2, 3], array[0, 2, 4, 5] = 5, 7
    return array


@pytest.mark.parametrize("border", [0, -1024, 0.1, 255])
def test_any_constant_border_is_cropped(border):
    array = volume(border)
    mask = content_mask(array)
    assert np.argwhere(mask).tolist() == [[1, 2, 3], [2, 4, 5]]
    assert bounding_box(mask) == [[1, 3], [2, 5], [3, 6]]


def test_every_channel_has_its_own_border_and_content_is_their_union():
    array = np.concatenate([volume(0), np.full((1, 4, 6, 7), -3, dtype=np.float32)])
    array[1, 0, 1, 1] = 0
    assert np.argwhere(content_mask(array)).tolist() == [[0, 1, 1], [1, 2, 3], [2, 4, 5]]


def test_zero_is_content_where_the_border_is_not_zero():
    array = volume(-1)
    array[0, 3, 3, 3] = 0
    assert content_mask(array)[3, 3, 3]


@pytest.mark.parametrize("corner", [(0, 0, 0), (-1, -1, -1), (0, -1, 0)])
def test_one_differing_corner_makes_everything_content(corner):
    array = volume(0)
    array[0][corner] = 1
    assert content_mask(array).all()


def test_a_constant_volume_is_kept_whole():
    mask = content_mask(np.full((2, 3, 4, 5), 9, dtype=np.float32))
    assert mask.all()
    assert bounding_box(mask) == [[0, 3], [0, 4], [0, 5]]


def test_a_single_slice():
    array = np.zeros((1, 1, 5, 6), dtype=np.float32)
    array[0, 0, 1:3, 2:5] = 1
    assert bounding_box(content_mask(array)) == [[0, 1], [1, 3], [2, 5]]


def test_crop_takes_the_last_three_axes_and_uncrop_puts_them_back():
    array = np.arange(2 * 4 * 6 * 7).reshape(2, 4, 6, 7)
    box = [[1, 3], [2, 5], [3, 6]]
    part = crop(array, box)
    assert np.array_equal(part, array[:, 1:3, 2:5, 3:6])
    back = uncrop(part, box, (4, 6, 7))
    assert back.dtype == array.dtype
    assert np.array_equal(crop(back, box), part)
    assert back.sum() == part.sum()
    assert uncrop(part[0], box, (4, 6, 7)).shape == (4, 6, 7)
