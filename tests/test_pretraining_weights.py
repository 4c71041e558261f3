"""Pretrained weights as the small encoder's start: what samunet_pretrain writes, samunet_train takes."""

import json

import pytest
import torch
from bundled_weights.network import PretrainingModel
from safetensors.torch import load_file

from samunet.commands import run_command
from samunet.encoders import BUNDLED_WEIGHTS, encoder_facts
from samunet.errors import SamunetError
from samunet.models.pretrained import pretrained_weights
from samunet.network.checkpoints import load_base
from samunet.network.encoders.vit import ImageEncoder
from samunet.network.heads import build_head
from samunet.tensors import write_tensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "small_pretrained.safetensors"
    write_tensors(path, PretrainingModel(encoder_facts("small")).sam_state(), {})
    return path


def test_every_tensor_of_encoder_and_decoder_is_taken(weights):
    facts = encoder_facts("small")
    base = pretrained_weights("small", checkpoint=weights)
    assert base.record["pixel_mean"] == [127.5] * 3
    torch.manual_seed(6)
    encoder = ImageEncoder(facts)
    head = build_head("detail", 3, encoder, facts)
    load_base(encoder, head, base.state)
    state = load_file(weights)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[f"image_encoder.{name}"].float())
    name = "transformer.layers.0.self_attn.q_proj.weight"
    assert torch.equal(head.mask_decoder.state_dict()[name], state[f"mask_decoder.{name}"].float())


@pytest.mark.full_network
def test_without_a_file_the_small_encoder_starts_from_the_weights_in_the_package():
    base = pretrained_weights("small")
    card = json.loads((BUNDLED_WEIGHTS / "small_pretrained.json").read_text())
    assert base.record["sha256"] == card["sha256"]
    assert base.record["bytes"] <= 30_000_000
    assert "path" not in base.record
    assert all(torch.isfinite(value).all() for value in base.state.values())


def test_a_file_of_another_encoder_is_refused(weights):
    with pytest.raises(SamunetError, match="does not fit vit_b"):
        pretrained_weights("vit_b", checkpoint=weights)


@pytest.mark.slow
def test_train_and_predict_from_pretrained_weights(samunet_folders, tiny_dataset, weights, tmp_path, capsys):
    folder = tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    short = ["--iterations", "1", "--batch_size", "1", "-encoder", "small", "--checkpoint", str(weights)]
    assert run_command("samunet_train", ["998", "2d", "0", *short]) == 0
    errors = capsys.readouterr().err
    assert str(weights) in errors
    assert "random weights" not in errors
    fold = next((samunet_folders / "results").glob("*/samunetTrainer__*/fold_0"))
    assert json.loads((fold / "run.json").read_text())["started_from"]["file"] == weights.name
    # One update at the warm-up's rate leaves the encoder near where it began.
    trained = load_file(fold / "checkpoint_final.safetensors")["image_encoder.blocks.0.attn.qkv.weight"]
    start = load_file(weights)["image_encoder.blocks.0.attn.qkv.weight"].float()
    assert torch.allclose(trained, start, atol=5e-3)
    assert (
        run_command("samunet_predict", ["-i", str(folder / "imagesTs"), "-o", str(tmp_path / "preds"), "--disable_tta"])
        == 0
    )
    assert len(list((tmp_path / "preds").glob("*.nii.gz"))) == 2


def test_random_weights_are_asked_for_and_kept_to(samunet_folders, tiny_dataset, capsys):
    tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    short = ["--iterations", "1", "--batch_size", "1", "-encoder", "small"]
    assert run_command("samunet_train", ["998", "2d", "0", *short, "--random_weights", "--checkpoint", "x.pth"]) == 2
    assert run_command("samunet_train", ["998", "2d", "0", *short, "--random_weights"]) == 0
    assert "starts from random weights" in capsys.readouterr().err
    fold = next((samunet_folders / "results").glob("*/samunetTrainer__*/fold_0"))
    assert "started_from" not in json.loads((fold / "run.json").read_text())
    started = load_file(fold / "checkpoint_final.safetensors")["image_encoder.blocks.0.attn.qkv.weight"]
    bundled = pretrained_weights("small").state["image_encoder.blocks.0.attn.qkv.weight"].float()
    assert not torch.allclose(started, bundled, atol=5e-3)
    assert run_command("samunet_train", ["998", "2d", "0", "-encoder", "vit_b", "--random_weights"]) in (1, 2)
