"""Every planning rule, with decisions worked out by hand."""

import re

import numpy as np
import pytest

from samunet.adaptations import ADAPTATIONS, FullPlan, LoraPlan
from samunet.encoders import ENCODERS, encoder_facts
from samunet.errors import UsageError
from samunet.planning import rules
from samunet.planning.planes import planes

SMALL, VIT_B = encoder_facts("small"), encoder_facts("vit_b")


def decided(decision):
    value, reason = decision
    assert isinstance(reason, str)
    assert reason
    return value


@pytest.mark.parametrize(
    ("spacing", "physical", "expected"),
    [
        ([5, 1, 1], True, [0, 1, 2]),
        ([1, 5, 1.2], True, [1, 0, 2]),
        ([0.5, 0.6, 3], True, [2, 0, 1]),
        ([1, 1, 1], True, [0, 1, 2]),
        ([1, 2, 2], True, [1, 0, 2]),
        ([1, 1, 5], False, [0, 1, 2]),
    ],
)
def test_slicing_order(spacing, physical, expected):
    assert decided(rules.slicing_order(spacing, physical)) == expected


@pytest.mark.parametrize(
    ("order", "physical", "expected"),
    [
        ([0, 1, 2], True, [0.6, 3.0]),
        ([1, 0, 2], True, [0.5, 3.0]),
        ([2, 0, 1], True, [0.5, 0.6]),
        ([0, 1, 2], False, None),
    ],
)
def test_in_plane_spacing(order, physical, expected):
    assert decided(rules.in_plane_spacing([0.5, 0.6, 3], order, physical)) == expected


@pytest.mark.parametrize(
    ("shape", "spacing", "outputs", "changes", "expected"),
    [
        ([36, 50, 35], [1, 1, 1], 3, {}, [[0, 1, 2], [1, 0, 2], [2, 1, 0]]),  # extents 36, 50, 35: upright slices
        ([36, 35, 50], [1, 1, 1], 3, {}, [[0, 1, 2], [1, 0, 2], [2, 1, 0]]),  # lying ones
        ([142, 165, 144], [1, 1, 1], 5, {}, [[0, 1, 2], [1, 2, 0], [2, 1, 0]]),
        ([40, 50, 50], [1.5, 1, 1], 3, {}, [[0, 1, 2], [1, 0, 2], [2, 0, 1]]),  # extents 60, 50, 50
        ([40, 50, 50], [1.6, 1, 1], 3, {}, [[0, 1, 2]]),
        ([9, 256, 216], [10, 1.5, 1.5], 4, {}, [[0, 1, 2]]),
        ([20, 50, 35], [1, 1, 1], 3, {}, [[0, 1, 2], [1, 2, 0], [2, 1, 0]]),  # 40 % as thick as wide
        ([19, 50, 35], [1, 1, 1], 3, {}, [[0, 1, 2]]),
        ([512, 512, 512], [1, 1, 1], 1, {}, [[0, 1, 2], [1, 0, 2], [2, 0, 1]]),
        ([512, 512, 512], [1, 1, 1], 2, {}, [[0, 1, 2]]),
        ([36, 50, 35], [1, 1, 1], 3, {"physical": False}, [[0, 1, 2]]),
        ([36, 50, 35], [1, 1, 1], 3, {"recipe": "samed"}, [[0, 1, 2]]),
    ],
)
def test_planes(shape, spacing, outputs, changes, expected):
    assert decided(planes(shape, spacing, outputs, **{"physical": True, "recipe": "samunet"} | changes)) == expected


@pytest.mark.parametrize(
    ("name", "largest", "integer", "expected"),
    [
        ("CT", 3000, True, "ct"),
        ("ct", 3000, False, "ct"),
        ("MRI", 3000, True, "zscore"),
        ("zscore", 255, True, "zscore"),
        ("CTA", 3000, True, "zscore"),
        ("noNorm", 1, False, "nonorm"),
        ("rescale_to_0_1", 1, False, "rescale_to_0_1"),
        ("rescale_0_1", 1, False, "rescale_to_0_1"),
        ("R", 255, True, "divide_by_255"),
        ("green", 13, True, "divide_by_255"),
        ("rgb_to_0_1", 255, True, "divide_by_255"),
        ("Grayscale", 256, True, "divide_by_65535"),
        ("gray", 65535, True, "divide_by_65535"),
        ("B", 0.9, False, "rescale_to_0_1"),
    ],
)
def test_normalization_scheme(name, largest, integer, expected):
    assert decided(rules.normalization_scheme(name, largest, integer)) == expected


