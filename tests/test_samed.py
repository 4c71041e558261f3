"""SAMed's recipe and files, against its formulas written out here."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import zoom
from test_planner import describe, measure

from samunet import api
from samunet.commands import run_command
from samunet.dataset.labels import Labels
from samunet.dataset.splits import subsample_cases
from samunet.encoders import ENCODERS
from samunet.errors import SamunetError, UsageError
from samunet.inference.predictor import Predictor
from samunet.models.folder import ModelFolder
from samunet.network.checkpoints import load_base, load_sam_checkpoint
from samunet.network.encoders.vit import ImageEncoder
from samunet.network.heads import SamHead
from samunet.network.model import build_model
from samunet.network.optimizer import adamw
from samunet.network.sam_modules import ImageEncoderViT
from samunet.planning.planner import PlannerOptions, plan
from samunet.sharing.samed_import import SamedImport, _check, _dataset_json
from samunet.tensors import read_tensors
from samunet.training.recipes.samed import SamedLoss, reduce_target, samed_rate
from samunet.training.schedule import Budget

CLASSES = 3  # without background
SIZE = 128
RANK = 4


@pytest.fixture
def reduced(monkeypatch, tmp_path):
    """A small vit_b with a checkpoint of its own in the checkpoints folder; returns the checkpoint's tensors."""
    facts = replace(ENCODERS["vit_b"], width=48, depth=3, heads=3, global_blocks=(1,), native_size=256)
    monkeypatch.setitem(ENCODERS, "vit_b", facts)
    for name in ("raw", "preprocessed", "results", "checkpoints"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"samunet_{name}", str(tmp_path / name))
    torch.manual_seed(3)
    encoder, head = ImageEncoder(facts), SamHead(4, 16, 16)
    for module in (encoder, head):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else parameter.data.add_(0.02)
    state = {f"image_encoder.{name}": value for name, value in encoder.state_dict().items()} | head.state_dict()
    torch.save(state, tmp_path / "checkpoints" / "sam_vit_b_01ec64.pth")
    return state


# What SAMed_s calls q and v of the decoder's attentions (its save_lora_parameters), and the width of each.
DECODER_LORA = {
    f"{short}_{{}}_{2 * layer + part:03d}": (f"layers.{layer}.{attention}.{'qv'[part]}_proj", width)
    for short, attention, width in (
        ("sa", "self_attn", 256), ("cti", "cross_attn_token_to_image", 128), ("cit", "cross_attn_image_to_token", 128),
    )
    for layer in range(2)
    for part in range(2)
} | {f"fati_{part}{{}}": (f"final_attn_token_to_image.{part}_proj", 128) for part in "qv"}  # fmt: skip


def samed_file(base, path, classes=CLASSES, rank=RANK, blocks=3, width=48, small=False):
    """What SAMed's save_lora_parameters writes: parameters w_a, w_b, and every tensor of prompt encoder and decoder.

    With ``small`` that of SAMed_s: LoRA of the decoder's transformer in place of the transformer.
    """
    torch.manual_seed(4)
    head = SamHead(classes + 1, 16, 16).state_dict()
    shared = {name: value for name, value in base.items() if name in head and value.shape == head[name].shape}
    content = {
        f"w_{kind}_{index:03d}": torch.nn.Parameter(torch.randn(shape) * 0.2)
        for index in range(2 * blocks)
        for kind, shape in (("a", (rank, width)), ("b", (width, rank)))
    }
    content |= head | shared
    # The decoder has been trained.
    content |= {name: v + 0.01 * torch.randn(v.shape) for name, v in content.items() if "mask_decoder." in name}
    content["prompt_encoder.no_mask_embed.weight"] = torch.randn(1, 256) * 0.1
    if small:
        content = {name: value for name, value in content.items() if "transformer" not in name}
        for name, (_, outer) in DECODER_LORA.items():
            content[name.format("a")] = torch.nn.Parameter(torch.randn(rank, 256) * 0.2)
            content[name.format("b")] = torch.nn.Parameter(torch.randn(outer, rank) * 0.2)
    torch.save(content, path)
    return content


