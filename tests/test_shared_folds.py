"""Folds over one frozen base: each is exactly what it would be alone, and adds only what it trained."""

import pytest
import torch
from test_adaptations import base_state, build, make_plan, reduced, trained_steps  # noqa: F401

from samunet.adaptations.lora import merge_adapters
from samunet.inference.logits import SlicePredictor
from samunet.inference.views import TTAView
from samunet.models.shared_folds import SharedFolds
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
    "small": make_plan("small", "full"),
    "small, lora": make_plan("small"),
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
        expected = SlicePredictor(models, **settings)._predict(IMAGE, [TTAView()], None, None).logits
        got = SlicePredictor(SharedFolds(model, states), **settings)._predict(IMAGE, [TTAView()], None, None).logits
    assert torch.allclose(got, expected, atol=1e-5 if dtype is None else 2e-2)


@pytest.mark.parametrize("kind", ["lora, detail head", "dora", "full", "bottleneck adapters", "small", "small, lora"])
def test_the_encoder_is_held_in_the_fast_format(kind):
    """Less memory, and what autocast gives with float32 weights."""
    plan = KINDS[kind]
    (model, states), (other, _) = trained_states(plan), trained_states(plan)
    plain = SharedFolds(model, states).to(torch.device("cpu"))
    held = SharedFolds(other, states, torch.bfloat16).to(torch.device("cpu"))
    assert held_bytes(held) < held_bytes(plain)
    with torch.inference_mode():
        for first, second in zip(plain, held, strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                expected, got = first(IMAGE), second(IMAGE)
            assert torch.allclose(got, expected, atol=1e-5)
            weights = [layer.weight for layer in second.image_encoder.modules() if type(layer) is torch.nn.Linear]
            adapters = sum(".lora_" in name and name.endswith("weight") for name in states[0])
            assert sum(weight.dtype != torch.bfloat16 for weight in weights) <= adapters


def test_folds_that_are_whole_need_no_common_base():
    """Frozen weights that each fold brings along are its own, though another network's came first."""
    plan = KINDS["small, lora"]
    states, alone = [], []
    for scale in (1.0, 0.5):
        base = {name: value * scale for name, value in base_state("small").items()}
        model = build(plan, base=base)
        trained_steps(model)
        states.append({name: value.clone() for name, value in model.trained_state().items()})
        merge_adapters(model)
        with torch.inference_mode():
            alone.append(model.eval()(IMAGE))
    folds = SharedFolds(build(plan, seed=7), states)
    with torch.inference_mode():
        for expected, network in zip(alone, folds, strict=True):
            assert torch.allclose(network(IMAGE), expected, atol=1e-5)
    assert not torch.allclose(*alone, atol=1e-3)


def test_what_whole_folds_have_in_common_is_kept_once():
    model, states = trained_states(KINDS["small, lora"])
    frozen = [value for name, value in states[0].items() if torch.equal(value, states[1][name])]
    assert sum(name.startswith("image_encoder.") and ".lora_" not in name for name in states[0]) <= len(frozen)
    kept = {id(value) for state in SharedFolds(model, states)._states for value in state.values()}
    assert len(kept) == 3 * len(states[0]) - 2 * len(frozen)


def held_bytes(folds: SharedFolds) -> int:
    """Bytes of all tensors that are kept, each memory counted once."""
    tensors = [
        *folds._tensors.values(),
        *folds._frozen.values(),
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
    # What training left alone (the biases of tokens that are not used, say) is kept once.
    differing = [value for name, value in states[1].items() if not torch.equal(value, states[0][name])]
    own = sum(value.numel() * value.element_size() for value in differing)
    frozen = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) - trained
    assert held[5] - held[2] == 3 * own
    assert 0.99 * trained < own <= trained
    adapters = sum(value.numel() for name, value in states[0].items() if ".lora_" in name)
    assert 0 < adapters < 0.05 * frozen / 4
