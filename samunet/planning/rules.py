"""The planning rules. Each is one decision: plain values in, the decision and its reason out.

``documentation/planning_rules.md`` lists them with their sources; change both together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from samunet.encoders import EncoderFacts
from samunet.errors import UsageError
from samunet.plans import LoraPlan

Decision = tuple  # (value, reason)

SAM_INPUT_SIZES = (1024, 896, 672, 448)
SMALL_INPUT_SIZES = (112, 224)
_LARGEST_ENLARGING = 2.0
NEIGHBOUR_SPACING_LIMIT = 5.0
_EFFECTIVE_BATCH = 12
_LEARNING_RATES = {"lora": 5e-3, "full": 1e-3}  # at a batch of 24
_REFERENCE_BATCH = 24
_CHANNEL_SCHEMES = {
    "ct": "ct",
    "nonorm": "nonorm",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rescale_0_1": "rescale_to_0_1",
}
_PICTURE_CHANNELS = {"r", "g", "b", "red", "green", "blue", "rgb_to_0_1", "grayscale", "greyscale", "gray", "grey"}


def slicing_order(median_spacing: Sequence[float], physical: bool) -> Decision:
    """Order of the axes, the slicing axis first: the one with the largest median spacing (nnU-Net)."""
    if not physical:
        return [0, 1, 2], "images without physical spacing are kept as they are"
    axis = int(np.argmax(median_spacing))
    order = [axis, *(other for other in range(3) if other != axis)]
    spacing = " x ".join(f"{value:.4g}" for value in median_spacing)
    return order, f"slices are cut across array axis {axis}, the coarsest of {spacing} mm (ties: the first)"


def in_plane_spacing(median_spacing: Sequence[float], order: Sequence[int], physical: bool) -> Decision:
    """Spacing of the stored slices: the median; finer cases are reduced to it (nnU-Net 2d), none is enlarged."""
    if not physical:
        return None, "no physical spacing: each image is fitted into the network's input, reduced at most fourfold"
    spacing = [float(median_spacing[axis]) for axis in order[1:]]
    return spacing, "median of the training cases; finer cases are reduced to it, coarser ones stay as they are"


def normalization_scheme(channel_name: str, largest: float, integer: bool) -> Decision:
    """Normalisation of one channel by its name (nnU-Net's names, and 8-bit or 16-bit pictures)."""
    name = channel_name.casefold()
    if name in _CHANNEL_SCHEMES:
        return _CHANNEL_SCHEMES[name], f"the channel is called {channel_name!r}"
    if name in _PICTURE_CHANNELS:
        if not integer:
            return "rescale_to_0_1", f"{channel_name!r} is a picture's channel whose values are not whole numbers"
        bits = 8 if largest <= 255 else 16
        return f"divide_by_{2**bits - 1}", f"{channel_name!r} is a picture's channel with {bits} bits"
    return "zscore", f"{channel_name!r} is no name with a rule of its own: mean 0 and deviation 1 per image"


def masked_normalization(schemes: Sequence[str], relative_size: float) -> Decision:
    """Z-score inside the content only, where cropping removes more than a quarter of the volume (nnU-Net)."""
    masked = relative_size < 0.75
    decision = [masked and scheme == "zscore" for scheme in schemes]
    return decision, f"cropping to the content keeps {relative_size:.0%} of the volume (inside only below 75 %)"


def input_channels(num_channels: int, slice_spacing: float, pixel_spacing: float, physical: bool) -> Decision:
    """How the dataset's channels become SAM's three (MA-SAM's neighbouring slices; SAMed's repetition)."""
    if num_channels == 3:
        return "as_they_are", "three channels fit SAM's three"
    if num_channels > 1:
        return "projection", f"{num_channels} channels are combined by a trained 1 x 1 projection"
    ratio = slice_spacing / pixel_spacing
    if physical and ratio <= NEIGHBOUR_SPACING_LIMIT:
        return "neighbours", f"slices are {ratio:.1f} pixels apart (at most {NEIGHBOUR_SPACING_LIMIT:g}): context helps"
    reason = f"slices are {ratio:.1f} pixels apart" if physical else "there are no neighbouring slices"
    return "repeat", f"one channel; {reason}"


def input_size(facts: EncoderFacts, median_long_side: float, allowed: Sequence[int]) -> Decision:
    """Long side of the network's input in pixels.

    Args:
        facts: The encoder.
        median_long_side: Of the stored slices, in pixels.
        allowed: Sizes that memory allows, largest first; for the bundled encoder it is not consulted.
    """
    if facts.family == "sam":
        size = allowed[0]
        native = "SAM's own size" if size == facts.native_size else "the largest that the memory target allows"
        return size, f"{size} px: {native} (enlarging a slice does no harm, reducing it does: SAMed)"
    wanted = median_long_side * _LARGEST_ENLARGING
    size = next((size for size in SMALL_INPUT_SIZES if size >= wanted), SMALL_INPUT_SIZES[-1])
    return size, (
        f"{size} px: the smallest that enlarges a slice of {median_long_side:g} px {_LARGEST_ENLARGING:g}-fold, "
        f"or else the largest ({SMALL_INPUT_SIZES[-1]})"
    )


def input_shape(long_side: int, extent: Sequence[float], patch: int) -> Decision:
    """Height and width of the input: the median slice's proportions, rounded up to whole patches.

    Args:
        long_side: In pixels.
        extent: Median ``[height, width]`` of the slices in mm (pixels without physical spacing).
        patch: Pixels per token.
    """
    longest = max(extent)
    # A rounding error in the extent must not add a row of patches.
    shape = [max(patch, math.ceil(side / longest * long_side / patch - 1e-3) * patch) for side in extent]
    return shape, f"proportions of the median slice ({extent[0]:.4g} x {extent[1]:.4g}) in whole patches of {patch} px"


def adaptation(facts: EncoderFacts) -> Decision:
    """LoRA on q and v of every block for pretrained encoders (SAMed); everything trains where weights are random."""
    if facts.pretrained:
        return (
            "lora",
            LoraPlan(),
        ), "pretrained weights: LoRA of rank 4 on q and v of every block, the decoder trained (SAMed)"
    return ("full", None), "no pretrained weights: a random encoder is never frozen"


def head(facts: EncoderFacts) -> Decision:
    """SAM's own decoder where its weights are pretrained (SAMed); with a convolutional path where nothing is."""
    if facts.pretrained:
        return "sam", "the decoder's pretrained weights are kept as they are (SAMed)"
    return "detail", "borders are learnt sooner with a convolutional path than from random tokens alone (measured)"


def batch_size(bytes_fixed: int, bytes_per_image: int, budget: int) -> Decision:
    """Images per step within the memory target, and accumulation up to an effective batch of 12 (SAMed)."""
    fitting = max(1, (budget - bytes_fixed) // max(1, bytes_per_image))
    size = next(size for size in (12, 6, 4, 3, 2, 1) if size <= fitting)
    return (size, _EFFECTIVE_BATCH // size), (
        f"{fitting} images fit into {budget / 1e9:.3g} GB; {_EFFECTIVE_BATCH} make one update"
    )


def learning_rate(adaptation_name: str) -> Decision:
    """Peak learning rate by adaptation, scaled with the square root of the effective batch."""
    base = _LEARNING_RATES[adaptation_name]
    rate = float(f"{base * math.sqrt(_EFFECTIVE_BATCH / _REFERENCE_BATCH):.2g}")
    return (
        rate,
        f"{base:g} at a batch of {_REFERENCE_BATCH} for {adaptation_name}, scaled with the square root of the batch",
    )


def training_images(num_slices: int) -> Decision:
    """Images drawn in a training without a stated budget, per kind of device: by size of the dataset, within bounds."""
    images = {
        "cpu": int(np.clip(12 * num_slices, 16_000, 32_000)),
        "gpu": int(np.clip(60 * num_slices, 48_000, 240_000)),
    }
    return images, f"{num_slices} training slices: 12 passes on a CPU, 60 on a GPU, within bounds"


def mirror_axes(label_names: Sequence[str], order: Sequence[int], physical: bool) -> Decision:
    """In-plane axes that may be mirrored; not the left-right axis where labels tell left from right."""
    pair = left_right_pair(label_names)
    if pair is None:
        return [0, 1], "no two labels differ only by left and right"
    # Array axis 2 is x: patient left-right in images whose axes follow the scanner's. Pictures have no such axis but x.
    kept = [index for index, axis in enumerate(order[1:]) if axis != 2]
    return kept, f"labels {pair[0]!r} and {pair[1]!r} are mirror images: x is never mirrored"


def left_right_pair(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two labels that differ only by left/right as a word or by an l/r affix; ``RV`` and ``LV`` do not."""
    swapped: dict[tuple[str, ...], str] = {}
    for name in names:
        # LeftLung is two words; RV and LV are one each.
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
        words = tuple(re.split(r"[\s_\-.]+", spaced.casefold()))
        for index, word in enumerate(words):
            side = {"left": "right", "right": "left", "l": "r", "r": "l"}.get(word)
            if side is None or (len(words) == 1 and len(word) == 1):
                continue
            other = (*words[:index], side, *words[index + 1 :])
            if other in swapped:
                return swapped[other], name
        swapped[words] = name
    return None


def parse_image_size(size: int | None, facts: EncoderFacts) -> int | None:
    """Check a size given by ``-image_size`` against an encoder.

    Raises:
        UsageError: If it is no multiple of the encoder's patch size.
    """
    if size is not None and (size < 2 * facts.patch_size or size % facts.patch_size):
        raise UsageError(
            f"-image_size {size} does not fit the encoder {facts.name}",
            f"use a multiple of {facts.patch_size}, at least {2 * facts.patch_size}",
        )
    return size