def samed_logits(base, content, image):
    """SAMed's forward with segment_anything's own modules: dense updates of q and v, then SAM's decoder."""
    encoder = ImageEncoderViT(
        img_size=SIZE, patch_size=16, embed_dim=48, depth=3, num_heads=3, out_chans=256, use_rel_pos=True,
        window_size=14, global_attn_indexes=(1,), norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6),
    )  # fmt: skip
    state = {name.removeprefix("image_encoder."): v.clone() for name, v in base.items() if "image_encoder." in name}
    side = SIZE // 16
    positions = F.interpolate(state["pos_embed"].permute(0, 3, 1, 2), (side, side), mode="bilinear")
    state["pos_embed"] = positions.permute(0, 2, 3, 1)
    for table in ("rel_pos_h", "rel_pos_w"):  # of the global block
        name = f"blocks.1.attn.{table}"
        wide = F.interpolate(state[name][None, None], (2 * side - 1, state[name].shape[1]), mode="bilinear")
        state[name] = wide[0, 0]
    for block in range(3):
        for part, rows in enumerate((slice(0, 48), slice(96, 144))):
            index = 2 * block + part
            update = content[f"w_b_{index:03d}"] @ content[f"w_a_{index:03d}"]
            state[f"blocks.{block}.attn.qkv.weight"][rows] += update.detach()
    encoder.load_state_dict(state)
    head = SamHead(CLASSES + 1, 16, 16)
    state = {name: value.detach() for name, value in content.items() if "." in name}
    if "fati_qa" in content:
        state |= {name: value.clone() for name, value in base.items() if name.startswith("mask_decoder.transformer.")}
        for name, (layer, _) in DECODER_LORA.items():
            update = content[name.format("b")] @ content[name.format("a")]
            state[f"mask_decoder.transformer.{layer}.weight"] += update.detach()
    head.load_state_dict(state)
    dense = head.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, side, side)
    with torch.no_grad():
        masks, _ = head.mask_decoder.predict_masks(
            image_embeddings=encoder(image),
            image_pe=head.prompt_encoder.pe_layer((side, side)).unsqueeze(0),
            sparse_prompt_embeddings=torch.empty(1, 0, 256),
            dense_prompt_embeddings=dense,
        )
        return F.interpolate(masks, (SIZE, SIZE), mode="bilinear", align_corners=False)


def test_loss_by_hand():
    """Uniform probabilities over two classes on 2 x 2 pixels, of which one is foreground."""
    logits, target = torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 0], [0, 1]]])
    background = (2 * 1.5 + 1e-5) / (1 + 3 + 1e-5)
    foreground = (2 * 0.5 + 1e-5) / (1 + 1 + 1e-5)
    expected = 0.2 * np.log(2) + 0.8 * (1 - (background + foreground) / 2)
    assert float(SamedLoss()(logits, target)) == pytest.approx(expected, rel=1e-6)


def test_loss_equals_samed_s_formula():
    rng = np.random.default_rng(0)
    logits, label = rng.standard_normal((3, 5, 32, 24)), rng.integers(0, 5, (3, 128, 96))
    small = np.stack([zoom(one, (32 / 128, 24 / 96), order=0) for one in label])
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    chosen = np.take_along_axis(p, small[:, None], axis=1)
    losses = []
    for value in range(5):
        score, target = p[:, value], (small == value).astype(float)
        losses.append(1 - (2 * (score * target).sum() + 1e-5) / ((score**2).sum() + (target**2).sum() + 1e-5))
    expected = 0.2 * -np.log(chosen).mean() + 0.8 * np.mean(losses)
    ours = SamedLoss()(torch.from_numpy(logits), torch.from_numpy(label))
    assert float(ours) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("fine", "coarse"), [((512, 512), (128, 128)), ((64, 48), (16, 12)), ((9, 5), (1, 2))])
def test_targets_are_reduced_as_by_scipy(fine, coarse):
    label = np.random.default_rng(1).integers(0, 9, fine)
    expected = zoom(label, (coarse[0] / fine[0], coarse[1] / fine[1]), order=0)
    assert np.array_equal(reduce_target(torch.from_numpy(label)[None], coarse)[0].numpy(), expected)


