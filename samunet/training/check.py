"""One check of the monitored cases while a fold trains."""

from __future__ import annotations

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

_LONG = 5.0  # seconds, beside which the device's preparations for the first case do not count


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
