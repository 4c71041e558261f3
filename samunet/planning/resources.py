"""Memory and work of a training step, from the encoder's dimensions alone. A measured time replaces it at training.

Memory is a sum of parts: weights with their gradients and optimizer, what blocks, neck and head keep for the backward
pass, and what exists only for a moment. Work is counted as useful work: what is computed a second time to save memory
counts once. ``documentation/lab/notebook.md`` compares the sum with measured peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from samunet.encoders import EncoderFacts, Stage, encoder_facts
from samunet.plans import Blocks, NetworkPlan, adapted_blocks
from samunet.recipes import recipe_facts

_HEAD_PARAMETERS = 4_200_000
_TRANSFORMER_PARAMETERS = 3_291_264  # of the head's, where they are frozen
_BYTES_FULL = 16  # value, gradient and two moments of a trained float32 parameter
_BYTES_FROZEN = 2  # a frozen weight is kept in the 16-bit format it is computed in
_HALF, _SINGLE = 2, 4
# Measured with vit_b at 448 to 1024 px (benchmarks/step_memory.py): what neck, detail head and loss keep for a token;
# what exists for a moment, for a token and channel; and on a CPU the libraries' own memory, and resident bytes for one
# in use, because the C library keeps the gaps between what is freed and what stays: more where a block's values come
# and go between inputs that stay.
_HEAD_BYTES_PER_TOKEN = 52_000
_PASSING_BYTES = 40
_CPU_LIBRARY_BYTES = 70_000_000
_CPU_RESIDENT_SHARE = 1.5
_CPU_RESIDENT_SHARE_CHECKPOINTED = 1.8
# All this with three classes. Of each one beyond them, parameters of its token and network in the head, and for a pixel
# of its logits what the loss keeps and what exists for a moment: logits, softmax, its logarithm, the target and their
# gradients in float32 (tests/test_memory_model.py counts them). SAMed's loss sees a sixteenth of the pixels.
_MEASURED_OUTPUTS = 3
_OUTPUT_PARAMETERS = 140_064
_BYTES_PER_OUTPUT = 24
# Of TinyViT, in 16-bit values counted in PyTorch's saved tensors: per token and channel of a block with attention,
# where everything trains also of a convolutional one, and per attention score; per token and channel on both sides of a
# step to the next stage. Measured: bytes that exist for a moment, per token and channel of the first stage.
_VALUES_PER_TOKEN = {"full": 20.0, "lora": 12.1, "adapter": 13.0}
_VALUES_PER_TOKEN_CONVOLVED = 27
_VALUES_PER_SCORE = {"full": 3, "lora": 1, "adapter": 1}
_VALUES_PER_TOKEN_BETWEEN = 2.5
_PASSING_BYTES_CONVOLVED = 28


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
    adaptation: str,
    components: str = "encoder_decoder",
    blocks: Blocks = "all",
    *,
    reduction: int = 4,
    device: Literal["cpu", "gpu"] = "gpu",
    checkpoint_blocks: bool = False,
    num_outputs: int = _MEASURED_OUTPUTS,
    upsampled: bool = True,
) -> Estimate:
    """Predict a training step's memory and work, computed in a 16-bit format.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        adaptation: ``full``, ``lora`` or ``adapter``.
        components: ``encoder_decoder``, or ``decoder`` with the encoder frozen.
        blocks: Of the encoder, which are adapted. What lies before the first of them keeps nothing.
        reduction: Channels of a block by those of its bottleneck adapters.
        device: Attention keeps less on a CPU; there the result is resident memory, on a GPU allocated memory.
        checkpoint_blocks: Whether a block keeps its input alone. Operations are those without.
        num_outputs: Classes including background, or regions; fewer than three count as three.
        upsampled: Whether the loss sees logits at the input's resolution; not with SAMed's recipe.
    """
    adapted = adapted_blocks(blocks, facts.attention_blocks) if components == "encoder_decoder" else []
    first = adapted[0] if adapted else facts.attention_blocks
    full = adaptation == "full" and bool(adapted)
    kept, passing = encoder_bytes(facts, input_shape, first, adaptation, device, reduction, checkpoint_blocks)
    forward, backward = encoder_operations(facts, input_shape, first)
    tokens = math.prod(side // facts.patch_size for side in input_shape)
    head = 2 * tokens * 3_000_000
    fixed = weight_bytes(facts, full)
    if adaptation == "adapter":
        fixed += _BYTES_FULL * sum(adapter_parameters(width, reduction) for width in _adapted_widths(facts, adapted))
    if adaptation == "adapter" or (adaptation == "lora" and components == "decoder"):
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
        building_bytes=(sum(_encoder_parameters(facts)) + _HEAD_PARAMETERS) * _SINGLE,
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
    adapter = network.lora or network.adapter
    blocks = adapter.blocks if adapter else "all"
    facts = encoder_facts(network.encoder)
    reduction = network.adapter.reduction if network.adapter else 4
    predicted = estimate(
        facts, network.input_shape, network.adaptation, network.components, blocks,
        reduction=reduction, device=device, checkpoint_blocks=network.checkpoint_blocks,
        num_outputs=num_outputs, upsampled=recipe_facts(network.recipe).upsampled,
    )  # fmt: skip
    return predicted.for_batch(batch)


def weight_bytes(facts: EncoderFacts, full: bool) -> int:
    """Weights, gradients, optimizer: 12 width^2 weights a block, positions, and the head, which always trains."""
    blocks, positions = _encoder_parameters(facts)
    encoder = (blocks + positions) * _BYTES_FULL if full else blocks * _BYTES_FROZEN + positions * _SINGLE
    return encoder + _HEAD_PARAMETERS * _BYTES_FULL


def _encoder_parameters(facts: EncoderFacts) -> tuple[int, int]:
    """Weights of the blocks, and absolute positions."""
    blocks = sum(12 * stage.depth * stage.width**2 for stage in facts.stages or [facts])
    return blocks, 0 if facts.stages else (facts.native_size // facts.patch_size) ** 2 * facts.width


def adapter_parameters(width: int, reduction: int) -> int:
    """Of the two bottleneck adapters of one block: two linear layers each, with biases."""
    inner = max(1, width // reduction)
    return 2 * (2 * width * inner + width + inner)


def _adapted_widths(facts: EncoderFacts, adapted: list[int]) -> list[int]:
    """Channels of the adapted blocks with attention."""
    stages = [stage for stage in facts.stages if stage.window]
    widths = [stage.width for stage in stages for _ in range(stage.depth)] or [facts.width] * facts.depth
    return [widths[index] for index in adapted]


def encoder_bytes(
    facts: EncoderFacts,
    input_shape: list[int],
    first: int,
    adaptation: str,
    device: Literal["cpu", "gpu"],
    reduction: int = 4,
    checkpoint_blocks: bool = False,
) -> tuple[int, int]:
    """What the encoder keeps for the backward pass of one image, and what exists for a moment.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        first: The first block with attention that is adapted; their number if none is.
        adaptation: ``full``, ``lora`` or ``adapter``.
        device: Where.
        reduction: Of bottleneck adapters.
        checkpoint_blocks: Whether every block keeps its input alone, in float32, and what it needs beyond that exists
            for one block at a time. TinyViT has no such blocks.
    """
    if facts.stages:
        return _stages_bytes(facts, input_shape, first, adaptation)
    grid = [side // facts.patch_size for side in input_shape]
    blocks = [block_bytes(facts, grid, index, adaptation, device, reduction) for index in range(first, facts.depth)]
    tokens = math.prod(grid) * facts.width
    kept = sum(blocks)
    if checkpoint_blocks and blocks:
        kept = (len(blocks) - 1) * tokens * _SINGLE + max(blocks)
    return kept, tokens * _PASSING_BYTES


def block_bytes(
    facts: EncoderFacts,
    grid: list[int],
    index: int,
    adaptation: str,
    device: Literal["cpu", "gpu"],
    reduction: int = 4,
) -> int:
    """What one block keeps for the backward pass of one image.

    Per token and channel: the input of both norms in float32, the projection's input, and that of the MLP's activation
    (four times as wide); with everything trained, also the inputs of the other linear layers; with bottleneck adapters,
    their inputs and what their activation takes and gives, and not the projection's input. Attention keeps q, k and
    v of the padded grid and its bias along both axes; PyTorch's fused attention keeps them and its output, all as wide
    as q with the bias.
    """
    in_windows = index not in facts.global_blocks
    sides = [facts.window, facts.window] if in_windows else grid
    padded = math.prod(-(-length // side) * side for length, side in zip(grid, sides))
    tokens, channels = math.prod(grid), facts.width // facts.heads
    linear = tokens * facts.width * (2 * _SINGLE + _HALF + 4 * _HALF)
    if adaptation == "full":
        linear += tokens * facts.width * (1 + 1 + 4) * _HALF
    elif adaptation == "adapter":
        linear += tokens * (facts.width + 4 * max(1, facts.width // reduction)) * _HALF
    per_head = 3 * channels + (sum(sides) if device == "cpu" else 4 * (channels + sum(sides)))
    return linear + padded * facts.heads * per_head * _HALF


def _stages_bytes(facts: EncoderFacts, input_shape: list[int], first: int, adaptation: str) -> tuple[int, int]:
    """:func:`encoder_bytes` of TinyViT."""
    if adaptation == "full" and first < facts.attention_blocks:
        each = [_stage_block_bytes(stage, input_shape, "full") for stage in facts.stages for _ in range(stage.depth)]
        return sum(each), 0
    # Convolutional blocks come before all attention: no gradient reaches them.
    stages = [stage for stage in facts.stages if stage.window]
    kept, index = 0, 0
    for number, stage in enumerate(stages):
        adapted = max(0, index + stage.depth - max(first, index))
        kept += adapted * _stage_block_bytes(stage, input_shape, adaptation)
        if adapted and number + 1 < len(stages):
            following = stages[number + 1]
            both = sum(math.prod(side // part.stride for side in input_shape) for part in (stage, following))
            kept += round(both * following.width * _VALUES_PER_TOKEN_BETWEEN) * _HALF
        index += stage.depth
    start = facts.stages[0]
    tokens = math.prod(side // start.stride for side in input_shape)
    return kept, tokens * start.width * _PASSING_BYTES_CONVOLVED


def _stage_block_bytes(stage: Stage, input_shape: list[int], adaptation: str) -> int:
    """What one block of TinyViT keeps, on its own grid, padded to whole windows."""
    grid = [side // stage.stride for side in input_shape]
    per_token = _VALUES_PER_TOKEN[adaptation] if stage.window else _VALUES_PER_TOKEN_CONVOLVED
    windows = math.prod(-(-side // stage.window) for side in grid) if stage.window else 0
    scores = windows * stage.window**4
    values = math.prod(grid) * stage.width * per_token + scores * stage.heads * _VALUES_PER_SCORE[adaptation]
    return round(values) * _HALF


def encoder_operations(facts: EncoderFacts, input_shape: list[int], first: int = 0) -> tuple[float, float]:
    """Floating-point operations of the encoder for one image: forward, and backward with a frozen base.

    Counted on the unpadded token grid and without recomputation: projections (12 width^2 weights a block), two matrix
    products a score forward and four backward, relative positions, patch embedding and neck.

    Args:
        facts: The encoder.
        input_shape: ``[height, width]`` in pixels.
        first: The first block with attention that is adapted, where the backward pass ends (with LoRA, at its queries
            and values); their number if none is.
    """
    if facts.stages:
        return _stage_operations(facts, input_shape, first)
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
    return forward, backward - 6 * tokens * width**2 if first < facts.depth else 0.0


def _squares(side: int, window: int) -> int:
    """Pairs of tokens of one axis that share a window."""
    return side // window * window**2 + (side % window) ** 2


def _stage_operations(facts: EncoderFacts, input_shape: list[int], first: int) -> tuple[float, float]:
    """The same of TinyViT, by blocks: with a frozen base, a block's backward pass costs 1.3 times its forward pass."""
    each = []
    for stage in facts.stages:
        grid = [side // stage.stride for side in input_shape]
        scores = math.prod(_squares(side, stage.window) for side in grid) if stage.window else 0
        each += [24.0 * math.prod(grid) * stage.width**2 + 4 * scores * stage.width] * stage.depth
    return sum(each), 1.3 * sum(each[len(each) - facts.attention_blocks :][first:])