def test_schedule_is_samed_s():
    budget = Budget(iterations=14_720)
    rate, used = 1 / 250, []
    for iteration in range(14_720):  # SAMed's loop: the rate is set after the update
        used.append(rate)
        decayed = (1 - (iteration - 250) / (14_720 * 200 / 160)) ** 0.9
        rate = (iteration + 1) / 250 if iteration < 250 else decayed
    ours = [samed_rate(budget, iteration, 0) for iteration in range(14_720)]
    assert np.allclose(ours, used)
    timed = Budget(seconds=100)
    assert samed_rate(timed, 9, 5) == 1
    assert samed_rate(timed, 9, 100) == pytest.approx((1 - 0.95 / 1.25) ** 0.9)


def ct():
    return measure([(30, 512, 512)] * 3, [(3, 0.8, 0.8)] * 3), describe(channels=("CT",))


def test_recipe_in_the_plans():
    fingerprint, description = ct()
    planned = plan("Dataset004_A", description, fingerprint, PlannerOptions(recipe="samed", encoder="vit_b"))
    configuration = planned.configuration("2d")
    network = configuration.networks["vit_b"]
    assert configuration.normalization == ["window"]
    assert (network.recipe, network.input_shape, network.input_channels) == ("samed", [512, 512], "repeat")
    assert network.batch_size * network.accumulation == 24
    assert (network.learning_rate, network.weight_decay, network.head) == (5e-3, 0.1, "sam")
    assert (network.adaptation.rank, network.adaptation.alpha, network.adaptation.targets) == (4, 4, ["q", "v"])
    assert configuration.networks["small"].recipe == "samunet"
    for options in ({"recipe": "samed", "encoder": "small"}, {"recipe": "sam"}):
        with pytest.raises(UsageError, match=r"`recipe|there is no recipe"):
            plan("Dataset004_A", description, fingerprint, PlannerOptions(**options))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "regions"),
        ({"background": 0, "a": 1, "ignore": 2}, "an ignore label"),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions"),
    ],
)
def test_recipe_refuses_what_its_loss_cannot_learn(labels, what):
    fingerprint, description = ct()
    order = [1, 2] if "whole" in labels else None
    description = replace(description, labels=Labels.from_json(labels, regions_class_order=order))
    with pytest.raises(UsageError, match=f"`recipe='samed'`.*{what}"):
        plan("Dataset004_A", description, fingerprint, PlannerOptions(recipe="samed", encoder="vit_b"))
    assert plan("Dataset004_A", description, fingerprint, PlannerOptions()).configuration("2d")


@pytest.mark.parametrize("unit_range", [True, False])
def test_input_is_seen_as_it_is(reduced, unit_range):
    """Whatever the channels' scheme and the base weights' own statistics."""
    fingerprint, description = ct()
    planned = plan("Dataset004_A", description, fingerprint, PlannerOptions(recipe="samed", encoder="vit_b"))
    network = planned.configuration("2d").networks["vit_b"]
    model = build_model(
        network, num_outputs=3, num_channels=1, unit_range=[unit_range], base_state=reduced,
        pixel_statistics=([100.0, 110.0, 120.0], [50.0, 60.0, 70.0]),
    )  # fmt: skip
    image = torch.rand(1, 1, 4, 4)
    assert torch.allclose(model.input_layer(image), image.expand(-1, 3, -1, -1))


def test_everything_decays_in_samed_s_optimizer():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    assert {group["weight_decay"] for group in adamw(module, 1e-3, 0.1).param_groups} == {0.1, 0.0}
    assert {group["weight_decay"] for group in adamw(module, 1e-3, 0.1, everything_decays=True).param_groups} == {0.1}


