"""Blocks computed a second time in the backward pass: the same numbers, from less memory, only where gradients pass."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_feature_cache import REDUCED, build, make_plan
from test_plans import make_plans

from samunet import api
from samunet.adaptations import AdapterPlan, LoraPlan
from samunet.commands import run_command
from samunet.encoders import ENCODERS
from samunet.network.encoders import hold_frozen
from samunet.training import trainer
from samunet.training.task import decisions

LORA = {"adaptation": LoraPlan()}
LATE = {"adaptation": LoraPlan(blocks="last_half")}
FROZEN = {"adaptation": LoraPlan(decoder=True), "components": "decoder"}
PLANS = {
    "lora": LORA,
    "lora late": LATE,
    "lora everywhere": {"adaptation": LoraPlan(targets=["q", "k", "v", "proj", "mlp"], dora=True)},
    "adapter": {"adaptation": AdapterPlan()},
    "adapter late": {"adaptation": AdapterPlan(blocks="last_half")},
    "full": {},
    "decoder": FROZEN,
    "taps": {**LORA, "head": "detail"},
    "small": {"encoder": "small", "head": "detail"},
}


@pytest.fixture(autouse=True)
def reduced(monkeypatch):
    monkeypatch.setitem(ENCODERS, "vit_b", replace(ENCODERS["vit_b"], **REDUCED))
    monkeypatch.setitem(ENCODERS, "small", replace(ENCODERS["small"], width=64, depth=2, heads=2, global_blocks=(1,)))


def images(height=240, width=256):
    return torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(0))


def pair(plan):
    """Two networks of the same values; the second computes its blocks twice."""
    once, twice = (build(plan.changed(checkpoint_blocks=flag)).train() for flag in (False, True))
    twice.load_state_dict(once.state_dict())
    return once, twice


def step(model, dtype=None):
    """Logits and gradients of a training step."""
    if dtype:
        hold_frozen(model.image_encoder, dtype)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(images())
    F.cross_entropy(logits.float(), torch.ones(1, 240, 256, dtype=torch.long)).backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("settings", PLANS.values(), ids=PLANS)
def test_outputs_and_gradients_are_those_of_computing_once(settings, dtype):
    plan = make_plan(**settings)
    once, twice = pair(plan)
    (logits, gradients), (logits_twice, gradients_twice) = step(once, dtype), step(twice, dtype)
    assert torch.equal(logits, logits_twice)
    trained = {name for name, parameter in once.named_parameters() if parameter.requires_grad}
    assert {name for name, gradient in gradients_twice.items() if gradient is not None} == trained
    for name in trained:
        torch.testing.assert_close(gradients_twice[name], gradients[name], rtol=1e-5, atol=1e-8)
    assert once.state_dict().keys() == twice.state_dict().keys()


def count_runs(model) -> list[int]:
    """How often every block of the encoder has run, counted from now on."""
    encoder = model.image_encoder
    blocks = (encoder.get_base_model() if hasattr(encoder, "peft_config") else encoder).blocks
    runs = [0] * len(blocks)

    def counter(index):
        def count(*_):
            runs[index] += 1

        return count

    for index, block in enumerate(blocks):
        block.norm1.register_forward_hook(counter(index))
    return runs


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (LORA, [2, 2, 2, 2]),
        (LATE, [1, 1, 2, 2]),
        # A gradient passes through all blocks behind the first that trains.
        ({"adaptation": AdapterPlan(blocks=[1])}, [1, 2, 2, 2]),
        ({}, [2, 2, 2, 2]),
        (FROZEN, [1, 1, 1, 1]),
    ],
    ids=["lora", "lora late", "one adapter", "full", "decoder"],
)
def test_only_blocks_that_a_gradient_passes_run_twice(settings, expected):
    for twice, runs_expected in ((True, expected), (False, [1, 1, 1, 1])):
        model = build(make_plan(**settings, checkpoint_blocks=twice)).train()
        runs = count_runs(model)
        step(model)
        assert runs == runs_expected


def test_without_gradients_nothing_runs_twice():
    model = build(make_plan(**LORA, checkpoint_blocks=True))
    runs = count_runs(model)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            model(images(64, 64))
    model.requires_grad_(False)  # as an exported graph has it
    assert not model(images(64, 64)).requires_grad
    assert runs == [3, 3, 3, 3]


def edit(path, value):
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["networks"]["vit_b"]["checkpoint_blocks"] = value
    path.write_text(json.dumps(plans))


def test_it_is_no_decision_that_a_model_depends_on():
    plain, twice, other = make_plans(), make_plans(), make_plans()
    twice.configurations["2d"]["networks"]["vit_b"]["checkpoint_blocks"] = True
    other.configurations["2d"]["networks"]["vit_b"]["batch_size"] = 2
    assert twice.configuration("2d").networks["vit_b"].checkpoint_blocks
    assert decisions(plain, "2d", "vit_b") == decisions(twice, "2d", "vit_b") != decisions(other, "2d", "vit_b")


def test_a_fold_goes_on_either_way_and_folds_may_differ(samunet_folders, tiny_dataset, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("samunet_checkpoints", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    state = {name.removeprefix("head."): value for name, value in build(make_plan()).state_dict().items()}
    torch.save(state, tmp_path / "weights" / "sam_vit_b_01ec64.pth")
    tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998", "-encoder", "vit_b", "-image_size", "64"]) == 0
    options = {"iterations": 4, "batch_size": 2, "checkpoint_seconds": 1e-3}

    def train(fold=0, **more):
        return api.train(998, "2d", fold, api.TrainingOptions(**options, **more), progress=False)

    folder = train()
    expected = (folder / "checkpoint_final.safetensors").read_bytes()
    original, calls = trainer.Trainer._step, []

    def killed(self, batch):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(overwrite=True)
    (plans,) = (samunet_folders / "preprocessed").glob("*/samunetPlans.json")
    edit(plans, True)
    with caplog.at_level("INFO", logger="samunet"):
        train()
    assert "computed a second time in the backward pass" in caplog.text
    assert "going on from iteration 2" in caplog.text
    assert (folder / "checkpoint_final.safetensors").read_bytes() == expected
    assert (train(1) / "checkpoint_final.safetensors").is_file()


@pytest.mark.parametrize(("scheme", "counts"), [("zscore", False), ("ct", True), ("ct_to_0_1", True)])
def test_intensities_count_only_where_the_normalisation_uses_them(scheme, counts):
    """A dataset that grew has other statistics; a fold of a model whose channels do without them goes on."""
    plans = make_plans()
    plans.configurations["2d"]["normalization"] = [scheme] * len(plans.configurations["2d"]["normalization"])
    grown = {
        channel: values.changed(mean=values.mean + 1)
        for channel, values in plans.foreground_intensity_properties_per_channel.items()
    }
    other = plans.changed(foreground_intensity_properties_per_channel=grown)
    assert (decisions(plans, "2d", "vit_b") != decisions(other, "2d", "vit_b")) is counts
