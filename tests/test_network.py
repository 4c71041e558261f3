"""The network against segment_anything's own forward, and LoRA against dense weight updates."""

import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samunet.adaptations import ADAPTATIONS, LoraPlan
from samunet.adaptations.lora import load_adapter, merge_lora, save_adapter
from samunet.adaptations.projection import SplitQKV
from samunet.encoders import ENCODERS
from samunet.errors import SamunetError
from samunet.network.attention import block_attention
from samunet.network.checkpoints import load_base, load_sam_checkpoint
from samunet.network.encoders import Features
from samunet.network.encoders.vit import ImageEncoder
from samunet.network.heads import DetailHead, SamHead, build_head
from samunet.network.model import InputLayer, build_model
from samunet.network.sam_modules import ImageEncoderViT
from samunet.plans import NetworkPlan

pytestmark = pytest.mark.full_network

# vit_b with few and narrow blocks: one with windows, one with global attention.
REDUCED = replace(ENCODERS["vit_b"], width=48, depth=2, heads=3, global_blocks=(1,), native_size=256)


@pytest.fixture
def reduced_encoder(monkeypatch):
    monkeypatch.setitem(ENCODERS, "vit_b", REDUCED)
    return REDUCED


def fill(module: torch.nn.Module) -> None:
    """Non-zero values in every parameter, by name: with SAM's zero-initialised tables a parity test could not fail."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(parameter.shape)
            scale = 1 / np.sqrt(np.prod(parameter.shape[1:])) if parameter.ndim >= 2 else 0.1
            one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.from_numpy(values * scale + one).float())


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def network_plan(adaptation="full", encoder="small", channels="repeat") -> NetworkPlan:
    return NetworkPlan(
        encoder=encoder,
        input_shape=[32, 32],
        spacing=1.0,
        head="sam",
        adaptation=ADAPTATIONS[adaptation](),
        input_channels=channels,
        batch_size=2,
        accumulation=1,
        learning_rate=1e-3,
        weight_decay=0.1,
        training_images={"cpu": 1, "gpu": 1},
        memory_bytes=0,
        training_gflops=0.0,
    )


def test_sam_modules_load_without_torchvision():
    script = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from samunet.network import sam_modules\n"
        "assert 'segment_anything' not in sys.modules\n"
        "sam_modules.MaskDecoder, sam_modules.PromptEncoder"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("size", [(256, 256), (224, 224), (128, 320), (64, 96)])
def test_encoder_equals_reference_at_every_size(size):
    ours = ImageEncoder(REDUCED)
    fill(ours)
    grid = [side // 16 for side in size]
    reference = ImageEncoderViT(
        img_size=256, patch_size=16, embed_dim=48, depth=2, num_heads=3, out_chans=256, use_rel_pos=True,
        window_size=14, global_attn_indexes=(1,), norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6),
    )  # fmt: skip
    reference.load_state_dict(ours.state_dict(), strict=True)
    positions = reference.pos_embed.detach().permute(0, 3, 1, 2)
    resized = F.interpolate(positions, size=grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    reference.pos_embed = torch.nn.Parameter(resized)
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative_error(ours(image), reference(image)) < 1e-5


def test_attention_with_and_without_gradient_agree():
    attention = ImageEncoder(REDUCED).blocks[0].attn
    fill(attention)
    tokens = torch.randn(2, 9, 17, 48)
    with torch.no_grad():
        without = block_attention(attention, tokens, 14)
    assert torch.allclose(block_attention(attention, tokens, 14), without, atol=1e-5)


def test_head_equals_sams_mask_decoder():
    head = SamHead(num_outputs=4, native_grid=16, patch_size=16)
    fill(head.mask_decoder)
    embedding, image = torch.randn(1, 256, 6, 9), torch.randn(1, 3, 96, 144)
    with torch.no_grad():
        expected, _ = head.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=head.prompt_encoder.pe_layer((6, 9)).unsqueeze(0),
            sparse_prompt_embeddings=torch.empty(1, 0, 256),
            dense_prompt_embeddings=head.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, 6, 9),
        )
        assert torch.allclose(head(Features(embedding), image), expected, atol=1e-5)


def test_head_treats_the_images_of_a_batch_apart():
    head = SamHead(num_outputs=3, native_grid=16, patch_size=16)
    fill(head.mask_decoder)
    batch = torch.randn(3, 256, 5, 5)
    with torch.no_grad():
        together = head(Features(batch), batch)
        alone = torch.cat([head(Features(image[None]), batch) for image in batch])
    assert together.shape == (3, 3, 20, 20)
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("patch_size", [8, 16])
def test_detail_head_gives_logits_at_half_resolution(patch_size):
    head = DetailHead(num_outputs=3, native_grid=8, patch_size=patch_size)
    image = torch.randn(2, 3, 6 * patch_size, 4 * patch_size)
    logits = head(Features(torch.randn(2, 256, 6, 4)), image)
    assert logits.shape == (2, 3, 3 * patch_size, 2 * patch_size)
    # The image acts on the logits beside it most, below the size of a token.
    image.requires_grad_()
    head(Features(torch.randn(2, 256, 6, 4)), image)[0, 1, 10, 10].backward()
    strength = image.grad[0].abs().sum(0)
    row, column = divmod(int(strength.argmax()), strength.shape[1])
    assert max(abs(row - 20), abs(column - 20)) < patch_size


@pytest.mark.parametrize("head", ["sam", "detail"])
@pytest.mark.parametrize(("adaptation", "encoder"), [("full", "small"), ("lora", "vit_b")])
def test_whatever_trains_gets_a_gradient(adaptation, encoder, head, reduced_encoder):
    base = None
    if encoder == "vit_b":
        encoder_module, sam_head = ImageEncoder(REDUCED), SamHead(4, 16, 16)
        fill(encoder_module), fill(sam_head)
        base = sam_state(encoder_module, sam_head)
    plan = network_plan(adaptation, encoder).changed(head=head)
    model = build_model(plan, num_outputs=3, num_channels=1, unit_range=[False], base_state=base)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    image, target = torch.randn(2, 1, 64, 64), torch.randint(0, 3, (2, 64, 64))
    # Two steps: LoRA's A has no gradient before B has left zero.
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(image), target).backward()
        optimizer.step()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert lacking == []
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert frozen == []
    if adaptation == "full":
        assert all(p.requires_grad for p in model.image_encoder.parameters())


def test_input_layer_leaves_standardised_channels_and_normalises_pictures():
    facts = ENCODERS["vit_b"]
    image = torch.rand(1, 3, 4, 4)
    mean, std = torch.tensor(facts.pixel_mean).view(1, 3, 1, 1), torch.tensor(facts.pixel_std).view(1, 3, 1, 1)
    unit = InputLayer(facts, "as_they_are", 3, [True, True, True])
    assert torch.allclose(unit(image), (image * 255 - mean) / std, atol=1e-5)
    standardised = InputLayer(facts, "repeat", 1, [False])
    assert torch.equal(standardised(image[:, :1]), image[:, :1].expand(-1, 3, -1, -1))
    mixed = InputLayer(facts, "projection", 2, [False, False])
    assert torch.allclose(mixed(image[:, :2])[:, 1], image[:, :2].mean(1), atol=1e-6)


def test_lora_on_q_and_v_equals_a_dense_weight_update(reduced_encoder):
    encoder = ImageEncoder(REDUCED)
    fill(encoder)
    dense = ImageEncoder(REDUCED)
    dense.load_state_dict(encoder.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(image)
    adapted = LoraPlan(rank=4, alpha=8).adapt_encoder(encoder)
    with torch.no_grad():
        assert torch.allclose(adapted(image), before, atol=1e-5)  # B is zero
    state = adapted.state_dict()
    for index, block in enumerate(dense.blocks):
        for part, rows in (("q", slice(0, 48)), ("v", slice(96, 144))):
            prefix = f"base_model.model.blocks.{index}.attn.qkv.{part}."
            state[prefix + "lora_B.default.weight"].normal_()
            update = state[prefix + "lora_B.default.weight"] @ state[prefix + "lora_A.default.weight"] * 8 / 4
            block.attn.qkv.weight.data[rows] += update
    with torch.no_grad():
        assert relative_error(adapted(image), dense(image)) < 1e-5
    merged = merge_lora(adapted)
    with torch.no_grad():
        assert relative_error(merged(image), dense(image)) < 1e-5
    assert list(merged.state_dict()) == list(dense.state_dict())


def test_lora_parameter_count_is_samed_s():
    # SAMed, ViT-B: 4 * rank * width per block, q and v, A and B.
    facts = replace(ENCODERS["vit_b"], native_size=64)
    adapted = LoraPlan().adapt_encoder(ImageEncoder(facts))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 12 * 4 * 4 * 768 == 147_456


def test_split_and_fuse_give_the_projection_back():
    fused = torch.nn.Linear(12, 36)
    split = SplitQKV(fused)
    tokens = torch.randn(2, 3, 12)
    assert torch.allclose(split(tokens), fused(tokens), atol=1e-6)
    assert torch.equal(split.bias, fused.bias)
    again = split.fuse()
    assert torch.equal(again.weight, fused.weight)
    assert torch.equal(again.bias, fused.bias)


def test_adapter_files_are_peft_s(tmp_path):
    from peft import PeftModel

    encoder = ImageEncoder(REDUCED)
    fill(encoder)
    plain = ImageEncoder(REDUCED)
    plain.load_state_dict(encoder.state_dict())
    adapted = LoraPlan().adapt_encoder(encoder)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(adapted, tmp_path / "adapter_final")
    assert {path.name for path in (tmp_path / "adapter_final").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    for block in plain.blocks:
        block.attn.qkv = SplitQKV(block.attn.qkv)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter_final")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded(image), adapted(image), atol=1e-5)
    ours = load_adapter(adapted, tmp_path / "adapter_final")
    expected = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def sam_state(encoder, head):
    parts = {"image_encoder": encoder, "prompt_encoder": head.prompt_encoder, "mask_decoder": head.mask_decoder}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def test_base_checkpoint_loads_strictly(tmp_path):
    source_encoder, source_head = ImageEncoder(REDUCED), SamHead(4, 16, 16)
    fill(source_encoder), fill(source_head)
    path = tmp_path / "sam.pth"
    torch.save(sam_state(source_encoder, source_head), path)
    state = load_sam_checkpoint(path)
    encoder, head = ImageEncoder(REDUCED), SamHead(7, 16, 16)  # another number of classes than SAM's four masks
    load_base(encoder, head, state)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(image), source_encoder(image))
    assert torch.equal(
        head.mask_decoder.output_upscaling[0].weight, source_head.mask_decoder.output_upscaling[0].weight
    )
    missing = dict(state)
    del missing["image_encoder.blocks.1.attn.rel_pos_h"]
    missing["image_encoder.neck.0.weight"] = torch.zeros(1)
    missing["image_encoder.extra"] = torch.zeros(1)
    with pytest.raises(SamunetError) as error:
        load_base(encoder, head, missing)
    for text in ("missing: image_encoder.blocks.1.attn.rel_pos_h", "unexpected: image_encoder.extra", "neck.0.weight"):
        assert text in str(error.value)


def test_damaged_or_dangerous_checkpoints_are_refused(tmp_path):
    whole, truncated, dangerous = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "c.pth"
    torch.save({"image_encoder.x": torch.zeros(1000)}, whole)
    truncated.write_bytes(whole.read_bytes()[:2000])
    torch.save({"image_encoder.x": print}, dangerous)
    for path in (truncated, dangerous, tmp_path / "absent.pth"):
        with pytest.raises(SamunetError, match=path.name):
            load_sam_checkpoint(path)


@pytest.mark.slow
def test_vit_b_has_sams_keys_and_size(tmp_path):
    """Full depth: 314 entries, 93,735,472 parameters (segment_anything's vit_b), read from a .pth file."""
    encoder, head = ImageEncoder(ENCODERS["vit_b"]), SamHead(4, 64, 16)
    state = sam_state(encoder, head)
    assert len(state) == 314
    buffer = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert sum(value.numel() for name, value in state.items() if name != buffer) == 93_735_472
    torch.save(state, tmp_path / "sam_vit_b_01ec64.pth")
    load_base(encoder, head, load_sam_checkpoint(tmp_path / "sam_vit_b_01ec64.pth"))


def test_small_encoder_gives_its_stem_and_middle_blocks_to_the_detail_head():
    torch.manual_seed(1)
    facts = ENCODERS["small"]
    encoder = ImageEncoder(facts)
    image = torch.randn(1, 3, 64, 96)
    features = encoder.features(image)
    assert [tuple(detail.shape[1:]) for detail in features.details] == [(32, 32, 48), (32, 16, 24), (64, 8, 12)]
    assert [tuple(tap.shape) for tap in features.taps] == [(1, 4, 6, 192)]
    assert torch.equal(features.embedding, encoder(image))
    head = build_head("detail", 3, encoder, facts)
    assert not head.detail["stem"]
    with torch.no_grad():
        before = head(features, image)
        head.detail["taps"][0].weight.normal_()
        assert not torch.allclose(head(features, image), before)
    # A head for an encoder without a convolutional stem has its own.
    assert len(build_head("detail", 3, ImageEncoder(REDUCED), REDUCED).detail["stem"]) == 3
