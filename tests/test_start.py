"""Starting from another training's model file: what is taken over, and what is refused."""

import logging
from pathlib import Path

import pytest
import torch
from test_adaptations import ALL_TARGETS, base_state, build, make_plan, trained_steps
from test_adaptations import reduced as reduced_encoders

from samunet.commands import run_command
from samunet.errors import SamunetError, UsageError
from samunet.models.checkpoint import save_model
from samunet.training.start import check_start, start_from

reduced = reduced_encoders  # small encoders in every test of this file


def trained_fold(folder: Path, plan, classes=3):
    """The model file of a training, and the model."""
    model = build(plan, classes=classes)
    if classes == 3:
        trained_steps(model)
    save_model(folder, model, "final")
    return folder / "checkpoint_final.safetensors", model


@pytest.mark.parametrize(
    "plan",
    [
        make_plan(),
        make_plan(dora=True, targets=ALL_TARGETS, decoder=True),
        make_plan(components="decoder"),
        make_plan(adaptation="adapter"),
        make_plan("vit_t"),
    ],
    ids=["lora", "dora, decoder", "decoder only", "adapter", "vit_t lora"],
)
def test_everything_that_trained_is_taken_over(plan, tmp_path, caplog):
    file, model = trained_fold(tmp_path, plan)
    check_start(file, plan, tmp_path / "fold_1", overwrite=True)
    other = build(plan, seed=7)
    image = torch.randn(1, 1, 64, 64)
    with caplog.at_level(logging.INFO), torch.no_grad():
        assert not torch.allclose(other.eval()(image), model.eval()(image), atol=1e-3)
        start_from(other, file)
        assert torch.allclose(other(image), model(image), atol=1e-6)
    count = len(model.trained_state())
    assert f"{count} of {count} tensors fit" in caplog.text
    kind = "LoRA" if plan.adaptation.method == "lora" else "bottleneck adapters"
    small = sum(".lora_" in name or ".adapter." in name for name in model.trained_state())
    assert f"{small} of {small} of the {kind}" in caplog.text


def test_other_classes_and_blocks_take_what_fits(tmp_path, caplog):
    file, model = trained_fold(tmp_path, make_plan(), classes=3)
    plan = make_plan(blocks="last_half")
    other = build(plan, classes=5)
    own = other.trained_state()
    before = {name: value.clone() for name, value in own.items()}
    with caplog.at_level(logging.INFO):
        start_from(other, file)
    after, given = other.trained_state(), model.trained_state()
    lora = [name for name in own if ".lora_" in name]
    assert all(torch.equal(after[name], given[name]) for name in lora)
    tokens = "head.mask_decoder.mask_tokens.weight"
    assert torch.equal(after[tokens], before[tokens])  # five of them, not three
    assert f"of them {len(lora)} of {len(lora)} of the LoRA" in caplog.text
    changed = sum(given[name].shape == own[name].shape for name in own if name in given)
    assert f"{changed} of {len(own)} tensors fit" in caplog.text


@pytest.mark.parametrize(
    ("given", "planned", "says"),
    [
        ({"rank": 8}, {}, "has LoRA of rank 8, but the plans say 4"),
        ({"alpha": 16}, {}, "has LoRA of alpha 16, but the plans say 4"),
        ({"dora": True}, {}, "has LoRA of DoRA True, but the plans say False"),
        ({}, {"rslora": True}, "has LoRA of rsLoRA False, but the plans say True"),
    ],
)
def test_lora_with_other_settings_is_refused(given, planned, says, tmp_path):
    file, _ = trained_fold(tmp_path, make_plan(**given))
    with pytest.raises(SamunetError, match=says) as error:
        check_start(file, make_plan(**planned), tmp_path / "fold_1", overwrite=False)
    assert "`api.plan_experiment(ID, plans_name=NAME)`" in error.value.hint


def test_what_cannot_be_taken_over_is_said(tmp_path, caplog):
    lora, _ = trained_fold(tmp_path / "lora", make_plan())
    narrow, _ = trained_fold(tmp_path / "narrow", make_plan(adaptation="adapter", reduction=8))
    full = build(make_plan(adaptation="full"))
    check_start(lora, make_plan(adaptation="full"), tmp_path / "fold_1", overwrite=False)
    start_from(full, lora)
    assert f"the LoRA of {lora} are left out" in caplog.text
    with pytest.raises(SamunetError, match=r"bottleneck adapters of .* do not fit: 36 of 48 .*down.bias: 32, not 64"):
        start_from(build(make_plan(adaptation="adapter")), narrow)
    with pytest.raises(SamunetError, match=r"the LoRA of .* do not fit"):
        start_from(build(make_plan("vit_h")), lora)
    (tmp_path / "lora" / "adapter_final" / "adapter_model.safetensors").write_text("?")
    with pytest.raises(SamunetError, match=r"adapter_model.safetensors is missing or damaged"):
        start_from(build(make_plan()), lora)
    with pytest.raises(UsageError, match="`overwrite=True` would remove"):
        check_start(narrow, make_plan(), tmp_path / "narrow", overwrite=True)


@pytest.mark.slow
def test_from_fold_to_fold_as_a_user_types_it(samunet_folders, tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("samunet_checkpoints", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    torch.save(base_state("vit_b"), tmp_path / "weights" / "sam_vit_b_01ec64.pth")
    tiny_dataset()
    common = ["-d", "998", "-encoder", "vit_b", "-image_size", "64"]
    short = ["--iterations", "2", "--batch_size", "2"]
    assert run_command("samunet_plan_and_preprocess", common) == 0
    assert run_command("samunet_train", ["998", "2d", "0", *short]) == 0
    file = str(next((samunet_folders / "results").glob("*/*/fold_0/checkpoint_final.safetensors")))
    capsys.readouterr()
    assert run_command("samunet_train", ["998", "2d", "1", *short, "--pretrained", file]) == 0
    assert "of the LoRA" in capsys.readouterr().err
    assert (
        run_command("samunet_plan_and_preprocess", [*common, "-lora_rank", "8", "-overwrite_plans_name", "wide"]) == 0
    )
    assert run_command("samunet_train", ["998", "2d", "0", *short, "-p", "wide", "--pretrained", file]) == 1
    assert "LoRA of rank 4, but the plans say 8" in capsys.readouterr().err
    assert not list((samunet_folders / "results").glob("*/samunetTrainer__wide__2d/fold_0/*"))
