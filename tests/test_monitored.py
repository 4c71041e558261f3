"""Which cases are checked while a fold trains."""

from types import SimpleNamespace

import pytest

from samunet.training.monitoring import monitored_cases


@pytest.mark.parametrize(
    ("slices", "limit", "expected"),
    [
        ([10] * 21, 80, [0, 3, 6, 9, 11, 14, 17, 20]),  # of 0, 2.9, 5.7, ...: eight, evenly spread
        ([1] * 90, 60, [round(i * 89 / 59) for i in range(60)]),  # of single pictures many more than of volumes
        ([1] * 50, 150, list(range(50))),
        ([10] * 21, 30, [0, 10, 20]),
        ([10] * 21, 29, [0, 20]),
        ([10] * 21, 5, [0]),  # one, however long it is
        ([30, 20, 10, 20], 9, [2]),  # the shortest
        ([10, 30, 5], 10, [0]),
        ([10] * 3, 100, [0, 1, 2]),
        ([50, 10, 50], 100, [0, 2]),
    ],
)
def test_monitored_cases(slices, limit, expected):
    assert monitored(slices, limit) == expected


def test_windows_count_and_empty_cases_do_not():
    assert monitored([10] * 4, 140, plane=(32, 8)) == [0, 3]  # seven windows of 8 x 8 for a slice of 32 x 8
    assert monitored([10] * 4, 210, plane=(32, 8)) == [0, 2, 3]
    assert monitored([10] * 5, 30, empty=(0, 2, 4)) == [1, 3]
    assert monitored([10] * 3, 20, empty=(0, 1, 2)) == [0, 2]


def monitored(slices, limit, plane=(8, 8), empty=()):
    cases = {
        f"case_{index:02d}": SimpleNamespace(
            shape=(depth, *plane),
            spacing=[1.0, 1.0],
            class_locations={0: None} if index in empty else {1: None},
        )
        for index, depth in enumerate(slices)
    }
    network = SimpleNamespace(stretch=False, spacing=1.0, input_shape=[8, 8])
    return [int(name[-2:]) for name in monitored_cases(cases, network, limit)]
