"""Windows, mirroring and folds, with models whose output is known."""

import numpy as np
import pytest
import torch
from torch import nn

from samunet.inference.logits import SlicePredictor
from samunet.preprocessing.grid import SliceGrid


class Threshold(nn.Module):
    """Two classes: foreground where the centre channel is above ``level``. Sees every pixel alone."""

    def __init__(self, level: float = 0.0, channel: int = 0) -> None:
        super().__init__()
        self.level, self.channel = level, channel

    def forward(self, image):
        value = image[:, self.channel : self.channel + 1] - self.level
        return torch.cat([-value, value], dim=1)


def predictor(models=None, **changes):
    settings = {"neighbours": False, "device": torch.device("cpu"), "dtype": None, "batch_size": 2} | changes
    return SlicePredictor(models or [Threshold()], **settings)


def smooth_image(depth=3, height=40, width=52):
    z, y, x = np.meshgrid(np.arange(depth), np.arange(height), np.arange(width), indexing="ij")
    return np.sin(y / 6 + z) * np.cos(x / 8)[None].astype(np.float32)


def test_mask_on_the_original_grid():
    image = smooth_image()
    grid = SliceGrid.of((40, 52), [1.0, 1.0], 0.5, [80, 104])
    mask = predictor().mask(image, grid, (40, 52))
    assert mask.dtype == np.uint8
    assert (mask == (image[0] > 0)).mean() > 0.99


@pytest.mark.parametrize("step", [0.5, 1.0])
def test_windows_give_what_the_whole_slice_gives(step):
    image = smooth_image()
    whole = dict(predictor().logits(image, SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [40, 56]), (40, 52)))
    tiled = dict(predictor(step_size=step).logits(image, SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [16, 24]), (40, 52)))
    for z in whole:
        assert torch.allclose(whole[z], tiled[z], atol=1e-4)


def test_a_slice_larger_along_one_axis_only():
    image = smooth_image()
    tiled = dict(predictor().logits(image, SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [64, 24]), (40, 52)))
    assert torch.allclose(tiled[1][1].double(), torch.from_numpy(image[0, 1]).double(), atol=1e-4)


def test_mirroring_averages_what_each_flip_gives():
    class Ramp(nn.Module):
        """Adds the column number, so that mirrored predictions differ."""

        def forward(self, image):
            ramp = torch.arange(image.shape[3], dtype=torch.float32).expand(len(image), 1, image.shape[2], -1)
            return torch.cat([ramp, image], dim=1)

    image = smooth_image(1, 8, 10)
    grid = SliceGrid.of((8, 10), [1.0, 1.0], 1.0, [8, 10])
    ((_, plain),) = predictor([Ramp()]).logits(image, grid, (8, 10))
    ((_, mirrored),) = predictor([Ramp()], mirror_axes=[0, 1]).logits(image, grid, (8, 10))
    assert torch.allclose(plain[0], torch.arange(10.0).expand(8, -1), atol=1e-5)
    assert torch.allclose(mirrored[0], torch.full((8, 10), 4.5), atol=1e-5)
    assert torch.allclose(mirrored[1], plain[1], atol=1e-5)


def test_folds_are_averaged():
    image = smooth_image(1)
    grid = SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [40, 52])
    ((_, logits),) = predictor([Threshold(0.0), Threshold(1.0)]).logits(image, grid, (40, 52))
    assert torch.allclose(logits[1].double(), torch.from_numpy(image[0, 0] - 0.5), atol=1e-5)


def test_neighbours_are_previous_this_and_next_slice():
    image = np.arange(4, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 8, 8), dtype=np.float32)
    grid = SliceGrid.of((8, 8), [1.0, 1.0], 1.0, [8, 8])
    for channel, expected in ((0, [0, 0, 1, 2]), (1, [0, 1, 2, 3]), (2, [1, 2, 3, 3])):
        found = predictor([Threshold(0.0, channel)], neighbours=True).logits(image, grid, (8, 8))
        assert [float(logits[1].mean()) for _, logits in found] == pytest.approx(expected)
