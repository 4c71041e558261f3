"""What the planner says a step keeps in memory, against PyTorch's saved tensors and arithmetic by hand."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from samunet.adaptations import AdapterPlan, FullPlan, LoraPlan
from samunet.dataset.labels import Labels
from samunet.encoders import ENCODERS
from samunet.network.encoders import architecture, build_encoder, hold_frozen, vit
from samunet.network.sam_modules import MaskDecoder, TwoWayTransformer
from samunet.planning import resources
from samunet.training.loss import SegmentationLoss

VIT_B = replace(ENCODERS["vit_b"], depth=4, global_blocks=(1, 3))
KEPT = {
    "lora": LoraPlan(),
    "adapter": AdapterPlan(),
}


def saved_bytes(
    facts, adaptation: str, size: tuple[int, int], blocks: list[int], *, checkpoint_blocks: bool = False
) -> int:
    """Bytes that the encoder's graph keeps, parameters apart; of tensors without values, so nothing is computed."""
    encoder = build_encoder(facts, checkpoint_blocks=checkpoint_blocks)
    if adaptation == "lora":
        encoder = LoraPlan(blocks=blocks).adapt_encoder(encoder)
    else:
        AdapterPlan(blocks=blocks).adapt_encoder(encoder)
    hold_frozen(encoder, torch.bfloat16)
    without_values = FakeTensorMode(allow_non_fake_inputs=True)
    weights = [form for weight in encoder.parameters() for form in (weight, without_values.from_tensor(weight))]
    own = {weight.untyped_storage()._cdata for weight in weights}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with without_values, hooks, torch.autocast("cpu", torch.bfloat16):
        output = encoder(torch.randn(1, 3, *size))  # noqa: F841  the graph must live
    return sum(size for storage, size in kept.items() if storage not in own)


@pytest.mark.parametrize("adaptation", ["lora", "adapter"])
@pytest.mark.parametrize("size", [(448, 448), (512, 320)])
@pytest.mark.parametrize(("facts", "half"), [(VIT_B, 2), (ENCODERS["vit_t"], 5)], ids=["vit_b", "vit_t"])
def test_kept_bytes(facts, half, size, adaptation):
    """Of the blocks before the last half, and of the last half with the neck, which keeps a little more."""
    count = facts.attention_blocks
    whole, late = (saved_bytes(facts, adaptation, size, list(range(first, count))) for first in (0, half))
    predicted, predicted_late = (
        architecture(facts).kept_bytes(facts, list(size), first, KEPT[adaptation], "cpu")[0] for first in (0, half)
    )
    assert predicted - predicted_late == pytest.approx(whole - late, rel=0.1)
    assert predicted_late == pytest.approx(late, rel=0.2)


