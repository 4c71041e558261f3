"""Images whose intensities lie far outside those of the others: most often a rescaling that was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samunet.planning.fingerprint import Fingerprint

_FEWEST = 3  # cases that say what is usual
_TIMES = 10.0  # images of one kind differ less in their range, whatever the scanner
_AIR = -100.0  # HU; images of which none has a lower value do not show bodies in HU


@dataclass(frozen=True)
class UsualIntensities:
    """Lowest and highest intensities of cases that belong together, for one channel.

    Attributes:
        name: Of the channel.
        lows, highs: One entry per case.
    """

    name: str
    lows: Sequence[float]
    highs: Sequence[float]

    def doubt(self, low: float, high: float) -> str:
        """What is unusual in an image's lowest and highest intensity, and the likely cause; empty if nothing is."""
        if len(self.lows) < _FEWEST:
            return ""
        # Of the middle four fifths: a few wrong ones must not vouch for others, but a tenth or more is usual.
        least, most = np.quantile(np.subtract(self.highs, self.lows), (0.1, 0.9))
        (lower, upper), span = np.quantile(self.lows, (0.1, 0.9)), high - low
        if self.name.casefold() == "ct" and low >= 0 > _AIR > upper:
            cause = "no value is negative: stored values that were not rescaled to HU"
        elif self.name.casefold() == "ct" and low < _AIR and lower >= 0:
            cause = "HU, where the others are not rescaled"
        elif span * _TIMES < least:
            cause = "scaled to another range, such as 0 to 1 or 0 to 255, or nearly empty"
        elif span > most * _TIMES:
            cause = "not scaled as the others were, or single voxels of an artefact or of padding"
        else:
            return ""
        usual = f"{min(self.lows):g} to {max(self.highs):g}"
        return f"channel {self.name} has values from {low:g} to {high:g}, usual is {usual}: {cause}"


def usual_intensities(fingerprint: Fingerprint, channels: Sequence[str], without: str = "") -> list[UsualIntensities]:
    """Of every channel, from all cases of a fingerprint but the one named; a fingerprint may have lost its cases."""
    cases = [case for name, case in fingerprint.cases.items() if name != without]
    return [
        UsualIntensities(channel, [case.minimum[index] for case in cases], [case.maximum[index] for case in cases])
        for index, channel in enumerate(channels)
    ]


def doubts(usual: Sequence[UsualIntensities], ranges: Sequence[tuple[float, float]]) -> str:
    """What is unusual in an image, given as lowest and highest intensity of every channel; empty if nothing is."""
    return "; ".join(filter(None, (channel.doubt(low, high) for channel, (low, high) in zip(usual, ranges))))


def unusual_cases(fingerprint: Fingerprint, channels: Sequence[str]) -> dict[str, str]:
    """Cases that lie far outside the others, each with what is unusual in it."""
    found = {
        name: doubts(usual_intensities(fingerprint, channels, name), list(zip(case.minimum, case.maximum)))
        for name, case in fingerprint.cases.items()
    }
    return {name: doubt for name, doubt in found.items() if doubt}


def warning(unusual: dict[str, str], what: str = "case") -> str:
    """One sentence for all of them: the first in full, and how many there are more."""
    name, doubt = next(iter(unusual.items()))
    more = list(unusual)[1:]
    also = f"; {len(more)} more like it: {', '.join(more[:5])}{', …' * (len(more) > 5)}" if more else ""
    return f"intensities of {what} {name} look wrong: {doubt}{also}"
