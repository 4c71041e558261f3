"""Memory and work of a training step, from the encoder's dimensions alone. A measured time replaces it at training.

Memory is a sum of parts: weights with their gradients and optimizer, what blocks, neck and head keep for the backward
pass, and what exists only for a moment. Work is counted as useful work: what is computed a second time to save memory
counts once. ``documentation/lab/notebook.md`` compares the sum with measured peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from samunet.adaptations import Adaptation
from samunet.encoders import EncoderFacts, encoder_facts
from samunet.network.encoders import architecture
from samunet.plans import NetworkPlan
from samunet.recipes import recipe_facts

_HEAD_PARAMETERS = 4_200_000
_TRANSFORMER_PARAMETERS = 3_291_264  # of the head's, where they are frozen
_BYTES_FULL = 16  # value, gradient and two moments of a trained float32 parameter
_BYTES_FROZEN = 2  # a frozen weight is kept in the 16-bit format it is computed in
_SINGLE = 4
# Measured with vit_b at 448 to 1024 px (benchmarks/step_memory.py): what neck, detail head and loss keep for a token;
# and on a CPU the libraries' own memory, and resident bytes for one in use, because the C library keeps the gaps
# between what is freed and what stays: more where a block's values come and go between inputs that stay.
_HEAD_BYTES_PER_TOKEN = 52_000
_CPU_LIBRARY_BYTES = 70_000_000
_CPU_RESIDENT_SHARE = 1.5
_CPU_RESIDENT_SHARE_CHECKPOINTED = 1.8
# All this with three classes. Of each one beyond them, parameters of its token and network in the head, and for a pixel
# of its logits what the loss keeps and what exists for a moment: logits, softmax, its logarithm, the target and their
# gradients in float32 (tests/test_memory_model.py counts them). SAMed's loss sees a sixteenth of the pixels.
_MEASURED_OUTPUTS = 3
_OUTPUT_PARAMETERS = 140_064
_BYTES_PER_OUTPUT = 24


@dataclass(frozen=True)
class Estimate:
    """Bytes that do not depend on the batch, bytes per image, and floating-point operations per trained image.

    ``building_bytes`` are those of all weights in float32, as they are before frozen ones are converted: of a large
    encoder more than a step takes at a small input.
    """

    fixed_bytes: int
    image_bytes: int
    training_flops: float
    building_bytes: int

    def for_batch(self, size: int) -> int:
        """Bytes of a step with that many images."""
        return max(self.building_bytes, self.fixed_bytes + size * self.image_bytes)


def estimate(
    facts: EncoderFacts,
    input_shape: list[int],
    adaptation: Adaptation,
    components: str = "encoder_decoder",
    *,
    device: Literal["cpu", "gpu"] = "gpu",
    checkpoint_blocks: bool = False,
    num_outputs: int = _MEASURED_OUTPUTS,
    upsampled: bool = True,
) -> Estimate:
    """Predict a training step's memory and work, computed in a 16-bit format.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        adaptation: With its settings. What lies before the first adapted block keeps nothing.
        components: ``encoder_decoder``, or ``decoder`` with the encoder frozen.
        device: Attention keeps less on a CPU; there the result is resident memory, on a GPU allocated memory.
        checkpoint_blocks: Whether a block keeps its input alone. Operations are those without.
        num_outputs: Classes including background, or regions; fewer than three count as three.
        upsampled: Whether the loss sees logits at the input's resolution; not with SAMed's recipe.
    """
    of_architecture = architecture(facts)
    adapted = adaptation.adapted_blocks(facts.attention_blocks) if components == "encoder_decoder" else []
    first = adapted[0] if adapted else facts.attention_blocks
    full = adaptation.encoder_trains and bool(adapted)
    kept, passing = of_architecture.kept_bytes(facts, input_shape, first, adaptation, device, checkpoint_blocks)
    forward, backward = of_architecture.operations(facts, input_shape, first)
    tokens = math.prod(side // facts.patch_size for side in input_shape)
    head = 2 * tokens * 3_000_000
    fixed = weight_bytes(facts, full)
    widths = of_architecture.block_widths(facts)
    fixed += _BYTES_FULL * sum(adaptation.added_parameters(widths[index]) for index in adapted)
    if adaptation.freezes_decoder(components):
        fixed -= _TRANSFORMER_PARAMETERS * (_BYTES_FULL - _SINGLE)
    more = max(0, num_outputs - _MEASURED_OUTPUTS)
    fixed += more * _OUTPUT_PARAMETERS * _BYTES_FULL
    image = kept + passing + tokens * _HEAD_BYTES_PER_TOKEN
    image += more * math.prod(input_shape) * _BYTES_PER_OUTPUT // (1 if upsampled else 16)
    if device == "cpu":
        share = _CPU_RESIDENT_SHARE_CHECKPOINTED if checkpoint_blocks and adapted else _CPU_RESIDENT_SHARE
        fixed, image = fixed + _CPU_LIBRARY_BYTES, round(image * share)
    return Estimate(
        fixed_bytes=fixed,
        image_bytes=image,
        training_flops=forward + (2 * forward if full else backward) + 3 * head,
        building_bytes=(sum(of_architecture.weights(facts)) + _HEAD_PARAMETERS) * _SINGLE,
    )


def step_bytes(
    network: NetworkPlan, batch: int, device: Literal["cpu", "gpu"], num_outputs: int = _MEASURED_OUTPUTS
) -> int:
    """Predicted peak memory of a training step of a planned network; see :func:`estimate`.

    Args:
        network: The plan, whose own ``memory_bytes`` is for a GPU.
        batch: Images at a time.
        device: Kind of device.
        num_outputs: Classes including background, or regions.
    """
    predicted = estimate(
        encoder_facts(network.encoder), network.input_shape, network.adaptation, network.components,
        device=device, checkpoint_blocks=network.checkpoint_blocks, num_outputs=num_outputs,
        upsampled=recipe_facts(network.recipe).upsampled,
    )  # fmt: skip
    return predicted.for_batch(batch)


def weight_bytes(facts: EncoderFacts, full: bool) -> int:
    """Weights, gradients, optimizer: 12 width^2 weights a block, positions, and the head, which always trains."""
    blocks, positions = architecture(facts).weights(facts)
    encoder = (blocks + positions) * _BYTES_FULL if full else blocks * _BYTES_FROZEN + positions * _SINGLE
    return encoder + _HEAD_PARAMETERS * _BYTES_FULL
