"""Low-rank adaptation through peft of the image encoder and the mask decoder's transformer, as SAMed places it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from annotated_types import Interval, Len

from samunet.adaptations.adaptation import BLOCKS, DECODER_RATE, Adaptation, Blocks, Setting, attention_blocks
from samunet.encoders import EncoderFacts
from samunet.errors import SamunetError
from samunet.files import atomic_folder, read_as

if TYPE_CHECKING:
    from torch import Tensor, nn

# Names in an encoder's blocks (of the MLP's layers: ``mlp_layers`` of the encoder), and in the decoder's transformer.
_ENCODER_PARTS = {name: rf"attn\.qkv\.{name}" for name in "qkv"} | {"proj": r"attn\.proj", "mlp": r"mlp\.(%s)"}
_DECODER_PARTS = {name: [f"{name}_proj"] for name in "qkv"} | {"proj": ["out_proj"], "mlp": ["lin1", "lin2"]}
# Parts of a network that may hold LoRA, and the folder of each in a fold.
_FOLDERS = {"image_encoder": "adapter_{}", "head.mask_decoder.transformer": "adapter_{}_decoder"}


def _targets(words: list[str]) -> list[str]:
    names = [name for word in words for name in (("q", "k", "v", "proj") if word == "attention" else (word,))]
    return list(dict.fromkeys(names))


class LoraPlan(Adaptation):
    """Low-rank adaptation (Hu et al. 2021): frozen weights with low-rank updates; the defaults are SAMed's.

    Attributes:
        rank, alpha: The update is ``alpha / rank * B A``, or ``alpha / sqrt(rank) * B A`` with ``rslora``. A begins
            Kaiming uniform, B as zero.
        targets: What is adapted in a block: q, k, v and output projection (``proj``) of its attention, its ``mlp``.
        blocks: Which of the encoder's attention blocks: ``all``, ``last_half``, or indices.
        decoder: Whether the mask decoder's transformer is frozen and adapted as well (SAMed_s) instead of trained.
        dora: Learn the columns' magnitudes apart from their directions (Liu et al. 2024).
        rslora: Scale with the root of the rank (Kalajdzievski 2023).
    """

    title: ClassVar[str] = "LoRA"
    marker: ClassVar[str] = ".lora_"

    method: Literal["lora"] = "lora"
    rank: Annotated[int, Interval(ge=1, le=1024), Setting("default: 4", metavar="R")] = 4
    alpha: Annotated[int, Interval(ge=1, le=10**5), Setting("default: the rank", metavar="A")] = 4
    targets: Annotated[
        list[Literal["q", "k", "v", "proj", "mlp"]],
        Len(1),
        Setting("q k v proj mlp, or attention: q k v proj (default: q v)", metavar="NAME", of_words=_targets),
    ] = ["q", "v"]
    blocks: Annotated[Blocks, BLOCKS] = "all"
    decoder: Annotated[bool, Setting("LoRA in the decoder's transformer instead of training it (SAMed_s)")] = False
    dora: Annotated[bool, Setting("weight-decomposed LoRA: with learnt magnitudes", alone=True)] = False
    rslora: Annotated[bool, Setting("rank-stabilised LoRA: scaled with the root of the rank", alone=True)] = False

    @classmethod
    def of_flags(cls, given: dict[str, Any]) -> Self:
        """As they say; alpha is the rank where they do not say it."""
        return cls.of(({"alpha": given["rank"]} if "rank" in given else {}) | given)

    def for_components(self, components: str) -> Self:
        """With the decoder adapted where it is the only part that is."""
        return self.changed(decoder=self.decoder or components == "decoder")

    def problems(self, facts: EncoderFacts, components: str) -> Iterator[tuple[str, str]]:
        """See :class:`Adaptation`."""
        if len(set(self.targets)) != len(self.targets):
            yield "targets", f"must not repeat a name, got {self.targets}"
        if components == "decoder" and not self.decoder:
            yield "decoder", "must be true where only the decoder is adapted"
        yield from super().problems(facts, components)

    def adapt_encoder(self, encoder: nn.Module) -> nn.Module:
        """Freeze an encoder and put LoRA into the planned blocks.

        Args:
            encoder: Changed in place: the ``qkv`` layers of all its blocks are split.

        Returns:
            A ``peft.PeftModel`` around the encoder, whose ``save_pretrained`` writes peft's own format.
        """
        from samunet.adaptations.projection import SplitQKV

        blocks = attention_blocks(encoder)
        for block in blocks.values():
            block.attn.qkv = SplitQKV(block.attn.qkv, getattr(block.attn, "qkv_groups", 1))
        names = [list(blocks)[index] for index in self.adapted_blocks(len(blocks))]
        parts = "|".join(_ENCODER_PARTS[target] for target in self.targets).replace("%s", "|".join(encoder.mlp_layers))
        return self._in_peft(encoder, rf"({'|'.join(map(re.escape, names))})\.({parts})")

    def adapt_decoder(self, decoder: nn.Module) -> None:
        """With ``decoder``, freeze its transformer and put LoRA into its attentions, and MLPs if planned (SAMed_s)."""
        if self.decoder:
            targets = [part for name in self.targets for part in _DECODER_PARTS[name]]
            decoder.transformer = self._in_peft(decoder.transformer, targets)

    def _in_peft(self, part: nn.Module, targets: str | list[str]) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, bias="none", use_dora=self.dora,
            use_rslora=self.rslora, target_modules=targets,
        )  # fmt: skip
        return get_peft_model(part, config)

    def freezes_decoder(self, components: str) -> bool:
        """Where it is the only part that is adapted."""
        return components == "decoder"

    def learning_rate(self, facts: EncoderFacts, components: str) -> tuple[float, str]:
        """SAMed's."""
        return DECODER_RATE, self.method


def peft_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network that hold LoRA, by their names in it."""
    parts = {name: model.get_submodule(name) for name in _FOLDERS}
    return {name: part for name, part in parts.items() if hasattr(part, "peft_config")}


def merge_lora(part: nn.Module) -> nn.Module:
    """Fold LoRA into the frozen weights, and q, k and v into one again: SAM's own parameter names come back.

    Args:
        part: The encoder or transformer that :class:`LoraPlan` adapted. It must not be used afterwards.
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
    from samunet.tensors import read_tensors

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
