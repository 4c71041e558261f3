"""A first model of memory and time, from the encoder's dimensions alone. Measurements replace its time at training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from samunet.encoders import EncoderFacts, Stage

_HEAD_PARAMETERS = 4_200_000
_BYTES_FULL = 16  # value, gradient and two moments of a trained float32 parameter
_BYTES_FROZEN = 4
# Activations kept for the backward pass, in values of 2 bytes: per token and channel of one block (norms, qkv,
# attention output, projection, the MLP's four-fold width before and after its activation), and per attention score
# (score, softmax). Fitted to SAMed's published 8.8 GB at 1024 px and 2.2 GB at 512 px, float32, ViT-B, halved.
_VALUES_PER_TOKEN = 20
_VALUES_PER_SCORE = 3
_VALUES_PER_TOKEN_CONVOLVED = 27  # of a convolutional block, counted in PyTorch's saved tensors
_DECODER_VALUES_PER_TOKEN = 6000
_ACTIVATION_BYTES = 2


@dataclass(frozen=True)
class Estimate:
    """Bytes that do not depend on the batch, bytes per image, and floating-point operations per trained image."""

    fixed_bytes: int
    image_bytes: int
    training_flops: float


def estimate(facts: EncoderFacts, input_shape: list[int], adaptation: str) -> Estimate:
    """Predict a training step's memory and work.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        adaptation: ``full`` or ``lora``.
    """
    parts = _parts(facts, input_shape)
    tokens = parts[-1].tokens
    encoder_parameters = sum(12 * part.depth * part.width**2 for part in parts)
    parameters = encoder_parameters + _HEAD_PARAMETERS
    frozen = 0 if adaptation == "full" else encoder_parameters
    # With LoRA no gradient reaches the blocks before the first attention.
    kept = parts if adaptation == "full" else [part for part in parts if part.scores]
    values = sum(part.activations for part in kept) + tokens * _DECODER_VALUES_PER_TOKEN
    forward = sum(part.flops for part in parts) + 2 * tokens * 3_000_000
    return Estimate(
        fixed_bytes=(parameters - frozen) * _BYTES_FULL + frozen * _BYTES_FROZEN,
        image_bytes=values * _ACTIVATION_BYTES,
        training_flops=forward * (3 if adaptation == "full" else 2.3),
    )


@dataclass(frozen=True)
class _Part:
    """Blocks of one width on one grid; ``scores`` per head, over all its blocks (0 without attention)."""

    tokens: int
    width: int
    depth: int
    heads: int
    scores: int

    @property
    def activations(self) -> int:
        """Values kept for the backward pass."""
        per_token = _VALUES_PER_TOKEN if self.scores else _VALUES_PER_TOKEN_CONVOLVED
        return self.tokens * self.width * self.depth * per_token + self.scores * self.heads * _VALUES_PER_SCORE

    @property
    def flops(self) -> int:
        """Of a forward pass: 12 width^2 weights per token and block, and two products per score."""
        return 24 * self.tokens * self.depth * self.width**2 + 4 * self.scores * self.width


def _parts(facts: EncoderFacts, input_shape: list[int]) -> list[_Part]:
    if facts.stages:
        return [_stage_part(stage, input_shape) for stage in facts.stages]
    grid = [side // facts.patch_size for side in input_shape]
    tokens = math.prod(grid)
    in_windows = facts.depth - len(facts.global_blocks)
    scores = len(facts.global_blocks) * tokens**2 + in_windows * _window_scores(*grid, facts.window)
    return [_Part(tokens, facts.width, facts.depth, facts.heads, scores)]


def _stage_part(stage: Stage, input_shape: list[int]) -> _Part:
    grid = [side // stage.stride for side in input_shape]
    scores = stage.depth * _window_scores(*grid, stage.window)
    return _Part(math.prod(grid), stage.width, stage.depth, stage.heads, scores)


def _window_scores(height: int, width: int, window: int) -> int:
    """Attention scores of one block and head on a grid padded to whole windows; 0 without windows."""
    return -(-height // window) * -(-width // window) * window**4 if window else 0
