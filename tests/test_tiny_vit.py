"""MobileSAM's encoder: published keys and outputs, any input size, LoRA on q and v, batch normalisation's modes.

``data/vit_t_state_dict.json`` lists the published checkpoint's tensors; ``data/vit_t_outputs.npz`` holds outputs of
MobileSAM's own implementation (commit 34bbbfd, float32, CPU) for the weights that :func:`published_layout` makes.
"""

import itertools
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from samunet.adaptations import ADAPTATIONS, FullPlan, LoraPlan
from samunet.adaptations.lora import merge_lora
from samunet.adaptations.projection import SplitQKV
from samunet.commands import run_command
from samunet.encoders import ENCODERS, Stage
from samunet.errors import SamunetError
from samunet.network.checkpoints import load_base, load_sam_checkpoint
from samunet.network.encoders.tiny_vit import TinyViT, attend_with_bias
from samunet.network.heads import SamHead
from samunet.network.model import build_model
from samunet.planning import resources
from samunet.plans import NetworkPlan

DATA = Path(__file__).parent / "data"
VIT_T = ENCODERS["vit_t"]
REDUCED = replace(
    VIT_T,
    native_size=256,
    stages=(Stage(16, 1, 1, 0, 4), Stage(24, 1, 2, 7, 8), Stage(32, 2, 4, 14, 16), Stage(48, 1, 3, 7, 16)),
)
CLASS_SPECIFIC = ("mask_tokens.", "output_hypernetworks_mlps.", "iou_prediction_head.")


def golden_value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The rule by which the golden outputs' weights were filled."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        values = np.abs(values) * 0.1 + 1
    elif name.endswith("running_mean"):
        values = values * 0.05
    elif len(shape) >= 2:
        values = values / math.sqrt(math.prod(shape[1:]))
    else:
        norm = "norm" in name.lower() or "ln" in name or name.endswith("bn.weight")
        values = values * 0.02 + (1 if norm and name.endswith("weight") else 0)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def published_layout(encoder: TinyViT, head: SamHead) -> dict[str, torch.Tensor]:
    """A checkpoint of these modules' shapes in SAM's layout, filled by :func:`golden_value`."""
    parts = {"image_encoder": encoder, "prompt_encoder": head.prompt_encoder, "mask_decoder": head.mask_decoder}
    return {
        f"{part}.{name}": golden_value(f"{part}.{name}", tuple(value.shape)) if value.is_floating_point() else value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def filled(facts=REDUCED) -> TinyViT:
    encoder, head = TinyViT(facts), SamHead(4, facts.native_size // 16, 16)
    load_base(encoder, head, published_layout(encoder, head))
    with torch.no_grad():  # biases of about 0.1 would hardly show in a softmax
        for name, parameter in encoder.named_parameters():
            if name.endswith("attention_biases"):
                parameter.mul_(10)
    return encoder.eval()


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def reference(state: dict[str, torch.Tensor], stages: tuple[Stage, ...], image: torch.Tensor) -> torch.Tensor:
    """TinyViT and the neck once more, from the published description alone: padding before the norm, no folding."""

    def conv_norm(x, name, stride=1):
        weight, bn = state[f"{name}.c.weight"], f"{name}.bn."
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
        statistics = (state[bn + "running_mean"], state[bn + "running_var"])
        return F.batch_norm(x, *statistics, state[bn + "weight"], state[bn + "bias"])

    def three(x, name, stride=1):
        x = F.gelu(conv_norm(x, f"{name}.conv1"))
        return conv_norm(F.gelu(conv_norm(x, f"{name}.conv2", stride)), f"{name}.conv3")

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def one_window(x, name, heads, window):
        """``(batch, window^2, channels)``, head by head."""
        index, numbers = [], {}
        points = list(itertools.product(range(window), range(window)))
        for a, b in itertools.product(points, points):
            index.append(numbers.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(numbers)))
        biases = state[f"{name}.attention_biases"][:, index].view(heads, window**2, window**2)
        qkv = linear(norm(x, f"{name}.norm"), f"{name}.qkv")
        out = []
        for bias, part in zip(biases, qkv.chunk(heads, -1)):
            q, k, v = part.chunk(3, -1)
            out.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias, -1) @ v)
        return linear(torch.cat(out, -1), f"{name}.proj")

    def attention(x, name, stage):
        height, width = x.shape[2:]
        side = stage.window
        padded = F.pad(x, (0, -width % side, 0, -height % side))
        for top, left in itertools.product(range(0, height, side), range(0, width, side)):
            window = (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
            tokens = padded[window].flatten(2).transpose(1, 2)
            attended = one_window(tokens, name, stage.heads, side).transpose(1, 2)
            padded[window] = attended.view(len(x), -1, side, side)
        return x + padded[:, :, :height, :width]

    def mlp(x, name):
        tokens = x.permute(0, 2, 3, 1)
        tokens = linear(F.gelu(linear(norm(tokens, f"{name}.norm"), f"{name}.fc1")), f"{name}.fc2")
        return x + tokens.permute(0, 3, 1, 2)

    x = conv_norm(F.gelu(conv_norm(image, "patch_embed.seq.0", 2)), "patch_embed.seq.2", 2)
    for number, stage in enumerate(stages):
        for block in range(stage.depth):
            name = f"layers.{number}.blocks.{block}"
            if stage.window:
                x = conv_norm(attention(x, f"{name}.attn", stage), f"{name}.local_conv")
                x = mlp(x, f"{name}.mlp")
            else:
                x = F.gelu(x + three(x, name))
        if number + 1 < len(stages):
            x = three(x, f"layers.{number}.downsample", 1 if stages[number + 1].stride == stage.stride else 2)
    for conv, scale in (("neck.0", "neck.1"), ("neck.2", "neck.3")):
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-6)
        x = x * state[f"{scale}.weight"].view(-1, 1, 1) + state[f"{scale}.bias"].view(-1, 1, 1)
    return x


