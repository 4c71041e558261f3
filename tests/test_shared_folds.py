"""Folds over one frozen base: each is exactly what it would be alone, and adds only what it trained."""

import pytest
import torch
from test_adaptations import build, make_plan, reduced, trained_steps  # noqa: F401

from samunet.inference.logits import SlicePredictor
from samunet.inference.shared_folds import SharedFolds
from samunet.network.adapters import merge_adapters
from samunet.plans import NetworkPlan

KINDS = {
    "lora": make_plan(),
    "lora, detail head": make_plan(head="detail"),
    "dora": make_plan(dora=True),
    "every target, rslora": make_plan(targets=["q", "k", "v", "proj", "mlp"], rslora=True, rank=2, alpha=3),
    "decoder alone": make_plan(components="decoder"),
    "bottleneck adapters": make_plan(adaptation="adapter"),
    "vit_t": make_plan("vit_t"),
    "full": make_plan(adaptation="full"),
}
IMAGE = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(5))


def trained_states(plan: NetworkPlan, count: int = 3):
    """A network, and the trained states of ``count`` different folds of it."""
    states = []
    for fold in range(count):
        model = build(plan, seed=fold)
        trained_steps(model, rate=0.05 * (fold + 1))
        states.append({name: value.clone() for name, value in model.trained_state().items()})
    return model, states


@pytest.mark.parametrize("kind", KINDS)
def test_each_fold_is_what_it_is_alone(kind):
    plan = KINDS[kind]
    model, states = trained_states(plan)
    alone = []
    for state in states:
        single = build(plan, seed=9)
        single.load_trained_state(state)
        merge_adapters(single)
        with torch.inference_mode():
            alone.append(single.eval()(IMAGE))
    folds = SharedFolds(model, states).to(torch.device("cpu")).eval()
    assert len(folds) == 3
    with torch.inference_mode():
        for _ in range(2):  # the second round comes back from the last fold
            for expected, network in zip(alone, folds, strict=True):
                assert torch.allclose(network(IMAGE), expected, atol=1e-5)
        assert torch.allclose(folds[1](IMAGE), alone[1], atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_prediction_averages_the_folds(dtype):
    """Weights that autocast keeps in 16 bits must not outlive the fold that they belong to."""
    model, states = trained_states(make_plan(head="detail"))
    models = []
    for state in states:
        models.append(build(make_plan(head="detail"), seed=9))
        models[-1].load_trained_state(state)
        merge_adapters(models[-1])
        models[-1].eval()
    settings = {"neighbours": False, "device": torch.device("cpu"), "dtype": dtype, "mirror_axes": (0, 1)}
    with torch.inference_mode():
        expected = SlicePredictor(models, **settings)._mean_logits(IMAGE)
        got = SlicePredictor(SharedFolds(model, states), **settings)._mean_logits(IMAGE)
    assert torch.allclose(got, expected, atol=1e-5 if dtype is None else 2e-2)


def held_bytes(folds: SharedFolds) -> int:
    """Bytes of all tensors that are kept, each memory counted once."""
    tensors = [
        *folds._tensors.values(),
        *folds._frozen,
        *(value for state in folds._states for value in state.values()),
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_memory_grows_by_what_a_fold_trained():
    held = {}
    for count in (2, 5):
        model, states = trained_states(make_plan(), count)
        folds = SharedFolds(model, states)
        for network in folds:
            assert network is folds[0]
        held[count] = held_bytes(folds)
    trained = sum(value.numel() * value.element_size() for value in states[0].values())
    frozen = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) - trained
    assert held[5] - held[2] == 3 * trained
    adapters = sum(value.numel() for name, value in states[0].items() if ".lora_" in name)
    assert 0 < adapters < 0.05 * frozen / 4
