"""What a training does before its first step and after its last; the steps themselves are left out."""

import gc
import weakref
from types import SimpleNamespace

import pytest

from samunet import api
from samunet.commands import plan_and_preprocess
from samunet.errors import SamunetError
from samunet.training import run
from samunet.training.trainer import Trainer


@pytest.fixture
def planned(samunet_folders, tiny_dataset, monkeypatch):
    """A tiny dataset, planned and preprocessed; nothing is trained and nothing validated."""
    tiny_dataset()
    assert plan_and_preprocess.main(["-d", "998"]) == 0
    monkeypatch.setattr(Trainer, "train", lambda self: None)
    monkeypatch.setattr(run, "_validate", lambda *arguments: None)
    return samunet_folders


def train(fold=0):
    return api.train(998, "2d", fold, api.TrainingOptions(iterations=4, batch_size=2), progress=False)


def test_the_network_is_freed_before_the_validation(planned, monkeypatch):
    trained, there = [], []
    monkeypatch.setattr(Trainer, "train", lambda self: trained.append(weakref.ref(self.model)))

    def validate(*arguments):
        gc.collect()
        there.append(trained[0]() is not None)

    monkeypatch.setattr(run, "_validate", validate)
    train()
    assert there == [False]
