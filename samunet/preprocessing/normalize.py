"""Intensity normalisation, one scheme per channel; a planning rule chooses it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from samunet.plans import ConfigurationPlan, IntensityStatistics, Plans
from samunet.preprocessing.chunks import chunks

_SMALLEST_STD = 1e-8
_DIVISORS = {"divide_by_255": 255.0, "divide_by_65535": 65535.0, "nonorm": 1.0}
# Those that use the training foreground's statistics; for others a dataset may grow without a change.
CT_SCHEMES = frozenset({"ct", "ct_to_0_1"})
UNIT_RANGE_SCHEMES = frozenset({"divide_by_255", "divide_by_65535", "rescale_to_0_1", "ct_to_0_1", "window"})
SCHEMES = CT_SCHEMES | UNIT_RANGE_SCHEMES | {"zscore", "nonorm"}


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
        schemes: Of :data:`SCHEMES`, one per channel. ``zscore`` uses this image's mean and standard deviation;
            ``ct`` clips to the training foreground's 0.5 and 99.5 percentiles and uses its mean and deviation;
            ``ct_to_0_1`` maps these percentiles to 0 and 1, ``window`` the ends of its window.
        use_mask: Per channel, whether a z-score is taken inside ``mask`` only; outside becomes 0.
        mask: Boolean ``(z, y, x)``; needed where ``use_mask`` is true.
        statistics: Of the training foreground, by channel index as text.
        windows: Per channel, lowest and highest value; needed for ``window``.
    """
    for index, (values, scheme) in enumerate(zip(array, schemes)):
        known = statistics[str(index)]
        inside = mask if use_mask[index] and scheme == "zscore" else None
        if scheme in CT_SCHEMES:
            np.clip(values, known.percentile_00_5, known.percentile_99_5, out=values)
        if scheme == "zscore":
            subtracted, divisor = _mean_and_deviation(values, inside)
        elif scheme == "ct":
            subtracted, divisor = known.mean, known.std
        elif scheme == "window":
            low, high = windows[index]
            np.clip(values, low, high, out=values)
            subtracted, divisor = low, high - low
        elif scheme == "ct_to_0_1":
            subtracted, divisor = known.percentile_00_5, known.percentile_99_5 - known.percentile_00_5
        elif scheme == "rescale_to_0_1":
            subtracted, highest = float(values.min()), float(values.max())
            divisor = highest - subtracted
        else:
            subtracted, divisor = 0.0, _DIVISORS[scheme]
        values -= subtracted
        values /= max(divisor, _SMALLEST_STD)
        if inside is not None:
            for chunk, where in chunks(values, inside):
                chunk[~where] = 0


def _mean_and_deviation(values: np.ndarray, mask: np.ndarray | None) -> tuple[float, float]:
    def inside() -> Iterator[np.ndarray]:
        if mask is None:
            yield from (chunk for (chunk,) in chunks(values))
        else:
            yield from (chunk[where] for chunk, where in chunks(values, mask))

    count = values.size if mask is None else np.count_nonzero(mask)
    mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in inside()) / count
    return mean, math.sqrt(sum(float(np.square(chunk - np.float64(mean)).sum()) for chunk in inside()) / count)
