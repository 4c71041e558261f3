"""Further training on a dataset's own images: what is read, what is trained, what is written, what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from bundled_weights.images import SyntheticImages
from reduced import reduce_bundled_encoder
from safetensors.torch import load_file, save_file

from samunet import api
from samunet.commands import run_command
from samunet.encoders import ENCODERS, Stage
from samunet.errors import SamunetError
from samunet.imageio.simpleitk import SimpleITKReader
from samunet.models import downloads
from samunet.network.checkpoints import load_sam_checkpoint
from samunet.network.encoders import build_encoder
from samunet.network.heads import SamHead
from samunet.planning.planner import PlannerOptions
from samunet.preprocessing.store import StoredCase
from samunet.training import source
from samunet.training.pretraining import own_images, run
from samunet.training.pretraining.options import PretrainingOptions
from samunet.training.pretraining.own_images import OwnImages
from samunet.training.pretraining.recipe import Draw

NAME = "Dataset998_Tiny"
CPU = torch.device("cpu")


@pytest.fixture
def dataset(samunet_folders, tiny_dataset, monkeypatch):
    """A planned and preprocessed dataset, and small encoders."""
    monkeypatch.setenv("samunet_checkpoints", str(samunet_folders / "checkpoints"))
    stages = (Stage(16, 1, 1, 0, 4), Stage(16, 1, 1, 7, 8), Stage(32, 1, 2, 14, 16), Stage(32, 1, 2, 7, 16))
    smaller = {
        "vit_b": {"width": 48, "depth": 2, "heads": 3, "global_blocks": (1,), "native_size": 256},
        "vit_t": {"width": 32, "depth": 1, "heads": 2, "stages": stages},
    }
    for name, changes in smaller.items():
        monkeypatch.setitem(ENCODERS, name, replace(ENCODERS[name], **changes))
    reduce_bundled_encoder(monkeypatch, width=64, depth=2, heads=2, global_blocks=(0, 1))
    tiny_dataset(NAME)
    plan("vit_b")
    return samunet_folders


def plan(encoder):
    options = PlannerOptions(encoder=encoder, image_size=64, plans_name=f"{encoder}Plans")
    api.plan_and_preprocess("998", options, num_workers=0, progress=False)


def own(encoder="vit_b", checkpoint=None, **changes):
    plans_name = f"{'vit_b' if encoder == 'small' else encoder}Plans"
    return OwnImages(NAME, encoder, checkpoint, "2d", plans_name, device="cpu", progress=False, **changes)


@pytest.mark.parametrize(
    ("device", "reachable", "expected"), [("cpu", True, "small"), ("cuda", False, "small"), ("cuda", True, "vit_b")]
)
def test_the_encoder_is_chosen_as_samunet_train_chooses_it(dataset, monkeypatch, device, reachable, expected):
    """A GPU and weights of SAM that are there or can be downloaded."""
    monkeypatch.setattr(source, "resolve_device", lambda name: torch.device(device))
    monkeypatch.setattr(downloads, "can_download", lambda facts: reachable)
    planned = source.Source(NAME, "2d", "vit_bPlans")
    planned.plans = planned.plans.changed(encoder="auto")
    network, _ = planned.network(None, None, device)
    assert network.encoder == expected


def options(**changes):
    given = {"objective": "mae", "iterations": 4, "batch_size": 2, "image_sizes": (64,), "device": "cpu", "seed": 3}
    return PretrainingOptions(**given | changes)


def sam_file(encoder, path):
    """A checkpoint in SAM's layout, as if pretrained."""
    facts = ENCODERS[encoder]
    torch.manual_seed(1)
    image_encoder, head = build_encoder(facts), SamHead(4, facts.native_size // 16, 16)
    state = {f"image_encoder.{name}": value for name, value in image_encoder.state_dict().items()} | head.state_dict()
    state = {
        name: value + 0.01 * torch.rand(value.shape) if value.is_floating_point() else value
        for name, value in state.items()
    }
    torch.save(state, path)
    return path


def moved(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("encoder", ["vit_b", "vit_t"])
def test_the_encoder_is_trained_and_the_rest_comes_back(dataset, encoder):
    if encoder == "vit_t":
        plan(encoder)
    file = sam_file(encoder, dataset / "sam.pth")
    weights = run.pretrain(dataset / "out", options(), own(encoder, file))
    assert weights.name == f"{encoder}_latest.safetensors"
    before, after = load_sam_checkpoint(file), load_sam_checkpoint(weights)
    assert {name: value.dtype for name, value in after.items()} == {name: v.dtype for name, v in before.items()}
    changed = moved(before, after)
    assert all(name.startswith("image_encoder.") for name in changed)
    # Batch norms keep their statistics, and vit_t has a classifier that nothing uses.
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    unused = {name for name in before if name.startswith(("image_encoder.norm_head", "image_encoder.head"))}
    assert bool(statistics) == (encoder == "vit_t")
    assert changed == {name for name in before if name.startswith("image_encoder.")} - statistics - unused
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["base"]["file"] == "sam.pth"
    assert len(card["base"]["sha256"]) == 64
    assert card["images_seen"] == 8
    assert card["objectives"] == ["mae"]
    assert card["data"] == f"32 slices, 6 cases of imagesTr and 2 cases of imagesTs of {NAME}; images alone, no labels"


def test_training_takes_the_result(dataset, capsys):
    """The two commands, for SAM with LoRA and for the small encoder."""
    sam = sam_file("vit_b", dataset / "sam.pth")
    for encoder, more in (("vit_b", ["--checkpoint", str(sam)]), ("small", [])):
        shared = ["-p", "vit_bPlans", "-encoder", encoder]
        pretraining = ["-d", "998", *shared, *more, "--iterations", "2", "--batch_size", "2", "-device", "cpu"]
        assert run_command("samunet_pretrain", pretraining) == 0
        weights = dataset / "results" / NAME / f"pretraining_{encoder}" / f"{encoder}_latest.safetensors"
        assert f"next: samunet_train 998 2d 0 {' '.join(shared)} --checkpoint {weights}" in capsys.readouterr().out
        training = ["998", "2d", "all", *shared, "--checkpoint", str(weights), "--iterations", "1", "--batch_size", "1"]
        assert run_command("samunet_train", [*training, "-device", "cpu", "--overwrite"]) == 0
        recorded = json.loads(next((dataset / "results").glob("*/*/fold_all/run.json")).read_text())
        card = json.loads(weights.with_suffix(".json").read_text())
        assert recorded["base" if encoder == "vit_b" else "started_from"]["sha256"] == card["sha256"]
        shutil.rmtree(next((dataset / "results").glob("*/samunetTrainer*")))


def test_labels_are_never_read(dataset, monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError("a label was read")

    monkeypatch.setattr(StoredCase, "label", refuse)
    monkeypatch.setattr(StoredCase, "_label", property(refuse))
    monkeypatch.setattr(StoredCase, "class_locations", property(refuse))
    monkeypatch.setattr(SimpleITKReader, "read_label", refuse)
    for folder in ("labelsTr", "labelsTs"):
        shutil.rmtree(dataset / "raw" / NAME / folder)
    work = own("small")
    run.pretrain(dataset / "out", options(iterations=1), work)
    stored = dataset / "preprocessed" / NAME / "vit_bPlans_2d_imagesTs"
    assert sorted(path.name for path in stored.iterdir()) == [
        f"test_{index}{ending}" for index in (0, 1) for ending in (".b2nd", ".json")
    ]
    # Cases that are stored already are not made again.
    monkeypatch.setattr(SimpleITKReader, "read_image", refuse)
    assert len(own("small").cases) == 8


def test_pieces_give_what_one_piece_gives(dataset):
    for folder, lengths in (("one", [4]), ("two", [2, 4])):
        for iterations in lengths:
            run.pretrain(dataset / folder, options(iterations=iterations), own("small"))
    first, second = (load_file(dataset / folder / run.LATEST) for folder in ("one", "two"))
    assert not moved(first, second)
    assert not moved(*(load_file(dataset / folder / "small_latest.safetensors") for folder in ("one", "two")))


def test_batches_depend_on_seed_and_iteration_alone(dataset):
    work = own("vit_b", sam_file("vit_b", dataset / "sam.pth"))
    batch = work.batch(options(), 7, CPU)
    channels = 3 if work.network.input_channels == "neighbours" else 1
    assert batch.shape == (2, channels, *work.network.input_shape)
    work.batch(options(), 0, CPU)
    assert torch.equal(work.batch(options(), 7, CPU), batch)
    assert not torch.equal(work.batch(options(), 8, CPU), batch)
    assert not torch.equal(work.batch(options(seed=4), 7, CPU), batch)
    # Normalised as in training: z-scores, within the contrasts drawn and the padding.
    several = torch.cat([work.batch(options(), iteration, CPU) for iteration in range(20)])
    assert abs(float(several.mean())) < 0.3
    assert 0.5 < float(several.std()) < 1.5


def test_test_images_may_be_left_out_or_lacking(dataset):
    assert len(own("small").cases) == 8
    assert len(own("small", test_images=False).cases) == 6
    shutil.rmtree(dataset / "raw" / NAME / "imagesTs")
    work = own("small")
    assert len(work.cases) == 6
    assert "imagesTs" not in work.facts["data"]


def test_reconstruction_is_learnt(dataset):
    work = own("small")
    torch.manual_seed(0)
    model = work.build().train()
    recipe = work.recipe(model, options())

    def loss(iteration):
        return recipe.losses(work.batch(options(), iteration, CPU), Draw(CPU, 0, iteration))["mae"]

    def judged():
        with torch.no_grad():
            return sum(loss(iteration).item() for iteration in range(1000, 1010))

    before = judged()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for iteration in range(60):
        optimizer.zero_grad()
        loss(iteration).backward()
        optimizer.step()
    assert judged() < 0.8 * before


def test_without_a_length_it_ends_with_the_decay_and_goes_on_after_a_kill(dataset, monkeypatch, capsys):
    monkeypatch.setattr(own_images, "_FEWEST_UPDATES", 5)
    monkeypatch.setattr(own_images, "_PASSES", 0)
    command = ["-d", "998", "-p", "vit_bPlans", "-encoder", "small", "--batch_size", "2", "-device", "cpu"]
    step = run.Pretraining._step

    def step_and_stop(self, batch):
        if self.options.final_decay:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(run.Pretraining, "_step", step_and_stop)
    assert run_command("samunet_pretrain", command) == 130
    monkeypatch.setattr(run.Pretraining, "_step", step)
    assert run_command("samunet_pretrain", command) == 0
    weights = dataset / "results" / NAME / "pretraining_small" / "small_pretrained.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text())
    assert (card["iterations"], card["final_decay"], card["base"]["file"]) == (5, True, "small_pretrained.safetensors")
    assert [piece["final_decay"] for piece in card["pieces"]] == [False, True]
    capsys.readouterr()
    assert run_command("samunet_pretrain", command) == 1
    assert "is there already" in capsys.readouterr().err


def test_memory_decides_the_batch(dataset, monkeypatch):
    work = own("small")
    assert work.batch_size() == 12
    work.budget = 1
    assert work.batch_size() == 1
    assert work.updates(1) == 1000
    monkeypatch.setattr(own_images, "_FEWEST_UPDATES", 1)
    assert work.updates(3) == -(-20 * 32 // 3)
    assert work.learning_rate() == 1e-4


def test_other_weights_in_a_folder_are_refused(dataset):
    file = sam_file("vit_b", dataset / "sam.pth")
    run.pretrain(dataset / "out", options(iterations=1), own("vit_b", file))
    other = load_sam_checkpoint(file) | {"prompt_encoder.no_mask_embed.weight": torch.zeros(1, 256)}
    save_file(other, dataset / "other.safetensors")
    with pytest.raises(SamunetError, match="was begun with"):
        run.pretrain(dataset / "out", options(iterations=2), own("vit_b", dataset / "other.safetensors"))
    with pytest.raises(SamunetError, match="was begun with"):
        run.pretrain(dataset / "out", options(iterations=2), SyntheticImages())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-d", "998", "--objective", "dense"], "invalid choice: 'dense'"),
        (["--out", "x", "--iterations", "1"], "tools/bundled_weights"),
        (["-d", "998", "-p", "vit_bPlans", "-encoder", "small", "--batch_size", "0"], "batch_size must be above 0"),
        (["-d", "998", "--final_decay"], "give either --time_budget or --iterations"),
        (["-d", "997", "--iterations", "1"], "there is no dataset 997"),
        (["-d", "998", "--iterations", "1", "-p", "vit_bPlans", "-encoder", "vit_t"], "-encoder vit_t"),
        (["-d", "998", "--iterations", "1", "-p", "vit_bPlans", "-encoder", "vit_x"], "vit_x"),
        (["-d", "998", "--iterations", "1", "-p", "vit_bPlans", "-c", "3d"], "slice by slice"),
    ],
)
def test_wrong_usage_is_told(dataset, arguments, said, capsys):
    assert run_command("samunet_pretrain", arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_missing_things_are_told(dataset, capsys):
    def message(*arguments):
        assert run_command("samunet_pretrain", ["-d", "998", "--iterations", "1", "-device", "cpu", *arguments]) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    assert "no plans called samunetPlans" in message()
    assert "sam_vit_b_01ec64.pth" in message("-p", "vit_bPlans", "-encoder", "vit_b")
    (dataset / "broken.pth").write_bytes(b"no checkpoint")
    assert "broken.pth" in message("-p", "vit_bPlans", "--checkpoint", str(dataset / "broken.pth"))
    broken = dataset / "raw" / NAME / "imagesTs" / "test_0_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:100])
    assert "test_0" in message("-p", "vit_bPlans", "-encoder", "small")
    assert not list((dataset / "results").glob("*/pretraining*"))
    shutil.rmtree(dataset / "preprocessed" / NAME / "vit_bPlans_2d")
    assert "samunet_preprocess -d" in message("-p", "vit_bPlans", "-encoder", "small")
