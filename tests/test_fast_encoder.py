"""SAM's image encoder computed faster: every short cut against the plain form, and the memory that it keeps."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_memory_model import VIT_B, saved_bytes
from test_network import fill, relative_error
from torch import nn

from samunet.adaptations import LoraPlan
from samunet.adaptations.projection import _fusible, project_qkv
from samunet.encoders import ENCODERS
from samunet.network import chunked_attention as chunked
from samunet.network.attention import _fused_attention, block_attention
from samunet.network.encoders import hold_frozen, vit
from samunet.network.encoders.vit import ImageEncoder
from samunet.network.sam_modules import ImageEncoderViT
from samunet.planning import resources
from samunet.plans import NetworkPlan

LORA = LoraPlan()

REDUCED = replace(ENCODERS["vit_b"], width=48, depth=2, heads=3, global_blocks=(1,), native_size=256)
# The first window block and the first global block of the larger encoders, at full width.
TWO_BLOCKS = {name: replace(ENCODERS[name], depth=2, global_blocks=(1,)) for name in ("vit_l", "vit_h")}


def reference(facts, ours: ImageEncoder, grid) -> nn.Module:
    """segment_anything's encoder with our weights; its absolute positions are brought to ``grid``."""
    encoder = ImageEncoderViT(
        img_size=facts.native_size, patch_size=16, embed_dim=facts.width, depth=facts.depth, num_heads=facts.heads,
        out_chans=256, use_rel_pos=True, window_size=14, global_attn_indexes=facts.global_blocks,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    encoder.load_state_dict(ours.state_dict(), strict=True)
    positions = F.interpolate(encoder.pos_embed.permute(0, 3, 1, 2), size=grid, mode="bilinear", align_corners=False)
    encoder.pos_embed = nn.Parameter(positions.permute(0, 2, 3, 1))
    return encoder


def check_parity(facts, size) -> None:
    ours = ImageEncoder(facts)
    fill(ours)
    theirs = reference(facts, ours, [side // 16 for side in size])
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(image)
        assert relative_error(ours(image), expected) < 1e-5
        # The output depends on what SAM's default initialisation leaves at zero.
        for parameter in ("pos_embed", "blocks.0.attn.rel_pos_h", "blocks.1.attn.rel_pos_w"):
            ours.get_parameter(parameter).zero_()
            changed = ours(image)
            assert relative_error(changed, expected) > 1e-4, parameter
            expected = changed


@pytest.mark.parametrize("name", ["vit_l", "vit_h"])
@pytest.mark.parametrize("size", [(256, 256), (128, 320)])
def test_larger_encoders_equal_the_reference(name, size):
    check_parity(TWO_BLOCKS[name], size)


def test_vit_b_equals_the_reference_at_full_depth():
    check_parity(ENCODERS["vit_b"], (256, 256))


@pytest.mark.long
@pytest.mark.parametrize("size", [(1024, 1024), (512, 512), (448, 448), (320, 608)])
def test_vit_b_equals_the_reference_at_large_sizes(size):
    check_parity(ENCODERS["vit_b"], size)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vit_l", "vit_h"])
@pytest.mark.parametrize("size", [(1024, 1024), (512, 512), (448, 448), (320, 608)])
def test_larger_encoders_equal_the_reference_at_large_sizes(name, size):
    check_parity(TWO_BLOCKS[name], size)


def attention_inputs(count, queries, height, width, channels, dtype) -> list[torch.Tensor]:
    shapes = [(count, queries, channels)] + 2 * [(count, height * width, channels)]
    shapes += [(count, queries, height), (count, queries, width)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def plain_attention(q, k, v, along_h, along_w, scale):
    bias = (along_h.unsqueeze(-1) + along_w.unsqueeze(-2)).flatten(-2)
    return torch.softmax(scale * q @ k.mT + bias, -1) @ v


# Several matrices a chunk, one matrix in uneven chunks of rows, and the same with rows short enough to widen the keys.
@pytest.mark.parametrize("shape", [(7, 12, 3, 5), (2, 90, 4, 40), (2, 90, 40, 4)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_chunked_attention_equals_the_plain_form(shape, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(chunked, "_CHUNK_BYTES", 3000 * dtype.itemsize)
    inputs = attention_inputs(*shape, 16, dtype)
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    ours, expected = chunked.chunked_attention(*inputs, 0.25), plain_attention(*exact, 0.25)
    assert relative_error(ours.detach().float(), expected.detach()) < tolerance
    gradient = torch.randn_like(expected)
    gradients = torch.autograd.grad(ours, inputs, gradient.to(dtype))
    for got, wanted in zip(gradients, torch.autograd.grad(expected, exact, gradient)):
        assert relative_error(got.float(), wanted) < tolerance


def test_fused_attention_equals_the_chunked_form():
    q, *rest = [tensor.detach() for tensor in attention_inputs(6, 30, 5, 6, 8, torch.float32)]
    assert relative_error(_fused_attention(q * 0.5, *rest, 3), chunked.chunked_attention(q, *rest, 0.5)) < 1e-5


def test_chunks_cover_every_query_once():
    for count, queries, keys in ((5, 4, 6), (3, 17, 9), (2, 3, 500), (1, 10, 10)):
        seen = torch.zeros(count, queries)
        for chunk, _ in chunked._chunks(count, queries, keys, 100):
            seen[chunk] += 1
            assert seen[chunk].numel() * keys <= max(100, keys)
        assert (seen == 1).all()


def adapted_encoder(facts=REDUCED) -> nn.Module:
    encoder = ImageEncoder(facts)
    fill(encoder)
    adapted = LoraPlan(rank=4, alpha=8).adapt_encoder(encoder)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted


def blocks_of(adapted: nn.Module):
    return adapted.base_model.model.blocks


def test_fused_lora_equals_peft():
    qkv = blocks_of(adapted_encoder())[0].attn.qkv
    tokens = torch.randn(2, 5, 7, 48, requires_grad=True)
    assert _fusible([qkv.q, qkv.k, qkv.v])
    trained = [parameter for parameter in qkv.parameters() if parameter.requires_grad]
    assert len(trained) == 4
    ours, peft = project_qkv(qkv, tokens), torch.stack([part(tokens) for part in (qkv.q, qkv.k, qkv.v)])
    assert relative_error(ours, peft) < 1e-6
    gradient = torch.randn_like(peft)
    got = torch.autograd.grad(ours, [tokens, *trained], gradient)
    for ours, theirs in zip(got, torch.autograd.grad(peft, [tokens, *trained], gradient)):
        assert relative_error(ours, theirs) < 1e-5


def test_what_is_not_plain_lora_goes_through_peft():
    adapted = adapted_encoder()
    qkv = blocks_of(adapted)[0].attn.qkv
    parts = [qkv.q, qkv.k, qkv.v]
    tokens = torch.randn(1, 4, 4, 48)
    with torch.no_grad(), adapted.disable_adapter():
        assert not _fusible(parts)
        without = project_qkv(qkv, tokens)
    with torch.no_grad():
        assert relative_error(project_qkv(qkv, tokens), without) > 1e-3
        assert torch.equal(without[0], qkv.q.base_layer(tokens))
    qkv.k.weight.requires_grad_(True)  # a trained base needs its gradient
    assert not _fusible(parts)
    qkv.k.weight.requires_grad_(False)
    qkv.q.lora_dropout["default"] = nn.Dropout(0.1)
    assert not _fusible(parts)


def test_padding_is_the_projected_zero():
    attention = ImageEncoder(REDUCED).blocks[0].attn
    fill(attention)
    tokens = torch.randn(1, 9, 17, 48)
    padded = F.pad(tokens, (0, 0, 0, 11, 0, 5))
    with torch.no_grad():
        expected = block_attention(attention, padded, 14)[:, :9, :17]
        assert relative_error(block_attention(attention, tokens, 14), expected) < 1e-6


def test_bfloat16_stays_near_float32():
    """Output and gradients of a step as it is trained: 2 % and 10 % of their norm."""
    facts = replace(ENCODERS["vit_b"], depth=4, global_blocks=(1, 3))
    adapted = adapted_encoder(facts)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    image = torch.randn(1, 3, 256, 352)
    exact = adapted(image)
    exact.square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
    hold_frozen(adapted, torch.bfloat16)
    assert blocks_of(adapted)[0].mlp.lin1.weight.dtype is torch.bfloat16
    assert blocks_of(adapted)[0].norm1.weight.dtype is torch.float32
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    adapted.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        ours = adapted(image)
    ours.float().square().mean().backward()
    assert relative_error(ours.float(), exact) < 2e-2
    for name, parameter in trained.items():
        assert relative_error(parameter.grad, gradients[name]) < 0.1, name


@pytest.mark.parametrize("size", [(448, 448), (512, 320)])
def test_kept_memory_is_what_the_blocks_formula_says(size):
    grid = [side // 16 for side in size]
    predicted = [vit.block_bytes(VIT_B, grid, index, LORA, "cpu") for index in range(4)]
    everything, half = (saved_bytes(VIT_B, "lora", size, list(range(first, 4))) for first in (0, 2))
    assert everything - half == pytest.approx(sum(predicted[:2]), rel=0.03)
    # What the neck keeps, in the same units: 16-bit values of its width and of 256 channels.
    assert half == pytest.approx(sum(predicted[2:]), rel=0.15)


def test_a_plans_step_is_estimated_for_the_device_it_runs_on():
    lora = LoraPlan(blocks="last_half")
    network = NetworkPlan(
        encoder="vit_b", input_shape=[448, 448], spacing=1.0, head="detail", adaptation=lora,
        input_channels="repeat", batch_size=4, accumulation=3, learning_rate=1e-3, weight_decay=0.1,
        training_images={"cpu": 1, "gpu": 1}, memory_bytes=0, training_gflops=0.0,
    )  # fmt: skip
    for device in ("cpu", "gpu"):
        whole = resources.estimate(ENCODERS["vit_b"], [448, 448], lora, device=device)
        assert resources.step_bytes(network, 3, device) == whole.for_batch(3)
    assert resources.step_bytes(network, 3, "cpu") > resources.step_bytes(network, 3, "gpu")


def test_estimate_is_the_sum_of_its_parts():
    facts, grid = ENCODERS["vit_b"], [28, 28]
    whole, half = (resources.estimate(facts, [448, 448], LoraPlan(blocks=kind)) for kind in ("all", "last_half"))
    assert whole == resources.estimate(facts, [448, 448], LoraPlan())
    # Window blocks of 448 px are unpadded: two float32 norm inputs, the projection's input and the four-fold MLP in 16
    # bits, and on a GPU q, k, v, output at 64 + 14 + 14 channels a head beside q, k, v themselves.
    window = 784 * 768 * (8 + 2 + 8) + 784 * 12 * (4 * 92 + 3 * 64) * 2
    everywhere = 784 * 768 * (8 + 2 + 8) + 784 * 12 * (4 * 120 + 3 * 64) * 2
    assert vit.block_bytes(facts, grid, 0, LORA, "gpu") == window
    assert whole.image_bytes - half.image_bytes == 4 * window + 2 * everywhere
    assert whole.fixed_bytes == half.fixed_bytes == resources.weight_bytes(facts, False)
    # 64 x 64 positions stay in float32.
    assert resources.weight_bytes(facts, False) - 4_200_000 * 16 == 12 * 12 * 768**2 * 2 + 64 * 64 * 768 * 4
    # 9 of 9 windows at 512 px are padded: 42 x 42 tokens for 32 x 32.
    padded = vit.block_bytes(facts, [32, 32], 0, LORA, "cpu") - 1024 * 768 * 18
    assert padded == 42 * 42 * 12 * (3 * 64 + 28) * 2


def test_operations_of_vit_b():
    """With whole windows: 147 GFLOP at 448 px, 681 at 896 (counted by hand, relative positions and head apart)."""
    for side, expected in ((448, 147e9), (896, 681e9)):
        forward, backward = vit.operations(ENCODERS["vit_b"], [side, side])
        assert forward == pytest.approx(expected, rel=0.015)
        assert forward < backward < 2 * forward
    late = vit.operations(ENCODERS["vit_b"], [448, 448], first=6)[1]
    assert late < 0.6 * vit.operations(ENCODERS["vit_b"], [448, 448])[1]
    # Fewer tokens than whole windows: 64 = 4 x 14 + 8 tokens a side, not 70.
    assert vit.operations(ENCODERS["vit_b"], [1024, 1024])[0] < 972e9


@pytest.mark.long
def test_benchmark_compares_equal_outputs(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "sam_step.py"
    command = [sys.executable, str(script), "--size", "64", "--repeats", "1", "--json", str(tmp_path / "step.json")]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((tmp_path / "step.json").read_text())
    for variant in ("reference", "samunet", "samunet_float32"):
        assert min(result[variant][key] for key in ("step_s", "forward_s", "peak_bytes")) > 0
    assert result["samunet_float32"]["relative_error"] < 1e-5
    assert 1e-5 < result["samunet"]["relative_error"] < 3e-2
    assert result["ratio"]["step"] == result["reference"]["step_s"] / result["samunet"]["step_s"]
    assert result["ratio"]["memory"] == result["samunet"]["peak_bytes"] / result["reference"]["peak_bytes"]
    assert 0 < result["matmul_share"] < 1
