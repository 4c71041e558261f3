"""From probabilities to masks: as from logits, and for the highest expected Dice."""

from itertools import product

import numpy as np
import pytest
import torch

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.inference.decoding import average, decode_for_dice, decode_probabilities
from samunet.inference.logits import decode, probabilities

ONE = Labels.from_json({"background": 0, "organ": 1})
CLASSES = Labels.from_json({"background": 0, "organ": 1, "core": 2})
REGIONS = Labels.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_as_from_logits(labels):
    logits = torch.randn(labels.num_outputs, 30, 20, generator=torch.Generator().manual_seed(0))
    probable = probabilities(logits, labels).numpy()
    assert np.array_equal(decode_probabilities(probable, labels), decode(logits, labels).numpy())


def test_many_classes_need_a_larger_type():
    labels = Labels.from_json({"background": 0, **{f"structure {value}": value for value in range(1, 301)}})
    probable = np.zeros((301, 1, 2), np.float32)
    probable[300, 0, 0] = probable[0, 0, 1] = 1
    assert decode_probabilities(probable, labels).tolist() == [[300, 0]]


def test_average_of_models():
    first, second = np.zeros((3, 2, 4, 4), np.float16), np.zeros((3, 2, 4, 4), np.float16)
    first[1], first[0], second[2], second[0] = 0.7, 0.3, 0.9, 0.1
    mask, mean = average([first, second], CLASSES)
    assert (mask == 2).all()
    assert np.allclose(mean[:, 0, 0, 0], [0.2, 0.35, 0.45], atol=1e-3)
    with pytest.raises(SamunetError, match="shapes"):
        average([first, second[:, :1]], CLASSES)
    with pytest.raises(SamunetError, match="2 outputs"):
        average([first, second], ONE)


def expected_dice(chosen, probable):
    """First-order expected Dice of a set of voxels."""
    return 2 * probable[chosen].sum() / (probable.sum() + chosen.sum())


def highest_expected_dice(probable):
    """By trying every set of voxels."""
    sets = (np.array(chosen, bool) for chosen in product((0, 1), repeat=len(probable)) if any(chosen))
    return max(expected_dice(chosen, probable) for chosen in sets)


def test_no_other_set_of_voxels_has_a_higher_expected_dice():
    rng = np.random.default_rng(0)
    for _ in range(20):
        probable = rng.uniform(0, 1, 10)
        probable[0] = 0.6  # so that the class is somewhere the most probable
        mask = decode_for_dice(np.stack([1 - probable, probable]).reshape(2, 1, 2, 5), ONE).ravel() > 0
        best = max(
            expected_dice(np.array(chosen, bool), probable) for chosen in product((0, 1), repeat=10) if any(chosen)
        )
        assert expected_dice(mask, probable) == pytest.approx(best, abs=1e-6)


def test_certain_voxels_stay_and_absent_classes_do_not_appear():
    probable = np.zeros((3, 2, 6, 6), np.float32)
    probable[1, :, :3, :3] = 1
    probable[2, :, 4:, 4:] = 0.3  # nowhere the most probable
    probable[0] = 1 - probable[1:].sum(0)
    assert np.array_equal(decode_for_dice(probable, CLASSES), probable.argmax(0))


def test_classes_that_compete():
    # Both are above their bars: the one that is so by the larger factor gets the voxel.
    probable = np.zeros((3, 1, 1, 4), np.float32)
    probable[1, 0, 0] = [0.9, 0.45, 0.0, 0.0]
    probable[2, 0, 0] = [0.0, 0.45, 0.55, 0.02]
    probable[0] = 1 - probable[1:].sum(0)
    bars = [highest_expected_dice(row) / 2 for row in probable[1:, 0, 0].astype(float)]
    assert bars[0] != pytest.approx(bars[1])
    expected = 1 if 0.45 / bars[0] > 0.45 / bars[1] else 2
    assert decode_for_dice(probable, CLASSES)[0, 0].tolist() == [1, expected, 2, 0]


def test_regions_are_painted_in_order():
    probable = np.zeros((2, 1, 1, 4), np.float32)
    probable[0, 0, 0] = [0.95, 0.9, 0.45, 0.05]
    probable[1, 0, 0] = [0.9, 0.4, 0.0, 0.0]
    assert decode_for_dice(probable, REGIONS)[0, 0].tolist() == [2, 2, 1, 0]
