"""Every way to adapt SAM: what trains, what is saved, what comes back, and what is refused."""

import argparse
import json
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samunet.adaptations import ADAPTATIONS, AdapterPlan, FullPlan, LoraPlan
from samunet.adaptations.lora import load_adapters, merge_adapters
from samunet.commands import run_command
from samunet.commands.flags import ADAPTATION
from samunet.encoders import ENCODERS
from samunet.errors import SamunetError, UsageError
from samunet.models.checkpoint import save_model
from samunet.network.encoders import hold_frozen
from samunet.network.heads import SamHead
from samunet.network.model import build_model
from samunet.network.optimizer import adamw
from samunet.planning import resources, rules
from samunet.planning.planner import PlannerOptions
from samunet.plans import NetworkPlan
from samunet.tensors import read_tensors

CLASSES = 3
NAMES = [name for name in ("vit_h", "vit_b", "vit_t", "small") if name in ENCODERS]
ALL_TARGETS = ["q", "k", "v", "proj", "mlp"]


@pytest.fixture(autouse=True)
def reduced(monkeypatch):
    """Few and narrow blocks: one encoder of each kind, with windows and global attention."""
    smaller = {
        "vit_b": {"width": 48, "depth": 4, "heads": 3, "global_blocks": (1,), "native_size": 256},
        "vit_h": {"width": 32, "depth": 3, "heads": 2, "global_blocks": (2,), "native_size": 256},
        "small": {"width": 64, "depth": 2, "heads": 2},
    }
    for name, changes in smaller.items():
        monkeypatch.setitem(ENCODERS, name, replace(ENCODERS[name], **changes))


def make_plan(encoder="vit_b", adaptation="lora", components="encoder_decoder", head="sam", **settings) -> NetworkPlan:
    adapted = ADAPTATIONS[adaptation](**settings).for_components(components)
    return NetworkPlan(
        encoder=encoder, input_shape=[64, 64], spacing=1.0, head=head, adaptation=adapted, components=components,
        input_channels="repeat",
        batch_size=2, accumulation=1, learning_rate=1e-3, weight_decay=0.1, training_images={"cpu": 1, "gpu": 1},
        memory_bytes=0, training_gflops=0.0,
    )  # fmt: skip


@cache
def base_state(encoder: str) -> dict[str, torch.Tensor]:
    """A checkpoint in SAM's layout with values in every tensor, as if pretrained."""
    model = build_model(make_plan(encoder, "full"), num_outputs=4, num_channels=1, unit_range=[False])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(parameter.shape)
            scale = 1 / np.sqrt(np.prod(parameter.shape[1:])) if parameter.ndim >= 2 else 0.1
            one = 1.0 if ("norm" in name or ".bn." in name) and name.endswith("weight") else 0.0
            parameter.copy_(torch.from_numpy(values * scale + one).float())
    return {name.removeprefix("head."): value for name, value in model.state_dict().items()}


def build(plan: NetworkPlan, base=None, classes=CLASSES, seed=0):
    base = base_state(plan.encoder) if base is None else base
    torch.manual_seed(seed)
    return build_model(plan, num_outputs=classes, num_channels=1, unit_range=[False], base_state=base)


def trained_steps(model, steps=2, rate=0.05):
    """Train on noise; returns the optimizer as the trainer makes it. LoRA's A has no gradient before B leaves zero."""
    optimizer = torch.optim.SGD(adamw(model, rate, 0.1).param_groups, lr=rate)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        image = torch.randn(2, 1, 64, 64, generator=generator)
        target = torch.randint(0, CLASSES, (2, 64, 64), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(image), target).backward()
        optimizer.step()
    return optimizer


