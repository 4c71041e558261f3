"""Checkpoints of a running training, with a network of one layer."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from samunet.training import state
from samunet.training.state import LATEST, Progress, load_latest, save_latest


class OneLayer(nn.Linear):
    def trained_state(self):
        return self.state_dict()

    def load_trained_state(self, tensors):
        self.load_state_dict(tensors)


def training():
    model = OneLayer(3, 2)
    return model, torch.optim.AdamW(model.parameters())


@pytest.fixture
def stepped():
    """A network and its optimizer after one step."""
    model, optimizer = training()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_nothing_of_a_restored_optimizer_lies_in_the_file(tmp_path, stepped, monkeypatch):
    save_latest(tmp_path, *stepped, Progress(setup={"seed": 1}))
    read = load_file(tmp_path / LATEST)
    monkeypatch.setattr(state, "read_tensors", lambda path: read)
    model, optimizer = training()
    load_latest(tmp_path, model, optimizer, {"seed": 1})
    in_file = {tensor.untyped_storage().data_ptr() for tensor in read.values()}
    moments = [value for values in optimizer.state.values() for value in values.values()]
    assert len(moments) == 6
    assert not in_file & {tensor.untyped_storage().data_ptr() for tensor in moments}
    for own, other in zip(optimizer.state.values(), stepped[1].state.values(), strict=True):
        assert all(torch.equal(own[key], torch.as_tensor(other[key])) for key in other)


def test_checkpoints_from_before_the_scaler_was_kept_can_be_read(tmp_path, stepped):
    progress = Progress(iteration=7, setup={"seed": 1}, scaler={"scale": 1024.0})
    save_latest(tmp_path, *stepped, progress)
    assert load_latest(tmp_path, *training(), {"seed": 1}) == progress
    older = {key: value for key, value in vars(progress).items() if key != "scaler"}
    save_file(load_file(tmp_path / LATEST), tmp_path / LATEST, {"progress": json.dumps(older)})
    restored = load_latest(tmp_path, *training(), {"seed": 1})
    assert (restored.iteration, restored.scaler) == (7, {})
