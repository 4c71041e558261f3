"""Which cases are checked while a fold trains."""

from types import SimpleNamespace

import pytest

from samunet.training.trainer import _monitored


@pytest.mark.parametrize(
    ("slices", "limit", "expected"),
    [
        ([10] * 21, 80, [0, 3, 6, 9, 11, 14, 17, 20]),  # of 0, 2.9, 5.7, ...: eight, evenly spread
        ([10] * 21, 30, [0, 10, 20]),
        ([10] * 21, 29, [0, 20]),
        ([10] * 21, 5, [0]),  # one, however long it is
        ([10] * 3, 100, [0, 1, 2]),
        ([50, 10, 50], 100, [0, 2]),
    ],
)
def test_monitored_cases(slices, limit, expected):
    cases = {f"case_{index:02d}": SimpleNamespace(shape=(depth, 8, 8)) for index, depth in enumerate(slices)}
    assert list(_monitored(cases, limit)) == [f"case_{index:02d}" for index in expected]
