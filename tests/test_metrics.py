import math

import numpy as np
import pytest

from samunet.errors import SamunetError
from samunet.evaluation.metrics import Counts, confusion, confusion_counts, dice, iou

REFERENCE = np.array([[[0, 1, 1, 2], [0, 0, 1, 2]]])
PREDICTION = np.array([[[0, 1, 2, 2], [1, 0, 1, 0]]])


def test_counts_and_scores_by_hand():
    # Class 1: both at two places, predicted in vain once, missed once; four of the eight voxels are neither.
    assert confusion(PREDICTION, REFERENCE, 1) == Counts(TP=2, FP=1, FN=1, TN=4)
    # Class 2: both at one place, in vain once, missed once.
    assert confusion(PREDICTION, REFERENCE, 2) == Counts(TP=1, FP=1, FN=1, TN=5)
    one, two = confusion_counts(PREDICTION, REFERENCE, 3)
    assert (dice(one), iou(one)) == (pytest.approx(2 / 3), pytest.approx(1 / 2))
    assert (dice(two), iou(two)) == (pytest.approx(1 / 2), pytest.approx(1 / 3))
    assert (one.n_pred, one.n_ref) == (3, 3)


@pytest.mark.parametrize("score", [dice, iou])
def test_rules_for_empty_classes(score):
    nothing, something = np.zeros((1, 2, 2), int), np.ones((1, 2, 2), int)
    assert math.isnan(score(confusion(nothing, nothing, 1)))
    assert score(confusion(something, nothing, 1)) == 0
    assert score(confusion(nothing, something, 1)) == 0
    assert score(confusion(something, something, 1)) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_one_pass_equals_a_loop_over_voxels(dtype):
    random = np.random.default_rng(3)
    prediction, reference = random.integers(0, 5, size=(2, 3, 4, 5)).astype(dtype)
    for label, counts in enumerate(confusion_counts(prediction, reference, 5), start=1):
        pairs = [(p == label, r == label) for p, r in zip(prediction.ravel(), reference.ravel())]
        naive = Counts(*(pairs.count(pair) for pair in [(True, True), (True, False), (False, True), (False, False)]))
        assert counts == naive == confusion(prediction, reference, label)


def test_one_code_does_not_overflow_small_integers():
    # 199 * 200 + 199 does not fit into the arrays' own 8 bits.
    array = np.full((1, 1, 2), 199, np.uint8)
    assert confusion_counts(array, array, 200)[198] == Counts(2, 0, 0, 0)


def test_shapes_and_values_are_checked():
    with pytest.raises(SamunetError, match=r"\(1, 2, 4\).*\(1, 2, 3\)"):
        confusion_counts(PREDICTION, REFERENCE[:, :, :3], 3)
    with pytest.raises(SamunetError, match=r"\(1, 2, 4\).*\(1, 2, 3\)"):
        confusion(PREDICTION, REFERENCE[:, :, :3], 1)
    with pytest.raises(SamunetError, match="0 to 1, got 0 to 2"):
        confusion_counts(PREDICTION, REFERENCE, 2)
    with pytest.raises(SamunetError, match="0 to 2, got -1 to 1"):
        confusion_counts(PREDICTION - 1, REFERENCE, 3)
