"""What a training does before its first step and after its last; the steps themselves are left out."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from samunet import api
from samunet.commands import plan_and_preprocess
from samunet.errors import SamunetError
from samunet.training import run, trainer
from samunet.training.trainer import Trainer


@pytest.fixture
def planned(samunet_folders, tiny_dataset, monkeypatch):
    """A tiny dataset, planned and preprocessed; nothing is trained and nothing validated."""
    tiny_dataset()
    assert plan_and_preprocess.main(["-d", "998"]) == 0
    monkeypatch.setattr(Trainer, "train", lambda self: None)
    monkeypatch.setattr(run, "_validate", lambda *arguments: None)
    return samunet_folders


def train(fold=0, configuration="2d"):
    return api.train(998, configuration, fold, api.TrainingOptions(iterations=4, batch_size=2), progress=False)


def test_the_network_is_freed_before_the_validation(planned, monkeypatch):
    trained, there = [], []
    monkeypatch.setattr(Trainer, "train", lambda self: trained.append(weakref.ref(self.model)))

    def validate(*arguments):
        gc.collect()
        there.append(trained[0]() is not None)

    monkeypatch.setattr(run, "_validate", validate)
    train()
    assert there == [False]


def test_a_validation_case_that_is_missing_is_told_before_anything_is_written(planned, monkeypatch):
    monkeypatch.setattr(run, "load_dataset", lambda name: SimpleNamespace(folder=name, cases={"case_9": None}))
    with pytest.raises(SamunetError, match=r"Dataset998_Tiny lacks 2 of the fold's 2 .* such as case_") as caught:
        train()
    assert "samunet_raw" in caught.value.hint
    assert not list(planned.glob("results/*/*/fold_0"))


def test_fold_all_needs_no_raw_images(planned, monkeypatch):
    monkeypatch.delenv("samunet_raw")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(SamunetError, match="samunet_raw is not set"):
        train()
    train("all")


def test_a_resumed_training_in_half_precision_keeps_the_scale_of_its_gradients(planned, monkeypatch):
    monkeypatch.setattr(trainer, "fast_dtype", lambda device, input_shape: torch.float16)
    scales = []

    def begin(self):
        scales.append(self.scaler.get_scale())
        self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": 1024.0})
        self._save_latest()

    monkeypatch.setattr(Trainer, "train", begin)
    train()
    train()
    assert scales == [65536.0, 1024.0]


def test_without_half_precision_there_is_no_scale_to_keep(planned, monkeypatch):
    monkeypatch.setattr(trainer, "fast_dtype", lambda device, input_shape: None)
    monkeypatch.setattr(Trainer, "train", Trainer._save_latest)
    train()
    kept = []
    monkeypatch.setattr(Trainer, "train", lambda self: kept.append((self.state.scaler, self.scaler.is_enabled())))
    train()
    assert kept == [({}, False)]


def test_every_fold_counts_its_own_peak_memory(planned, monkeypatch):
    calls = []
    monkeypatch.setattr(trainer, "reset_peak_memory", calls.append)
    train(0)
    train(1)
    assert len(calls) == 2


def test_a_configuration_that_is_another_for_sam_only_is_told(planned, caplog):
    train(configuration="2d_448")
    assert "with the encoder small, 2d_448 trains the same model as 2d" in caplog.text
    caplog.clear()
    train()
    assert "the same model" not in caplog.text
