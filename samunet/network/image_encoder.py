"""SAM's image encoder at any input size whose sides are multiples of the patch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.encoders import EncoderFacts
from samunet.network.attention import block_attention
from samunet.network.projection import to_autocast
from samunet.network.recomputation import compute_twice
from samunet.network.sam_modules import Block, ImageEncoderViT

_GROUPS = 8


@dataclass
class Features:
    """What an image encoder makes of a batch of images.

    Attributes:
        embedding: ``(batch, embedding, height / patch, width / patch)``, SAM's image embedding.
        taps: What the blocks with global attention before the last one gave, first to last, each ``(batch, height /
            patch, width / patch, width)``.
        details: Features at 1/2, 1/4, ... of the input's resolution, down to twice the tokens', as the convolutional
            stem has them: ``(batch, channels, height / 2, width / 2)``, ...; none where there is no such stem.
    """

    embedding: Tensor
    taps: tuple[Tensor, ...] = ()
    details: tuple[Tensor, ...] = ()


class ImageEncoder(ImageEncoderViT):
    """segment_anything's ``ImageEncoderViT``, with its parameter names, and a forward that takes other sizes.

    Absolute positions are interpolated bilinearly to the token grid (SAMed, build_sam.py), relative positions
    linearly (SAM's own ``get_rel_pos``).

    Args:
        facts: The encoder to build.
        checkpoint_blocks: Whether a block keeps only its input for the backward pass; see
            :mod:`samunet.network.recomputation`.

    Attributes:
        tap_widths, gives_details: Channels of every tap, and whether there are details (:class:`Features`).
    """

    def __init__(self, facts: EncoderFacts, *, checkpoint_blocks: bool = False) -> None:
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
        self.checkpoint_blocks = checkpoint_blocks
        self.tap_blocks = facts.global_blocks[:-1]
        self.tap_widths = (facts.width,) * len(self.tap_blocks)
        self.gives_details = facts.convolutional_stem
        if facts.convolutional_stem:
            self.patch_embed = ConvolutionalStem(facts.patch_size, facts.width, facts.embedding)
        if not facts.is_sam:
            self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Encode images.

        Args:
            image: ``(batch, 3, height, width)``, normalised with the encoder's pixel statistics.

        Returns:
            ``(batch, embedding, height / patch, width / patch)``.
        """
        return self.features(image).embedding

    def features(self, image: Tensor) -> Features:
        """Encode images, and give what is found on the way; see :meth:`forward`."""
        tokens, details = self.patch_embed(image) if self.gives_details else (self.patch_embed(image), ())
        # The projection leaves channels far apart in memory; every norm would copy the tokens.
        tokens = (tokens + _interpolate_positions(self.pos_embed, tokens.shape[1:3])).contiguous()
        taps = []
        for index, block in enumerate(self.blocks):
            tokens = self._change(block)(tokens)
            if index in self.tap_blocks:
                taps.append(tokens)
        return Features(self.neck(tokens.permute(0, 3, 1, 2)), tuple(taps), tuple(details))

    def _change(self, block: Block) -> Callable[[Tensor], Tensor]:
        change = partial(_run_block, block)
        return partial(compute_twice, change, list(block.parameters())) if self.checkpoint_blocks else change

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
        embedding: Channels of the encoder's output; those between follow from it (:func:`detail_channels`).
    """

    def __init__(self, patch_size: int, width: int, embedding: int) -> None:
        super().__init__()
        channels = (3, *detail_channels(patch_size, embedding), width)
        self.layers = nn.ModuleList(convolution(*pair, stride=2) for pair in zip(channels, channels[1:]))
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens ``(batch, height / patch, width / patch, channels)``, and the details on the way to them."""
        steps = []
        for layer in self.layers:
            image = layer(image)
            steps.append(image)
        return self.proj(image).permute(0, 2, 3, 1), tuple(steps[:-1])


def detail_channels(patch_size: int, embedding: int) -> tuple[int, ...]:
    """Channels at 1/2, 1/4, ... of the input's resolution: those of SAM's upscaling where it reaches it."""
    steps = patch_size.bit_length() - 2
    return (embedding // 8,) * (steps - 1) + (embedding // 4,)


def convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    """Convolution of 3 x 3 pixels, norm and activation."""
    norm = nn.GroupNorm(_GROUPS, outer)
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride=stride, padding=1), norm, nn.ReLU())


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
