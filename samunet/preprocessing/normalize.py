"""Intensity normalisation, one scheme per channel. Which scheme a channel gets is a planning rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from samunet.plans import ConfigurationPlan, IntensityStatistics, Plans
from samunet.preprocessing.chunks import chunks

_SMALLEST_STD = 1e-8


def _zscore(values: np.ndarray, mask: np.ndarray | None, statistics: IntensityStatistics) -> None:
    count = values.size if mask is None else np.count_nonzero(mask)
    mean = sum(float(piece.sum(dtype=np.float64)) for piece in _inside(values, mask)) / count
    squares = sum(float(np.square(piece - np.float64(mean)).sum()) for piece in _inside(values, mask))
    values -= mean
    values /= max(math.sqrt(squares / count), _SMALLEST_STD)
    if mask is not None:
        for piece, where in chunks(values, mask):
            piece[~where] = 0


def _inside(values: np.ndarray, mask: np.ndarray | None) -> Iterator[np.ndarray]:
    if mask is None:
        yield from (piece for (piece,) in chunks(values))
    else:
        yield from (piece[where] for piece, where in chunks(values, mask))


def _ct(values: np.ndarray, mask: np.ndarray | None, statistics: IntensityStatistics) -> None:
    np.clip(values, statistics.percentile_00_5, statistics.percentile_99_5, out=values)
    values -= statistics.mean
    values /= max(statistics.std, _SMALLEST_STD)


def _ct_to_unit(values: np.ndarray, mask: np.ndarray | None, statistics: IntensityStatistics) -> None:
    _to_unit(values, statistics.percentile_00_5, statistics.percentile_99_5)


def _to_unit(values: np.ndarray, low: float, high: float) -> None:
    np.clip(values, low, high, out=values)
    values -= low
    values /= max(high - low, _SMALLEST_STD)


def _rescale(values: np.ndarray, mask: np.ndarray | None, statistics: IntensityStatistics) -> None:
    low, high = float(values.min()), float(values.max())
    values -= low
    values /= max(high - low, _SMALLEST_STD)


def _divide_by(divisor: float) -> Callable[[np.ndarray, np.ndarray | None, IntensityStatistics], None]:
    def divide(values: np.ndarray, mask: np.ndarray | None, statistics: IntensityStatistics) -> None:
        values /= divisor

    return divide


def _none(values: np.ndarray, mask: np.ndarray | None, statistics: IntensityStatistics) -> None:
    """Leave the values as they are."""


SCHEMES: dict[str, Callable[[np.ndarray, np.ndarray | None, IntensityStatistics], None]] = {
    "zscore": _zscore,
    "ct": _ct,
    "divide_by_255": _divide_by(255.0),
    "divide_by_65535": _divide_by(65535.0),
    "rescale_to_0_1": _rescale,
    "ct_to_0_1": _ct_to_unit,
    "nonorm": _none,
    "window": _none,  # done before: it needs no statistics
}
# Those that use the training foreground's statistics; for others a dataset may grow without a change.
CT_SCHEMES = frozenset({"ct", "ct_to_0_1"})
UNIT_RANGE_SCHEMES = frozenset({"divide_by_255", "divide_by_65535", "rescale_to_0_1", "ct_to_0_1", "window"})


def statistics_used(plans: Plans, configuration: ConfigurationPlan) -> dict[str, IntensityStatistics]:
    """Those of the training foreground, by channel index as text, that preprocessing depends on."""
    statistics = plans.foreground_intensity_properties_per_channel
    used = [str(index) for index, scheme in enumerate(configuration.normalization) if scheme in CT_SCHEMES]
    return {channel: statistics[channel] for channel in used}


def normalize(
    array: np.ndarray,
    schemes: list[str],
    use_mask: list[bool],
    mask: np.ndarray | None,
    statistics: dict[str, IntensityStatistics],
    windows: list[list[float] | None] | None = None,
) -> None:
    """Normalise ``array`` in place.

    Args:
        array: ``(channels, z, y, x)`` float32.
        schemes: Keys of :data:`SCHEMES`, one per channel. ``zscore`` uses this image's mean and standard deviation;
            ``ct`` clips to the training foreground's 0.5 and 99.5 percentiles and uses its mean and deviation;
            ``ct_to_0_1`` maps these percentiles to 0 and 1, ``window`` the ends of its window.
        use_mask: Per channel, whether a z-score is taken inside ``mask`` only; outside becomes 0.
        mask: Boolean ``(z, y, x)``; needed where ``use_mask`` is true.
        statistics: Of the training foreground, by channel index as text.
        windows: Per channel, lowest and highest value; needed for ``window``.
    """
    for index, scheme in enumerate(schemes):
        if scheme == "window":
            _to_unit(array[index], *windows[index])
        SCHEMES[scheme](array[index], mask if use_mask[index] else None, statistics[str(index)])