def test_keys_and_shapes_are_the_published_ones():
    published = json.loads((DATA / "vit_t_state_dict.json").read_text())
    own = published_layout(TinyViT(VIT_T), SamHead(4, 64, 16))
    assert {name: list(value.shape) for name, value in own.items()} == published
    assert len(own) == 439
    encoder = [name for name in own if name.startswith("image_encoder.")]
    assert encoder == [name for name in published if name.startswith("image_encoder.")]  # in the same order


@pytest.mark.slow
def test_output_equals_mobilesams():
    encoder, head = TinyViT(VIT_T), SamHead(4, 64, 16)
    state = published_layout(encoder, head)
    load_base(encoder, head, state)
    own = {name.removeprefix("mask_decoder."): value for name, value in state.items()}
    own = {name: value for name, value in own.items() if name.startswith(CLASS_SPECIFIC)}
    assert not head.mask_decoder.load_state_dict(own, strict=False).unexpected_keys
    encoder.eval(), head.eval()
    image = torch.from_numpy(np.random.RandomState(7).standard_normal((1, 3, 1024, 1024)).astype(np.float32))
    with torch.inference_mode():
        embedding = encoder(image)
        sparse, dense = head.prompt_encoder(points=None, boxes=None, masks=None)
        low_res, iou = head.mask_decoder(embedding, head.prompt_encoder.get_dense_pe(), sparse, dense, True)
    assert embedding.shape == (1, 256, 64, 64)
    golden = {name: torch.from_numpy(value) for name, value in np.load(DATA / "vit_t_outputs.npz").items()}
    assert relative_error(embedding[0, ::16, ::4, ::4], golden["embedding"]) < 1e-4
    assert relative_error(low_res[0, :, ::8, ::8], golden["low_res"]) < 1e-4
    assert relative_error(iou, golden["iou"]) < 1e-4


