"""Loading files in SAM's layout: wrappers, formats, and what is said of files that do not fit."""

import hashlib
import json
import os
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from samunet.commands import run_command
from samunet.encoders import CHECKPOINTS, ENCODERS
from samunet.errors import SamunetError, UsageError
from samunet.files import file_hash, read_json
from samunet.models import downloads
from samunet.models import pretrained as base_module
from samunet.models.pretrained import pretrained_weights
from samunet.network.checkpoint_kinds import compare, describe
from samunet.network.checkpoints import check_fits, load_sam_checkpoint
from samunet.network.encoders.vit import ImageEncoder
from samunet.network.heads import SamHead
from samunet.network.model import InputLayer
from samunet.tensors import not_finite, read_tensors
from samunet.training import source
from samunet.training.options import TrainingOptions
from samunet.training.task import choose_network

REDUCED = replace(
    ENCODERS["vit_b"], width=48, depth=2, heads=3, global_blocks=(1,), native_size=256,
    checkpoint_bytes=None, checkpoint_sha256=None,
)  # fmt: skip


def sam_state(facts, seed=0):
    torch.manual_seed(seed)
    grid = facts.native_size // facts.patch_size
    head = SamHead(4, grid, facts.patch_size)
    parts = {
        "image_encoder": ImageEncoder(facts),
        "prompt_encoder": head.prompt_encoder,
        "mask_decoder": head.mask_decoder,
    }
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def shapes_of(name):
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in sam_state(ENCODERS[name]).items()}


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """An empty checkpoints folder, and a vit_b that is small."""
    monkeypatch.setitem(ENCODERS, "vit_b", REDUCED)
    monkeypatch.setitem(CHECKPOINTS, "vit_b", REDUCED)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    monkeypatch.setenv("samunet_checkpoints", str(folder))
    return folder


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"model": {f"module.sam.{name}": value for name, value in state.items()}},
        lambda state: {f"sam.{name}": value for name, value in state.items()},
        lambda state: state | {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)},
    ],
)
def test_common_wrappings_are_taken_off(tmp_path, wrap):
    state = sam_state(REDUCED)
    torch.save(wrap(state), tmp_path / "sam.pth")
    loaded = load_sam_checkpoint(tmp_path / "sam.pth")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    check_fits(REDUCED, loaded, tmp_path / "sam.pth")


