"""Which way round images lie, told from their mean."""

import tracemalloc

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


def test_a_picture_is_not_copied():
    image = np.zeros((3, 1, 1000, 800), np.float32)
    tracemalloc.start()
    thumbnail(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * image.nbytes


def test_a_constant_channel_says_nothing():
    image = np.stack([np.full((4, 9, 9), 7.0), np.random.default_rng(0).random((4, 9, 9))]).astype(np.float32)
    small = thumbnail(image)
    assert not small[0].any()
    assert asymmetry([small] * 2) == asymmetry([small[1:]] * 2)
    assert asymmetry([small[:1]] * 2) == [0, 0, 0]
    assert asymmetry([small]) == [0, 0, 0]


def ramp_and_tent():
    """Along x a ramp, which mirroring turns round, and along y a tent, which it does not."""
    ramp = np.broadcast_to(np.arange(16.0), (1, 8, 16, 16))
    return ramp, np.broadcast_to(np.abs(np.arange(16.0) - 7.5)[:, None], (1, 8, 16, 16))


def test_images_that_lie_the_same_way_round():
    ramp, tent = ramp_and_tent()
    assert asymmetry([thumbnail(ramp)] * 3) == pytest.approx([0, 0, 1])
    assert asymmetry([thumbnail(tent)] * 3) == pytest.approx([0, 0, 0])
    energy = ramp.reshape(1, 8, 16, 8, 2).mean(-1).var(), tent.reshape(1, 8, 8, 2, 16).mean(3).var()
    assert asymmetry([thumbnail(ramp + tent)] * 3)[2] == pytest.approx(energy[0] / sum(energy))


def test_images_that_lie_any_way_round():
    ramp, tent = ramp_and_tent()
    one, other = thumbnail(ramp + tent), thumbnail(np.flip(ramp, 3) + tent)
    share = asymmetry([one, one])[2]
    assert asymmetry([one, one, other, other]) == [0, 0, 0]
    assert asymmetry([one] * 7 + [other] * 3) == [0, 0, 0]  # a third the other way round: most is not all
    # Of ten images ninety ordered pairs: 72 of a kind, 18 of two kinds.
    assert asymmetry([one] * 9 + [other])[2] == pytest.approx((72 - 18) / 90 * share)


def test_images_with_nothing_in_common_are_no_evidence():
    draw = np.random.default_rng(0)
    assert asymmetry([thumbnail(draw.random((1, 4, 16, 16))) for _ in range(20)]) == pytest.approx([0] * 3, abs=0.02)
