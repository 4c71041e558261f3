"""Each normalisation scheme against scikit-learn, or against numbers worked out by hand."""

import numpy as np
import pytest
from sklearn.preprocessing import minmax_scale, scale

from samunet.plans import IntensityStatistics
from samunet.preprocessing.normalize import SCHEMES, UNIT_RANGE_SCHEMES, normalize

STATISTICS = IntensityStatistics(
    mean=40.0, median=41.0, std=8.0, min=-90.0, max=900.0, percentile_00_5=0.0, percentile_99_5=80.0
)


def normalized(array, scheme, mask=None):
    array = np.array(array, dtype=np.float32).reshape(1, 1, 1, -1)
    mask = None if mask is None else np.array(mask).reshape(1, 1, -1)
    normalize(array, [scheme], [mask is not None], mask, {"0": STATISTICS})
    return array.reshape(-1)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(300, 50, 500).astype(np.float32)


def test_zscore(values):
    assert np.allclose(normalized(values, "zscore"), scale(values.astype(np.float64)), atol=1e-5)


def test_zscore_inside_a_mask(values):
    mask = np.arange(500) % 3 > 0
    result = normalized(values, "zscore", mask)
    assert np.allclose(result[mask], scale(values[mask].astype(np.float64)), atol=1e-5)
    assert (result[~mask] == 0).all()


def test_zscore_far_from_zero():
    # A float32 sum of these would lose the differences between them.
    assert np.allclose(normalized([100000, 100001] * 1000, "zscore"), [-1, 1] * 1000, atol=1e-3)


def test_ct_clips_and_uses_the_training_statistics():
    assert normalized([-1000, 0, 40, 60, 80, 3000], "ct").tolist() == [-5, -5, 0, 2.5, 5, 5]


@pytest.mark.parametrize(
    ("scheme", "got", "expected"),
    [
        ("divide_by_255", [0, 51, 255], [0, 0.2, 1]),
        ("divide_by_65535", [0, 13107, 65535], [0, 0.2, 1]),
        ("rescale_to_0_1", [-10, 0, 30], [0, 0.25, 1]),
        ("nonorm", [-10, 0.5, 30000], [-10, 0.5, 30000]),
    ],
)
def test_simple_schemes(scheme, got, expected):
    assert np.allclose(normalized(got, scheme), expected, atol=1e-7)


def test_rescale_against_scikit_learn(values):
    assert np.allclose(normalized(values, "rescale_to_0_1"), minmax_scale(values), atol=1e-6)


@pytest.mark.parametrize("scheme", ["zscore", "rescale_to_0_1"])
def test_a_constant_image_becomes_zero(scheme):
    assert (normalized([7, 7, 7], scheme) == 0).all()


def test_channels_are_independent():
    array = np.array([[0, 255], [2, 4], [10, 10]], dtype=np.float32).reshape(3, 1, 1, 2)
    normalize(
        array,
        ["divide_by_255", "zscore", "ct"],
        [False, False, False],
        None,
        {str(channel): STATISTICS for channel in range(3)},
    )
    assert array.reshape(3, 2).tolist() == [[0, 1], [-1, 1], [-3.75, -3.75]]


def test_unit_range_schemes_give_values_from_0_to_1():
    assert set(SCHEMES) >= UNIT_RANGE_SCHEMES
    for scheme, largest in (("divide_by_255", 255), ("divide_by_65535", 65535), ("rescale_to_0_1", 3)):
        assert scheme in UNIT_RANGE_SCHEMES
        result = normalized([0, largest], scheme)
        assert (result.min(), result.max()) == (0, 1)