@pytest.mark.parametrize("adaptation", ["lora", "adapter"])
@pytest.mark.parametrize("size", [(448, 448), (512, 320)])
def test_checkpointed_blocks_keep_their_input_alone(size, adaptation):
    tokens = size[0] // 16 * (size[1] // 16)
    whole, late = (
        saved_bytes(VIT_B, adaptation, size, blocks, checkpoint_blocks=True) for blocks in ([0, 1, 2, 3], [2, 3])
    )
    assert whole - late == 2 * tokens * 768 * 4
    assert whole < 0.35 * saved_bytes(VIT_B, adaptation, size, [0, 1, 2, 3])
    # While a block is computed again, it has all that it keeps otherwise; the one with the most tells the peak.
    each = [vit.block_bytes(VIT_B, [side // 16 for side in size], index, KEPT[adaptation], "cpu") for index in range(4)]
    for first in (0, 2):
        predicted, _ = vit.kept_bytes(VIT_B, list(size), first, KEPT[adaptation], "cpu", checkpoint_blocks=True)
        assert predicted == (3 - first) * tokens * 768 * 4 + max(each[first:])


def test_what_cannot_be_saved_is_not_promised():
    """One adapted block keeps what it kept; a frozen encoder keeps nothing; TinyViT has no such blocks."""
    for name, components, blocks in (
        ("vit_b", "encoder_decoder", [11]), ("vit_b", "decoder", "all"), ("vit_t", "encoder_decoder", "all"),
    ):  # fmt: skip
        plain, twice = (
            resources.estimate(ENCODERS[name], [448, 448], LoraPlan(blocks=blocks), components, checkpoint_blocks=flag)
            for flag in (False, True)
        )
        assert plain == twice
    plain, twice = (
        resources.estimate(ENCODERS["vit_b"], [448, 448], LoraPlan(), checkpoint_blocks=flag) for flag in (False, True)
    )
    assert twice.training_flops == plain.training_flops  # useful work
    assert twice.fixed_bytes == plain.fixed_bytes


def test_weights_of_adapters_by_hand():
    """Two modules 768 -> 192 -> 768 with biases in each of 12 blocks; the decoder's transformer is frozen."""
    facts, added = ENCODERS["vit_b"], AdapterPlan().added_parameters
    lora, adapter, half = (
        resources.estimate(facts, [448, 448], adaptation).fixed_bytes
        for adaptation in (LoraPlan(), AdapterPlan(), AdapterPlan(blocks="last_half"))
    )
    assert added(768) == 591_744
    assert adapter - lora == 16 * 12 * 591_744 - 12 * 3_291_264
    assert adapter - half == 16 * 6 * 591_744
    narrow = resources.estimate(facts, [448, 448], AdapterPlan(reduction=8)).fixed_bytes
    assert adapter - narrow == 16 * 12 * 2 * (96 * (2 * 768 + 1))
    # MobileSAM's blocks with attention: 2 of width 128, 6 of 160, 2 of 320.
    mobile = ENCODERS["vit_t"]
    small = resources.estimate(mobile, [448, 448], AdapterPlan()).fixed_bytes
    expected = sum(n * added(width) for n, width in ((2, 128), (6, 160), (2, 320)))
    assert small - resources.estimate(mobile, [448, 448], LoraPlan()).fixed_bytes == 16 * expected - 12 * 3_291_264


def test_a_large_encoder_is_built_in_float32():
    """641,090,608 parameters: at a small input, building them takes more than a step with the encoder frozen."""
    facts = ENCODERS["vit_h"]
    small, large = (
        resources.estimate(facts, [side, side], LoraPlan(), "decoder", device="cpu") for side in (224, 1024)
    )
    assert small.for_batch(1) == pytest.approx(4 * 641_090_608, rel=0.01)
    assert small.fixed_bytes + small.image_bytes < small.for_batch(1)
    assert large.for_batch(8) == large.fixed_bytes + 8 * large.image_bytes > small.for_batch(1)


def test_adapters_in_the_decoder_alone_need_no_more_than_the_decoder():
    frozen, lora = (
        resources.estimate(ENCODERS["vit_b"], [448, 448], kind, "decoder") for kind in (AdapterPlan(), LoraPlan())
    )
    assert frozen == lora
    assert frozen.fixed_bytes < resources.estimate(ENCODERS["vit_b"], [448, 448], FullPlan(), "decoder").fixed_bytes


def labels_of(count: int, regions: bool) -> Labels:
    names = tuple(f"output {index}" for index in range(count))
    if not regions:
        return Labels(names, tuple((value,) for value in range(count)))
    values = tuple(range(1, count + 1))
    return Labels(names, tuple((value,) for value in values), class_order=values)


def peak_of_loss(outputs: int, regions: bool, side: int = 64) -> int:
    """Bytes at the peak of loss and backward pass, from logits at half the resolution on."""
    labels = labels_of(outputs, regions)
    assert labels.num_outputs == outputs
    loss, head = SegmentationLoss(labels), torch.randn(1, outputs, side // 2, side // 2, requires_grad=True)
    target = torch.randint(outputs, (1, side, side))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        logits = functional.interpolate(head, size=(side, side), mode="bilinear")
        loss(logits, target).backward()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("regions", [False, True])
def test_what_a_class_more_takes_in_the_loss(regions):
    """20 bytes a pixel for a class, 24 for a region: the estimate takes the larger."""
    few, many = (peak_of_loss(outputs, regions) for outputs in (3, 23))
    shape = [448, 448]
    predicted = [resources.estimate(VIT_B, shape, LoraPlan(), num_outputs=outputs).image_bytes for outputs in (3, 23)]
    assert (many - few) / 64**2 == pytest.approx((predicted[1] - predicted[0]) / 448**2, rel=0.2)


def test_classes_beyond_three_take_memory():
    plain = resources.estimate(VIT_B, [448, 320], LoraPlan())
    for outputs in (1, 2, 3):
        assert resources.estimate(VIT_B, [448, 320], LoraPlan(), num_outputs=outputs) == plain
    many = resources.estimate(VIT_B, [448, 320], LoraPlan(), num_outputs=13)
    decoder = MaskDecoder(
        num_multimask_outputs=3, transformer=TwoWayTransformer(depth=1, embedding_dim=256, mlp_dim=8, num_heads=8),
        transformer_dim=256,
    )  # fmt: skip
    own = sum(parameter.numel() for parameter in decoder.output_hypernetworks_mlps[0].parameters()) + 256
    assert many.fixed_bytes - plain.fixed_bytes == 10 * 16 * own
    # SAMed's loss works at a quarter of the resolution.
    samed = resources.estimate(VIT_B, [448, 320], LoraPlan(), num_outputs=13, upsampled=False)
    assert many.image_bytes - plain.image_bytes == 16 * (samed.image_bytes - plain.image_bytes) > 0
