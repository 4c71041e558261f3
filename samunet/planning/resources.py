"""Memory and work of a training step, from the encoder's dimensions alone. A measured time replaces it at training.

Memory is a sum of parts: weights with their gradients and optimizer, what blocks, neck and head keep for the backward
pass, and what exists only for a moment. ``documentation/benchmarks.md`` compares the sum with measured peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from samunet.encoders import EncoderFacts

_HEAD_PARAMETERS = 4_200_000
_BYTES_FULL = 16  # value, gradient and two moments of a trained float32 parameter
_BYTES_FROZEN = 2  # a frozen weight is kept in the 16-bit format it is computed in
_HALF, _SINGLE = 2, 4
# Measured with vit_b at 448 to 1024 px (benchmarks/step_memory.py): what neck, detail head and loss keep for a token;
# what exists for a moment, for a token and channel; and on a CPU the libraries' own memory, and resident bytes for one
# in use, because the C library keeps the gaps between what is freed and what stays.
_HEAD_BYTES_PER_TOKEN = 52_000
_PASSING_BYTES = 40
_CPU_LIBRARY_BYTES = 70_000_000
_CPU_RESIDENT_SHARE = 1.5


@dataclass(frozen=True)
class Estimate:
    """Bytes that do not depend on the batch, bytes per image, and floating-point operations per trained image."""

    fixed_bytes: int
    image_bytes: int
    training_flops: float


def estimate(
    facts: EncoderFacts,
    input_shape: list[int],
    adaptation: str,
    *,
    trained_blocks: int | None = None,
    device: Literal["cpu", "gpu"] = "gpu",
) -> Estimate:
    """Predict a training step's memory and work, computed in a 16-bit format.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        adaptation: ``full`` or ``lora``.
        trained_blocks: How many of the last blocks have LoRA; None for all. What lies before them keeps nothing.
        device: Attention keeps less on a CPU; there the result is resident memory, on a GPU allocated memory.
    """
    first = 0 if trained_blocks is None else facts.depth - trained_blocks
    full = adaptation == "full"
    grid = [side // facts.patch_size for side in input_shape]
    kept = sum(block_bytes(facts, grid, index, full, device) for index in range(first, facts.depth))
    forward, backward = encoder_operations(facts, input_shape, first)
    head = 2 * math.prod(grid) * 3_000_000
    fixed = weight_bytes(facts, full)
    image = kept + math.prod(grid) * (_HEAD_BYTES_PER_TOKEN + facts.width * _PASSING_BYTES)
    if device == "cpu":
        fixed, image = fixed + _CPU_LIBRARY_BYTES, round(image * _CPU_RESIDENT_SHARE)
    return Estimate(
        fixed_bytes=fixed,
        image_bytes=image,
        training_flops=forward + (2 * forward if full else backward) + 3 * head,
    )


def weight_bytes(facts: EncoderFacts, full: bool) -> int:
    """Weights, gradients, optimizer: 12 width^2 weights a block, positions, and the head, which always trains."""
    blocks = 12 * facts.depth * facts.width**2
    positions = (facts.native_size // facts.patch_size) ** 2 * facts.width
    encoder = (blocks + positions) * _BYTES_FULL if full else blocks * _BYTES_FROZEN + positions * _SINGLE
    return encoder + _HEAD_PARAMETERS * _BYTES_FULL


def block_bytes(facts: EncoderFacts, grid: list[int], index: int, full: bool, device: Literal["cpu", "gpu"]) -> int:
    """What one block keeps for the backward pass of one image.

    Per token and channel: the input of both norms in float32, the projection's input, and that of the MLP's activation
    (four times as wide); with everything trained, also the inputs of the other linear layers. Attention keeps q, k and
    v of the padded grid and its bias along both axes; PyTorch's fused attention keeps them and its output, all as wide
    as q with the bias.
    """
    in_windows = index not in facts.global_blocks
    sides = [facts.window, facts.window] if in_windows else grid
    padded = math.prod(-(-length // side) * side for length, side in zip(grid, sides))
    tokens, channels = math.prod(grid), facts.width // facts.heads
    linear = tokens * facts.width * (2 * _SINGLE + _HALF + 4 * _HALF)
    if full:
        linear += tokens * facts.width * (1 + 1 + 4) * _HALF
    per_head = 3 * channels + (sum(sides) if device == "cpu" else 4 * (channels + sum(sides)))
    return linear + padded * facts.heads * per_head * _HALF


def encoder_operations(facts: EncoderFacts, input_shape: list[int], first: int = 0) -> tuple[float, float]:
    """Floating-point operations of the encoder for one image: forward, and backward with a frozen base.

    Counted on the unpadded token grid and without recomputation: projections (12 width^2 weights a block), two matrix
    products a score forward and four backward, relative positions, patch embedding and neck.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        first: The first block with LoRA; the backward pass ends at its queries and values.
    """
    grid = [side // facts.patch_size for side in input_shape]
    tokens, width = math.prod(grid), facts.width
    linear = 24 * tokens * width**2
    neck = 2 * tokens * facts.embedding * (width + 9 * facts.embedding)
    forward, backward = 2.0 * tokens * 3 * facts.patch_size**2 * width + neck, float(neck)
    for index in range(facts.depth):
        in_windows = index not in facts.global_blocks
        scores = math.prod(_squares(side, facts.window) for side in grid) if in_windows else tokens**2
        positions = 2 * tokens * width * (2 * facts.window if in_windows else sum(grid))
        attention = 4 * scores * width
        forward += linear + attention + positions
        if index >= first:
            backward += linear + 2 * attention + positions
    return forward, backward - 6 * tokens * width**2


def _squares(side: int, window: int) -> int:
    """Pairs of tokens of one axis that share a window."""
    return side // window * window**2 + (side % window) ** 2
