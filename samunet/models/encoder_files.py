"""Files that hold an image encoder alone, made into whole checkpoints with another file's decoder.

SSLSAM and MRI-CORE publish such files, as do masked autoencoders and DINO for vision transformers of SAM's shape.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from samunet import paths
from samunet.encoders import EncoderFacts
from samunet.errors import Blank, SamunetError, UsageError, argument, call
from samunet.files import file_hash
from samunet.models import downloads
from samunet.network.checkpoints import check_fits, find_checkpoint, load_sam_checkpoint
from samunet.network.encoders import build_encoder
from samunet.network.heads import build_head
from samunet.tensors import write_tensors

RANDOM = "random"
_BLOCK = "blocks.0.attn.qkv.weight"
_NAMES = {"mlp.fc1.": "mlp.lin1.", "mlp.fc2.": "mlp.lin2."}
# What a vision transformer has beside its blocks, and SAM's encoder has not.
_LEFT_OUT = re.compile(
    r"^(cls_token|mask_token|register_tokens|dist_token|norm\.|fc_norm\.|head\.|decoder|pred|rope|dino|ibot|projection_head)"
)
_SCALE = re.compile(r"^(blocks\.\d+)\.(ls1|ls2)\.gamma$")
_SCALED = {"ls1": "attn.proj", "ls2": "mlp.lin2"}

log = logging.getLogger(__name__)


def whole_checkpoint(
    path: Path, facts: EncoderFacts, decoder_from: str | None = None, *, progress: bool = True
) -> Path:
    """A checkpoint in SAM's layout: the file itself, or of an encoder alone one that is made of it and a decoder.

    What is made lies in the checkpoints folder, with both files' names and hashes in it, and is found there again.

    Args:
        path: The file.
        facts: Of the encoder that it is for.
        decoder_from: A whole checkpoint of the same encoder, as a file or as the name of a published one, from which
            comes what the file lacks; ``random`` for none; None for the encoder's published one.
        progress: Whether a download shows a progress bar.

    Raises:
        UsageError: If a decoder is named for a file that has one.
        SamunetError: If the encoder does not fit, or there is nothing to take the decoder from.
    """
    state = load_sam_checkpoint(path)
    prefix = _prefix(state)
    if prefix is None:
        if decoder_from:
            raise UsageError(
                f"{path} is not the file of an encoder alone, so it takes no decoder from {decoder_from}",
                "leave out `decoder_from`",
            )
        return path
    rest = None if decoder_from == RANDOM else _decoder_file(decoder_from, facts, path, progress)
    origin = {"encoder": {"file": path.name, "sha256": file_hash(path)}}
    origin["decoder"] = {"file": rest.name, "sha256": file_hash(rest)} if rest else {"file": RANDOM, "sha256": ""}
    hashes = [origin[part]["sha256"][:8] or RANDOM for part in ("encoder", "decoder")]
    target = paths.checkpoints_folder() / f"{path.stem}_{hashes[0]}_with_{hashes[1]}.safetensors"
    if target.is_file():
        log.info("base weights: %s, made of %s before", target, path)
        return target
    whole = load_sam_checkpoint(rest) if rest else _random_state(facts)
    encoder, left_out = encoder_state(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}, facts, path
    )
    own = {name for name in whole if name.startswith("image_encoder.")}
    added = sorted(own - {f"image_encoder.{name}" for name in encoder})
    lacking = [name for name in added if not re.search(r"\.neck\.|\.rel_pos_", name)]
    if lacking:
        raise SamunetError(
            f"{path} has no {lacking[0].removeprefix('image_encoder.')}, which the image encoder of {facts.name} needs"
            + (f" (and lacks {len(lacking) - 1} more)" if len(lacking) > 1 else ""),
            "use the whole file, of an encoder of the same size",
        )
    whole = whole | {f"image_encoder.{name}": value for name, value in encoder.items()}
    check_fits(facts, whole, path)
    write_tensors(target, {name: value.contiguous() for name, value in whole.items()}, {"made_of": json.dumps(origin)})
    log.info("%d tensors of the image encoder are from %s", len(encoder), path)
    source = f"from {rest}" if rest else "random"
    log.info("prompt encoder and mask decoder are %s%s", source, _and_of_the_encoder(added))
    if left_out:
        log.info("left out of %s: %s", path.name, ", ".join(left_out))
    log.info("the whole is in %s", target)
    return target


def origin(path: Path) -> dict | None:
    """Names and hashes of the files of which :func:`whole_checkpoint` made one; None for other files."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, "pt") as stream:
        told = (stream.metadata() or {}).get("made_of")
    return json.loads(told) if told else None


