"""Features of frozen blocks on disk: the same training as without, under a limit, whatever happens to the files."""

import errno
import json
import os
import signal
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_loader import CaseInMemory, make_loader

from samunet import api
from samunet.adaptations import AdapterPlan, FullPlan
from samunet.commands import run_command
from samunet.encoders import ENCODERS
from samunet.errors import SamunetError, UsageError
from samunet.inference import predictor
from samunet.network.model import build_model
from samunet.plans import NetworkPlan
from samunet.training import feature_cache, trainer
from samunet.training.feature_cache import CachedEncoder, FeatureCache, choose_variants, images_per_variant
from samunet.training.options import parse_size
from samunet.training.state import LATEST

REDUCED = {"width": 48, "depth": 4, "heads": 3, "global_blocks": (1, 3), "native_size": 256}
PLANS = {
    "decoder": ["-components", "decoder"],
    "everywhere": [],
}
PATTERN = np.arange(100, dtype=np.float32).reshape(10, 10)
FILE_BYTES = PATTERN.nbytes + 128


@pytest.fixture(autouse=True)
def reduced(monkeypatch):
    monkeypatch.setitem(ENCODERS, "vit_b", replace(ENCODERS["vit_b"], **REDUCED))
    monkeypatch.setitem(ENCODERS, "small", replace(ENCODERS["small"], width=64, depth=2, heads=2, global_blocks=(1,)))


def make_plan(encoder="vit_b", **settings) -> NetworkPlan:
    return NetworkPlan(**{
        "encoder": encoder, "input_shape": [64, 64], "spacing": 1.0, "head": "sam", "adaptation": FullPlan(),
        "input_channels": "repeat", "batch_size": 2, "accumulation": 1, "learning_rate": 1e-3, "weight_decay": 0.1,
        "training_images": {"cpu": 1, "gpu": 1}, "memory_bytes": 0, "training_gflops": 0.0, **settings,
    })  # fmt: skip


def build(plan):
    """The network of a plan, every parameter filled with values."""
    model = build_model(plan, num_outputs=3, num_channels=1, unit_range=[False])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(parameter.shape)
            scale = 1 / np.sqrt(np.prod(parameter.shape[1:])) if parameter.ndim >= 2 else 0.1
            one = 1.0 if ("norm" in name or ".bn." in name) and name.endswith("weight") else 0.0
            parameter.copy_(torch.from_numpy(values * scale + one))
    return model