def encoder_formula(plan: NetworkPlan) -> int:
    """Trained parameters of a SAM encoder by arithmetic alone."""
    facts = ENCODERS[plan.encoder]
    d, blocks = facts.width, facts.depth
    if plan.components == "decoder" or plan.adaptation.method == "full":
        raise NotImplementedError
    settings = plan.adaptation
    if settings.blocks == "last_half":
        blocks -= facts.depth // 2
    elif isinstance(settings.blocks, list):
        blocks = len(settings.blocks)
    if settings.method == "adapter":
        inner = d // settings.reduction
        return blocks * 2 * (d * inner + inner + inner * d + d)
    r = settings.rank
    low_rank = {"q": 2 * r * d, "k": 2 * r * d, "v": 2 * r * d, "proj": 2 * r * d, "mlp": 2 * r * (d + 4 * d)}
    magnitudes = {"q": d, "k": d, "v": d, "proj": d, "mlp": 4 * d + d}
    return blocks * sum(low_rank[t] + magnitudes[t] * settings.dora for t in settings.targets)


def decoder_formula(plan: NetworkPlan, classes: int, iou_head: bool = False) -> int:
    """Trained parameters of SAM's decoder with one token per class, by arithmetic alone."""
    transformer, settings = 3_291_264, plan.adaptation
    if settings.method == "adapter":
        inner = 256 // settings.reduction
        transformer = 2 * 2 * (256 * inner + inner + inner * 256 + 256)
    elif settings.method == "lora" and settings.decoder:
        r, dora = settings.rank, settings.dora
        # (inputs, outputs) of self-attention and of the three kinds of cross-attention, which halve the channels.
        wide = {"q": (256, 256), "k": (256, 256), "v": (256, 256), "proj": (256, 256)}
        half = {"q": (256, 128), "k": (256, 128), "v": (256, 128), "proj": (128, 256)}
        transformer = 0
        for target in settings.targets:
            linears = [(256, 2048), (2048, 256)] * 2 if target == "mlp" else [wide[target]] * 2 + [half[target]] * 5
            transformer += sum(r * (inner + outer) + outer * dora for inner, outer in linears)
    upscaling, iou_token, no_mask = 73_952, 256, 256
    per_class = 256 + 139_808
    quality = 2 * (256 * 256 + 256) + 257 * classes if iou_head else 0
    return transformer + upscaling + iou_token + no_mask + per_class * classes + quality


VARIANTS = {
    "SAMed_s": {"decoder": True},
    "qkv, rank 8": {"rank": 8, "alpha": 16, "targets": ["q", "k", "v"]},
    "attention and mlp": {"targets": ALL_TARGETS, "decoder": True},
    "last half": {"blocks": "last_half"},
    "listed blocks": {"blocks": [0, 3]},
    "dora": {"dora": True, "decoder": True},
    "rslora": {"rslora": True, "alpha": 8},
}
TABLE = [
    pytest.param(
        make_plan(name, adaptation, components),
        id=f"{name}-{adaptation}-{components}",
        marks=[pytest.mark.slow] if name == "vit_h" else [],  # of one kind with vit_b
    )
    for name in NAMES
    for adaptation in ("lora", "adapter", "full")
    for components in ("encoder_decoder", "decoder")
]
TABLE += [pytest.param(make_plan(**changes), id=name) for name, changes in VARIANTS.items()]
TABLE += [
    pytest.param(make_plan(adaptation="adapter", reduction=8, blocks=[1]), id="adapter in one block"),
    pytest.param(make_plan(adaptation="adapter", head="detail"), id="adapter, detail head"),
    pytest.param(make_plan(components="decoder", head="detail"), id="lora, detail head"),
]


