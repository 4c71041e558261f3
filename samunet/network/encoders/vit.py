"""SAM's image encoder at any input size whose sides are multiples of the patch size, and what it costs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samunet.adaptations import Adaptation
from samunet.adaptations.projection import to_autocast
from samunet.encoders import EncoderFacts
from samunet.network.attention import block_attention
from samunet.network.encoders.encoder import HALF, SINGLE, Features, Shapes, pairs
from samunet.network.sam_modules import Block, ImageEncoderViT

TITLE = "SAM"  # as which its checkpoints are known
_GROUPS = 8
# Measured with vit_b at 448 to 1024 px (benchmarks/step_memory.py): what exists for a moment, for a token and channel.
_PASSING_BYTES = 40


def build(facts: EncoderFacts, *, checkpoint_blocks: bool = False) -> ImageEncoder:
    """The encoder of these facts."""
    return ImageEncoder(facts, checkpoint_blocks=checkpoint_blocks)


def fits(facts: EncoderFacts, shapes: Shapes) -> bool:
    """Whether tensors of these shapes are of a checkpoint of this encoder, going by its width and depth."""
    patches = shapes.get("image_encoder.patch_embed.proj.weight")
    blocks = {match[1] for name in shapes if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", name))}
    return patches is not None and (patches[0], len(blocks)) == (facts.width, facts.depth)


class ImageEncoder(ImageEncoderViT):
    """segment_anything's ``ImageEncoderViT``, with its parameter names, and a forward that takes other sizes.

    Absolute positions are interpolated bilinearly to the token grid (SAMed, build_sam.py), relative positions
    linearly (SAM's own ``get_rel_pos``).

    Args:
        facts: The encoder to build.
        checkpoint_blocks: Whether a block keeps only its input for the backward pass; see :func:`compute_twice`.

    Attributes:
        tap_widths, gives_details: Channels of every tap, and whether there are details (:class:`Features`).
        mlp_layers: Names of the linear layers of a block's MLP.
    """

    mlp_layers = ("lin1", "lin2")

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


def _run_block(block: Block, tokens: Tensor) -> Tensor:
    tokens = tokens + block_attention(block.attn, to_autocast(block.norm1(tokens)), block.window_size)
    return tokens + block.mlp(to_autocast(block.norm2(tokens)))


def _interpolate_positions(positions: Tensor, grid: torch.Size) -> Tensor:
    """Bring ``(1, h, w, channels)`` absolute positions to another token grid, bilinearly."""
    if positions.shape[1:3] == grid:
        return positions
    resized = F.interpolate(positions.permute(0, 3, 1, 2), size=tuple(grid), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def compute_twice(function: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], tokens: Tensor) -> Tensor:
    """``function(tokens)`` with activation checkpointing (Chen et al. 2016, arXiv 1604.06174).

    Only ``tokens`` is kept for the backward pass, where it runs a second time. Where no gradient will pass, it runs as
    it is: in prediction, in an export, and in what lies before the first parameter that trains. Outputs and gradients
    are those of running it once.

    Args:
        function: Draws no random numbers.
        parameters: What it computes with.
        tokens: Its only input.
    """
    trains = tokens.requires_grad or any(parameter.requires_grad for parameter in parameters)
    if not (torch.is_grad_enabled() and trains):
        return function(tokens)
    return checkpoint(function, tokens, use_reentrant=False, preserve_rng_state=False)


def weights(facts: EncoderFacts) -> tuple[int, int]:
    """How many are in the blocks, and absolute positions."""
    return 12 * facts.depth * facts.width**2, (facts.native_size // facts.patch_size) ** 2 * facts.width


def block_widths(facts: EncoderFacts) -> list[int]:
    """Channels of every block with attention."""
    return [facts.width] * facts.depth


def kept_bytes(
    facts: EncoderFacts,
    input_shape: list[int],
    first: int,
    adaptation: Adaptation,
    device: Literal["cpu", "gpu"],
    checkpoint_blocks: bool = False,
) -> tuple[int, int]:
    """What the encoder keeps for the backward pass of one image, and what exists for a moment.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        first: The first block that is adapted; their number if none is.
        adaptation: Says what it makes a block keep beyond what it keeps with LoRA.
        device: Attention keeps less on a CPU.
        checkpoint_blocks: Whether every block keeps its input alone, in float32, and what it needs beyond that exists
            for one block at a time.
    """
    grid = [side // facts.patch_size for side in input_shape]
    blocks = [block_bytes(facts, grid, index, adaptation, device) for index in range(first, facts.depth)]
    tokens = math.prod(grid) * facts.width
    total = sum(blocks)
    if checkpoint_blocks and blocks:
        total = (len(blocks) - 1) * tokens * SINGLE + max(blocks)
    return total, tokens * _PASSING_BYTES


def block_bytes(
    facts: EncoderFacts, grid: list[int], index: int, adaptation: Adaptation, device: Literal["cpu", "gpu"]
) -> int:
    """What one block keeps for the backward pass of one image.

    Per token and channel: the input of both norms in float32, the projection's input, and that of the MLP's activation
    (four times as wide), beside what the adaptation adds. Attention keeps q, k and v of the padded grid and its bias
    along both axes; PyTorch's fused attention keeps them and its output, all as wide as q with the bias.
    """
    in_windows = index not in facts.global_blocks
    sides = [facts.window, facts.window] if in_windows else grid
    padded = math.prod(-(-length // side) * side for length, side in zip(grid, sides))
    tokens, channels = math.prod(grid), facts.width // facts.heads
    linear = tokens * (facts.width * (2 * SINGLE + HALF + 4 * HALF) + adaptation.kept_values(facts.width) * HALF)
    per_head = 3 * channels + (sum(sides) if device == "cpu" else 4 * (channels + sum(sides)))
    return linear + padded * facts.heads * per_head * HALF


def operations(facts: EncoderFacts, input_shape: list[int], first: int = 0) -> tuple[float, float]:
    """Floating-point operations for one image: forward, and backward with a frozen base.

    Counted on the unpadded token grid and without recomputation: projections (12 width^2 weights a block), two matrix
    products a score forward and four backward, relative positions, patch embedding and neck.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        first: The first block that is adapted, where the backward pass ends (with LoRA, at its queries and values);
            their number if none is.
    """
    grid = [side // facts.patch_size for side in input_shape]
    tokens, width = math.prod(grid), facts.width
    linear = 24 * tokens * width**2
    neck = 2 * tokens * facts.embedding * (width + 9 * facts.embedding)
    forward, backward = 2.0 * tokens * 3 * facts.patch_size**2 * width + neck, float(neck)
    for index in range(facts.depth):
        in_windows = index not in facts.global_blocks
        scores = math.prod(pairs(side, facts.window) for side in grid) if in_windows else tokens**2
        positions = 2 * tokens * width * (2 * facts.window if in_windows else sum(grid))
        attention = 4 * scores * width
        forward += linear + attention + positions
        if index >= first:
            backward += linear + 2 * attention + positions
    return forward, backward - 6 * tokens * width**2 if first < facts.depth else 0.0