def test_safetensors_and_old_torch_files(tmp_path):
    state = sam_state(REDUCED)
    save_file(state, tmp_path / "sam.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("sam.safetensors", "old.pth"):
        loaded = load_sam_checkpoint(tmp_path / name)
        assert all(torch.equal(loaded[key], state[key]) for key in state)


class RunsCode:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("through_torch", [True, False])
def test_a_pickle_that_would_run_code_is_called_that(tmp_path, protocol, through_torch):
    file = tmp_path / "sam.pth"
    content = {"image_encoder.x": RunsCode()}
    if through_torch:
        torch.save(content, file, pickle_protocol=protocol)
    else:
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(SamunetError, match="would run code when it is loaded") as error:
        load_sam_checkpoint(file)
    assert "weights_only" not in str(error.value)


def test_a_file_that_holds_itself_ends(tmp_path):
    content = {"image_encoder.x": torch.zeros(2)}
    content["model"] = content
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(SamunetError, match="does not hold a state dict"):
        load_sam_checkpoint(tmp_path / "sam.pth")


def test_a_packed_file_is_not_unpacked(tmp_path):
    torch.save({"image_encoder.x": torch.zeros(100_000)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "sam.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(SamunetError, match="would unpack to 40"):
        load_sam_checkpoint(tmp_path / "sam.pth")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(float("nan")), r"no numbers \(NaN or infinite\), for example in mask_decoder.iou_token.weight"),
        (torch.tensor(float("inf")), r"no numbers \(NaN or infinite\), for example in mask_decoder.iou_token.weight"),
        (torch.tensor(1j), "mask_decoder.iou_token.weight has the type torch.complex64"),
        (torch.tensor(True), "mask_decoder.iou_token.weight has the type torch.bool"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(checkpoints, value, message):
    state = sam_state(REDUCED)
    name = "mask_decoder.iou_token.weight"
    state[name] = value.expand(state[name].shape).clone()
    with pytest.raises(SamunetError, match=message):
        check_fits(REDUCED, state, checkpoints / "sam.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_formats_are_read(checkpoints, dtype):
    check_fits(REDUCED, {name: value.to(dtype) for name, value in sam_state(REDUCED).items()}, checkpoints / "sam.pth")


def test_large_finite_weights_are_numbers():
    assert not_finite({"a": torch.full((4,), 3e38), "b": torch.zeros(0), "c": torch.arange(3)}) is None
    assert not_finite({"a": torch.full((4,), 1e39, dtype=torch.float64)}) == "a"  # infinite in float32


def test_pipes_are_no_tensors(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(SamunetError, match="is no file"):
        read_tensors(tmp_path / "pipe.safetensors")


def damaged(tmp_path, content):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(content)
    with pytest.raises(SamunetError) as error:
        load_sam_checkpoint(path)
    assert str(path) in error.value.message
    return str(error.value)


@pytest.mark.parametrize("ending", ["pth", "old", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files(tmp_path, ending, share):
    whole = tmp_path / f"whole.{ending}"
    state = {"image_encoder.x": torch.randn(100, 100)}
    if ending == "safetensors":
        save_file(state, whole)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=ending == "pth")
    content = whole.read_bytes()
    text = damaged(tmp_path, content[: int(len(content) * share)])
    assert "truncated" in text
    assert "`api.download_checkpoint('vit_b', overwrite=True)`" in text


def test_files_that_are_no_checkpoints(tmp_path):
    assert "web page" in damaged(tmp_path, b"\n<!DOCTYPE html><html><body>404</body></html>")
    assert "git lfs pull" in damaged(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    assert "no checkpoint" in damaged(tmp_path, b"Dear reader, this is no checkpoint." * 40)
    for content in ([torch.zeros(2)], {"image_encoder.x": 3}, {}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(SamunetError, match="state dict"):
            load_sam_checkpoint(tmp_path / "other.pth")
    torch.save({"model": sam_state, "epoch": 1}, tmp_path / "code.pth")
    with pytest.raises(SamunetError, match="would run code"):
        load_sam_checkpoint(tmp_path / "code.pth")
    with pytest.raises(SamunetError, match="does not exist as a file"):
        load_sam_checkpoint(tmp_path)
    torch.save({"image_encoder.x": torch.zeros(1), "sam.image_encoder.x": torch.ones(1)}, tmp_path / "twice.pth")
    with pytest.raises(SamunetError, match="twice"):
        load_sam_checkpoint(tmp_path / "twice.pth")


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_encoders_are_told_by_their_shapes(name):
    kind = describe(shapes_of(name))
    assert kind.encoder == name
    assert f"encoder='{name}'" in kind.hint


def test_report_of_another_encoder_is_short_and_names_it(tmp_path):
    with torch.device("meta"):
        state = sam_state(ENCODERS["vit_l"])
    with pytest.raises(SamunetError) as error:
        check_fits(ENCODERS["vit_b"], state, tmp_path / "large.pth")
    message, text = error.value.message, str(error.value)
    assert "large.pth does not fit vit_b; it seems to be a checkpoint for vit_l" in message
    assert "encoder='vit_l'" in error.value.hint
    assert len(message.splitlines()) <= 9
    # 12 blocks too many with 14 tensors each; of the 12 that both have, all shapes differ
    assert "unexpected: image_encoder.blocks" in text
    assert "other shape: image_encoder.pos_embed: (1, 64, 64, 1024) in the file, (1, 64, 64, 768) expected" in text


def test_keys_of_one_kind_share_a_line():
    expected = shapes_of("vit_b")
    given = {name: shape for name, shape in expected.items() if "rel_pos" not in name}
    given["mask_decoder.extra"] = (1,)
    given["image_encoder.neck.0.weight"] = (2, 2)
    assert compare(given, expected) == [
        "missing: image_encoder.blocks.*.attn.rel_pos_h (12 keys)",
        "missing: image_encoder.blocks.*.attn.rel_pos_w (12 keys)",
        "unexpected: mask_decoder.extra",
        "other shape: image_encoder.neck.0.weight: (2, 2) in the file, (256, 768, 1, 1) expected",
    ]
    assert compare(expected, expected) == []
    assert len(compare({}, expected)) <= 8
    assert len(compare({f"{letter}x": (1,) for letter in "abcdefghijklmnop"}, {})) == 8


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["w_a_000", "w_b_000", "mask_decoder.iou_token.weight"], "SAMed"),
        (["base_model.model.blocks.0.attn.qkv.q.lora_A.weight"], "LoRA adapter of peft"),
        (["image_encoder.trunk.patch_embed.proj.weight", "sam_mask_decoder.iou_token.weight"], "SAM 2"),
        (["encoder.stages.0.0.convs.0.conv.weight", "decoder.seg_layers.0.weight"], "nnU-Net"),
        (["vision_encoder.layers.0.attn.qkv.weight"], "transformers"),
        (["image_encoder.patch_embed.seq.0.c.weight"], "MobileSAM"),
        (["patch_embed.proj.weight", "blocks.0.norm1.weight"], "alone"),
        (["head.mask_decoder.iou_token.weight"], "samunet training"),
        (["image_encoder.blocks.0.Adapter.channel.0.weight"], "adapters inside"),
    ],
)
def test_other_files_are_recognised(names, what):
    kind = describe(dict.fromkeys(names, (8, 8)))
    assert what in kind.what
    assert kind.hint
    with pytest.raises(SamunetError, match=what):
        check_fits(REDUCED, {name: torch.zeros(8, 8) for name in names}, names[0])


def test_hq_sam_and_unknown_files():
    shapes = shapes_of("vit_h") | {"mask_decoder.hf_token.weight": (1, 256)}
    kind = describe(shapes)
    assert "HQ-SAM" in kind.what
    assert "`api.download_checkpoint('vit_h')`" in kind.hint
    assert compare(shapes, shapes_of("vit_h")) == ["unexpected: mask_decoder.hf_token.weight"]
    assert describe({"a": (1,)}) is None


def test_nnunet_checkpoint_says_so(tmp_path):
    content = {"network_weights": {"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(3)}, "current_epoch": 1000}
    torch.save(content, tmp_path / "checkpoint_final.pth")
    with pytest.raises(SamunetError, match="nnU-Net"):
        pretrained_weights("vit_b", None, tmp_path / "checkpoint_final.pth")


def test_pixel_statistics_go_with_the_file(checkpoints, tmp_path, monkeypatch):
    torch.save(sam_state(REDUCED), tmp_path / "medsam.pth")
    plain = pretrained_weights("vit_b", None, tmp_path / "medsam.pth").record
    assert plain["pixel_mean"] == list(REDUCED.pixel_mean)
    medsam = replace(CHECKPOINTS["medsam"], checkpoint_sha256=file_hash(tmp_path / "medsam.pth"))
    monkeypatch.setitem(CHECKPOINTS, "medsam", medsam)
    record = pretrained_weights("vit_b", None, tmp_path / "medsam.pth").record
    assert (record["pixel_mean"], record["pixel_std"]) == ([0.0] * 3, [255.0] * 3)
    assert pretrained_weights("vit_b", record).record["pixel_std"] == [255.0] * 3


def test_statistics_of_a_file_made_from_medsam_can_be_said(tmp_path, checkpoints, caplog):
    torch.save(sam_state(REDUCED), tmp_path / "mine.pth")
    with caplog.at_level("INFO"):
        record = pretrained_weights("vit_b", None, tmp_path / "mine.pth", pixel_statistics="medsam").record
    assert "pixel statistics of medsam" in caplog.text
    assert (record["pixel_mean"], record["pixel_std"]) == ([0.0] * 3, [255.0] * 3)
    again = pretrained_weights("vit_b", record, tmp_path / "mine.pth", pixel_statistics="medsam")
    assert again.record == pretrained_weights("vit_b", record).record == record
    with pytest.raises(SamunetError, match=r"begun with other pixel statistics than sam's: mean \[0.0"):
        pretrained_weights("vit_b", record, pixel_statistics="sam")
    sam = pretrained_weights("vit_b", None, tmp_path / "mine.pth", pixel_statistics="sam").record
    assert sam["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    with pytest.raises(UsageError, match="must be one of sam, medsam, got 'imagenet'"):
        TrainingOptions(checkpoint=tmp_path / "mine.pth", pixel_statistics="imagenet")
    with pytest.raises(UsageError, match="there is none"):
        TrainingOptions(pixel_statistics="medsam")


def test_input_layer_gives_medsam_pictures_on_0_to_1():
    image = torch.rand(1, 3, 4, 4)
    assert torch.allclose(InputLayer(CHECKPOINTS["medsam"], "as_they_are", 3, [True] * 3)(image), image)
    # A standardised channel stands for a picture with the mean and deviation of SAM's pictures.
    standardised = InputLayer(CHECKPOINTS["medsam"], "repeat", 1, [False])(torch.tensor([[[[-1.0, 0.0, 1.0]]]]))
    expected = torch.tensor([116.28 - 57.12, 116.28, 116.28 + 57.12]) / 255  # green stands for all
    assert torch.allclose(standardised[0, 0, 0], expected, atol=1e-6)


def test_recorded_weights_are_found_by_their_content(checkpoints, tmp_path):
    own = tmp_path / "mine.pth"
    torch.save(sam_state(REDUCED), own)
    torch.save(sam_state(REDUCED, seed=1), checkpoints / "sam_vit_b_01ec64.pth")
    record = pretrained_weights("vit_b", None, own).record
    assert record["path"] == str(own)
    assert record["sha256"] == hashlib.sha256(own.read_bytes()).hexdigest()

    def found():
        return base_module._find_recorded(record, None, False, False)

    assert found() == own
    own.rename(checkpoints / "mine.pth")
    assert found() == checkpoints / "mine.pth"
    (checkpoints / "mine.pth").rename(checkpoints / "renamed.pth")
    assert found() == checkpoints / "renamed.pth"
    torch.save(sam_state(REDUCED, seed=2), own)  # another content under the recorded name
    assert found() == checkpoints / "renamed.pth"
    (checkpoints / "renamed.pth").unlink()
    with pytest.raises(SamunetError, match=f"mine.pth .SHA-256 {record['sha256'][:12]}") as error:
        found()
    assert str(checkpoints) in str(error.value)
    with pytest.raises(SamunetError, match="another content"):
        pretrained_weights("vit_b", record, own)


SHORT = ["--iterations", "2", "--batch_size", "1", "-device", "cpu"]


@pytest.fixture
def planned(samunet_folders, tiny_dataset, checkpoints, capsys):
    """A tiny dataset, planned for both networks at 64 px, with files of base weights beside it."""
    tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998", "-np", "0"]) == 0
    assert run_command("samunet_plan_experiment", ["-d", "998", "-image_size", "64", "-encoder", "vit_b"]) == 0
    path = next((samunet_folders / "preprocessed").glob("*/samunetPlans.json"))
    plans = read_json(path)
    plans["encoder"] = "auto"
    path.write_text(json.dumps(plans))
    torch.save(sam_state(REDUCED), samunet_folders / "mine.pth")
    torch.save(sam_state(REDUCED, seed=1), samunet_folders / "theirs.pth")
    capsys.readouterr()
    return samunet_folders


def run_json(root, fold=0):
    return read_json(next((root / "results").glob(f"*/*/fold_{fold}/run.json")))


@pytest.mark.slow
def test_train_and_predict_with_a_file(planned, checkpoints, tmp_path, capsys):
    mine, theirs = planned / "mine.pth", planned / "theirs.pth"
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--checkpoint", str(planned / "absent.pth")]) == 1
    assert "absent.pth does not exist" in capsys.readouterr().err
    assert not list((planned / "results").glob("*/*/fold_0"))
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--checkpoint", str(mine), "-encoder", "small"]) == 1
    assert "does not fit small" in capsys.readouterr().err

    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--checkpoint", str(mine)]) == 0
    assert "vit_b (for --checkpoint)" in capsys.readouterr().err
    run = run_json(planned)
    assert run["encoder"] == "vit_b"
    assert run["base"]["file"] == "mine.pth"
    assert run["base"]["sha256"] == file_hash(mine)

    # Bad input never loses data: the trained fold is still there.
    bad = planned / "bad.pth"
    bad.write_bytes(mine.read_bytes()[:5000])
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--checkpoint", str(bad), "--overwrite"]) == 1
    assert "truncated" in capsys.readouterr().err
    assert run_json(planned) == run

    # All folds share their base weights.
    assert run_command("samunet_train", ["998", "2d", "1", *SHORT, "--checkpoint", str(theirs)]) == 1
    assert "begun with mine.pth" in capsys.readouterr().err
    assert run_command("samunet_train", ["998", "2d", "1", *SHORT]) == 1
    assert "add -encoder vit_b" in capsys.readouterr().err
    assert run_command("samunet_train", ["998", "2d", "1", *SHORT, "-encoder", "vit_b"]) == 0
    assert run_json(planned, 1)["base"] == run["base"]

    images, output = next((planned / "raw").glob("*/imagesTs")), tmp_path / "preds"
    assert (
        run_command("samunet_predict", ["-i", str(images), "-o", str(output), "--disable_tta", "-device", "cpu"]) == 0
    )
    mine.rename(checkpoints / "other_name.pth")
    assert (
        run_command("samunet_predict", ["-i", str(images), "-o", str(output), "--disable_tta", "-device", "cpu"]) == 0
    )
    (checkpoints / "other_name.pth").unlink()
    capsys.readouterr()
    assert (
        run_command("samunet_predict", ["-i", str(images), "-o", str(output), "--disable_tta", "-device", "cpu"]) == 1
    )
    assert "needs its base weights mine.pth" in capsys.readouterr().err


def test_explicit_encoder_downloads_its_weights(planned, checkpoints, monkeypatch, capsys):
    asked = []

    def download(facts, folder=None, **options):
        asked.append(facts.name)
        target = checkpoints / facts.checkpoint_file
        (planned / "mine.pth").rename(target)
        return target

    monkeypatch.setattr(downloads, "download", download)
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "-encoder", "vit_b"]) == 0
    assert asked == ["vit_b"]
    assert run_json(planned)["base"]["file"] == "sam_vit_b_01ec64.pth"
    assert "path" not in run_json(planned)["base"]


def test_without_a_network_nothing_is_overwritten(planned, checkpoints, capsys):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--checkpoint", str(planned / "mine.pth")]) == 0
    (planned / "mine.pth").unlink()
    capsys.readouterr()
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "-encoder", "vit_b", "--overwrite"]) == 1
    errors = capsys.readouterr().err
    for text in (REDUCED.checkpoint_url, str(checkpoints / "sam_vit_b_01ec64.pth"), "-encoder small"):
        assert text in errors
    assert run_json(planned)["base"]["file"] == "mine.pth"


@pytest.mark.parametrize(
    ("device", "there", "reachable", "expected"),
    [
        ("cpu", True, True, "small"),
        ("cuda", False, False, "small"),
        ("cuda", False, True, "vit_b"),
        ("cuda", True, False, "vit_b"),
    ],
)
def test_auto_takes_sam_where_its_weights_can_be_had(
    planned, checkpoints, monkeypatch, device, there, reachable, expected
):
    asked = []
    monkeypatch.setattr(source, "resolve_device", lambda name: torch.device(device))
    monkeypatch.setattr(downloads, "can_download", lambda facts: asked.append(facts.name) or reachable)
    if there:
        (checkpoints / "sam_vit_b_01ec64.pth").write_bytes(b"")
    (folder,) = (planned / "preprocessed").iterdir()
    network, _ = choose_network(source.Source(folder.name, "2d", "samunetPlans"), TrainingOptions(), {})
    assert network.encoder == expected
    assert asked == (["vit_b"] if device == "cuda" and not there else [])  # the server is not asked without need


def test_tensors_that_are_no_numbers_are_not_read(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, tmp_path / "checkpoint_final.safetensors")
    with pytest.raises(SamunetError, match=r"checkpoint_final\.safetensors has values that are no numbers .* in b"):
        read_tensors(tmp_path / "checkpoint_final.safetensors")