@pytest.mark.parametrize("size", [(448, 320), (224, 224), (112, 112), (208, 144), (16, 48)])
def test_output_equals_the_reference_at_every_size(size):
    encoder = filled()
    image = picture(*size, batch=2)
    with torch.inference_mode():
        output = encoder(image)
        assert output.shape == (2, 256, size[0] // 16, size[1] // 16)
        assert relative_error(output, reference(encoder.state_dict(), REDUCED.stages, image)) < 1e-5


def test_bfloat16_stays_near_float32():
    encoder = filled()
    with torch.inference_mode():
        expected = encoder(picture(112, 80))
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(encoder(picture(112, 80)).float(), expected) < 0.05


def test_the_forms_of_attention_agree():
    q, k, v = torch.randn(3, 5, 4, 49, 8)
    bias = torch.randn(1, 4, 49, 49)
    assert torch.allclose(attend_with_bias(q, k, v, bias), F.scaled_dot_product_attention(q, k, v, bias), atol=1e-5)


def test_lora_on_q_and_v_equals_a_dense_weight_update():
    encoder, dense = filled(), filled()
    image = picture(64, 96)  # every stage is padded to whole windows, and padded tokens are projected too
    with torch.no_grad():
        before = encoder(image)
    adapted = LoraPlan(rank=4, alpha=8).adapt_encoder(encoder).eval()
    with torch.no_grad():
        assert relative_error(adapted(image), before) < 1e-5  # B is zero
    state = adapted.state_dict()
    blocks = [
        (f"layers.{stage}.blocks.{block}.attn", layer.attn)
        for stage, layers in enumerate(dense.layers)
        for block, layer in enumerate(layers.blocks)
        if stage
    ]
    assert 4 * len(blocks) == sum("lora_" in name for name in state)
    for name, attention in blocks:
        heads = attention.num_heads
        # The published projection: (head, q or k or v, channel of the head) x input channels.
        rows = attention.qkv.weight.data.view(heads, 3, -1, attention.qkv.in_features)
        for part, index in (("q", 0), ("v", 2)):
            prefix = f"base_model.model.{name}.qkv.{part}."
            state[prefix + "lora_B.default.weight"].normal_(0, 0.2)
            update = state[prefix + "lora_B.default.weight"] @ state[prefix + "lora_A.default.weight"] * 8 / 4
            rows[:, index] += update.view(heads, -1, attention.qkv.in_features)
    with torch.no_grad():
        expected = dense(image)
        assert relative_error(before, expected) > 1e-2
        assert relative_error(adapted(image), expected) < 1e-5
        merged = merge_lora(adapted)
        assert relative_error(merged(image), expected) < 1e-5
    assert list(merged.state_dict()) == list(dense.state_dict())
    for name, value in merged.state_dict().items():
        assert torch.allclose(value, dense.state_dict()[name], atol=1e-5), name


def test_split_and_fuse_give_the_projection_back():
    fused = torch.nn.Linear(12, 36)
    split = SplitQKV(fused, groups=3)
    tokens = torch.randn(2, 5, 12)
    q = fused(tokens).unflatten(-1, (3, 3, 4))[..., 0, :].flatten(-2)
    assert torch.allclose(split.q(tokens), q, atol=1e-6)
    assert torch.allclose(split(tokens), fused(tokens), atol=1e-6)
    assert torch.equal(split.bias, fused.bias)
    again = split.fuse()
    assert torch.equal(again.weight, fused.weight)
    assert torch.equal(again.bias, fused.bias)


def test_lora_parameter_count():
    # 4 * rank * width for each block with attention: 2 of 128, 6 of 160 and 2 of 320 channels.
    adapted = LoraPlan().adapt_encoder(TinyViT(VIT_T))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 4 * 4 * (2 * 128 + 6 * 160 + 2 * 320) == 29_696


def network_plan(adaptation: str) -> NetworkPlan:
    return NetworkPlan(
        encoder="vit_t", input_shape=[64, 64], spacing=1.0, head="sam", adaptation=ADAPTATIONS[adaptation](),
        input_channels="repeat", batch_size=2, accumulation=1,
        learning_rate=1e-3, weight_decay=0.1, training_images={"cpu": 1, "gpu": 1}, memory_bytes=0, training_gflops=0.0,
    )  # fmt: skip


@pytest.fixture
def build(monkeypatch):
    """A function that builds the whole network of a given adaptation, reduced, from base weights."""
    monkeypatch.setitem(ENCODERS, "vit_t", REDUCED)
    base = published_layout(TinyViT(REDUCED), SamHead(4, 16, 16))

    def make(adaptation):
        return build_model(network_plan(adaptation), num_outputs=3, num_channels=1, unit_range=[False], base_state=base)

    return make


def train_two_steps(model) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):  # LoRA's A has no gradient before B has left zero
        optimizer.zero_grad()
        torch.manual_seed(step)
        image, target = torch.randn(2, 1, 64, 64), torch.randint(0, 3, (2, 64, 64))
        F.cross_entropy(model(image), target).backward()
        optimizer.step()


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_whatever_trains_gets_a_gradient(build, adaptation):
    model = build(adaptation)
    train_two_steps(model)
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert lacking == []
    frozen = {n for n, p in model.image_encoder.named_parameters() if not p.requires_grad}
    if adaptation == "full":
        assert frozen == {"norm_head.weight", "norm_head.bias", "head.weight", "head.bias"}
    else:
        assert all("lora_" in n for n, p in model.image_encoder.named_parameters() if p.requires_grad)


