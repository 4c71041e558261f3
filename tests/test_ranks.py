"""Two processes that share every update take the steps of one that has all its items."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn

from samunet.dataset.labels import Labels
from samunet.training.loop import Loop
from samunet.training.loss import SegmentationLoss
from samunet.training.ranks import sum_gradients, summed
from samunet.training.recipes import Batch, Recipe
from samunet.training.schedule import Budget
from samunet.training.state import Progress

LABELS = Labels.from_json({"background": 0, "organ": 1, "core": 2, "ignore": 3})
UPDATES, ITEMS = 3, 8


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 3, padding=1))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, images, upsample=True, encode=None):
        return self.layers(images)


class Learning(Recipe):
    learning_rate = 0.1

    def build_loss(self):
        return SegmentationLoss(self.labels)

    def place(self, given):
        return given


class Updates(Loop):
    def __init__(self, most):
        torch.manual_seed(0)
        recipe = Learning(Convolutions(), SimpleNamespace(recipe="samunet"), LABELS)
        optimizer = torch.optim.AdamW(recipe.learner.parameters())
        super().__init__(recipe, optimizer, Progress(), Budget(iterations=99), checkpoint_seconds=9, repeatable=True)
        self.most = most

    def _backward(self, batch):
        return self.recipe.gradients(batch, self.most, self.scaler.scale)


def updates(most, rank=0, ranks=1):
    """Losses of some updates and the weights after them; of the items every process takes its own."""
    loop, losses = Updates(most), []
    for _ in range(UPDATES):
        images, target = torch.randn(ITEMS, 2, 16, 16), torch.randint(0, 4, (ITEMS, 16, 16))
        target[::2][:3] = 0  # the processes have different shares of every class
        losses.append(loop._step(Batch(images[rank::ranks], target[rank::ranks])))
        loop.state.iteration += 1
    return losses, [parameter.detach() for parameter in loop.recipe.model.parameters()]


def share(rank, folder, most):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(updates(most, rank, 2), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("most", [ITEMS, 1])
def test_two_processes_take_the_steps_of_one(tmp_path, most):
    torch.multiprocessing.spawn(share, (tmp_path, most), nprocs=2)
    losses, weights = updates(ITEMS)
    for rank in range(2):
        got_losses, got_weights = torch.load(tmp_path / f"{rank}.pt")
        assert got_losses == pytest.approx(losses, rel=1e-5)
        for got, expected in zip(got_weights, weights):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_one_process_changes_nothing():
    values, module = torch.ones(2), nn.Linear(2, 1)
    assert summed(values) is values
    sum_gradients(module)
    assert module.weight.grad is None
