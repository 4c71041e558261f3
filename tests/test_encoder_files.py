"""Files of an image encoder alone: names of others, what completes them, and what does not fit."""

import json

import pytest
import torch
import torch.nn.functional as F
from test_checkpoint_files import REDUCED, checkpoints, sam_state  # noqa: F401

from samunet.errors import SamunetError, UsageError
from samunet.files import file_hash
from samunet.models.encoder_files import origin, whole_checkpoint
from samunet.models.pretrained import pretrained_weights
from samunet.network.checkpoints import load_base, load_sam_checkpoint
from samunet.network.encoders.vit import ImageEncoder
from samunet.network.heads import SamHead
from samunet.training.options import TrainingOptions


def encoder_alone(state, *, timm=False, prefix=""):
    """An encoder's tensors under the names of SAM's repository, or those of timm, MAE and DINO."""
    names = {"mlp.lin1.": "mlp.fc1.", "mlp.lin2.": "mlp.fc2."} if timm else {}
    found = {}
    for name, value in state.items():
        if name.startswith("image_encoder."):
            short = name.removeprefix("image_encoder.")
            for ours, theirs in names.items():
                short = short.replace(ours, theirs)
            found[prefix + short] = value
    if timm:
        found[prefix + "pos_embed"] = torch.cat(
            [torch.full((1, 1, 48), 9.0), found[prefix + "pos_embed"].flatten(1, 2)], 1
        )
        found |= {prefix + "cls_token": torch.ones(1, 1, 48), prefix + "norm.weight": torch.ones(48)}
        for lacking in [name for name in found if "rel_pos" in name or "neck" in name]:
            del found[lacking]
    return found


@pytest.fixture
def sam(checkpoints):  # noqa: F811
    """SAM's own tensors, in the checkpoints folder."""
    state = sam_state(REDUCED)
    torch.save(state, checkpoints / REDUCED.checkpoint_file)
    return state


@pytest.mark.parametrize("timm", [False, True], ids=["SAM's names", "timm's names"])
@pytest.mark.parametrize("prefix", ["", "module.encoder.", "teacher.backbone."])
def test_sam_s_own_encoder_gives_sam(sam, tmp_path, timm, prefix, caplog):
    caplog.set_level("INFO")
    torch.save({"model": encoder_alone(sam, timm=timm, prefix=prefix)}, tmp_path / "alone.pth")
    found = load_sam_checkpoint(whole_checkpoint(tmp_path / "alone.pth", REDUCED))
    assert found.keys() == sam.keys()
    assert all(torch.equal(value, sam[name]) for name, value in found.items())
    image = torch.randn(1, 3, 64, 64)
    outputs = []
    for state in (sam, found):
        encoder, head = ImageEncoder(REDUCED), SamHead(4, 16, 16)
        load_base(encoder, head, state)
        outputs.append(encoder(image))
    assert torch.equal(*outputs)
    assert "prompt encoder and mask decoder are from" in caplog.text
    assert ("of the encoder neck, relative positions" in caplog.text) == timm
    assert ("left out of alone.pth: cls_token, norm" in caplog.text) == timm


def test_positions_of_another_grid_are_interpolated_bicubically(sam, tmp_path):
    alone = encoder_alone(sam)
    positions = torch.randn(1, 14 * 14 + 1, 48)
    torch.save(alone | {"pos_embed": positions}, tmp_path / "alone.pth")
    found = load_sam_checkpoint(whole_checkpoint(tmp_path / "alone.pth", REDUCED))["image_encoder.pos_embed"]
    grid = positions[:, 1:].reshape(1, 14, 14, 48).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (16, 16), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_dino_s_scales_become_part_of_the_layers(sam, tmp_path):
    scales = {f"blocks.{block}.{which}.gamma": torch.rand(48) for block in range(2) for which in ("ls1", "ls2")}
    torch.save(encoder_alone(sam) | scales, tmp_path / "alone.pth")
    found = load_sam_checkpoint(whole_checkpoint(tmp_path / "alone.pth", REDUCED))
    tokens = torch.randn(5, 48)
    weight, bias = (sam[f"image_encoder.blocks.1.attn.proj.{part}"] for part in ("weight", "bias"))
    expected = scales["blocks.1.ls1.gamma"] * (tokens @ weight.T + bias)
    weight, bias = (found[f"image_encoder.blocks.1.attn.proj.{part}"] for part in ("weight", "bias"))
    assert torch.allclose(tokens @ weight.T + bias, expected, atol=1e-5)


