"""Entropy and disagreement, with models whose output is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from samunet.dataset.labels import Labels
from samunet.inference.logits import SlicePredictor, window_weights
from samunet.inference.uncertainty import CaseUncertainty
from samunet.preprocessing.grid import SliceGrid

TWO = Labels(("background", "organ"), ((0,), (1,)))
REGIONS = Labels(("whole", "core"), ((1, 2), (2,)), class_order=(1, 2))


class Says(nn.Module):
    """The same logits everywhere it sees a positive value, and certain background elsewhere."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)[:, None, None]
        self.certain = torch.zeros_like(self.logits) - 50
        self.certain[0] += 100 if len(logits) == 2 else 0

    def forward(self, image):
        return torch.where(image[:, :1] > 0, self.logits, self.certain)


class LeftHalf(nn.Module):
    """Foreground in the left half of what it sees, whatever that is."""

    def forward(self, image):
        side = torch.full((len(image), 1, *image.shape[2:]), -20.0)
        side[..., : image.shape[3] // 2] = 20.0
        return torch.cat([-side, side], dim=1)


def watched(models, image, labels=TWO, size=(8, 10), window=None, **changes):
    settings = {"neighbours": False, "device": torch.device("cpu"), "dtype": None, "batch_size": 2} | changes
    predictor = SlicePredictor(models, **settings)
    watch = CaseUncertainty(labels, (image.shape[1], *size), len(models))
    grid = SliceGrid.of(image.shape[2:], [1.0, 1.0], 1.0, list(window or size))
    mask = predictor.mask(image, grid, size, labels, watch)
    assert np.array_equal(mask, SlicePredictor(models, **settings).mask(image, grid, size, labels))
    return mask, watch


def block(depth=3, size=(8, 10)):
    """Positive in 4 x 5 pixels of every slice."""
    image = np.full((1, depth, *size), -1, np.float32)
    image[:, :, 2:6, 3:8] = 1
    return image


def entropy_bits(p):
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_entropy_of_two_classes():
    p = 1 / (1 + math.exp(-1.0))
    mask, watch = watched([Says(0.0, 1.0)], block())
    assert mask.sum() == 3 * 20
    assert (watch.entropy[mask == 1] == round(100 * entropy_bits(p))).all()
    assert (watch.entropy[mask == 0] == 0).all()
    doubt = watch.classes()["organ"]
    h = 60 * entropy_bits(p)
    assert doubt.entropy == pytest.approx(h / (h + 60), abs=1e-4)
    assert math.isnan(doubt.tta_disagreement)
    assert math.isnan(doubt.fold_disagreement)
    assert watch.disagreement is None


def test_evenly_spread_over_four_classes_is_one():
    labels = Labels(tuple("abcd"), tuple((value,) for value in range(4)))

    class Even(nn.Module):
        def forward(self, image):
            return torch.zeros(len(image), 4, *image.shape[2:])

    _, watch = watched([Even()], block(), labels)
    assert (watch.entropy == 100).all()


def test_regions_take_the_least_certain():
    _, watch = watched([Says(9.0, 0.0)], block(), REGIONS)
    assert (watch.entropy[:, 2:6, 3:8] == 100).all()
    assert set(watch.classes()) == {"whole", "core"}
    assert watch.classes()["whole"].entropy < 0.01
    assert math.isnan(watch.classes()["core"].entropy)  # a logit of 0 is not above one half


def test_folds_that_contradict_each_other():
    """One fold is sure of the organ, the other of the background: their mean is as uncertain as can be."""
    mask, watch = watched([Says(-20.0, 20.0), Says(19.0, -19.0)], block())
    assert mask.sum() == 60
    assert (watch.disagreement[mask == 1] == 100).all()
    assert (watch.disagreement[mask == 0] == 0).all()
    # The mean agrees with one fold (Dice 1) and not with the other (0 of 60): 2 * 60 / (2 * 60 + 60) in common.
    assert watch.classes()["organ"].fold_disagreement == pytest.approx(1 - 120 / 180)


def test_folds_that_are_unsure_in_the_same_way_do_not_disagree():
    _, watch = watched([Says(0.0, 0.5), Says(0.0, 0.5)], block())
    assert watch.disagreement.max() == 0
    assert watch.entropy.max() > 90
    assert watch.classes()["organ"].fold_disagreement == 0


def test_mirrored_inputs_that_disagree():
    """Foreground on the left of what it sees: with x mirrored, on the right; their mean is undecided."""

    class Left(LeftHalf):
        def forward(self, image):
            logits = super().forward(image)
            return logits + torch.tensor([0.0, 1.0])[:, None, None]  # the mean is the organ, everywhere

    mask, watch = watched([Left()], block(), mirror_axes=[1])
    assert (mask == 1).all()
    # Each of two sees half of it: Dice 2 * 1/2 / (1 + 1/2) = 2/3.
    assert watch.classes()["organ"].tta_disagreement == pytest.approx(1 / 3)


def test_shifted_inputs_that_disagree():
    """Foreground in the upper half of what it sees, which moves with the shift."""

    class Upper(nn.Module):
        def forward(self, image):
            side = torch.full((len(image), 1, *image.shape[2:]), -20.0)
            side[..., : image.shape[2] // 2, :] = 20.0
            return torch.cat([-side, side], dim=1)

    mask, watch = watched([Upper()], np.ones((1, 2, 16, 16), np.float32), size=(16, 16), window_shift=4)
    views = np.zeros((5, 16, 16), bool)
    views[0, :8] = True
    views[1:3, :4] = views[3:, 4:12] = True  # up and down
    mean = mask[0] == 1
    for view, rows, columns in zip(views[1:], (12, 12, 4, 4), (12, 4, 12, 4)):  # what it does not see, the mean decides
        unseen = np.ones((16, 16), bool)
        unseen[slice(rows) if rows == 12 else slice(4, None), slice(columns) if columns == 12 else slice(4, None)] = (
            False
        )
        view[unseen] = mean[unseen]
    expected = 1 - 2 * (views & mean).sum() / (views.sum() + 5 * mean.sum())
    assert watch.classes()["organ"].tta_disagreement == pytest.approx(expected)
    assert 0.1 < expected < 0.9


def test_windows_and_padding_do_not_count_twice():
    image = block(size=(24, 30))
    image[:, :, 2:20, 3:28] = 1
    _, whole = watched([Says(0.0, 1.0)], image, size=(24, 30), window=(24, 30))
    for window in ((16, 16), (64, 64), (16, 48)):
        _, watch = watched([Says(0.0, 1.0)], image, size=(24, 30), window=window)
        assert watch._sizes.sum() == pytest.approx(3 * 24 * 30, rel=1e-4), window
        assert watch.classes()["organ"].entropy == pytest.approx(whole.classes()["organ"].entropy, abs=5e-3)


def test_weights_of_windows_are_shares():
    grid = SliceGrid.of((40, 52), [1.0, 1.0], 1.0, [16, 24])
    starts = grid.window_starts(0.5)
    total = torch.zeros(40, 52)
    for (y, x), weight in zip(starts, window_weights(grid, starts, torch.device("cpu")), strict=True):
        total[int(y) : int(y) + 16, int(x) : int(x) + 24] += weight
    assert torch.allclose(total, torch.ones(40, 52), atol=1e-5)


def test_a_class_that_nobody_predicts():
    mask, watch = watched([Says(5.0, -5.0), Says(5.0, -5.0)], block(), mirror_axes=[0, 1])
    assert mask.max() == 0
    doubt = watch.classes()["organ"]
    assert all(math.isnan(value) for value in (doubt.entropy, doubt.tta_disagreement, doubt.fold_disagreement))


def test_a_case_called_like_a_map_has_a_file_of_its_own(tmp_path):
    from samunet.evaluation.quality import case_file, map_file, measured_cases

    names = ["p1", "p1_entropy", "p1_entropy_case", "p2_fold_disagreement", "q_case"]
    files = [case_file(tmp_path, name) for name in names]
    sidecars = [map_file(tmp_path / "m.tif", name, "entropy").with_suffix(".json") for name in names]
    assert len({*files, *sidecars}) == 2 * len(names)
    for file in (*files, *sidecars):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert measured_cases(tmp_path) == sorted(names)
