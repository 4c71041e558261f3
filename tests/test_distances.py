"""Surfaces: values worked out by hand, MONAI's, and a comparison with every pair of voxels."""

import math

import numpy as np
import pytest

from samunet.evaluation.metrics import surface_distances, surface_scores

SPACING = (10.0, 1.5, 1.25)


def box(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*pair) for pair in ranges)] = True
    return mask


def brute_force(first, second, spacing):
    """Distances from each surface voxel of one mask to the nearest of the other, from all pairs."""

    def surface(mask):
        padded, axes = np.pad(mask, 1), range(mask.ndim)
        inner = np.all([np.roll(padded, step, axis) for axis in axes for step in (-1, 1)], axis=0)
        return np.argwhere(padded & ~inner) * np.array(spacing)

    a, b = surface(first), surface(second)
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1)


def test_a_box_moved_along_each_axis_is_as_far_as_the_spacing_says():
    shape = (9, 20, 20)
    still = box(shape, (2, 5), (5, 12), (5, 12))
    for axis, side in enumerate(SPACING):
        scores = surface_scores(np.roll(still, 1, axis), still, SPACING, tolerance=side - 0.01)
        assert scores.hd95 == pytest.approx(side)
        assert 0 < scores.surface_dice < 1
        assert surface_scores(np.roll(still, 1, axis), still, SPACING, tolerance=side).surface_dice == 1


def test_a_single_voxel_far_away():
    shape = (5, 9, 9)
    one, other = box(shape, (1, 2), (1, 2), (1, 2)), box(shape, (3, 4), (5, 6), (4, 5))
    scores = surface_scores(one, other, (2.0, 0.5, 4.0), tolerance=1.0)
    assert scores.hd95 == pytest.approx(math.sqrt(4**2 + 2**2 + 12**2))
    assert scores.surface_dice == 0


def test_share_within_the_tolerance_by_hand():
    """Two bars in one slice, 10 and 7 pixels long, that begin together: 3 of 17 pixels lie 1, 2 and 3 mm away."""
    long, short = box((1, 3, 12), (0, 1), (1, 2), (1, 11)), box((1, 3, 12), (0, 1), (1, 2), (1, 8))
    spacing = (999.0, 1.0, 1.0)
    for tolerance, near in ((0, 14), (1, 15), (2.5, 16), (3, 17)):
        assert surface_scores(long, short, spacing, tolerance).surface_dice == pytest.approx(near / 17)
    # 0 seven times, then 1, 2, 3: position 0.95 * 9 = 8.55 lies between 2 and 3.
    assert surface_scores(long, short, spacing, 1).hd95 == pytest.approx(2.55)


@pytest.mark.parametrize(
    ("shape", "spacing", "first", "second", "hd95", "dice"),
    [
        ((8, 24, 20), SPACING, [(1, 6), (3, 15), (4, 14)], [(2, 6), (5, 18), (2, 13)], 10.111875, 0.506812),
        ((8, 24, 20), (1.0, 1.0, 1.0), [(1, 6), (3, 15), (4, 14)], [(2, 8), (5, 18), (2, 13)], 3.162278, 0.824818),
        ((1, 30, 40), (999.0, 0.5, 0.8), [(0, 1), (3, 21), (4, 30)], [(0, 1), (6, 28), (9, 33)], 4.000000, 0.389535),
    ],
)
def test_equal_to_monai(shape, spacing, first, second, hd95, dice):
    """compute_hausdorff_distance(percentile=95) and compute_surface_dice(class_thresholds=[2.0]) of MONAI 1.6.1."""
    scores = surface_scores(box(shape, *first), box(shape, *second), spacing, tolerance=2.0)
    assert scores.hd95 == pytest.approx(hd95, abs=1e-4)
    assert scores.surface_dice == pytest.approx(dice, abs=1e-5)


@pytest.mark.parametrize("shape", [(6, 9, 8), (9, 8)])
def test_equal_to_all_pairs(shape):
    rng = np.random.default_rng(1)
    for density in (0.05, 0.5, 0.9):
        first, second = (rng.random(shape) < density for _ in range(2))
        spacing = SPACING[-len(shape) :]
        there, back = surface_distances(first, second, spacing)
        assert np.allclose(there, brute_force(first, second, spacing))
        assert np.allclose(back, brute_force(second, first, spacing))


def test_rules_for_empty_masks():
    nothing, something = np.zeros((3, 4, 5), bool), box((3, 4, 5), (0, 1), (1, 2), (1, 2))
    assert all(map(math.isnan, surface_scores(nothing, nothing, SPACING, 1.0)))
    longest = math.sqrt((2 * 10) ** 2 + (3 * 1.5) ** 2 + (4 * 1.25) ** 2)
    for pair in ((nothing, something), (something, nothing)):
        assert surface_scores(*pair, SPACING, 1.0) == (pytest.approx(longest), 0)


def test_a_slice_has_no_surface_towards_its_neighbours():
    """A disc in a volume of one slice: only its rim is surface."""
    first, second = box((1, 12, 12), (0, 1), (2, 9), (2, 9)), box((1, 12, 12), (0, 1), (2, 9), (2, 9))
    second[0, 5, 5] = False  # a hole in the middle: its four neighbours become surface, 3 pixels or 2 from the rim
    there, back = surface_distances(first[0], second[0], (1.0, 1.0))
    assert len(there) == 24
    assert sorted(back)[-4:] == [2, 2, 2, 2]
