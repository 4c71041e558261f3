"""Low-rank adaptation through peft of the image encoder and the mask decoder's transformer, as SAMed places it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from samunet.encoders import EncoderFacts
from samunet.errors import SamunetError
from samunet.files import atomic_folder, read_as
from samunet.network.adaptations.adaptation import DECODER_RATE, Adaptation
from samunet.network.encoders import attention_blocks
from samunet.network.projection import SplitQKV
from samunet.plans import LoraPlan, adapted_blocks
from samunet.tensors import read_tensors

# Names in an encoder's blocks (of the MLP's layers: ``mlp_layers`` of the encoder), and in the decoder's transformer.
_ENCODER_PARTS = {name: rf"attn\.qkv\.{name}" for name in "qkv"} | {"proj": r"attn\.proj", "mlp": r"mlp\.(%s)"}
_DECODER_PARTS = {name: [f"{name}_proj"] for name in "qkv"} | {"proj": ["out_proj"], "mlp": ["lin1", "lin2"]}
# Parts of a network that may hold LoRA, and the folder of each in a fold.
_FOLDERS = {"image_encoder": "adapter_{}", "head.mask_decoder.transformer": "adapter_{}_decoder"}


def add_lora(encoder: nn.Module, plan: LoraPlan) -> nn.Module:
    """Freeze ``encoder`` and put LoRA into the planned blocks.

    Args:
        encoder: Changed in place: the ``qkv`` layers of all its blocks are split.
        plan: Its defaults are SAMed: rank 4, alpha 4, q and v of every block, A Kaiming uniform, B zero.

    Returns:
        A ``peft.PeftModel`` around the encoder, whose ``save_pretrained`` writes peft's own format.
    """
    from peft import get_peft_model

    blocks = attention_blocks(encoder)
    for block in blocks.values():
        block.attn.qkv = SplitQKV(block.attn.qkv, getattr(block.attn, "qkv_groups", 1))
    names = [list(blocks)[index] for index in adapted_blocks(plan.blocks, len(blocks))]
    parts = "|".join(_ENCODER_PARTS[target] for target in plan.targets).replace("%s", "|".join(encoder.mlp_layers))
    return get_peft_model(encoder, _config(plan, rf"({'|'.join(map(re.escape, names))})\.({parts})"))


def add_decoder_lora(transformer: nn.Module, plan: LoraPlan) -> nn.Module:
    """Freeze the mask decoder's transformer and put LoRA into all its attentions, and MLPs if planned (SAMed_s).

    Returns:
        A ``peft.PeftModel`` around the transformer.
    """
    from peft import get_peft_model

    return get_peft_model(transformer, _config(plan, [part for name in plan.targets for part in _DECODER_PARTS[name]]))


def _config(plan: LoraPlan, target_modules: str | list[str]):
    from peft import LoraConfig

    return LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=0.0,
        bias="none",
        use_dora=plan.dora,
        use_rslora=plan.rslora,
        target_modules=target_modules,
    )


def peft_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network that hold LoRA, by their names in it."""
    parts = {name: model.get_submodule(name) for name in _FOLDERS}
    return {name: part for name, part in parts.items() if hasattr(part, "peft_config")}


def merge_lora(part: nn.Module) -> nn.Module:
    """Fold LoRA into the frozen weights, and q, k and v into one again: SAM's own parameter names come back.

    Args:
        part: What :func:`add_lora` or :func:`add_decoder_lora` returned. It must not be used afterwards.
    """
    merged = part.merge_and_unload()
    for block in attention_blocks(merged).values():
        block.attn.qkv = block.attn.qkv.fuse()
    return merged


def merge_adapters(model: nn.Module) -> None:
    """:func:`merge_lora` for every part of a :class:`samunet.network.model.SamunetModel` that holds LoRA, in place."""
    for name, part in peft_parts(model).items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, merge_lora(part))


