"""A first model of memory and time, from the encoder's dimensions alone. Measurements replace its time at training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from samunet.encoders import EncoderFacts, Stage
from samunet.plans import Blocks, adapted_blocks

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

    def for_batch(self, size: int) -> int:
        """Bytes of a step with that many images."""
        return self.fixed_bytes + size * self.image_bytes


def estimate(
    facts: EncoderFacts,
    input_shape: list[int],
    adaptation: str,
    components: str = "encoder_decoder",
    blocks: Blocks = "all",
) -> Estimate:
    """Predict a training step's memory and work.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        adaptation: ``full``, ``lora`` or ``adapter``.
        components: ``encoder_decoder``, or ``decoder`` with the encoder frozen.
        blocks: Of the encoder, which are adapted: gradients go back as far as the first of them.
    """
    parts = _parts(facts, input_shape)
    tokens = parts[-1].tokens
    encoder_parameters = sum(12 * part.depth * part.width**2 for part in parts)
    parameters = encoder_parameters + _HEAD_PARAMETERS
    adapted = adapted_blocks(blocks, facts.attention_blocks) if components == "encoder_decoder" else []
    share = 1 - adapted[0] / facts.attention_blocks if adapted else 0.0  # of the blocks that gradients go through
    frozen = 0 if adaptation == "full" and adapted else encoder_parameters
    # Unless everything trains, no gradient reaches the blocks before the first attention that is adapted.
    stem_share = 1.0 if adaptation == "full" and adapted else 0.0
    kept = sum(part.activations * (share if part.scores else stem_share) for part in parts)
    # A frozen encoder keeps nothing for the backward pass: one block's values exist at a time.
    encoder_values = max(kept, max(part.activations / part.depth for part in parts))
    values = encoder_values + tokens * _DECODER_VALUES_PER_TOKEN
    encoder_flops = sum(part.flops for part in parts)
    decoder_flops = 2 * tokens * 3_000_000
    backward = 2.0 if adaptation == "full" else 1.3
    return Estimate(
        fixed_bytes=(parameters - frozen) * _BYTES_FULL + frozen * _BYTES_FROZEN,
        image_bytes=int(values * _ACTIVATION_BYTES),
        training_flops=encoder_flops * (1 + share * backward) + decoder_flops * (1 + backward),
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