def statistics(model) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running_" in name or "batches" in name}


@pytest.mark.parametrize("frozen_by", ["lora", "hand"])
def test_statistics_stay_where_the_encoder_is_frozen(build, frozen_by):
    if frozen_by == "lora":
        model = build("lora")
    else:
        model = build("full")
        model.image_encoder.requires_grad_(False)
    before = statistics(model)
    assert before
    train_two_steps(model)  # as built, then after train()
    model.train()
    train_two_steps(model)
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())
    with torch.no_grad():
        trained = model.image_encoder(picture(64, 64))
        assert torch.equal(trained, model.eval().image_encoder(picture(64, 64)))


def test_statistics_follow_where_everything_trains(build):
    model = build("full")
    before = statistics(model)
    train_two_steps(model)
    after = statistics(model)
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    assert {int(value) for name, value in after.items() if name.endswith("num_batches_tracked")} == {2}
    # PyTorch's own layers, on the same input.
    layer = model.image_encoder.layers[0].blocks[0].conv1
    features = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        assert torch.equal(layer.train()(features), layer.bn(layer.c(features)))
        layer.eval()
        assert torch.allclose(layer(features), layer.bn(layer.c(features)), atol=1e-5)


def test_a_trained_model_is_stored_with_its_statistics(build):
    model = build("full")
    train_two_steps(model)
    stored = model.trained_state()
    assert not any(name.startswith("image_encoder.head") for name in stored)  # what stays is in the base weights
    other = build("full")
    other.load_trained_state(stored)
    with torch.no_grad():
        image = torch.randn(1, 1, 64, 64)
        assert torch.equal(other.eval()(image), model.eval()(image))
    assert not any("running" in name for name in build("lora").trained_state())


def test_mobilesams_checkpoint_loads_strictly(tmp_path):
    source = filled(), SamHead(4, 16, 16)
    torch.save(published_layout(*source), tmp_path / "mobile_sam.pt")
    state = load_sam_checkpoint(tmp_path / "mobile_sam.pt")
    encoder, head = TinyViT(REDUCED), SamHead(7, 16, 16)
    load_base(encoder, head, state)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[f"image_encoder.{name}"]), name
    del state["image_encoder.layers.1.blocks.0.attn.attention_biases"]
    del state["image_encoder.patch_embed.seq.0.bn.running_mean"]
    state["image_encoder.neck.0.weight"] = torch.zeros(1)
    state["image_encoder.pos_embed"] = torch.zeros(1)
    with pytest.raises(SamunetError) as error:
        load_base(encoder, head, state)
    for text in ("attention_biases", "running_mean", "unexpected: image_encoder.pos_embed", "neck.0.weight"):
        assert text in str(error.value)


