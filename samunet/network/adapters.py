"""Low-rank adaptation of the image encoder through peft, exactly as SAMed places it: on q and v of every block."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.files import atomic_folder
from samunet.network.sam_modules import Attention
from samunet.network.tiny_vit import BiasedAttention
from samunet.plans import LoraPlan


class SplitQKV(nn.Module):
    """A fused ``qkv`` projection as three, so that peft can adapt q and v and leave k alone.

    Args:
        fused: ``nn.Linear(channels, 3 * channels)``; its values are copied.
        groups: Its output channels are ``groups`` runs of (q, k, v): 1 in SAM, one per attention head in TinyViT.
    """

    def __init__(self, fused: nn.Linear, groups: int = 1) -> None:
        super().__init__()
        channels = fused.in_features
        self.groups = groups
        for index, name in enumerate("qkv"):
            part = nn.Linear(channels, channels, device=fused.weight.device, dtype=fused.weight.dtype)
            with torch.no_grad():
                part.weight.copy_(fused.weight.view(groups, 3, -1, channels)[:, index].reshape(channels, channels))
                part.bias.copy_(fused.bias.view(groups, 3, -1)[:, index].reshape(channels))
            setattr(self, name, part)

    @property
    def bias(self) -> Tensor:
        """``(3 * channels,)``: what a zero token is projected to (LoRA has no bias of its own)."""
        return self._interleave([self.q.bias, self.k.bias, self.v.bias], -1)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., channels)`` to ``(..., 3 * channels)``, in the order of the fused projection."""
        return self._interleave([self.q(tokens), self.k(tokens), self.v(tokens)], -1)

    def fuse(self) -> nn.Linear:
        """The equivalent fused projection, with its published names. LoRA must have been merged before."""
        channels = self.q.in_features
        fused = nn.Linear(channels, 3 * channels, device=self.q.weight.device, dtype=self.q.weight.dtype)
        with torch.no_grad():
            fused.weight.copy_(self._interleave([self.q.weight, self.k.weight, self.v.weight], 0))
            fused.bias.copy_(self.bias)
        return fused

    def _interleave(self, parts: list[Tensor], dim: int) -> Tensor:
        if self.groups == 1:
            return torch.cat(parts, dim=dim)
        runs = [run for group in zip(*(part.chunk(self.groups, dim) for part in parts)) for run in group]
        return torch.cat(runs, dim=dim)


def add_lora(encoder: nn.Module, plan: LoraPlan) -> nn.Module:
    """Freeze ``encoder`` and put LoRA on q and v of every block.

    Args:
        encoder: An image encoder, changed in place: its ``qkv`` layers are split.
        plan: Rank, alpha and targets (Hu et al. 2021; SAMed: rank 4, alpha 4, A Kaiming uniform, B zero).

    Returns:
        A ``peft.PeftModel`` around the encoder, whose ``save_pretrained`` writes peft's own format.
    """
    from peft import LoraConfig, get_peft_model

    for attention in _attentions(encoder):
        groups = attention.num_heads if isinstance(attention, BiasedAttention) else 1
        attention.qkv = SplitQKV(attention.qkv, groups)
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=rf"(layers\.\d+\.)?blocks\.\d+\.attn\.qkv\.({'|'.join(plan.targets)})",
    )
    return get_peft_model(encoder, config)


def merge_lora(encoder: nn.Module) -> nn.Module:
    """Fold LoRA into the frozen weights and fuse q, k and v again: the encoder's own parameter names come back.

    Args:
        encoder: What :func:`add_lora` returned. It must not be used afterwards.
    """
    merged = encoder.merge_and_unload()
    for attention in _attentions(merged):
        attention.qkv = attention.qkv.fuse()
    return merged


def _attentions(encoder: nn.Module) -> list[nn.Module]:
    return [module for module in encoder.modules() if isinstance(module, (Attention, BiasedAttention))]


def save_adapter(encoder: nn.Module, folder: Path) -> None:
    """Write LoRA in peft's own format (``adapter_config.json``, ``adapter_model.safetensors``), atomically."""
    with atomic_folder(folder) as temporary:
        encoder.save_pretrained(temporary)


def load_adapter(folder: Path) -> dict[str, Tensor]:
    """Read what :func:`save_adapter` wrote, as entries of a model's trained state.

    Raises:
        SamunetError: If the adapter's files are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SamunetError(f"{path} is missing or damaged: {error}", "train again, or restore the file") from error
    # peft leaves the adapter's name out of the file: in the model it stands before the last part.
    named = {".default.".join(name.rsplit(".", 1)): value for name, value in tensors.items()}
    return {f"image_encoder.{name}": value for name, value in named.items()}
