"""Which way round images lie, told from their mean."""

import numpy as np
import pytest

from samunet.planning.asymmetry import asymmetry, thumbnail


def test_thumbnail_of_whole_blocks():
    image = np.random.default_rng(0).normal(5, 3, (2, 8, 16, 24)).astype(np.float32)
    blocks = image.reshape(2, 8, 8, 2, 8, 3).mean((3, 5))
    expected = (blocks - blocks.mean((1, 2, 3), keepdims=True)) / blocks.std((1, 2, 3), keepdims=True)
    assert thumbnail(image) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 5, 3), (3, 1, 700, 500), (1, 9, 8, 7)])
def test_thumbnail_of_any_size(shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    small = thumbnail(image)
    assert small.shape == (shape[0], 8, 8, 8)
    if image[0].size > 1:
        assert (small.mean(), small.std()) == pytest.approx((0, 1), abs=1e-5)
    for axis in (1, 2, 3):  # what is mirrored before is mirrored behind
        assert thumbnail(np.flip(image, axis)) == pytest.approx(np.flip(small, axis), abs=1e-3)


def test_a_constant_channel_says_nothing():
    image = np.stack([np.full((4, 9, 9), 7.0), np.random.default_rng(0).random((4, 9, 9))]).astype(np.float32)
    small = thumbnail(image)
    assert not small[0].any()
    assert asymmetry([small]) == asymmetry([small[1:]])
    assert asymmetry([small[:1]]) == [0, 0, 0]


def test_images_that_lie_the_same_way_round():
    """Along x a ramp, which mirroring turns round; along y a tent, which it does not."""
    x, y = np.arange(16.0), np.abs(np.arange(16.0) - 7.5)
    ramp, tent = np.broadcast_to(x, (1, 8, 16, 16)), np.broadcast_to(y[:, None], (1, 8, 16, 16))
    assert asymmetry([thumbnail(ramp)]) == pytest.approx([0, 0, 1])
    assert asymmetry([thumbnail(tent)]) == pytest.approx([0, 0, 0])
    energy = ramp.reshape(1, 8, 16, 8, 2).mean(-1).var(), tent.reshape(1, 8, 8, 2, 16).mean(3).var()
    assert asymmetry([thumbnail(ramp + tent)])[2] == pytest.approx(energy[0] / sum(energy))
    turned = [thumbnail(image) for image in (ramp + tent, np.flip(ramp, 3) + tent)]
    assert asymmetry(turned) == pytest.approx([0, 0, 0])