@pytest.mark.parametrize(
    ("schemes", "size", "expected"),
    [
        (["zscore", "ct", "zscore", "nonorm"], 0.74, [True, False, True, False]),
        (["zscore"], 0.75, [False]),
        (["zscore", "zscore"], 1.0, [False, False]),
    ],
)
def test_masked_normalization(schemes, size, expected):
    assert decided(rules.masked_normalization(schemes, size)) == expected


@pytest.mark.parametrize(
    ("channels", "slices", "pixel", "physical", "expected"),
    [
        (1, 1.0, 1.0, True, "neighbours"),
        (1, 3.5, 0.7, True, "neighbours"),
        (1, 3.6, 0.7, True, "repeat"),
        (1, 999.0, 1.0, True, "repeat"),
        (1, 1.0, 1.0, False, "repeat"),
        (3, 1.0, 1.0, True, "as_they_are"),
        (3, 1.0, 1.0, False, "as_they_are"),
        (2, 1.0, 1.0, True, "projection"),
        (4, 9.0, 1.0, True, "projection"),
    ],
)
def test_input_channels(channels, slices, pixel, physical, expected):
    assert decided(rules.input_channels(channels, slices, pixel, physical)) == expected


@pytest.mark.parametrize(
    ("facts", "side", "allowed", "expected"),
    [
        (VIT_B, 50, [1024, 896, 672, 448], 1024),
        (VIT_B, 3000, [672, 448], 672),
        (SMALL, 35, [448], 112),
        (SMALL, 56, [448], 112),
        (SMALL, 57, [448], 224),
        (SMALL, 2000, [448], 224),
    ],
)
def test_input_size(facts, side, allowed, expected):
    assert decided(rules.input_size(facts, side, allowed)) == expected


@pytest.mark.parametrize(
    ("side", "share", "expected"),
    [
        (600, 2 / 224, 224),  # two pixels wide at 224 px
        (600, 2 / 225, 336),
        (600, 2 / 448, 448),
        (600, 0.001, 560),  # the largest
        (448, 0.001, 448),  # nothing is reduced there
        (300, 0.001, 336),
        (200, 0.001, 224),
    ],
)
def test_input_size_of_thin_structures(side, share, expected):
    assert decided(rules.input_size(SMALL, side, [448], share)) == expected
    assert decided(rules.input_size(VIT_B, side, [448], share)) == 448  # SAM's is the largest there is


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([112, 80], 12),
        ([128, 128], 12),
        ([144, 144], 6),
        ([224, 192], 4),
        ([224, 224], 4),
        ([336, 224], 2),
        ([560, 544], 2),
    ],
)
def test_effective_batch(shape, expected):
    assert rules.effective_batch(SMALL, shape) == expected
    assert rules.effective_batch(VIT_B, shape) == 12


def test_structure_width():
    # A band of width 3 and length 1000 along an axis has edges of 2000; on average over directions 4 / pi times that.
    assert rules.structure_width(3000, 2000 * 4 / np.pi) == pytest.approx(3)
    y, x = np.mgrid[:201, :201] - 100
    disc = y**2 + x**2 < 80**2
    edges = np.count_nonzero(disc[1:] != disc[:-1]) + np.count_nonzero(disc[:, 1:] != disc[:, :-1])
    assert rules.structure_width(disc.sum(), edges) == pytest.approx(80, rel=0.01)