def test_planned_work_and_memory_are_near_what_is_counted():
    encoder, head = TinyViT(VIT_T), SamHead(3, 64, 16)
    image = picture(448, 320)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head(encoder.eval().features(image), image)
    full, lora = (resources.estimate(VIT_T, [448, 320], adaptation) for adaptation in (FullPlan(), LoraPlan()))
    assert full.training_flops / 3 == pytest.approx(counter.get_total_flops(), rel=0.2)
    for estimate, module in ((full, encoder), (lora, LoraPlan().adapt_encoder(TinyViT(VIT_T)))):
        module.train()
        own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        kept = {}

        def pack(tensor, own=own, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes(), tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = head(module.features(image), image)
        in_half_precision = sum(size for size, _ in kept.values()) / 2
        assert 0.7 < estimate.image_bytes / in_half_precision < 2
        del output


@pytest.fixture
def planned(samunet_folders, tiny_dataset, monkeypatch):
    """A tiny dataset planned for a reduced vit_t; a function that puts its weights where they are looked for."""
    monkeypatch.setitem(ENCODERS, "vit_t", REDUCED)
    monkeypatch.setenv("samunet_checkpoints", str(samunet_folders / "weights"))
    tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998", "-encoder", "vit_t", "-image_size", "64"]) == 0

    def put_weights():
        (samunet_folders / "weights").mkdir(exist_ok=True)
        state = published_layout(TinyViT(REDUCED), SamHead(4, 16, 16))
        torch.save(state, samunet_folders / "weights" / "mobile_sam.pt")

    return put_weights


TRAIN = ["998", "2d", "0", "-encoder", "vit_t", "--iterations", "3", "--batch_size", "2"]


def test_commands_plan_train_and_predict_with_it(planned, samunet_folders, capsys):
    capsys.readouterr()
    assert run_command("samunet_train", TRAIN) == 1
    errors = capsys.readouterr().err
    assert VIT_T.checkpoint_url in errors
    assert str(samunet_folders / "weights" / "mobile_sam.pt") in errors
    planned()
    assert run_command("samunet_train", TRAIN) == 0
    fold = next((samunet_folders / "results").glob("Dataset998_*/samunetTrainer__*/fold_0"))
    run = json.loads((fold / "run.json").read_text())
    assert (run["encoder"], run["base"]["file"]) == ("vit_t", "mobile_sam.pt")
    assert (fold / "adapter_final" / "adapter_model.safetensors").is_file()
    source, output = next((samunet_folders / "raw").glob("*/imagesTs")), samunet_folders / "predictions"
    assert run_command("samunet_predict", ["-i", str(source), "-o", str(output), "-d", "998", "-f", "0"]) == 0
    assert len(list(output.glob("*.nii.gz"))) == 2


def test_plans_edited_to_full_train_the_statistics(planned, samunet_folders):
    planned()
    path = next((samunet_folders / "preprocessed").glob("*/samunetPlans.json"))
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["networks"]["vit_t"] |= {"adaptation": "full", "lora": None}
    path.write_text(json.dumps(plans))
    assert run_command("samunet_train", TRAIN) == 0
    file = next((samunet_folders / "results").glob("*/*/fold_0/checkpoint_final.safetensors"))
    counted = [value for name, value in load_file(file).items() if name.endswith("num_batches_tracked")]
    assert counted
    assert {int(value) for value in counted} == {3}  # the updates; not the passes that measure a step's time
