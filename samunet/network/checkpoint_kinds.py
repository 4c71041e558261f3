"""What a checkpoint file seems to be, told from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from samunet.encoders import ENCODERS

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kind:
    """What a file seems to be.

    Attributes:
        what: In words.
        hint: What to do with it, or instead of it.
        encoder: Name of the encoder it was made for, if it is one of ours.
    """

    what: str
    hint: str
    encoder: str | None = None


# What gives a layout away, in the order in which it is asked; each pattern is searched for in every name.
_LAYOUTS: tuple[tuple[str, str, str], ...] = (
    (
        r"^w_[ab]_\d+$",
        "a LoRA file of SAMed, which holds no image encoder",
        "give the SAM checkpoint that it was trained on, and train the adaptation anew",
    ),
    (
        r"\.lora_[AB]\.",
        "a LoRA adapter of peft, which holds no image encoder",
        "give the SAM checkpoint that it was trained on",
    ),
    (
        r"^head\.(mask_decoder|prompt_encoder)\.",
        "the model file of a samunet training",
        "to start from it: --pretrained FILE",
    ),
    (
        r"^image_encoder\.trunk\.|^memory_(attention|encoder)\.|^sam_mask_decoder\.",
        "a checkpoint of SAM 2, which has another architecture",
        "use a checkpoint of the first SAM",
    ),
    (
        r"^mask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature)",
        "a checkpoint of HQ-SAM: SAM with more layers in the mask decoder",
        "HQ-SAM leaves SAM's own weights as they are, so use Meta's file: samunet_download_checkpoint {encoder}",
    ),
    (
        r"^image_encoder\.blocks\.\d+\.\w*[Aa]dapter",
        "a SAM with adapters inside (SAM-Med2D, Medical SAM Adapter)",
        "use the plain SAM checkpoint that it was made from",
    ),
    (
        r"^(encoder\.stages|encoder\.stem|decoder\.encoder\.stages|conv_blocks_context)\.",
        "a checkpoint of nnU-Net",
        "samunet's base weights are SAM checkpoints: samunet_download_checkpoint --list",
    ),
    (
        r"^vision_encoder\.",
        "SAM in the layout of Hugging Face's transformers",
        "use the file in Meta's layout",
    ),
)


def describe(shapes: Shapes) -> Kind | None:
    """Tell what a state dict is.

    Args:
        shapes: Shape of every tensor, by name.

    Returns:
        What it seems to be; None if nothing gives it away.
    """
    encoder = _encoder(shapes)
    for pattern, what, hint in _LAYOUTS:
        if any(re.search(pattern, name) for name in shapes):
            return Kind(what, hint.format(encoder=encoder or "vit_b"))
    mobile = "image_encoder.patch_embed.seq.0.c.weight" in shapes
    if encoder or mobile:
        encoder = "vit_t" if mobile else encoder
        return Kind(
            f"a checkpoint for {encoder}" + (" (MobileSAM)" if mobile else ""),
            f"use -encoder {encoder}, planned for with samunet_plan_experiment -d ID -encoder {encoder}",
            encoder,
        )
    if "patch_embed.proj.weight" in shapes and any(name.startswith("blocks.") for name in shapes):
        return Kind(
            "a vision transformer alone, without SAM's prompt encoder and mask decoder", "use the whole SAM checkpoint"
        )
    return None


def _encoder(shapes: Shapes) -> str | None:
    """The SAM encoder with this width and depth."""
    patches = shapes.get("image_encoder.patch_embed.proj.weight")
    blocks = {match[1] for name in shapes if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", name))}
    for name, facts in ENCODERS.items():
        if facts.is_sam and patches and (patches[0], len(blocks)) == (facts.width, facts.depth):
            return name
    return None


def compare(given: Shapes, expected: Shapes, lines: int = 8) -> list[str]:
    """What is missing, unexpected or of another shape, keys of one kind in one line.

    Args:
        given: Shapes of the file's tensors.
        expected: Shapes of the network's.
        lines: At most so many; the finest grouping that fits is taken.

    Returns:
        Lines such as ``missing: image_encoder.blocks.*.attn.rel_pos_* (24)``; none if both agree.
    """
    problems = {("missing", name): "" for name in sorted(expected.keys() - given.keys())}
    problems |= {("unexpected", name): "" for name in sorted(given.keys() - expected.keys())}
    for name in sorted(expected.keys() & given.keys()):
        if given[name] != expected[name]:
            problems["other shape", name] = f": {given[name]} in the file, {expected[name]} expected"
    depth = max((name.count(".") + 1 for _, name in problems), default=0)
    while len(groups := _groups(problems, depth)) > lines and depth > 1:
        depth -= 1
    text = []
    for (kind, pattern), names in groups.items():
        detail = problems[kind, names[0]]
        example = ", for example" if detail and len(names) > 1 else ""
        text.append(f"{kind}: {_title(pattern, names)}{example}{detail}")
    return text if len(text) <= lines else [*text[: lines - 1], f"and {len(text) - lines + 1} more groups of keys"]


def _groups(problems: Iterable[tuple[str, str]], depth: int) -> dict[tuple[str, str], list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for kind, name in problems:
        parts = re.sub(r"\d+", "*", name).split(".")
        pattern = ".".join(parts[:depth]) + (".…" if len(parts) > depth else "")
        groups.setdefault((kind, pattern), []).append(name)
    return groups


def _title(pattern: str, names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{pattern} ({len(names)} keys)"
