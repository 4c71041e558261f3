"""An update computed in parts: loss and gradients are those of the whole, whatever memory allows at a time."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reduced import reduce_bundled_encoder
from torch import nn

from samunet.dataset.labels import Labels
from samunet.network.model import build_model
from samunet.plans import NetworkPlan
from samunet.training.loss import SegmentationLoss, soft_dice
from samunet.training.recipes import Batch, Recipe
from samunet.training.recipes.samed import SamedLoss
from samunet.training.trainer import Trainer

ONE_CLASS = Labels.from_json({"background": 0, "organ": 1})
CLASSES = Labels.from_json({"background": 0, "organ": 1, "core": 2})
IGNORING = Labels.from_json({"background": 0, "organ": 1, "core": 2, "ignore": 3})
REGIONS = Labels.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
LOSSES = {
    "classes": (SegmentationLoss(CLASSES), 3, 3),
    "regions": (SegmentationLoss(REGIONS), 2, 3),
    "an ignore label": (SegmentationLoss(IGNORING), 3, 4),
    "samed": (SamedLoss(), 3, 3),
}


class Learning(Recipe):
    def __init__(self, model, loss, samed=False):
        self.given = loss
        super().__init__(model, SimpleNamespace(recipe="samed" if samed else "samunet"), None)

    def build_loss(self):
        return self.given


def trainer_of(model, loss, most, samed=False):
    trainer = Trainer.__new__(Trainer)
    trainer.recipe, trainer.micro_batch = Learning(model, loss, samed), most
    trainer.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=False)
    return trainer


def step(model, loss, most, images, labels, samed=False):
    """The loss and the gradients of one update, by the names of the trained tensors."""
    model = copy.deepcopy(model)
    value = trainer_of(model, loss, most, samed)._backward(Batch(images, labels))
    return value, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got, expected, tolerance):
    assert got.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        limit = tolerance * max(float(gradient.norm()), 1e-3 * largest)
        assert float((got[name] - gradient).norm()) <= limit, name


class Convolutions(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, outputs, 3, padding=1))

    def forward(self, images, upsample=True, encode=None):
        logits = self.layers(images)
        return logits if upsample else nn.functional.avg_pool2d(logits, 4)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_do_not_depend_on_the_parts(name, most):
    loss, outputs, values = LOSSES[name]
    torch.manual_seed(0)
    model = Convolutions(outputs)
    images, labels = torch.randn(12, 2, 16, 16), torch.randint(0, values, (12, 16, 16))
    labels[3] = 0  # an image without foreground
    if name == "an ignore label":
        labels[5] = 3  # one without annotated pixels
        labels[6, :9] = 3
    expected = loss(model(images, upsample=name != "samed"), labels)
    whole = copy.deepcopy(model)
    loss(whole(images, upsample=name != "samed"), labels).backward()
    value, gradients = step(model, loss, most, images, labels, samed=name == "samed")
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same_gradients(gradients, {key: p.grad for key, p in whole.named_parameters()}, tolerance=1e-5)


def test_the_loss_of_parts_is_no_mean_of_their_losses():
    """Two images of one pixel: probabilities (0.2, 0.8) of the class, (0.6, 0.4) of background."""
    logits = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).log().reshape(2, 2, 1, 1)
    labels = torch.tensor([1, 0]).reshape(2, 1, 1)
    loss = SamedLoss()
    assert float(loss(logits, labels)) == pytest.approx(0.174984, abs=1e-6)
    assert np.mean([float(loss(logits[[i]], labels[[i]])) for i in (0, 1)]) == pytest.approx(0.501742, abs=1e-6)
    sums = (loss.sums(logits[:1], labels[:1]) + loss.sums(logits[1:], labels[1:])).requires_grad_()
    assert sums[0].item() / 2 == pytest.approx(0.366985, abs=1e-6)
    (slope,) = torch.autograd.grad(loss.value(sums), sums)
    assert slope[2:4].tolist() == pytest.approx([-0.571424, -0.444442], abs=1e-6)  # of the overlaps
    assert slope[4:6].tolist() == pytest.approx([0.244897, 0.197530], abs=1e-6)  # of the squared probabilities

    ours = SegmentationLoss(ONE_CLASS)
    pooled = soft_dice(ours.sums(logits, labels)[2:].reshape(3, -1))
    alone = [soft_dice(ours.sums(logits[[i]], labels[[i]])[2:].reshape(3, -1)) for i in (0, 1)]
    assert float(pooled) == pytest.approx(0.727274, abs=1e-6)
    assert np.mean([float(value) for value in alone]) == pytest.approx(0.444457, abs=1e-6)


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_gradients_of_the_real_network(monkeypatch, adaptation):
    from test_adaptations import make_plan

    reduce_bundled_encoder(monkeypatch, width=64, depth=2, heads=2, global_blocks=(1,))
    plan: NetworkPlan = make_plan("small", adaptation, head="detail")
    torch.manual_seed(0)
    model = build_model(plan, num_outputs=3, num_channels=1, unit_range=[False])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)  # at its zero, lora_A would have no gradient
    images, labels = torch.randn(6, 1, 64, 64), torch.randint(0, 3, (6, 64, 64))
    loss = SegmentationLoss(CLASSES)
    whole_value, whole = step(model, loss, 6, images, labels)
    for most in (1, 4):
        value, gradients = step(model, loss, most, images, labels)
        assert value == pytest.approx(whole_value, rel=1e-5)
        assert_same_gradients(gradients, whole, tolerance=2e-4)


def test_batch_statistics_move_once_an_update():
    """Of a normalisation that trains: the pass that only collects sums leaves its running mean alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.5), nn.Conv2d(1, 2, 1))
    model.forward = lambda images, upsample=True, encode=None: nn.Sequential.forward(model, images)
    images = torch.full((2, 1, 4, 4), 8.0) + torch.randn(2, 1, 4, 4)
    trainer = trainer_of(model, SegmentationLoss(ONE_CLASS), most=1)
    value = trainer._backward(Batch(images, torch.randint(0, 2, (2, 4, 4))))
    assert math.isfinite(value)
    expected = 0.25 * 0 + 0.25 * float(images[0].mean()) + 0.5 * float(images[1].mean())
    assert float(model[0].running_mean) == pytest.approx(expected, rel=1e-5)


def test_running_out_of_memory_changes_no_result(monkeypatch):
    """Where a step halves, loss and gradients stay."""
    torch.manual_seed(0)
    model, loss = Convolutions(3), SegmentationLoss(CLASSES)
    images, labels = torch.randn(8, 2, 16, 16), torch.randint(0, 3, (8, 16, 16))
    labels[:5] = 0
    expected_value, expected = step(model, loss, 8, images, labels)
    forward = Convolutions.forward

    def too_large(self, part, upsample=True, encode=None):
        if len(part) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(self, part, upsample)

    monkeypatch.setattr(Convolutions, "forward", too_large)
    trainer = trainer_of(copy.deepcopy(model), loss, 8)
    assert trainer._backward(Batch(images, labels)) == pytest.approx(expected_value, rel=1e-5)
    assert trainer.micro_batch == 2
    gradients = {name: p.grad for name, p in trainer.recipe.model.named_parameters()}
    assert_same_gradients(gradients, expected, tolerance=1e-5)