@pytest.mark.parametrize("plan", TABLE)
def test_every_combination(plan, tmp_path):
    base = base_state(plan.encoder)
    model = build(plan, base)
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        before = model.eval()(image)
        unadapted = build(make_plan(plan.encoder, "full", head=plan.head), base)
        unadapted.load_state_dict(
            {name: value for name, value in model.state_dict().items() if name in unadapted.state_dict()}, strict=False
        )
        assert torch.allclose(before, unadapted.eval()(image), atol=1e-4)  # what is added starts as nothing
    model.train()

    optimizer = trained_steps(model)
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimized = {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
    assert optimized == with_gradient
    assert {name for name, p in model.named_parameters() if p.grad is not None} == with_gradient
    new = ("lora_", ".adapter.", "mask_tokens", "output_hypernetworks_mlps", "head.path", "head.mix")
    assert {name for name in names.values() if any(part in name for part in new)} <= optimized
    # The encoder and the decoder train where, and only where, the plan says so.
    encoder = {name for name in optimized if name.startswith("image_encoder.")}
    assert bool(encoder) == (plan.components == "encoder_decoder")
    if plan.adaptation.method != "full":
        assert all("lora_" in name or ".adapter." in name for name in encoder)
    counts = model.trained_parameters()
    if plan.head == "sam":
        assert counts["head"] == decoder_formula(plan, CLASSES)
    if plan.components == "decoder":
        assert counts["image_encoder"] == 0
    elif plan.adaptation.method != "full" and plan.encoder != "vit_t":
        assert counts["image_encoder"] == encoder_formula(plan)

    save_model(tmp_path, model, "final")
    with torch.no_grad():
        expected = model.eval()(image)
    assert not torch.allclose(expected, before, atol=1e-3)
    state = read_tensors(tmp_path / "checkpoint_final.safetensors")
    loaded = build(plan, base, seed=99)
    assert not any("lora_" in name for name in state)
    assert {path.name for path in tmp_path.iterdir()} - {"checkpoint_final.safetensors"} == {
        name
        for name, there in (
            ("adapter_final", plan.adaptation.method == "lora" and plan.components == "encoder_decoder"),
            ("adapter_final_decoder", getattr(plan.adaptation, "decoder", False)),
        )
        if there
    }
    loaded.load_trained_state(state | load_adapters(loaded, tmp_path, "final"))
    loaded.eval()
    with torch.no_grad():
        assert torch.allclose(loaded(image), expected, atol=1e-5)
        merge_adapters(loaded)
        assert torch.allclose(loaded(image), expected, atol=1e-5)
    if plan.adaptation.method != "adapter" and plan.head == "sam":
        assert loaded.state_dict().keys() == unadapted.state_dict().keys()  # SAM's own


def test_samed_s_parameter_counts():
    """SAMed, ViT-B, 8 classes: 147,456 + 4,759,945 with the IoU head, of which 133,897 no loss reaches."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "vit_b", replace(ENCODERS["vit_b"], width=768, depth=12, heads=12, native_size=1024))
        samed = build_model(make_plan(), num_outputs=9, num_channels=1, unit_range=[False])
        samed_s = build_model(make_plan(decoder=True), num_outputs=9, num_channels=1, unit_range=[False])
        adapters = build_model(make_plan(adaptation="adapter"), num_outputs=9, num_channels=1, unit_range=[False])
        assert encoder_formula(make_plan()) == 147_456
        assert encoder_formula(make_plan(adaptation="adapter")) == 12 * 591_744
    decoder = sum(parameter.numel() for parameter in samed.head.mask_decoder.parameters())
    assert decoder == 4_759_945 == decoder_formula(make_plan(), 9, iou_head=True) - 256
    assert samed.trained_parameters() == {
        "input_layer": 0, "image_encoder": 147_456, "head": 4_759_945 - 133_897 + 256,
    }  # fmt: skip
    assert samed_s.trained_parameters()["head"] == 23_552 + 1_468_681 - 133_897 + 256
    assert adapters.trained_parameters()["image_encoder"] == 12 * 2 * 295_872
    assert adapters.trained_parameters()["head"] == 132_352 + 1_468_681 - 133_897 + 256


def test_size_of_a_fold(tmp_path):
    """SAMed's setting, ViT-B with 8 classes: at most 19 MiB in the files of a fold's model."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "vit_b", replace(ENCODERS["vit_b"], width=768, depth=12, heads=12, native_size=1024))
        model = build_model(make_plan(), num_outputs=9, num_channels=1, unit_range=[False])
    model.has_base = True
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # what is not a number is not saved
    save_model(tmp_path, model, "final")
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 4 * (147_456 + 4_626_304) < size <= 19 * 2**20


def test_adapter_stands_where_gu_et_al_put_it():
    """Against the block's forward written out, with adapters that are not zero."""
    model = build(make_plan(adaptation="adapter"))
    block = model.image_encoder.blocks[1]
    for adapter in (block.attn.proj.adapter, block.mlp.adapter):
        torch.nn.init.normal_(adapter.up.weight)
    from samunet.network.attention import block_attention
    from samunet.network.encoders.vit import _run_block

    def bottleneck(adapter, x):
        return F.linear(F.gelu(F.linear(x, adapter.down.weight, adapter.down.bias)), adapter.up.weight, adapter.up.bias)

    tokens = torch.randn(1, 4, 4, 48)
    with torch.no_grad():
        plain = build(make_plan(adaptation="full")).image_encoder.blocks[1]
        attended = block_attention(plain.attn, plain.norm1(tokens), plain.window_size)
        x = tokens + attended + bottleneck(block.attn.proj.adapter, attended)
        normed = plain.norm2(x)
        expected = x + plain.mlp(normed) + 0.5 * bottleneck(block.mlp.adapter, normed)
        assert torch.allclose(_run_block(block, tokens), expected, atol=1e-4)

        layer = model.head.mask_decoder.transformer.layers[1]
        reference = SamHead(CLASSES, 16, 16).mask_decoder.transformer.layers[1]
        reference.load_state_dict(layer.state_dict(), strict=False)
        shared, beside = layer.norm2.adapter, layer.mlp.adapter
        for adapter in (shared, beside):
            torch.nn.init.normal_(adapter.up.weight)
        queries, keys, places, image_places = (torch.randn(1, n, 256) for n in (4, 16, 4, 16))
        q = queries + places
        a = reference.norm1(queries + reference.self_attn(q=q, k=q, v=queries))
        s = a + reference.cross_attn_token_to_image(q=a + places, k=keys + image_places, v=keys)
        b = reference.norm2(s + bottleneck(shared, s))
        c = reference.norm3(b + reference.mlp(b) + 0.5 * bottleneck(beside, b))
        t = keys + reference.cross_attn_image_to_token(q=keys + image_places, k=c + places, v=c)
        out_queries, out_keys = layer(queries, keys, places, image_places)
        assert torch.allclose(out_queries, c, atol=1e-4)
        assert torch.allclose(out_keys, reference.norm4(t + bottleneck(shared, t)), atol=1e-4)


def test_tinyvits_adapter_gets_tokens_before_the_norm_of_the_mlp():
    """Gu et al.: ``x + mlp(x) + 0.5 * adapter(x)``, where TinyViT's ``mlp`` begins with its norm."""
    block = build(make_plan("vit_t", "adapter")).image_encoder.layers[2].blocks[1].eval()
    torch.nn.init.normal_(block.mlp.adapter.up.weight)
    plain = build(make_plan("vit_t", "full")).image_encoder.layers[2].blocks[1].eval()
    features = torch.randn(1, 160, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = features.permute(0, 2, 3, 1)
        x = plain.local_conv((tokens + plain.attn(tokens)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        down, up = block.mlp.adapter.down, block.mlp.adapter.up
        beside = F.linear(F.gelu(F.linear(x, down.weight, down.bias)), up.weight, up.bias)
        expected = (x + plain.mlp(x) + 0.5 * beside).permute(0, 3, 1, 2)
        assert torch.allclose(block(features), expected, rtol=1e-5, atol=1e-5)


def test_rslora_and_alpha_scale_as_published():
    for settings, scale in (({"alpha": 8}, 8 / 4), ({"alpha": 8, "rslora": True}, 8 / 4**0.5)):
        part = build(make_plan(**settings)).image_encoder.base_model.model.blocks[0].attn.qkv.q
        torch.nn.init.normal_(part.lora_B["default"].weight)
        x = torch.randn(2, 48)
        update = part.lora_B["default"].weight @ part.lora_A["default"].weight * scale
        assert torch.allclose(part(x), part.base_layer(x) + x @ update.T, atol=1e-4)


@pytest.mark.parametrize(
    "plan",
    [
        make_plan(),
        make_plan(dora=True, targets=ALL_TARGETS, decoder=True),
        make_plan(adaptation="adapter", blocks=[1]),
        make_plan(components="decoder"),
        make_plan("vit_t", rslora=True, blocks="last_half"),
        make_plan("vit_t", adaptation="adapter"),
        make_plan("vit_t", adaptation="full"),
    ],
    ids=["lora", "dora", "adapter", "decoder", "vit_t lora", "vit_t adapter", "vit_t full"],
)
def test_frozen_weights_may_be_held_in_bfloat16(plan):
    """As the trainer holds them: output and gradients stay near those of float32."""
    exact, held = build(plan), build(plan)
    hold_frozen(held.image_encoder, torch.bfloat16)
    trained = [name for name, parameter in exact.named_parameters() if parameter.requires_grad]
    assert {held.get_parameter(name).dtype for name in trained} == {torch.float32}
    if plan.adaptation.method != "full":
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        layers = [module for module in held.image_encoder.modules() if isinstance(module, kinds)]
        frozen = {p.dtype for layer in layers for p in layer.parameters(recurse=False) if not p.requires_grad}
        assert frozen == {torch.bfloat16}
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", torch.bfloat16):
        ours = held(image)
    expected = exact(image)
    assert float((ours - expected).detach().norm() / expected.detach().norm()) < 0.05
    for output in (ours, expected):
        F.cross_entropy(output, torch.zeros(2, 64, 64, dtype=torch.long)).backward()
    gradients = [torch.cat([model.get_parameter(name).grad.flatten() for name in trained]) for model in (held, exact)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 0.15


@pytest.mark.parametrize("plan", [make_plan(), make_plan(adaptation="adapter"), make_plan("vit_t")])
def test_in_prediction_weights_held_in_bfloat16_change_nothing(plan):
    exact, held = build(plan).eval().requires_grad_(False), build(plan).eval().requires_grad_(False)
    for model in (exact, held):
        merge_adapters(model)
    hold_frozen(held.image_encoder, torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        image = torch.randn(1, 1, 64, 64)
        ours, theirs = held(image), exact(image)
    if plan.encoder == "vit_t":  # a normalisation is folded into the weight after it was rounded, not before
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02
        assert not torch.equal(ours, theirs)
    else:
        assert torch.equal(ours, theirs)


def test_an_adapter_of_another_network_is_refused(tmp_path):
    save_model(tmp_path, build(make_plan(alpha=8)), "final")
    with pytest.raises(SamunetError, match="lora_alpha is 8, but the plans say 4"):
        load_adapters(build(make_plan()), tmp_path, "final")
    save_model(tmp_path, build(make_plan("vit_h")), "final")
    with pytest.raises(SamunetError, match="made for another network"):
        load_adapters(build(make_plan()), tmp_path, "final")
    save_model(tmp_path, build(make_plan(targets=["q"])), "final")
    with pytest.raises(SamunetError, match="made for another network"):
        load_adapters(build(make_plan()), tmp_path, "final")


def test_another_number_of_classes_is_refused(tmp_path):
    save_model(tmp_path, build(make_plan(), classes=4), "final")
    loaded = build(make_plan())
    state = read_tensors(tmp_path / "checkpoint_final.safetensors") | load_adapters(loaded, tmp_path, "final")
    with pytest.raises(SamunetError, match="other plans or classes"):
        loaded.load_trained_state(state)


VIT_B, SMALL = ENCODERS["vit_b"], ENCODERS["small"]


@pytest.mark.parametrize(
    ("facts", "arguments", "expected"),
    [
        (VIT_B, {"asked": "prompt"}, "`adaptation` must be one of lora, adapter, full, got 'prompt'"),
        (VIT_B, {"components": "encoder"}, "`components` must be one of encoder_decoder, decoder"),
        (VIT_B, {"asked": LoraPlan(blocks=[1, 12])}, "`lora.blocks` must be different numbers from 0 to 3 for vit_b"),
        (VIT_B, {"asked": AdapterPlan(blocks=[1, 1])}, "`adapter.blocks` must be different numbers"),
        (VIT_B, {"asked": LoraPlan(targets=["q", "q"])}, "`lora.targets` must not repeat a name, got ['q', 'q']"),
        (SMALL, {"asked": LoraPlan(blocks=[8])}, "`lora.blocks` must be different numbers from 0 to 1 for small"),
    ],
)
def test_what_does_not_fit_is_refused(facts, arguments, expected):
    with pytest.raises(UsageError) as error:
        rules.adaptation(ENCODERS[facts.name], **arguments)  # reduced
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-lora_targets", "q", "x"], "`lora.targets`: Input should be 'q', 'k', 'v', 'proj' or 'mlp', got 'x'"),
        (["-lora_rank", "0"], "`lora.rank`: Input should be greater than or equal to 1, got 0"),
        (["-lora_alpha", "1000000"], "`lora.alpha`: Input should be less than or equal to 100000"),
        (["-lora_blocks", "1", "x"], "-lora_blocks must be all, last_half or numbers of blocks, got '1 x'"),
        (["-adaptation", "full", "-lora_rank", "8"], "-lora_rank is of the adaptation 'lora', not of 'full'"),
        (["-adapter_reduction", "2", "--dora"], "-adapter_reduction is of the adaptation 'adapter', not of 'lora'"),
    ],
)
def test_settings_that_are_not_allowed_are_refused_with_their_field(given, expected):
    with pytest.raises(UsageError) as error:
        given_by(*given)
    assert expected in str(error.value)


def given_by(*words):
    """The adaptation that a command line asks for."""
    parser = argparse.ArgumentParser()
    ADAPTATION.add_to(parser)
    return ADAPTATION.chosen(vars(parser.parse_args(words)))


def test_settings_of_flags():
    assert given_by() is None
    assert given_by("-adaptation", "adapter") == "adapter"
    assert given_by("-lora_rank", "8") == LoraPlan(rank=8, alpha=8)
    assert given_by("-lora_rank", "8", "-lora_alpha", "2", "--rslora") == LoraPlan(rank=8, alpha=2, rslora=True)
    assert given_by("-lora_targets", "attention", "mlp") == LoraPlan(targets=ALL_TARGETS)
    assert given_by("-lora_blocks", "0", "3", "--lora_decoder", "--dora") == LoraPlan(
        blocks=[0, 3], decoder=True, dora=True
    )
    assert given_by("-adapter_reduction", "8", "-adapter_blocks", "last_half") == AdapterPlan(
        reduction=8, blocks="last_half"
    )


def test_options_take_settings_by_the_adaptations_name():
    assert PlannerOptions(lora={"rank": 8}) == PlannerOptions(adaptation=LoraPlan(rank=8))
    assert PlannerOptions(adaptation="adapter", adapter=AdapterPlan(reduction=8)).adaptation.reduction == 8
    with pytest.raises(UsageError, match=r"`lora\.rank`: Input should be greater than or equal to 1, got 0"):
        PlannerOptions(lora={"rank": 0})
    for wrong in ({"adaptation": "full", "lora": LoraPlan()}, {"lora": LoraPlan(), "adapter": AdapterPlan()}):
        with pytest.raises(UsageError, match=r"must not be given with the adaptation '(full|lora)'"):
            PlannerOptions(**wrong)


def test_rules_by_kind():
    lora, components, _ = rules.adaptation(VIT_B, components="decoder")
    assert lora.decoder
    assert components == "decoder"
    assert rules.adaptation(VIT_B, "adapter")[0] == AdapterPlan()
    assert rules.adaptation(VIT_B, AdapterPlan(reduction=8))[0].reduction == 8
    rates = {
        kind: rules.learning_rate(ENCODERS["vit_b"], ADAPTATIONS[kind[0]](), *kind[1:], batch=24)[0]
        for kind in (("lora",), ("adapter",), ("full",), ("full", "decoder"))
    }
    assert list(rates.values()) == [5e-3, 1e-3, 3e-4, 5e-3]


def test_less_is_kept_where_less_is_adapted():
    whole, half, none = (
        resources.estimate(VIT_B, [1024, 1024], LoraPlan(blocks=blocks), components)
        for components, blocks in (("encoder_decoder", "all"), ("encoder_decoder", "last_half"), ("decoder", "all"))
    )
    assert none.image_bytes < half.image_bytes < whole.image_bytes
    assert none.training_flops < half.training_flops < whole.training_flops
    everything = resources.estimate(VIT_B, [1024, 1024], FullPlan())
    assert none.fixed_bytes == whole.fixed_bytes - 12 * 3_291_264  # the decoder's transformer is frozen
    assert whole.fixed_bytes < everything.fixed_bytes


@pytest.mark.slow
def test_from_flags_to_masks(samunet_folders, tiny_dataset, tmp_path, monkeypatch, capsys):
    """Two adaptations side by side under plans of their own, trained and predicted with as a user would."""
    monkeypatch.setenv("samunet_checkpoints", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    torch.save(base_state("vit_b"), tmp_path / "weights" / "sam_vit_b_01ec64.pth")
    dataset = tiny_dataset()
    common = ["-d", "998", "-encoder", "vit_b", "-image_size", "64"]
    flags = {
        "decoderDora": ["-components", "decoder", "--dora", "-lora_rank", "2", "-lora_targets", "attention", "mlp"],
        "adapters": ["-adaptation", "adapter", "-adapter_blocks", "last_half"],
    }
    for name, chosen in flags.items():
        assert run_command("samunet_plan_and_preprocess", [*common, *chosen, "-overwrite_plans_name", name]) == 0
        assert (
            run_command("samunet_train", ["998", "2d", "0", "-p", name, "--iterations", "2", "--batch_size", "2"]) == 0
        )
        messages = capsys.readouterr().err
        fold = next((samunet_folders / "results").glob(f"*/samunetTrainer__{name}__2d")) / "fold_0"
        run = json.loads((fold / "run.json").read_text())
        plan = json.loads((fold.parent / "plans.json").read_text())["configurations"]["2d"]["networks"]["vit_b"]
        assert f"{sum(run['trained_parameters'].values()):,} parameters" in messages
        assert (fold / "adapter_final_decoder" / "adapter_config.json").is_file() == (name == "decoderDora")
        output = tmp_path / name
        assert (
            run_command(
                "samunet_predict", ["-i", str(dataset / "imagesTs"), "-o", str(output), "-d", "998", "-p", name]
            )
            == 0
        )
        assert len(list(output.glob("*.nii.gz"))) == 2
        if name == "decoderDora":
            assert (
                plan["adaptation"]
                == LoraPlan(rank=2, alpha=2, targets=ALL_TARGETS, decoder=True, dora=True).model_dump()
            )
        else:
            assert plan["adaptation"] == {"method": "adapter", "reduction": 4, "blocks": "last_half"}
    # The base is exchanged after training: refused at prediction.
    changed = {"image_encoder.pos_embed": base_state("vit_b")["image_encoder.pos_embed"] + 1}
    torch.save(base_state("vit_b") | changed, tmp_path / "weights" / "sam_vit_b_01ec64.pth")
    again = ["-i", str(dataset / "imagesTs"), "-o", str(tmp_path / "x"), "-d", "998", "-p", "adapters"]
    assert run_command("samunet_predict", again) == 1
    assert "needs its base weights sam_vit_b_01ec64.pth" in capsys.readouterr().err
    assert run_command("samunet_plan_experiment", [*common, "-lora_targets", "q", "w"]) == 2
    assert "got 'w'" in capsys.readouterr().err
