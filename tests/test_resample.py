"""In-plane reduction against Pillow, whose filter widens with the reduction, too."""

import numpy as np
from PIL import Image

from samunet.preprocessing.resample import reduce_image, reduce_label


def pillow_resize(plane, shape):
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(shape[::-1], Image.Resampling.BILINEAR))


def test_image_slices_equal_pillows():
    array = np.random.default_rng(0).normal(size=(2, 3, 30, 41)).astype(np.float32)
    reduced = reduce_image(array, (13, 29))
    assert reduced.shape == (2, 3, 13, 29)
    assert reduced.dtype == np.float32
    for channel in range(2):
        for z in range(3):
            assert np.allclose(reduced[channel, z], pillow_resize(array[channel, z], (13, 29)), atol=1e-4)


def test_one_bright_line_halved():
    # A triangle of half width 2 around 2 i + 0.5 weighs the four pixels it reaches 1/8, 3/8, 3/8 and 1/8.
    array = np.zeros((1, 1, 2, 12), dtype=np.float32)
    array[..., 5] = 1
    assert np.allclose(reduce_image(array, (2, 6))[0, 0, 0], [0, 0, 3 / 8, 1 / 8, 0, 0])


def test_stripes_finer_than_the_new_pixels_vanish():
    array = np.tile(np.array([0, 1], dtype=np.float32), (1, 1, 24, 12))
    reduced = reduce_image(array, (24, 6))
    assert np.allclose(reduced[..., 1:-1], 0.5, atol=1e-2)


def test_nothing_to_do_gives_the_array_itself():
    array, label = np.zeros((1, 2, 5, 6), dtype=np.float32), np.zeros((2, 5, 6), dtype=np.int16)
    assert reduce_image(array, (5, 6)) is array
    assert reduce_label(label, (5, 6)) is label


def test_label_takes_the_class_with_the_largest_share():
    rng = np.random.default_rng(1)
    label = np.kron(rng.integers(-1, 4, (2, 7, 8)), np.ones((1, 5, 5), dtype=np.int64)).astype(np.int16)
    shape = (16, 23)
    reduced = reduce_label(label, shape)
    assert reduced.dtype == np.int16
    for plane, got in zip(label, reduced):
        shares = np.stack([pillow_resize(plane == value, shape) for value in range(-1, 4)])
        ordered = np.sort(shares, axis=0)
        clear = ordered[-1] - ordered[-2] > 1e-3
        assert clear.mean() > 0.8
        assert np.array_equal(got[clear], (shares.argmax(0) - 1)[clear])


def test_slices_are_not_mixed():
    label = np.zeros((3, 8, 8), dtype=np.int16)
    label[1] = 2
    assert reduce_label(label, (4, 4))[:, 0, 0].tolist() == [0, 2, 0]
    assert reduce_image(label[None].astype(np.float32), (4, 4))[0, :, 0, 0].tolist() == [0, 2, 0]
