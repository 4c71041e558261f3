"""The q, k and v projection of an encoder block with LoRA, as one operation over frozen weights.

peft computes LoRA apart for q and for v, converts the tokens to float32 and back for each, and keeps both copies. Here
one product with A serves both, and B's product is added where the projection's result lies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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


def project_qkv(qkv: nn.Module, tokens: Tensor, groups: int = 1) -> Tensor:
    """Queries, keys and values of every token.

    Args:
        qkv: A fused ``nn.Linear(channels, 3 * channels)``, or a :class:`SplitQKV` whose parts peft may have
            adapted.
        tokens: ``(..., channels)``.
        groups: A fused projection's output channels are so many runs of (q, k, v): 1 in SAM, one per attention head in
            TinyViT.

    Returns:
        ``(3, ..., channels)``.
    """
    if not hasattr(qkv, "q"):
        return qkv(tokens).unflatten(-1, (groups, 3, -1)).movedim(-2, 0).flatten(-2)
    parts = [qkv.q, qkv.k, qkv.v]
    if not _fusible(parts):
        return torch.stack([part(tokens) for part in parts])
    layers = [getattr(part, "base_layer", part) for part in parts]
    downs, ups, adapted = [], [], []
    for index, part in enumerate(parts):
        if layers[index] is not part:
            name = part.active_adapters[0]
            downs.append(part.lora_A[name].weight)
            ups.append((part.lora_B[name].weight * part.scaling[name]).to(tokens.dtype))
            adapted.append(index)
    return _LowRankProjection.apply(tokens, layers, adapted, torch.cat(downs).to(tokens.dtype), *ups)


def to_autocast(tokens: Tensor) -> Tensor:
    """What autocast would do in every linear layer on its own, once."""
    device = tokens.device.type
    return tokens.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tokens


def _fusible(parts: list[nn.Module]) -> bool:
    """Whether the parts are frozen linear layers, at least one of them with plain LoRA."""
    adapted = [part for part in parts if hasattr(part, "lora_A")]
    plain = all(isinstance(part, nn.Linear) for part in parts if part not in adapted) and all(
        len(part.active_adapters) == 1
        and part.active_adapters[0] in part.lora_A
        and not (part.disable_adapters or part.merged or part.lora_variant)
        and isinstance(part.lora_dropout[part.active_adapters[0]], nn.Identity)
        and part.lora_B[part.active_adapters[0]].bias is None
        for part in adapted
    )
    weights = [getattr(part, "base_layer", part).weight for part in parts] if plain else []
    return bool(adapted) and plain and not any(weight.requires_grad for weight in weights)


class _LowRankProjection(torch.autograd.Function):
    """``out[i] = tokens W_i' + b_i``, plus ``(tokens down_i') up_i'`` for the adapted parts."""

    @staticmethod
    def forward(ctx, tokens, layers, adapted, down, *ups):
        flat = tokens.reshape(-1, tokens.shape[-1])
        low = flat @ down.mT
        out = tokens.new_empty(len(layers), len(flat), layers[0].out_features)
        for part, layer in zip(out, layers):
            torch.addmm(layer.bias.to(part.dtype), flat, layer.weight.to(part.dtype).mT, out=part)
        for index, up, lower in zip(adapted, ups, _split(low, ups)):
            out[index].addmm_(lower, up.mT)
        ctx.save_for_backward(flat, low, down, *ups)
        ctx.layers, ctx.adapted, ctx.shape = layers, adapted, tokens.shape
        return out.view(len(layers), *tokens.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        flat, low, down, *ups = ctx.saved_tensors
        gradient = gradient.reshape(len(ctx.layers), len(flat), -1)
        lower_grads = [gradient[index] @ up for index, up in zip(ctx.adapted, ups)]
        up_grads = [gradient[index].mT @ lower for index, lower in zip(ctx.adapted, _split(low, ups))]
        low_grad = torch.cat(lower_grads, 1)
        tokens_grad = None
        if ctx.needs_input_grad[0]:
            tokens_grad = low_grad @ down
            for part, layer in zip(gradient, ctx.layers):
                tokens_grad.addmm_(part, layer.weight.to(part.dtype))
            tokens_grad = tokens_grad.view(ctx.shape)
        return tokens_grad, None, None, low_grad.mT @ flat, *up_grads


def _split(low: Tensor, ups: tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    return low.split([up.shape[1] for up in ups], dim=1)
