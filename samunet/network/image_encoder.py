"""SAM's image encoder at any input size whose sides are multiples of the patch size."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.encoders import EncoderFacts
from samunet.network.attention import block_attention
from samunet.network.frozen_prefix import Part
from samunet.network.projection import to_autocast
from samunet.network.sam_modules import Block, ImageEncoderViT


class ImageEncoder(ImageEncoderViT):
    """segment_anything's ``ImageEncoderViT``, with its parameter names, and a forward that takes other sizes.

    Absolute positions are interpolated bilinearly to the token grid (SAMed, build_sam.py), relative positions
    linearly (SAM's own ``get_rel_pos``).

    Args:
        facts: The encoder to build.
    """

    def __init__(self, facts: EncoderFacts) -> None:
        super().__init__(
            img_size=facts.native_size,
            patch_size=facts.patch_size,
            embed_dim=facts.width,
            depth=facts.depth,
            num_heads=facts.heads,
            mlp_ratio=4.0,
            out_chans=facts.embedding,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=facts.window,
            global_attn_indexes=facts.global_blocks,
        )
        self.patch_size = facts.patch_size
        if facts.convolutional_stem:
            self.patch_embed = ConvolutionalStem(facts.patch_size, facts.width)
        if not facts.pretrained:
            self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Encode images.

        Args:
            image: ``(batch, 3, height, width)``, normalised with the encoder's pixel statistics.

        Returns:
            ``(batch, embedding, height / patch, width / patch)``.
        """
        features = image
        for part in self.parts():
            features = part.run(features)
        return features

    def parts(self) -> list[Part]:
        """The steps of the forward pass: tokens with positions, every block, the neck."""
        blocks = [Part.of(block, partial(_run_block, block)) for block in self.blocks]
        stem = Part.of(self.patch_embed, self._embed, self.pos_embed)
        return [stem, *blocks, Part.of(self.neck, lambda tokens: self.neck(tokens.permute(0, 3, 1, 2)))]

    def _embed(self, image: Tensor) -> Tensor:
        tokens = self.patch_embed(image)
        # The projection leaves channels far apart in memory; every norm would copy the tokens.
        return (tokens + _interpolate_positions(self.pos_embed, tokens.shape[1:3])).contiguous()

    def _initialise(self) -> None:
        """Truncated normal weights, as for any vision transformer that is trained from nothing (Dosovitskiy et al.)."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)


def hold_frozen(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen linear and convolutional layers in the number format they are computed in.

    Autocast converts a frozen float32 weight at every call, and both copies take memory. Norms and positions stay in
    float32, as does whatever trains. The change is for good: merge adapters into float32 weights, not into these.

    Args:
        encoder: Changed in place.
        dtype: What autocast computes in.
    """
    for module in encoder.modules():
        own = list(module.parameters(recurse=False))  # not those of an adapter that hangs on the layer
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not any(parameter.requires_grad for parameter in own):
            for parameter in own:
                parameter.data = parameter.data.to(dtype)


class ConvolutionalStem(nn.Module):
    """Tokens from stride-2 convolutions: trains better from little data than one strided projection (Xiao et al. 2021).

    Args:
        patch_size: Input pixels per token and side, a power of two.
        width: Channels of a token.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        steps = patch_size.bit_length() - 1
        channels = [3] + [width >> (steps - step - 1) for step in range(steps)]
        layers: list[nn.Module] = []
        for inner, outer in zip(channels[:-1], channels[1:]):
            layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` to ``(batch, height / patch, width / patch, channels)``."""
        return self.proj(self.layers(image)).permute(0, 2, 3, 1)


def attention_blocks(encoder: nn.Module) -> dict[str, nn.Module]:
    """An encoder's blocks with attention by name, in the order of the forward pass."""
    return {name: module for name, module in encoder.named_modules() if hasattr(module, "attn")}


def _run_block(block: Block, tokens: Tensor) -> Tensor:
    tokens = tokens + block_attention(block.attn, to_autocast(block.norm1(tokens)), block.window_size)
    return tokens + block.mlp(to_autocast(block.norm2(tokens)))


def _interpolate_positions(positions: Tensor, grid: torch.Size) -> Tensor:
    """Bring ``(1, h, w, channels)`` absolute positions to another token grid, bilinearly."""
    if positions.shape[1:3] == grid:
        return positions
    resized = F.interpolate(positions.permute(0, 3, 1, 2), size=tuple(grid), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)
