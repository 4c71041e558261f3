"""Intervals of a mean Dice by resampling patients."""

import numpy as np
import pytest

from samunet.evaluation.bootstrap import class_means, dice_table, difference_interval, mean_dice, mean_interval


def names(count):
    return [f"case_{index}" for index in range(count)]


def test_means_leave_out_what_has_no_score():
    dice = np.array([[0.5, np.nan, np.nan], [1.0, 0.5, np.nan]])
    assert class_means(dice)[:2].tolist() == [0.75, 0.5]
    assert mean_dice(dice) == 0.625
    assert np.isnan(mean_dice(dice[:, 2:]))


def test_equal_cases_have_no_width():
    low, high = mean_interval(np.full((20, 2), 0.8), names(20))
    assert low == pytest.approx(0.8)
    assert high == pytest.approx(0.8)


def test_width_is_that_of_the_normal_distribution():
    dice = np.random.default_rng(0).normal(0.8, 0.05, (200, 1))
    low, high = mean_interval(dice, names(200))
    expected = 2 * 1.96 * dice.std() / np.sqrt(200)
    assert high - low == pytest.approx(expected, rel=0.1)
    assert low < dice.mean() < high


def test_cases_of_a_patient_count_as_one():
    per_patient = np.random.default_rng(1).normal(0.8, 0.05, (40, 1))
    dice = np.repeat(per_patient, 5, axis=0)
    narrow = mean_interval(dice, names(200))
    wide = mean_interval(dice, [f"patient_{index // 5}" for index in range(200)])
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(np.sqrt(5), rel=0.15)


def test_differences_are_paired():
    dice = np.random.default_rng(2).uniform(0.2, 0.9, (50, 2))
    low, high = difference_interval(dice + 0.01, dice, names(50))
    assert low == pytest.approx(0.01)
    assert high == pytest.approx(0.01)


def test_rare_classes_and_single_patients():
    dice = np.array([[0.5, np.nan], [0.7, np.nan], [0.9, 0.4]])
    low, high = mean_interval(dice, names(3))
    assert 0.4 <= low < mean_dice(dice) < high <= 0.9
    assert mean_interval(dice, ["one"] * 3) == (None, None)
    assert str(mean_interval(dice, ["one"] * 3)) == ""
    assert mean_interval(np.full((4, 1), np.nan), names(4)) == (None, None)


def test_table_of_a_summary():
    cases = [
        {"metrics": {"1": {"Dice": 0.5}, "(1, 2)": {"Dice": None}}},
        {"metrics": {"1": {"Dice": 1}, "(1, 2)": {"Dice": 0}}},
    ]
    table = dice_table({"mean": {"1": {}, "(1, 2)": {}}, "metric_per_case": cases})
    assert table.shape == (2, 2)
    assert np.isnan(table[0, 1])
    assert table[1].tolist() == [1, 0]