@pytest.mark.parametrize("encoder", ["vit_b", "vit_t", "small"])
def test_features_are_those_of_the_encoder(tmp_path, encoder):
    head = "detail" if encoder == "small" else "sam"
    plan = make_plan(encoder, adaptation=AdapterPlan(), components="decoder", head=head)
    model, loader = build(plan).train(), make_loader()
    loader.network = plan
    cached = CachedEncoder(model, loader, tmp_path / "features", 10**8, dtype=None, draws=None)
    prepared = model.input_layer(torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    expected = [model.image_encoder.features(image[None]) for image in prepared]
    for _ in range(2):  # computed, then read
        found = cached(prepared)
        assert not found.embedding.requires_grad
        assert torch.equal(found.embedding, torch.cat([one.embedding for one in expected]))
        for kind in ("taps", "details"):
            parts = list(zip(*(getattr(one, kind) for one in expected)))
            assert len(getattr(found, kind)) == (len(parts) if head == "detail" else 0)
            assert all(torch.equal(got, torch.cat(part)) for got, part in zip(getattr(found, kind), parts))
    assert (cached.computed, cached.read) == (3, 3)
    assert len(found.details) == (3 if encoder == "small" else 0)


def test_digest_tells_every_frozen_value_and_no_trained_one():
    model = build(make_plan(adaptation=AdapterPlan(), components="decoder"))
    before = feature_cache._digest(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert feature_cache._digest(model) == before
    with torch.no_grad():
        model.image_encoder.blocks[1].attn.rel_pos_h[0, 0] += 1
    assert feature_cache._digest(model) != before


@pytest.mark.parametrize("ignore", [None, 3])
def test_a_slice_comes_in_so_many_variants(ignore):
    # A wide slice, on which windows differ, and one that a window covers.
    cases = {"wide": CaseInMemory((5, 40, 48)), "small": CaseInMemory((4, 16, 16))}
    del cases["small"].class_locations[1]  # too small to hold its square
    loader = make_loader(cases=cases, foreground_share=0.5, batch_size=300, ignore=ignore)
    plain = loader.batch(0)
    loader.variants = 3
    # Wide: any of 5 slices, and class 1 and class 2 on one slice each. Small: any of 4 slices. With an ignore label
    # every window is centred on a class, and the small case has one on one slice.
    images = 5 + 2 + 4 if ignore is None else 2 + 1
    assert images_per_variant(loader) == images
    batch = loader.batch(0)
    keys, later = ([image.tobytes() for image in one["data"]] for one in (batch, loader.batch(1)))
    labels = {key: label.tobytes() for key, label in zip(keys, batch["seg"])}
    assert all(labels[key] == label.tobytes() for key, label in zip(keys, batch["seg"]))
    assert 0.5 * images * 3 < len(set(keys)) <= images * 3
    assert len({*keys, *later}) <= images * 3
    # Which slices are drawn, and around which class, is as it was: so is the share of foreground.
    has_class = [np.mean([(label == 1).any() for label in one["seg"]]) for one in (plain, batch)]
    assert abs(has_class[0] - has_class[1]) < 0.1


def test_number_of_variants():
    assert choose_variants(100, fitting=550, draws=None) == 5
    assert choose_variants(100, fitting=10_000, draws=None) == 8
    assert choose_variants(100, fitting=10_000, draws=1_300) == 3
    assert choose_variants(100, fitting=20, draws=50) == 1


def test_sizes():
    assert [parse_size(text) for text in ("20GB", "1.5 mb", "77")] == [20 * 10**9, 1_500_000, 77]
    for text in ("0", "much", "-3GB", "5 parsecs"):
        with pytest.raises(UsageError, match="is no size"):
            parse_size(text)


def test_what_is_written_is_read_by_the_next_process(tmp_path):
    cache = FeatureCache(tmp_path / "features", "key", 10**6)
    cache.write("a", PATTERN)
    cache.write("b", PATTERN.astype(np.float16))
    again = FeatureCache(tmp_path / "features", "key", 10**6)
    assert again.bytes == cache.bytes == sum(path.stat().st_size for path in again.folder.glob("*.npy"))
    assert np.array_equal(again.read("a"), PATTERN)
    assert again.read("b").dtype == np.float16
    assert again.read("c") is None


def test_stale_features_are_never_used(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "features"
    FeatureCache(folder, "one", 10**6).write("a", PATTERN)
    assert FeatureCache(folder, "two", 10**6).read("a") is None
    assert "made with other weights" in caplog.text
    FeatureCache(folder, "two", 10**6).write("a", PATTERN)
    (folder / "features.json").unlink()  # as a kill may leave it
    assert FeatureCache(folder, "two", 10**6).read("a") is None


def test_damaged_features_count_as_missing(tmp_path):
    cache = FeatureCache(tmp_path / "features", "key", 10**6)
    cache.write("a", PATTERN)
    path = cache.folder / "a.npy"
    path.write_bytes(path.read_bytes()[:200])
    assert cache.read("a") is None
    path.write_bytes(b"")
    assert cache.read("a") is None
    cache.write("a", PATTERN)
    assert np.array_equal(cache.read("a"), PATTERN)
    assert cache.read("a", shape=(3, 3)) is None
    assert cache.bytes == FILE_BYTES


def test_limit_is_kept(tmp_path, caplog):
    cache = FeatureCache(tmp_path / "features", "key", 2 * FILE_BYTES + 50)
    for name in "abcd":
        cache.write(name, PATTERN)
    assert cache.bytes == 2 * FILE_BYTES
    assert sum(path.stat().st_size for path in cache.folder.glob("*.npy")) == 2 * FILE_BYTES
    assert caplog.text.count("at its limit") == 1
    assert cache.read("b") is not None
    assert cache.read("c") is None
    assert FeatureCache(tmp_path / "features", "key", FILE_BYTES).bytes == FILE_BYTES  # a lower one, later
    assert len(list(cache.folder.glob("*.npy"))) == 1


def test_a_disk_that_fills_up_keeps_room_for_checkpoints(tmp_path, caplog, monkeypatch):
    free = feature_cache.RESERVE_BYTES + 2 * FILE_BYTES
    cache = FeatureCache(tmp_path / "features", "key", 10**9)

    def usage(path):
        return SimpleNamespace(free=free - cache.bytes)

    monkeypatch.setattr(feature_cache.shutil, "disk_usage", usage)
    for name in "abcd":
        cache.write(name, PATTERN)
    assert cache.bytes == 2 * FILE_BYTES
    assert caplog.text.count("has only 1.0 GB left") == 1
    assert cache.read("a") is not None


def test_a_quota_that_ends_writing_gives_room_back(tmp_path, caplog, monkeypatch):
    cache = FeatureCache(tmp_path / "features", "key", 10**9)
    cache.write("a", PATTERN)
    cache.write("b", PATTERN)
    monkeypatch.setattr(feature_cache, "RESERVE_BYTES", FILE_BYTES)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(feature_cache.np, "save", full)
    for name in "cd":
        cache.write(name, PATTERN)
    assert caplog.text.count("No space left") == 1
    assert "the training goes on" in caplog.text
    assert sorted(path.name for path in cache.folder.iterdir()) == ["a.npy", "features.json"]
    assert cache.bytes == FILE_BYTES


# Whole trainings.


@pytest.fixture
def planned(samunet_folders, tiny_dataset, tmp_path, monkeypatch, capsys):
    """Plans for a reduced vit_b with weights."""
    monkeypatch.setenv("samunet_checkpoints", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    state = build(make_plan()).state_dict()
    torch.save(
        {name.removeprefix("head."): value for name, value in state.items()},
        tmp_path / "weights" / "sam_vit_b_01ec64.pth",
    )
    tiny_dataset()
    for name, flags in PLANS.items():
        common = ["-d", "998", "-encoder", "vit_b", "-image_size", "64", "-overwrite_plans_name", name]
        assert run_command("samunet_plan_and_preprocess", [*common, *flags]) == 0
    capsys.readouterr()
    return samunet_folders


def run(name, monkeypatch, **options):
    """Train fold 0; returns its folder and the losses."""
    step, losses = trainer.Trainer._step, []

    def recorded(self, batch):
        losses.append(step(self, batch))
        return losses[-1]

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", recorded)
        given = api.TrainingOptions(**{"iterations": 6, "batch_size": 2, "overwrite": True, **options})
        return api.train(998, "2d", 0, given, name, progress=False), losses


def only_variants(self):
    """In place of a cache: the same images, and every one computed from its beginning."""
    self.loader.variants = 1
    encode = self.model.image_encoder.features

    class Nothing:
        def __call__(self, prepared):
            return encode(prepared)

        def close(self):
            return {}

        def saved_seconds(self, images, draws):
            return 0.0

    return Nothing()


@pytest.mark.parametrize("name", ["decoder"])
def test_losses_are_those_without_a_cache(planned, name, monkeypatch):
    monkeypatch.setattr(trainer, "fast_dtype", lambda device, input_shape: None)
    folder, cached = run(name, monkeypatch, feature_cache=10**8, iterations=16)
    record = json.loads((folder / "run.json").read_text())["feature_cache"]
    assert min(record["images_read"], record["images_computed"], record["bytes"]) > 0
    assert not (folder / "features").exists()
    monkeypatch.setattr(trainer.Trainer, "_open_cache", only_variants)
    _, plain = run(name, monkeypatch, feature_cache=10**8, iterations=16)
    assert np.allclose(cached, plain, rtol=1e-5, atol=0)  # an image's features depend on its batch in the last digits
    assert len(set(cached)) == 16


@pytest.mark.parametrize("name", ["decoder"])
def test_losses_in_half_precision_are_those_of_the_same_weights_without_a_cache(planned, name, monkeypatch):
    monkeypatch.setattr(trainer, "fast_dtype", lambda device, input_shape: torch.bfloat16)
    monkeypatch.setattr(predictor, "fast_dtype", lambda device, input_shape: torch.bfloat16)
    step, pairs = trainer.Trainer._step, []

    def paired(self, batch):
        images, labels = torch.from_numpy(batch["data"]), torch.from_numpy(batch["seg"])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            plain = float(self.recipe.loss(self.model(images).float(), labels))
        pairs.append((step(self, batch), plain))
        return pairs[-1][0]

    monkeypatch.setattr(trainer.Trainer, "_step", paired)
    run(name, monkeypatch, feature_cache=10**8, iterations=16)
    cached, plain = zip(*pairs)
    assert len(pairs) == 16
    assert np.allclose(cached, plain, rtol=1e-3, atol=0)


@pytest.mark.slow
def test_the_limit_and_a_full_disk_change_no_digit(planned, monkeypatch):
    whole, losses = run("decoder", monkeypatch, feature_cache=10**8)
    expected = (whole / "checkpoint_final.safetensors").read_bytes()
    assert run("decoder", monkeypatch, feature_cache=40_000)[1] == losses
    assert (whole / "checkpoint_final.safetensors").read_bytes() == expected

    def refuse(*args):
        raise SamunetError("could not write x: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "atomic_path", refuse)
        assert run("decoder", monkeypatch, feature_cache=10**8)[1] == losses
    assert (whole / "checkpoint_final.safetensors").read_bytes() == expected


def test_a_killed_training_goes_on_from_its_cache(planned, monkeypatch, capsys):
    whole, _ = run("decoder", monkeypatch, feature_cache=10**8)
    expected = (whole / "checkpoint_final.safetensors").read_bytes()
    step, calls = trainer.Trainer._step, []

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    options = {"iterations": 6, "batch_size": 2, "feature_cache": 10**8}
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.train(998, "2d", 0, api.TrainingOptions(**options, overwrite=True), "decoder", progress=False)
    assert (whole / LATEST).is_file()
    assert len(list((whole / "features").glob("*.npy"))) > 0
    capsys.readouterr()
    assert (
        run_command("samunet_train", ["998", "2d", "0", "-p", "decoder", "--iterations", "6", "--batch_size", "2"]) == 1
    )
    assert "variants 1 (now None)" in capsys.readouterr().err
    arguments = [
        "998",
        "2d",
        "0",
        "-p",
        "decoder",
        "--iterations",
        "6",
        "--batch_size",
        "2",
        "--feature_cache",
        "100MB",
    ]
    assert run_command("samunet_train", arguments) == 0
    messages = capsys.readouterr().err
    assert "images in 1 variants each" in messages
    assert (whole / "checkpoint_final.safetensors").read_bytes() == expected
    assert not (whole / "features").exists()
    assert [path for path in whole.iterdir() if path.name.startswith(".")] == []


def test_plans_without_a_frozen_part_are_refused_before_anything_is_lost(planned, monkeypatch, capsys):
    folder, _ = run("everywhere", monkeypatch, iterations=2)
    before = (folder / "checkpoint_final.safetensors").read_bytes()
    common = ["998", "2d", "0", "-p", "everywhere", "--overwrite"]
    assert run_command("samunet_train", [*common, "--feature_cache", "1GB"]) == 2
    assert "these plans train the encoder (lora)" in capsys.readouterr().err
    assert run_command("samunet_train", [*common, "--feature_cache", "plenty"]) == 2
    assert "'plenty' is no size" in capsys.readouterr().err
    assert (folder / "checkpoint_final.safetensors").read_bytes() == before