def test_the_decoder_is_that_of_a_file_or_random(sam, tmp_path):
    other = sam_state(REDUCED, seed=5)
    torch.save(other, tmp_path / "other.pth")
    torch.save(encoder_alone(sam), tmp_path / "alone.pth")
    name = "prompt_encoder.no_mask_embed.weight"
    found = {
        source: load_sam_checkpoint(whole_checkpoint(tmp_path / "alone.pth", REDUCED, source))
        for source in ("vit_b", str(tmp_path / "other.pth"), "random")
    }
    values = [state[name] for state in found.values()]
    assert torch.equal(values[0], sam[name])
    assert torch.equal(values[1], other[name])
    assert not any(torch.equal(values[2], value) for value in values[:2])
    again = whole_checkpoint(tmp_path / "alone.pth", REDUCED, "random")
    assert torch.equal(load_sam_checkpoint(again)[name], values[2])
    assert all(
        torch.equal(state["image_encoder.pos_embed"], sam["image_encoder.pos_embed"]) for state in found.values()
    )


def test_what_it_was_made_of_is_recorded(sam, tmp_path, checkpoints):  # noqa: F811
    alone = tmp_path / "alone.pth"
    torch.save(encoder_alone(sam), alone)
    record = pretrained_weights("vit_b", checkpoint=alone).record
    published = checkpoints / REDUCED.checkpoint_file
    assert record["made_of"] == {
        "encoder": {"file": "alone.pth", "sha256": file_hash(alone)},
        "decoder": {"file": published.name, "sha256": file_hash(published)},
    }
    # A training that goes on, with the same flags, finds the same file.
    again = pretrained_weights("vit_b", json.loads(json.dumps(record)), alone)
    assert again.record["sha256"] == record["sha256"]
    assert origin(published) is None


def test_a_whole_checkpoint_stays_as_it_is(sam, tmp_path, checkpoints):  # noqa: F811
    published = checkpoints / REDUCED.checkpoint_file
    assert whole_checkpoint(published, REDUCED) == published
    with pytest.raises(UsageError, match="not the file of an encoder alone"):
        whole_checkpoint(published, REDUCED, "random")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"blocks.0.gate.weight": torch.ones(3)}, "blocks.0.gate.weight has no place in vit_b"),
        (lambda state: state | {"pos_embed": torch.ones(1, 245, 48)}, "245 positions, which are no square"),
        (lambda state: state | {"patch_embed.proj.weight": torch.ones(48, 3, 14, 14)}, "does not fit vit_b"),
        (
            lambda state: {k: v for k, v in state.items() if "blocks.1.attn.qkv" not in k},
            r"has no blocks.1.attn.qkv.bias.*lacks 1 more",
        ),
    ],
)
def test_encoders_of_another_shape_are_named(sam, tmp_path, checkpoints, change, message):  # noqa: F811
    torch.save(change(encoder_alone(sam)), tmp_path / "alone.pth")
    with pytest.raises(SamunetError, match=message):
        whole_checkpoint(tmp_path / "alone.pth", REDUCED)
    assert [file.name for file in checkpoints.iterdir()] == [REDUCED.checkpoint_file]


def test_without_a_decoder_it_says_what_to_type(checkpoints, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("samunet.models.downloads.can_download", lambda facts: False)
    torch.save(encoder_alone(sam_state(REDUCED)), tmp_path / "alone.pth")
    with pytest.raises(SamunetError, match="image encoder alone") as caught:
        whole_checkpoint(tmp_path / "alone.pth", REDUCED)
    assert "download_checkpoint('vit_b')" in caught.value.hint
    with pytest.raises(UsageError, match=r"there is no file absent\.pth"):
        whole_checkpoint(tmp_path / "alone.pth", REDUCED, "absent.pth")


def test_a_decoder_for_no_file_is_refused():
    with pytest.raises(UsageError, match="there is none"):
        TrainingOptions(decoder_from="vit_b")
