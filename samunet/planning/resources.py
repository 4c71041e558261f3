"""A first model of memory and time, from the encoder's dimensions alone. Measurements replace its time at training."""

from __future__ import annotations

from dataclasses import dataclass

from samunet.encoders import EncoderFacts
from samunet.plans import Blocks, adapted_blocks

_HEAD_PARAMETERS = 4_200_000
_BYTES_FULL = 16  # value, gradient and two moments of a trained float32 parameter
_BYTES_FROZEN = 4
# Activations kept for the backward pass, in values of 2 bytes: per token and channel of one block (norms, qkv,
# attention output, projection, the MLP's four-fold width before and after its activation), and per attention score
# (score, softmax). Fitted to SAMed's published 8.8 GB at 1024 px and 2.2 GB at 512 px, float32, ViT-B, halved.
_VALUES_PER_TOKEN = 20
_VALUES_PER_SCORE = 3
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
    height, width = (side // facts.patch_size for side in input_shape)
    tokens = height * width
    windows = -(-height // facts.window) * -(-width // facts.window)
    window_scores = windows * facts.window**4
    adapted = adapted_blocks(blocks, facts.attention_blocks) if components == "encoder_decoder" else []
    share = 1 - adapted[0] / facts.attention_blocks if adapted else 0.0  # of the blocks that gradients go through
    scores = sum(tokens**2 if index in facts.global_blocks else window_scores for index in range(facts.depth))
    block_parameters = 12 * facts.width**2
    parameters = facts.depth * block_parameters + _HEAD_PARAMETERS
    frozen = 0 if adaptation == "full" and adapted else facts.depth * block_parameters
    encoder_values = tokens * facts.width * facts.depth * _VALUES_PER_TOKEN + scores * facts.heads * _VALUES_PER_SCORE
    # A frozen encoder keeps nothing for the backward pass: one block's values exist at a time.
    values = encoder_values * max(share, 1 / facts.depth) + tokens * _DECODER_VALUES_PER_TOKEN
    encoder_flops = 2 * tokens * facts.depth * block_parameters + 4 * scores * facts.width
    decoder_flops = 2 * tokens * 3_000_000
    backward = 2.0 if adaptation == "full" else 1.3
    return Estimate(
        fixed_bytes=(parameters - frozen) * _BYTES_FULL + frozen * _BYTES_FROZEN,
        image_bytes=int(values * _ACTIVATION_BYTES),
        training_flops=encoder_flops * (1 + share * backward) + decoder_flops * (1 + backward),
    )