@pytest.mark.parametrize("small", [False, True], ids=["SAMed", "SAMed_s"])
def test_imported_file_gives_samed_s_logits(reduced, tmp_path, capsys, small):
    file = tmp_path / "epoch_159.pth"
    content = samed_file(reduced, file, small=small)
    arguments = [str(file), "--encoder", "vit_b", "--image_size", str(SIZE), "--num_classes", str(CLASSES)]
    assert run_command("samunet_import_samed", arguments) == 0
    output = capsys.readouterr().out
    folder = ModelFolder(next((tmp_path / "results" / "Dataset900_SAMed").iterdir()))
    assert str(folder.path) in output
    (model,) = folder.load(["all"])
    image = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        logits = model(image)
    expected = torch.cat([samed_logits(reduced, content, one.expand(1, 3, -1, -1)) for one in image])
    assert float((logits - expected).norm() / expected.norm()) < 1e-4
    if small:  # the decoder's LoRA plays a part in that
        without = content | {"fati_qb": content["fati_qb"] * 0}
        plain = torch.cat([samed_logits(reduced, without, one.expand(1, 3, -1, -1)) for one in image])
        assert float((logits - plain).norm() / plain.norm()) > 1e-3
    assert folder.configuration.networks["vit_b"].adaptation.decoder == small
    run = folder.run("all")
    assert run["imported_from"]["file"] == "epoch_159.pth"
    assert run["base"]["file"] == "sam_vit_b_01ec64.pth"
    assert run["base"]["bytes"] == (tmp_path / "checkpoints" / "sam_vit_b_01ec64.pth").stat().st_size
    mask = Predictor.from_folder(folder.path).predict_array(np.full((1, 2, 40, 40), 50.0), (3.0, 1.0, 1.0))
    assert mask.shape == (2, 40, 40)
    assert run_command("samunet_import_samed", arguments) == 1
    assert "exists" in capsys.readouterr().err

    # The same model as a plain SAM checkpoint, which loads as one and gives the same logits.
    for name in ("merged.pth", "merged.safetensors"):
        path = tmp_path / name
        assert run_command("samunet_merge_adapter", ["900", "2d", "all", "-p", "samedPlans", "-o", str(path)]) == 0
        state = load_sam_checkpoint(path) if path.suffix == ".pth" else read_tensors(path)
        vanilla = {name for name in reduced if ".output_hypernetworks_mlps." not in name}
        assert {name for name in state if ".output_hypernetworks_mlps." not in name} == vanilla
        encoder, head = ImageEncoder(ENCODERS["vit_b"]), SamHead(CLASSES + 1, 16, 16)
        load_base(encoder, head, state)
        head.load_state_dict({name: value for name, value in state.items() if not name.startswith("image_encoder.")})
        with torch.no_grad():
            image = image.expand(-1, 3, -1, -1)
            merged = head(encoder.features(image), image)
        assert torch.allclose(F.interpolate(merged, (SIZE, SIZE), mode="bilinear"), logits, atol=1e-5)
    assert (
        run_command("samunet_merge_adapter", ["900", "2d", "all", "-p", "samedPlans", "-o", str(tmp_path / "m.onnx")])
        == 2
    )
    assert ".safetensors" in capsys.readouterr().err


def test_prediction_holds_the_encoder_in_the_fast_format(reduced, tmp_path, monkeypatch):
    """Half the memory, and to the bit what autocast gives with float32 weights."""
    samed_file(reduced, tmp_path / "file.pth")
    folder = ModelFolder(api.import_samed(tmp_path / "file.pth", image_size=SIZE, num_classes=CLASSES))
    monkeypatch.setattr("samunet.inference.predictor.fast_dtype", lambda device, input_shape: torch.bfloat16)
    predictor = Predictor.from_folder(folder.path)
    (held,), (plain,) = predictor.slices.models, folder.load(["all"])
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    assert {m.weight.dtype for m in held.image_encoder.modules() if isinstance(m, kinds)} == {torch.bfloat16}
    assert {m.weight.dtype for m in plain.image_encoder.modules() if isinstance(m, kinds)} == {torch.float32}
    image = torch.rand(1, 1, SIZE, SIZE)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(held(image), plain(image))
    array = np.random.default_rng(0).uniform(-125, 275, (1, 2, 40, 40))
    mask = predictor.predict_array(array, (3.0, 1.0, 1.0))
    parts = (predictor.plans, predictor.configuration, predictor.network, predictor.description)
    assert np.array_equal(mask, Predictor([plain], *parts).predict_array(array, (3.0, 1.0, 1.0)))
    assert len(np.unique(mask)) > 1
    # Without a fast format everything stays in float32.
    monkeypatch.setattr("samunet.inference.predictor.fast_dtype", lambda device, input_shape: None)
    (exact,) = Predictor.from_folder(folder.path).slices.models
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}


