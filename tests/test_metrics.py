import math

import numpy as np
import pytest

from samunet.errors import SamunetError
from samunet.evaluation.metrics import Counts, confusion_counts, dice, iou

REFERENCE = np.array([[[0, 1, 1, 2], [0, 0, 1, 2]]])
PREDICTION = np.array([[[0, 1, 2, 2], [1, 0, 1, 0]]])
CLASSES = [(1,), (2,)]


def test_counts_and_scores_by_hand():
    one, two = confusion_counts(PREDICTION, REFERENCE, CLASSES)
    # Class 1: both at two places, predicted in vain once, missed once; four of the eight voxels are neither.
    assert one == Counts(TP=2, FP=1, FN=1, TN=4)
    # Class 2: both at one place, in vain once, missed once.
    assert two == Counts(TP=1, FP=1, FN=1, TN=5)
    assert (dice(one), iou(one)) == (pytest.approx(2 / 3), pytest.approx(1 / 2))
    assert (dice(two), iou(two)) == (pytest.approx(1 / 2), pytest.approx(1 / 3))
    assert (one.n_pred, one.n_ref) == (3, 3)


def test_a_region_counts_its_values_together():
    # Values 1 or 2: both at four places, predicted in vain once, missed once; two voxels are neither.
    assert confusion_counts(PREDICTION, REFERENCE, [(1, 2), (2,)])[0] == Counts(TP=4, FP=1, FN=1, TN=2)


def test_ignored_voxels_do_not_count_at_all():
    # Without the three voxels whose reference is 2, classes keep what lies in the other five.
    (one,) = confusion_counts(PREDICTION, np.where(REFERENCE == 2, 9, REFERENCE), [(1,)], ignore=9)
    assert one == Counts(TP=2, FP=1, FN=1, TN=2)


@pytest.mark.parametrize("score", [dice, iou])
def test_rules_for_empty_classes(score):
    nothing, something = np.zeros((1, 2, 2), int), np.ones((1, 2, 2), int)

    def of(prediction, reference):
        return score(confusion_counts(prediction, reference, [(1,)])[0])

    assert math.isnan(of(nothing, nothing))
    assert of(something, nothing) == 0
    assert of(nothing, something) == 0
    assert of(something, something) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_one_pass_equals_a_loop_over_voxels(dtype):
    random = np.random.default_rng(3)
    prediction, reference = random.integers(0, 6, size=(2, 3, 4, 5)).astype(dtype)
    regions = [(1,), (3, 4), (1, 2, 3, 4), (5,)]
    for region, counts in zip(regions, confusion_counts(prediction, reference, regions)):
        pairs = [(p in region, r in region) for p, r in zip(prediction.ravel(), reference.ravel())]
        naive = Counts(*(pairs.count(pair) for pair in [(True, True), (True, False), (False, True), (False, False)]))
        assert counts == naive


def test_values_of_any_size_and_sign():
    array = np.array([[[199, 65535, -3, 0]]])
    assert confusion_counts(array, array, [(199,), (65535,)]) == [Counts(1, 0, 0, 3)] * 2
    small = np.full((1, 1, 2), 199, np.uint8)
    assert confusion_counts(small, small, [(199,)]) == [Counts(2, 0, 0, 0)]


def test_shapes_are_checked():
    with pytest.raises(SamunetError, match=r"\(1, 2, 4\).*\(1, 2, 3\)"):
        confusion_counts(PREDICTION, REFERENCE[:, :, :3], CLASSES)
