"""Checkpoints of a running training, with a network of one layer."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.models import checkpoint
from samunet.models.checkpoint import save_model
from samunet.training import state
from samunet.training.recipes import Recipe
from samunet.training.state import LATEST, Progress, load_latest, save_latest
from samunet.training.trainer import loss_error


class OneLayer(nn.Linear):
    def trained_state(self):
        return self.state_dict()

    def load_trained_state(self, tensors):
        self.load_state_dict(tensors)


def training():
    model = OneLayer(3, 2)
    return model, torch.optim.AdamW(model.parameters())


def recipe_of(model, optimizer):
    labels = Labels.from_json({"background": 0, "organ": 1})
    return Recipe(model, SimpleNamespace(recipe="samunet"), labels), optimizer


@pytest.fixture
def stepped():
    """A network and its optimizer after one step."""
    model, optimizer = training()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_nothing_of_a_restored_optimizer_lies_in_the_file(tmp_path, stepped, monkeypatch):
    save_latest(tmp_path, *recipe_of(*stepped), Progress(setup={"seed": 1}))
    read = load_file(tmp_path / LATEST)
    monkeypatch.setattr(state, "read_tensors", lambda path: read)
    model, optimizer = training()
    load_latest(tmp_path, *recipe_of(model, optimizer), {"seed": 1})
    in_file = {tensor.untyped_storage().data_ptr() for tensor in read.values()}
    moments = [value for values in optimizer.state.values() for value in values.values()]
    assert len(moments) == 6
    assert not in_file & {tensor.untyped_storage().data_ptr() for tensor in moments}
    for own, other in zip(optimizer.state.values(), stepped[1].state.values(), strict=True):
        assert all(torch.equal(own[key], torch.as_tensor(other[key])) for key in other)


def test_checkpoints_from_before_the_scaler_was_kept_can_be_read(tmp_path, stepped):
    progress = Progress(iteration=7, setup={"seed": 1}, scaler={"scale": 1024.0})
    save_latest(tmp_path, *recipe_of(*stepped), progress)
    assert load_latest(tmp_path, *recipe_of(*training()), {"seed": 1}) == progress
    older = {key: value for key, value in vars(progress).items() if key != "scaler"}
    save_file(load_file(tmp_path / LATEST), tmp_path / LATEST, {"progress": json.dumps(older)})
    restored = load_latest(tmp_path, *recipe_of(*training()), {"seed": 1})
    assert (restored.iteration, restored.scaler) == (7, {})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_never_written(tmp_path, stepped, value, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_adapters", lambda *arguments: None)  # this network has none
    model, optimizer = stepped
    for kind in ("final", "best"):
        save_model(tmp_path, model, kind)
    save_latest(tmp_path, *recipe_of(model, optimizer), Progress(setup={"seed": 1}))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3
    with torch.no_grad():
        model.weight[1, 2] = value
    for save in (
        lambda: save_model(tmp_path, model, "final"),
        lambda: save_model(tmp_path, model, "best"),
        lambda: save_latest(tmp_path, *recipe_of(model, optimizer), Progress()),
    ):
        with pytest.raises(SamunetError, match="made the weights infinite, for example weight"):
            save()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_cause_of_a_lost_loss_is_not_guessed(stepped):
    model, numbers = stepped[0], torch.zeros(1, 3)

    def error(images):
        return str(loss_error(float("nan"), 7, images, model, torch.bfloat16, 0.003))

    assert "the loss became nan at iteration 7, though images and weights are numbers: bfloat16" in error(numbers)
    assert "learning_rate" not in error(numbers)
    assert "pixels that are no numbers" in error(numbers * torch.nan)
    with torch.no_grad():
        model.bias[0] = torch.inf
    assert "an update made the weights infinite, for example bias\n  -> use a lower learning rate: " in error(numbers)
    assert "`learning_rate=1.0e-03, overwrite=True`" in error(numbers)


@pytest.mark.parametrize("progress", ['{"iteration": "x"}', "[]", "{", "null"])
def test_progress_that_is_none_is_refused(tmp_path, stepped, progress):
    save_latest(tmp_path, *recipe_of(*stepped), Progress(setup={"seed": 1}))
    save_file(load_file(tmp_path / LATEST), tmp_path / LATEST, {"progress": progress})
    with pytest.raises(SamunetError, match="checkpoint_latest") as error:
        load_latest(tmp_path, *recipe_of(*training()), {"seed": 1})
    assert "`overwrite=True`" in error.value.hint