def encoder_state(state: dict[str, Tensor], facts: EncoderFacts, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a plain vision transformer by the names of SAM's encoder, and the names of those it has no place for.

    A class token's position is dropped, positions are interpolated to SAM's grid bicubically, and the scales that DINO
    puts behind attention and MLP become part of the layers before them.

    Args:
        state: By names that begin with ``patch_embed``, ``blocks`` and ``pos_embed``.
        facts: Of the encoder that it is for.
        path: For messages.

    Raises:
        SamunetError: If a tensor has no place in SAM's encoder and would be missed.
    """
    given, scales, left_out = {}, {}, []
    for name, value in state.items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        if match := _SCALE.match(name):
            scales[f"{match[1]}.{_SCALED[match[2]]}"] = value
        elif _LEFT_OUT.match(name):
            left_out.append(name)
        else:
            given[name] = value.float() if value.is_floating_point() else value
    for layer, scale in scales.items():
        given[f"{layer}.weight"] = given[f"{layer}.weight"] * scale.float()[:, None]
        given[f"{layer}.bias"] = given[f"{layer}.bias"] * scale.float()
    if "pos_embed" in given:
        given["pos_embed"] = _positions(given["pos_embed"], facts, path)
    with torch.device("meta"):
        known = build_encoder(facts).state_dict()
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise SamunetError(
            f"{path} holds a vision transformer whose {unknown[0]} has no place in {facts.name}"
            + (f" (nor have {len(unknown) - 1} other tensors)" if len(unknown) > 1 else ""),
            "use a vision transformer of SAM's shape: the same blocks, with a patch of 16 pixels",
        )
    return given, sorted({name.split(".")[0] for name in left_out})


def _positions(positions: Tensor, facts: EncoderFacts, path: Path) -> Tensor:
    """``(1, side, side, channels)`` from ``(1, tokens, channels)``, with or without tokens before the grid's."""
    side = facts.native_size // facts.patch_size
    if positions.ndim == 3:
        tokens = positions.shape[1]
        root = int(tokens**0.5)
        if not 0 <= tokens - root**2 <= 8:  # class and register tokens stand first
            raise SamunetError(f"{path}: pos_embed has {tokens} positions, which are no square grid")
        positions = positions[:, tokens - root**2 :].unflatten(1, (root, root))
    if positions.shape[1] == side:
        return positions
    resized = F.interpolate(positions.permute(0, 3, 1, 2), (side, side), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _prefix(state: dict[str, Tensor]) -> str | None:
    """What names begin with in the file of an encoder alone; None for other files."""
    if any(name.startswith(("mask_decoder.", "prompt_encoder.")) for name in state):
        return None
    found = [name.removesuffix(_BLOCK) for name in state if name.endswith(_BLOCK) and "decoder" not in name]
    return min(found, key=len) if found else None


def _decoder_file(decoder_from: str | None, facts: EncoderFacts, path: Path, progress: bool) -> Path:
    """Where the decoder comes from."""
    if decoder_from and decoder_from != facts.name:
        file = Path(decoder_from).expanduser()
        if not file.is_file():
            raise UsageError(
                f"`decoder_from`: there is no file {decoder_from}",
                f"give a whole checkpoint of {facts.name}, {facts.name} for the published one, or {RANDOM}",
            )
        return file.resolve()
    file = find_checkpoint(facts)
    if file is None and downloads.can_download(facts):
        file = downloads.download(facts, progress=progress)
    if file is None:
        raise SamunetError(
            f"{path} holds an image encoder alone, and the checkpoint of {facts.name}, from which its decoder would "
            f"come, is not in {paths.checkpoints_folder()}",
            f"get it: {call('download_checkpoint', facts.name)}; or give {argument('decoder_from', Blank('FILE'))}, or "
            f"{argument('decoder_from', RANDOM)}",
        )
    return file


def _random_state(facts: EncoderFacts) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder(facts)
        head = build_head("detail" if encoder.gives_details else "sam", 4, encoder, facts)
    parts = {"image_encoder": encoder, "prompt_encoder": head.prompt_encoder, "mask_decoder": head.mask_decoder}
    parts |= {"detail": head.detail} if encoder.gives_details else {}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def _and_of_the_encoder(added: list[str]) -> str:
    kinds = sorted({re.sub(r"^image_encoder\.(blocks\.\d+\.)?", "", name).split(".weight")[0] for name in added})
    kinds = sorted({"relative positions" if "rel_pos" in kind else kind.split(".")[0] for kind in kinds})
    return f", and of the encoder {', '.join(kinds)}" if kinds else ""
