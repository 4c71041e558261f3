"""The loss and the schedule, against values worked out by hand."""

import math

import pytest
import torch

from samunet.errors import UsageError
from samunet.training.loss import segmentation_loss, soft_dice
from samunet.training.options import TrainingOptions
from samunet.training.schedule import Budget, format_duration, parse_duration


def test_soft_dice_by_hand():
    # Two classes on 2 x 2 pixels; foreground probabilities 0.5, 0.5, 1, 0 and target 1, 0, 1, 0.
    foreground = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    probabilities = torch.stack([1 - foreground, foreground])[None]
    target = torch.tensor([[[1, 0], [1, 0]]])
    expected = (2 * 1.5 + 1e-5) / (2 + 2 + 1e-5)
    assert float(soft_dice(probabilities, target)) == pytest.approx(expected)


def test_soft_dice_pools_the_batch():
    """An image without foreground does not lower the score of a batch that is otherwise perfect."""
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[0, :2] = 1
    probabilities = torch.nn.functional.one_hot(target, 2).movedim(-1, 1).float()
    assert float(soft_dice(probabilities, target)) == pytest.approx(1.0)


def test_loss_is_cross_entropy_plus_dice():
    logits = torch.zeros(1, 3, 2, 2)
    target = torch.tensor([[[0, 1], [2, 2]]])
    # Uniform probabilities 1/3: overlap 1/3 and 2/3, sums 4/3 + 1 and 4/3 + 2.
    dice = ((2 / 3) / (7 / 3) + (4 / 3) / (10 / 3)) / 2
    assert float(segmentation_loss(logits, target)) == pytest.approx(math.log(3) + 1 - dice, abs=1e-5)
    perfect = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float() * 100
    assert float(segmentation_loss(perfect, target)) == pytest.approx(0.0, abs=1e-4)


def test_learning_rate_over_iterations():
    budget = Budget(iterations=10_000)
    factors = [budget.learning_rate_factor(i, 0) for i in range(10_000)]
    assert max(factors) == pytest.approx(1.0)
    assert factors.index(max(factors)) == 250  # warm-up of 250 iterations, less than 5 %
    assert factors[0] == pytest.approx(1 / 251)
    middle = 250 + (10_000 - 250) // 2
    assert factors[middle] == pytest.approx(0.5**0.9, rel=1e-3)
    assert 0 < factors[-1] < 1e-3


def test_learning_rate_over_time_ends_with_the_budget():
    budget = Budget(seconds=100)
    assert budget.learning_rate_factor(3, 2.5) == pytest.approx(0.5)
    assert budget.learning_rate_factor(3, 5.0) == pytest.approx(1.0)
    assert budget.learning_rate_factor(3, 52.5) == pytest.approx(0.5**0.9)
    assert budget.learning_rate_factor(3, 100) == 0
    assert budget.progress(3, 120) == 1


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("45", 45), (" 10M ", 600)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10x", "-5m", "0m", "1h30"])
def test_wrong_durations(text):
    with pytest.raises(UsageError, match="20m"):
        parse_duration(text)


def test_format_duration():
    assert [format_duration(s) for s in (45, 720, 3900)] == ["45 s", "12 min", "1 h 5 min"]


def test_only_one_length_may_be_given():
    with pytest.raises(UsageError, match="one of --epochs"):
        TrainingOptions(epochs=3, seconds=60)
    with pytest.raises(UsageError, match="batch_size"):
        TrainingOptions(batch_size=0)