@pytest.mark.parametrize(
    ("side", "extent", "patch", "expected"),
    [
        (1024, [100, 100], 16, [1024, 1024]),
        (1024, [60.5, 121], 16, [512, 1024]),
        (1024, [121, 62], 16, [1024, 528]),  # 524.7 px are 32.8 patches
        (224, [35, 50], 8, [160, 224]),  # 156.8 px are 19.6 patches
        (112, [50, 35], 8, [112, 80]),
        (224, [50, 25.0000001], 8, [224, 112]),  # a rounding error adds no patch
        (448, [1, 1000], 16, [32, 448]),
        (112, [1, 1000], 8, [32, 112]),
    ],
)
def test_input_shape(side, extent, patch, expected):
    assert decided(rules.input_shape(side, extent, patch)) == expected


def test_adaptation():
    *sam, _ = rules.adaptation(VIT_B)
    *small, _ = rules.adaptation(SMALL)
    assert sam == [LoraPlan(rank=4, alpha=4, targets=["q", "v"]), "encoder_decoder"]
    assert small == [FullPlan(), "encoder_decoder"]


@pytest.mark.parametrize(
    ("fixed", "image", "budget", "expected"),
    [
        (1, 1, 100, (12, 1)),
        (2, 7, 86, (12, 1)),
        (2, 7, 85, (6, 2)),
        (1, 1, 6, (4, 3)),
        (0, 1, 3, (3, 4)),
        (0, 2, 5, (2, 6)),
        (0, 5, 5, (1, 12)),
        (9, 5, 5, (1, 12)),  # nothing fits: one image at least
    ],
)
def test_batch_size(fixed, image, budget, expected):
    batch, accumulation = decided(rules.batch_size(fixed * 10**8, image * 10**8, budget * 10**8))
    assert (batch, accumulation) == expected
    assert batch * accumulation == 12


@pytest.mark.parametrize(
    ("plain", "checkpointed", "budget", "expected", "reason"),
    [
        (80, 20, 80, False, "takes 8 GB, within 8 GB"),
        (81, 20, 80, True, "takes 8.1 GB, more than 8 GB; .* takes 2 GB and fits"),
        (81, 80, 80, True, "takes 8 GB and fits"),
        (90, 85, 80, True, "takes 8.5 GB and still does not fit, but comes nearest"),
        (90, 90, 80, False, "more than 8 GB, and computing blocks twice would save nothing"),
    ],
)
def test_checkpoint_blocks(plain, checkpointed, budget, expected, reason):
    decision, why = rules.checkpoint_blocks(plain * 10**8, checkpointed * 10**8, budget * 10**8)
    assert decision is expected
    assert re.search(reason, why)


def test_learning_rate():
    # The effective batch of 12 is half the 24 of the table: the rates divided by the square root of 2.
    assert decided(rules.learning_rate(ENCODERS["vit_b"], LoraPlan())) == pytest.approx(5e-3 / 2**0.5, rel=0.02)
    assert decided(rules.learning_rate(ENCODERS["small"], FullPlan())) == pytest.approx(1e-3 / 2**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("encoder", "adaptation", "components", "expected"),
    [
        ("small", "full", "encoder_decoder", "muon"),
        ("small", "full", "decoder", "adamw"),
        ("small", "lora", "encoder_decoder", "adamw"),
        ("vit_b", "lora", "encoder_decoder", "adamw"),
        ("vit_b", "full", "encoder_decoder", "adamw"),
    ],
)
def test_optimizer(encoder, adaptation, components, expected):
    assert rules.optimizer(ENCODERS[encoder], ADAPTATIONS[adaptation](), components)[0] == expected


@pytest.mark.parametrize(
    ("slices", "cpu", "gpu"),
    [(10, 16_000, 48_000), (1_000, 16_000, 60_000), (2_000, 24_000, 120_000), (10_000, 32_000, 240_000)],
)
def test_training_images(slices, cpu, gpu):
    assert decided(rules.training_images(slices)) == {"cpu": cpu, "gpu": gpu}


PAIRS = [
    ("left kidney", "right kidney"),
    ("kidney_l", "kidney_r"),
    ("Kidney-R", "kidney.L"),
    ("Left_Lung", "right lung"),
    ("l hand", "r hand"),
    ("lung upper left lobe", "lung upper right lobe"),
    ("left", "right"),
    ("LeftLung", "RightLung"),
]
NO_PAIRS = [
    ("RV", "LV"),
    ("left kidney", "right lung"),
    ("left kidney", "kidney"),
    ("left kidney", "right kidney cyst"),
    ("leaf", "reaf"),
    ("kidney l", "kidney 1"),
    ("upper lobe", "lower lobe"),
]


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_left_and_right(pair):
    assert set(rules.left_right_pair(("background", pair[0], "other", pair[1]))) == set(pair)
    assert set(rules.left_right_pair((pair[1], pair[0]))) == set(pair)


