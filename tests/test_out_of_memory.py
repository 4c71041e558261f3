"""What is done when a GPU's memory runs out; played on a CPU, where the error is raised by hand."""

import logging
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from samunet.errors import SamunetError
from samunet.inference import predictor as predictor_module
from samunet.inference.postprocessing import Postprocessing
from samunet.inference.predictor import Prediction, Predictor
from samunet.training.recipes import Batch, Recipe
from samunet.training.trainer import Trainer


class Small(nn.Module):
    """One weight; more than ``most`` images do not fit. When the next try begins, what failed must be gone."""

    def __init__(self, most: int, where: str = "network") -> None:
        super().__init__()
        self.where = where
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.most = most
        self.failed: list[weakref.ref] = []

    def forward(self, image, upsample=True, encode=None):
        assert all(reference() is None for reference in self.failed)
        return self.take("network", image * self.weight)

    def sums(self, logits, target):
        return torch.stack(
            [(self.take("loss", logits).flatten() * target.flatten()).sum(), torch.tensor(float(len(target)))]
        )

    def value(self, sums):
        return sums[0] / sums[1]

    def take(self, where, logits):
        if where == self.where and len(logits) > self.most:
            self.failed.append(weakref.ref(logits))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return logits


class Learning(Recipe):
    def build_loss(self):
        return self.model


def small_trainer(most, where="network"):
    trainer = Trainer.__new__(Trainer)
    trainer.recipe = Learning(Small(most, where), SimpleNamespace(recipe="samunet"), None)
    trainer.optimizer = torch.optim.SGD(trainer.recipe.model.parameters())
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer.micro_batch = 8
    return trainer


@pytest.mark.parametrize("where", ["network", "loss"])
def test_a_step_that_does_not_fit_is_freed_and_computed_in_parts(where, caplog):
    trainer = small_trainer(2, where)
    images, labels = torch.arange(8.0).reshape(8, 1, 1, 1), torch.ones(8, 1, 1)
    with caplog.at_level(logging.WARNING):
        loss = trainer._backward(Batch(images, labels))
    assert trainer.micro_batch == 2
    assert len(trainer.recipe.model.failed) == 2
    assert [record.args for record in caplog.records] == [(4,), (2,)]
    assert loss == pytest.approx(2 * 3.5)
    assert float(trainer.recipe.model.weight.grad) == pytest.approx(3.5)  # nothing is left of the tries that failed


def test_a_single_image_that_does_not_fit_is_an_error():
    images = torch.ones(8, 1, 1, 1)
    with pytest.raises(SamunetError, match="a single image does not fit") as caught:
        small_trainer(most=0)._backward(Batch(images, images))
    assert "2d_448" in caught.value.hint


@pytest.fixture
def predict(monkeypatch):
    """A function that predicts one image with a predictor to which ``most`` slices at a time do fit."""

    def run(most):
        predictor = Predictor.__new__(Predictor)
        predictor.plans = predictor.configuration = None
        predictor.postprocessing = Postprocessing()
        predictor.slices = SimpleNamespace(batch_size=6)
        model = Small(most)

        def predict_prepared(self, case):
            logits = model(torch.ones(self.slices.batch_size, 1))
            return Prediction(np.full((1, 1, 1), int(logits[0])), None, None)

        monkeypatch.setattr(predictor_module, "prepare_case", lambda *arguments: None)
        monkeypatch.setattr(Predictor, "predict_prepared", predict_prepared)
        return predictor, predictor._predict(None)

    return run


def test_a_prediction_that_does_not_fit_is_made_with_fewer_slices_at_a_time(predict, caplog):
    with caplog.at_level(logging.WARNING):
        predictor, prediction = predict(most=2)
    assert prediction.mask.item() == 2
    assert predictor.slices.batch_size == 1  # for the cases that follow, too
    assert [record.args for record in caplog.records] == [(3,), (1,)]


def test_a_single_slice_that_does_not_fit_is_an_error(predict):
    with pytest.raises(SamunetError, match="a single slice does not fit") as caught:
        predict(most=0)
    assert "device='cpu'" in caught.value.hint
