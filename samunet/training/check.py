"""One check of the monitored cases while a fold trains."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from samunet.dataset.labels import Labels
from samunet.evaluation.metrics import confusion_counts, dice
from samunet.inference.logits import SlicePredictor, decode
from samunet.inference.planes import PlanePredictor
from samunet.plans import NetworkPlan
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.planes import Plane
from samunet.preprocessing.store import StoredCase


def monitored_dice(
    predictor: SlicePredictor,
    cases: dict[str, StoredCase],
    planes: Sequence[Plane],
    network: NetworkPlan,
    labels: Labels,
) -> float | None:
    """Mean foreground Dice, case by case, on the stored grid; None without foreground.

    Args:
        predictor: Of the model as it is now.
        cases: Monitored cases.
        planes: Along which volumes are sliced; over several it is averaged, which takes too long while a fold trains.
        network, labels: What is trained.
    """
    several = PlanePredictor(predictor, planes, network, labels) if len(planes) > 1 else None
    regions = [region for _, region in labels.foreground]
    scores = []
    for case in cases.values():
        shape = case.shape[1:]
        if several:
            slices = several.logits(case.image(), case.record, shape)
            mask = np.stack([decode(logits, labels).cpu().numpy() for _, logits in slices])
        else:
            grid = SliceGrid.of(shape, case.spacing, network.spacing, network.input_shape)
            mask = predictor.mask(case.image(), grid, shape, labels)
        counts = confusion_counts(mask, case.label(), regions, labels.ignore)
        scores.append([dice(count) for count in counts])
    per_class = [np.mean(column[~np.isnan(column)]) for column in np.array(scores).T if not np.isnan(column).all()]
    return float(np.mean(per_class)) if per_class else None


@torch.inference_mode()
def seconds_of_pass(model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> float:
    """What the network takes for images ``(b, channels, H, W)`` without gradients, the second time."""
    for _ in range(2):
        begin = time.monotonic()
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            model(images, upsample=False).sum().item()  # waits for the device
        seconds = time.monotonic() - begin
    return seconds
