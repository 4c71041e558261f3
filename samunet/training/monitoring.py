"""Which cases are checked while a fold trains."""

from __future__ import annotations

import numpy as np

from samunet.plans import NetworkPlan
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.store import StoredCase

_CASES = 8


def monitored_cases(cases: dict[str, StoredCase], network: NetworkPlan, most: int) -> dict[str, StoredCase]:
    """A fixed few cases, evenly spread over the names of those that have foreground.

    Args:
        cases: Of which to choose.
        network: Whose windows cover their slices.
        most: Windows in all; where even one case has more, the one with the fewest is taken.
    """
    names = [name for name in sorted(cases) if any(cases[name].class_locations)] or sorted(cases)  # any but 0
    for number in range(min(_CASES, len(names)), 1, -1):
        chosen = [names[round(place)] for place in np.linspace(0, len(names) - 1, number)]
        if sum(_windows(cases[name], network) for name in chosen) <= most:
            break
    else:
        chosen = [names[0]]
        if _windows(cases[names[0]], network) > most:
            chosen = [min(names, key=lambda name: _windows(cases[name], network))]
    return {name: cases[name] for name in chosen}


def _windows(case: StoredCase, network: NetworkPlan) -> int:
    depth, *plane = case.shape
    grid = SliceGrid.of(tuple(plane), case.spacing, network.spacing, network.input_shape)
    return depth * len(grid.window_starts(0.5))
