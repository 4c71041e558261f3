"""The checks of a training: when there is one, of which cases, and what it measures."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from samunet.dataset.labels import Labels
from samunet.evaluation.metrics import confusion_counts, dice
from samunet.inference.logits import SlicePredictor
from samunet.inference.predictor import Predictor
from samunet.plans import NetworkPlan
from samunet.preprocessing.case import PreparedCase
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.store import StoredCase

# Of the images that are trained on, so many pass the network once more in checks. A pass without gradients takes about
# a third of one with, so that is 5 % of the time. It is counted in images: a clock would make two trainings differ.
SHARE = 0.15
GRADIENTS = 3  # a pass with gradients takes so many times as long as one without
_EARLY = (0, 10, 30)  # where a curve has to begin, whatever the length of an epoch
_POINTS_PER_EPOCH = 5
_LONG = 5.0  # seconds, beside which the device's preparations for the first case do not count


def is_check(iteration: int, epoch: int) -> bool:
    """Whether cases are checked after so many iterations; ``epoch`` in iterations. The last one is checked as well."""
    return iteration % epoch == 0 or (iteration in _EARLY and iteration < epoch)


def is_point(iteration: int, epoch: int) -> bool:
    """Whether the curve of the loss has a point after so many iterations: every one of the first ten, fewer later."""
    early = iteration <= 10 or (iteration < epoch and iteration % 10 == 0)
    return early or iteration % max(1, epoch // _POINTS_PER_EPOCH) == 0 or is_check(iteration, epoch)


def number_of_checks(iterations: float, epoch: int) -> int:
    """Checks in a whole training of so many iterations, those at its beginning and its end included."""
    return sum(early < min(iterations, epoch) for early in _EARLY) + max(1, math.ceil(iterations / epoch))


def windows_per_check(iterations: float, epoch: int, batch_size: int) -> int:
    """Windows in one check, so that all checks together take :data:`SHARE` of the images trained on."""
    return int(SHARE * iterations * batch_size / number_of_checks(iterations, epoch))


def monitored_cases(cases: dict[str, StoredCase], network: NetworkPlan, most: int) -> dict[str, StoredCase]:
    """As many cases as the windows allow, evenly spread over the names of those that have foreground.

    Args:
        cases: Of which to choose.
        network: Whose windows cover their slices.
        most: Windows in all; where even one case has more, the one with the fewest is taken.
    """
    names = [name for name in sorted(cases) if any(cases[name].class_locations)] or sorted(cases)  # any but 0
    windows = np.array([windows_of(cases[name], network) for name in names])
    for number in range(min(most, len(names)), 1, -1):  # none has less than one window
        chosen = np.linspace(0, len(names) - 1, number).round().astype(int)
        if windows[chosen].sum() <= most:
            break
    else:
        chosen = [0 if windows[0] <= most else int(windows.argmin())]
    return {names[index]: cases[names[index]] for index in chosen}


def windows_of(case: StoredCase, network: NetworkPlan) -> int:
    """Inputs of the network that cover a case's slices."""
    depth, *plane = case.shape
    grid = SliceGrid.of(tuple(plane), case.spacing, network.spacing, network.input_shape, network.stretch)
    return depth * len(grid.window_starts(0.5))


def monitored_dice(
    predictor: SlicePredictor,
    cases: dict[str, StoredCase],
    network: NetworkPlan,
    labels: Labels,
) -> float | None:
    """Mean foreground Dice, case by case, on the stored grid; None without foreground.

    Args:
        predictor: Of the model as it is now.
        cases: Monitored cases.
        network, labels: What is trained.
    """
    regions = [region for _, region in labels.foreground]
    scores = []
    for case in cases.values():
        shape = case.shape[1:]
        grid = SliceGrid.of(shape, case.spacing, network.spacing, network.input_shape, network.stretch)
        mask = predictor.mask(case.image(), grid, shape, labels)
        counts = confusion_counts(mask, case.label(), regions, labels.ignore)
        scores.append([dice(count) for count in counts])
    per_class = [np.mean(column[~np.isnan(column)]) for column in np.array(scores).T if not np.isnan(column).all()]
    return float(np.mean(per_class)) if per_class else None


def seconds_of_prediction(predictor: Predictor, case: StoredCase) -> float:
    """What a stored case takes when it is predicted as a user would; the second time, where that is soon over."""
    for _ in range(2):
        begin = time.monotonic()
        predictor.predict_prepared(PreparedCase(case.image(), None, case.record))
        seconds = time.monotonic() - begin
        if seconds > _LONG:
            break
    return seconds


@torch.inference_mode()
def seconds_of_pass(model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> float:
    """What the network takes for images ``(b, channels, H, W)`` without gradients, the second time."""
    for _ in range(2):
        begin = time.monotonic()
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            model(images, upsample=False).sum().item()  # waits for the device
        seconds = time.monotonic() - begin
    return seconds