@pytest.mark.parametrize("names", NO_PAIRS, ids="/".join)
def test_not_left_and_right(names):
    assert rules.left_right_pair(("background", *names)) is None


@pytest.mark.parametrize(
    ("names", "order", "physical", "expected"),
    [
        (("background", "RV", "MYO", "LV"), [0, 1, 2], True, [0, 1]),
        (("background", "kidney_l", "kidney_r"), [0, 1, 2], True, [0]),  # planes y, x
        (("background", "kidney_l", "kidney_r"), [1, 0, 2], True, [0]),  # planes z, x
        (("background", "kidney_l", "kidney_r"), [2, 0, 1], True, [0, 1]),  # planes z, y: left and right apart
        (("background", "left eye", "right eye"), [0, 1, 2], False, [0]),
    ],
)
def test_mirror_axes(names, order, physical, expected):
    assert decided(rules.mirror_axes(names, order, physical)) == expected


def test_mirror_axes_of_ordered_labels_and_asymmetric_images():
    ordered = {0: ("a", "b"), 2: ("b", "c")}  # along z and x
    assert decided(rules.mirror_axes(("background", "a"), [0, 1, 2], True, ordered)) == [0]
    assert decided(rules.mirror_axes(("background", "a"), [1, 0, 2], True, ordered)) == []
    assert decided(rules.mirror_axes(("background", "a"), [2, 0, 1], False, ordered)) == [1]
    asymmetry = (0.5, 0.05, 0.04)
    assert decided(rules.mirror_axes(("background", "a"), [0, 1, 2], True, {}, asymmetry)) == [1]
    assert decided(rules.mirror_axes(("background", "a"), [2, 0, 1], True, {}, asymmetry)) == []
    _, why = rules.mirror_axes(("background", "a"), [0, 1, 2], True, ordered, asymmetry)
    assert why == "images lie the same way round along y (asymmetry 0.05); 'b' always comes before 'c' along x"


def test_rotation():
    assert decided(rules.rotation((15, 10), [0, 1])) == 180
    assert decided(rules.rotation((10, 15.1), [0, 1])) == 15
    assert decided(rules.rotation((10, 15.1), [0])) == 15
    assert decided(rules.rotation((10, 15), [1])) == 30


@pytest.mark.parametrize(
    ("offsets", "reaches", "expected"),
    [
        ([2.0] * 20, [1.0] * 20, True),
        ([-2.0] * 20, [1.0] * 20, True),
        ([2.0] * 19 + [-2.0], [1.0] * 20, True),
        ([2.0] * 18 + [-2.0] * 2, [1.0] * 20, False),
        ([2.0] * 11 + [0.5] * 9, [1.0] * 20, True),
        ([2.0] * 9 + [0.5] * 11, [1.0] * 20, False),  # most overlap, as a wall and the cavity within
        ([2.0] * 5, [1.0] * 5, True),
        ([2.0] * 4, [1.0] * 4, False),
        ([], [], False),
    ],
)
def test_fixed_order(offsets, reaches, expected):
    assert rules.fixed_order(np.array(offsets), np.array(reaches)) is expected


def test_parse_image_size():
    assert rules.parse_image_size(None, SMALL) is None
    for size, facts in ((32, SMALL), (112, SMALL), (32, VIT_B), (1024, VIT_B)):
        assert rules.parse_image_size(size, facts) == size
    for size, facts in ((16, SMALL), (0, SMALL), (-64, SMALL), (33, SMALL), (72, VIT_B), (16, VIT_B)):
        with pytest.raises(UsageError, match=f"image_size={size}` does not fit the encoder {facts.name}") as caught:
            rules.parse_image_size(size, facts)
        assert f"multiple of {facts.patch_size}" in caught.value.hint
