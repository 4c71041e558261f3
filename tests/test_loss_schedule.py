"""The loss and the schedule, against values worked out by hand."""

import math

import pytest
import torch

from samunet.dataset.labels import Labels
from samunet.errors import UsageError
from samunet.training.loss import SegmentationLoss, dice_sums, soft_dice
from samunet.training.options import TrainingOptions
from samunet.training.schedule import Budget, format_duration, parse_duration

CLASSES = Labels.from_json({"background": 0, "organ": 1, "core": 2})
IGNORING = Labels.from_json({"background": 0, "organ": 1, "core": 2, "ignore": 3})
REGIONS = Labels.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])


def one_hot(target, classes):
    return torch.nn.functional.one_hot(target, classes).movedim(-1, 1).float()


def test_soft_dice_by_hand():
    # Two images of one channel: probabilities 0.5, 0.5, 1, 0 and target 1, 0, 1, 0.
    probabilities = torch.tensor([[0.5, 0.5], [1.0, 0.0]])[None, None]
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]
    assert float(soft_dice(dice_sums(probabilities, target))) == pytest.approx((2 * 1.5 + 1e-5) / (2 + 2 + 1e-5))
    annotated = torch.tensor([[1.0, 1.0], [0.0, 0.0]])[None, None]
    assert float(soft_dice(dice_sums(probabilities, target, annotated))) == pytest.approx(
        (2 * 0.5 + 1e-5) / (1 + 1 + 1e-5)
    )


def test_soft_dice_pools_the_batch():
    """An image without foreground does not lower the score of a batch that is otherwise perfect."""
    target = torch.zeros(2, 1, 4, 4)
    target[0, :, :2] = 1
    assert float(soft_dice(dice_sums(target, target))) == pytest.approx(1.0)


def test_loss_is_cross_entropy_plus_dice():
    logits = torch.zeros(1, 3, 2, 2)
    target = torch.tensor([[[0, 1], [2, 2]]])
    # Uniform probabilities 1/3: overlap 1/3 and 2/3, sums 4/3 + 1 and 4/3 + 2.
    dice = ((2 / 3) / (7 / 3) + (4 / 3) / (10 / 3)) / 2
    assert float(SegmentationLoss(CLASSES)(logits, target)) == pytest.approx(math.log(3) + 1 - dice, abs=1e-5)
    perfect = one_hot(target, 3) * 100
    assert float(SegmentationLoss(CLASSES)(perfect, target)) == pytest.approx(0.0, abs=1e-4)


def test_regions_have_a_binary_loss_each():
    target = torch.tensor([[[0, 1], [2, 2]]])
    # Probability one half everywhere. Whole covers three of four pixels, core two:
    # overlaps 1.5 and 1, sums 2 + 3 and 2 + 2.
    dice = (2 * 1.5 / 5 + 2 * 1.0 / 4) / 2
    loss = SegmentationLoss(REGIONS)(torch.zeros(1, 2, 2, 2), target)
    assert float(loss) == pytest.approx(math.log(2) + 1 - dice, abs=1e-5)
    perfect = torch.tensor([[[[-50.0, 50], [50, 50]], [[-50, -50], [50, 50]]]])
    assert float(SegmentationLoss(REGIONS)(perfect, target)) == pytest.approx(0.0, abs=1e-4)


def test_ignored_pixels_neither_score_nor_train():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 4), generator=generator)
    # The lower half without annotation gives what the upper half gives alone.
    upper = SegmentationLoss(CLASSES)(logits[:, :, :2], target[:, :2])
    target[:, 2:] = 3
    loss = SegmentationLoss(IGNORING)(logits, target)
    assert float(loss.detach()) == pytest.approx(float(upper.detach()), abs=1e-6)
    loss.backward()
    assert logits.grad[:, :, :2].abs().min() > 0
    assert logits.grad[:, :, 2:].abs().max() == 0


def test_a_batch_without_annotation_teaches_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = SegmentationLoss(IGNORING)(logits, torch.full((1, 4, 4), 3))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.abs().max() == 0


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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("20m", 1200), ("1.5h", 5400), ("45", 45), (" 10M ", 600), ("2min", 120), ("2h30m", 9000),
        ("1h 30 min", 5400), ("1m30s", 90), ("1h5s", 3605),
    ],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10x", "-5m", "0m", "1h30", "m", "30m2h", "1h2h", "9" * 400 + "h"])
def test_wrong_durations(text):
    with pytest.raises(UsageError, match="20m"):
        parse_duration(text)


def test_format_duration():
    assert [format_duration(s) for s in (45, 720, 3900)] == ["45 s", "12 min", "1 h 5 min"]


def test_only_one_length_may_be_given():
    with pytest.raises(UsageError, match="one of `epochs`"):
        TrainingOptions(epochs=3, seconds=60)
    with pytest.raises(UsageError, match="batch_size"):
        TrainingOptions(batch_size=0)


@pytest.mark.parametrize("name", ["learning_rate", "seconds", "checkpoint_seconds"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 0.0])
def test_numbers_of_a_training_are_finite(name, value):
    with pytest.raises(UsageError, match=f"{name}` must be above 0"):
        TrainingOptions(**{name: value})