def test_a_leading_background_is_no_class(reduced):
    facts = ENCODERS["vit_b"]
    options = SamedImport(image_size=SIZE, num_classes=2, labels=["Background", "a", "b"])
    _check(options, facts)
    assert _dataset_json(options)["labels"] == {"background": 0, "a": 1, "b": 2}
    for labels in (["a", "background"], ["background", "a"], ["a", "A"]):
        with pytest.raises(UsageError, match="2 different names"):
            _check(replace(options, labels=labels), facts)


def test_files_that_do_not_fit_are_refused(reduced, tmp_path):
    def fails(match, content=None, **options):
        file = tmp_path / "file.pth"
        if content is not None:
            torch.save(content, file)
        with pytest.raises(SamunetError, match=match):
            api.import_samed(file, **({"image_size": SIZE, "num_classes": CLASSES} | options))
        assert not (tmp_path / "results" / "Dataset900_SAMed").exists() or not any(
            (tmp_path / "results" / "Dataset900_SAMed").iterdir()
        )

    whole = samed_file(reduced, tmp_path / "file.pth")
    fails("3 classes besides the background, not 8", num_classes=8)
    fails("multiple of 16", image_size=500)
    fails("no models of the encoder small", encoder="small")
    fails("3 different names", labels=["a", "b"])
    fails("ignore", labels=["a", "b", "ignore"])
    fails("no checkpoint of SAMed's", reduced)
    fails("missing: mask_decoder.iou_token.weight", {k: v for k, v in whole.items() if "iou_token" not in k})
    fails("unexpected: mask_decoder.extra", whole | {"mask_decoder.extra": torch.zeros(1)})
    other = {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.zeros(2, 128)}
    fails("made for another base than sam_vit_b_01ec64.pth", whole | other)
    small = samed_file(reduced, tmp_path / "file.pth", small=True)
    fails("missing: cti_a_003", {name: value for name, value in small.items() if name != "cti_a_003"})
    fails(r"missing: cit_a_\* \(4 keys\)", whole | {name: small[name] for name in ("sa_a_000", "sa_b_000")})
    fails(
        r"other shape: fati_qb: \(128, 2\) in the file, \(128, 4\) expected", small | {"fati_qb": torch.zeros(128, 2)}
    )
    samed_file(reduced, tmp_path / "file.pth", blocks=2)
    fails("adapts 2 blocks of width 48, but vit_b has 3 of width 48")


def test_few_cases_are_fixed_and_spread_over_patients():
    names = [f"p{patient}_{frame}" for patient in range(6) for frame in range(1 + patient)]
    groups = {name: name.split("_")[0] for name in names}
    chosen = subsample_cases(names, 6, 12345, groups)
    assert {groups[name] for name in chosen} == set(groups.values())
    assert chosen == subsample_cases(names[::-1], 6, 12345, groups) == sorted(chosen)
    assert set(chosen) < set(subsample_cases(names, 9, 12345, groups))
    counts = np.unique([groups[name] for name in subsample_cases(names, 11, 1, groups)], return_counts=True)[1]
    assert sorted(counts) == [1, 2, 2, 2, 2, 2]  # the first patient has one case only
    assert len({tuple(subsample_cases(names, 4, seed, None)) for seed in range(8)}) > 4
    for count in (0, 22):
        with pytest.raises(UsageError, match="1 to 21"):
            subsample_cases(names, count, 0, groups)


@pytest.mark.slow
def test_recipe_and_few_cases_train(reduced, tiny_dataset, tmp_path):
    """The whole way with ``-recipe samed`` and ``--num_cases``: what was trained on is recorded."""
    tiny_dataset()
    options = PlannerOptions(recipe="samed", encoder="vit_b", image_size=64)
    api.plan_and_preprocess("998", options, num_workers=0, progress=False)
    training = api.TrainingOptions(iterations=3, batch_size=2, num_cases=2)
    fold = api.train("998", "2d", 0, training, progress=False)
    run = json.loads((fold / "run.json").read_text())
    split = json.loads(next((tmp_path / "preprocessed").glob("*/splits_final.json")).read_text())[0]
    assert len(run["training_cases"]) == 2
    assert set(run["training_cases"]) < set(split["train"])
    assert (fold / "validation" / "summary.json").is_file()
    # A fold trained on other cases is another training.
    with pytest.raises(UsageError, match="`num_cases` must be 1 to"):
        api.train("998", "2d", 0, replace(training, num_cases=99, overwrite=True), progress=False)