def save_adapter(part: nn.Module, folder: Path) -> None:
    """Write LoRA in peft's own format (``adapter_config.json``, ``adapter_model.safetensors``), atomically."""
    with atomic_folder(folder) as temporary:
        part.save_pretrained(temporary)


def save_adapters(model: nn.Module, folder: Path, kind: str) -> None:
    """:func:`save_adapter` for every part of a network that holds LoRA.

    Args:
        model: The network.
        folder: Of the fold.
        kind: ``final`` or ``best``.
    """
    for name, part in peft_parts(model).items():
        save_adapter(part, folder / _FOLDERS[name].format(kind))


def load_adapter(part: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Read what :func:`save_adapter` wrote, by the names of the part's parameters.

    Raises:
        SamunetError: If files are missing or damaged, or were made for another network than ``part``.
    """
    _check_config(folder / "adapter_config.json", part.peft_config["default"].to_dict())
    tensors, path = read_adapter(folder), folder / "adapter_model.safetensors"
    own = {key: value.shape for key, value in part.named_parameters() if value.requires_grad}
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [key for key in own if key in tensors and own[key] != tensors[key].shape]
    if wrong:
        raise SamunetError(
            f"{path} was made for another network: {len(wrong)} of its tensors are missing, unknown or of another "
            f"shape, for example {wrong[0]}",
            "use the adapter with the encoder and the plans it was trained with",
        )
    return tensors


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors that :func:`save_adapter` wrote, by the names of the part's parameters.

    Raises:
        SamunetError: If the file is missing or damaged.
    """
    path = folder / "adapter_model.safetensors"
    return {_name_in_model(key): value for key, value in read_tensors(path).items()}


def adapter_folders(file: Path) -> dict[str, Path]:
    """The folders beside a fold's model file that hold its LoRA, by the part of the network."""
    kind = file.stem.removeprefix("checkpoint_")
    folders = {name: file.parent / pattern.format(kind) for name, pattern in _FOLDERS.items()}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def load_adapters(model: nn.Module, folder: Path, kind: str) -> dict[str, Tensor]:
    """Read what :func:`save_adapters` wrote as entries of the trained state; errors as in :func:`load_adapter`."""
    return {
        f"{name}.{key}": value
        for name, part in peft_parts(model).items()
        for key, value in load_adapter(part, folder / _FOLDERS[name].format(kind)).items()
    }


def _name_in_model(key: str) -> str:
    # peft leaves the adapter's name out of the file, and of a magnitude (DoRA) also the last part.
    if key.endswith("lora_magnitude_vector"):
        return f"{key}.default.weight"
    return ".default.".join(key.rsplit(".", 1))


def _check_config(path: Path, planned: dict[str, Any]) -> None:
    """Refuse an adapter whose settings are not the plan's: alpha, for one, is in no tensor's shape."""
    given = read_as(dict[str, Any], path)
    for key in ("r", "lora_alpha", "use_dora", "use_rslora"):
        if given.get(key) != planned[key]:
            raise SamunetError(
                f"{path}: {key} is {given.get(key)!r}, but the plans say {planned[key]!r}",
                "use the adapter with the plans it was trained with",
            )


class Lora(Adaptation):
    """Frozen weights with low-rank updates, and a decoder that trains or has updates as well."""

    name = "lora"
    title, marker = "LoRA", ".lora_"
    settings = LoraPlan

    def adapt_encoder(self, encoder: nn.Module, settings: LoraPlan) -> nn.Module:
        """See :func:`add_lora`."""
        return add_lora(encoder, settings)

    def adapt_decoder(self, decoder: nn.Module, settings: LoraPlan) -> None:
        """See :func:`add_decoder_lora`."""
        if settings.decoder:
            decoder.transformer = add_decoder_lora(decoder.transformer, settings)

    def freezes_decoder(self, components: str) -> bool:
        """Where it is the only part that is adapted."""
        return components == "decoder"

    def learning_rate(self, facts: EncoderFacts, components: str) -> tuple[float, str]:
        """SAMed's."""
        return DECODER_RATE, self.name
