"""Checkpoint formats, recognised by the names and shapes of their tensors, for messages about files that do not fit."""

from __future__ import annotations

import re
from typing import NamedTuple

from samunet.encoders import ENCODERS
from samunet.errors import Blank, argument, call
from samunet.network.encoders import architecture
from samunet.network.encoders.encoder import Shapes


class Kind(NamedTuple):
    """A format: in words, what to do with such a file or instead of it, and its encoder if that is one of ours."""

    what: str
    hint: str
    encoder: str | None = None


# Key patterns; the first that any name matches wins.
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
        "to start from it: `pretrained=FILE`",
    ),
    (
        r"^image_encoder\.trunk\.|^memory_(attention|encoder)\.|^sam_mask_decoder\.",
        "a checkpoint of SAM 2, which has another architecture",
        "use a checkpoint of the first SAM",
    ),
    (
        r"^mask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature)",
        "a checkpoint of HQ-SAM: SAM with more layers in the mask decoder",
        "HQ-SAM leaves SAM's own weights as they are, so use Meta's file: `api.download_checkpoint('{encoder}')`",
    ),
    (
        r"^image_encoder\.blocks\.\d+\.\w*[Aa]dapter",
        "a SAM with adapters inside (SAM-Med2D, Medical SAM Adapter)",
        "use the plain SAM checkpoint that it was made from",
    ),
    (
        r"^(encoder\.stages|encoder\.stem|decoder\.encoder\.stages|conv_blocks_context)\.",
        "a checkpoint of nnU-Net",
        "samunet's base weights are SAM checkpoints: `api.published_checkpoints` lists them",
    ),
    (
        r"^vision_encoder\.",
        "SAM in the layout of Hugging Face's transformers",
        "use the file in Meta's layout",
    ),
)


def describe(shapes: Shapes) -> Kind | None:
    """The format of a state dict with these shapes; None if it is not known."""
    fitting = (name for name, facts in ENCODERS.items() if facts.is_sam and architecture(facts).fits(facts, shapes))
    encoder = next(fitting, None)
    for pattern, what, hint in _LAYOUTS:
        if any(re.search(pattern, name) for name in shapes):
            return Kind(what, hint.format(encoder=encoder or "vit_b"))
    if encoder:
        return Kind(
            f"a checkpoint for {encoder} ({architecture(ENCODERS[encoder]).TITLE})",
            f"use {argument('encoder', encoder)}, planned for with "
            f"{call('plan_experiment', Blank('ID'), encoder=encoder)}",
            encoder,
        )
    if "patch_embed.proj.weight" in shapes and any(name.startswith("blocks.") for name in shapes):
        return Kind(
            "a vision transformer alone, without SAM's prompt encoder and mask decoder", "use the whole SAM checkpoint"
        )
    return None


def compare(given: Shapes, expected: Shapes, lines: int = 8) -> list[str]:
    """Keys that are missing, unexpected or of another shape, those of one kind in one line.

    Args:
        given: Shapes of the file's tensors.
        expected: Shapes of the network's.
        lines: At most so many; the finest grouping that fits is taken.

    Returns:
        Lines such as ``missing: image_encoder.blocks.*.attn.rel_pos_* (24)``; none if both agree.
    """
    problems = [("missing", name, "") for name in sorted(expected.keys() - given.keys())]
    problems += [("unexpected", name, "") for name in sorted(given.keys() - expected.keys())]
    problems += [
        ("other shape", name, f": {given[name]} in the file, {expected[name]} expected")
        for name in sorted(expected.keys() & given.keys())
        if given[name] != expected[name]
    ]
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for depth in range(max((name.count(".") + 1 for _, name, _ in problems), default=0), 0, -1):
        groups = {}
        for kind, name, detail in problems:
            parts = re.sub(r"\d+", "*", name).split(".")
            pattern = ".".join(parts[:depth]) + (".…" if len(parts) > depth else "")
            groups.setdefault((kind, pattern), []).append((name, detail))
        if len(groups) <= lines:
            break
    text = []
    for (kind, pattern), members in groups.items():
        name, detail = members[0]
        title = name if len(members) == 1 else f"{pattern} ({len(members)} keys)"
        text.append(f"{kind}: {title}{', for example' if detail and len(members) > 1 else ''}{detail}")
    return text if len(text) <= lines else [*text[: lines - 1], f"and {len(text) - lines + 1} more groups of keys"]
