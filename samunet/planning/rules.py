"""The planning rules. Each is one decision: plain values in, the decision and its reason out.

``documentation/reference/planning_rules.md`` lists them with their sources; change both together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from samunet.adaptations import ADAPTATIONS, Adaptation
from samunet.devices import NARROWEST
from samunet.encoders import EncoderFacts
from samunet.errors import UsageError, argument
from samunet.recipes import check_recipe_name, recipe_facts

Decision = tuple[Any, str]  # value and reason

SAM_INPUT_SIZES = (1024, 896, 672, 448)
SMALL_INPUT_SIZES = (112, 224)
_THIN_INPUT_SIZES = (336, 448, 560)
_LARGEST_ENLARGING = 2.0
_LEAST_WIDTH = 2.0  # the small encoder's masks have half the input's resolution
NEIGHBOUR_SPACING_LIMIT = 5.0
_ORDERED_CASES = 5
_ORDERED_SHARE = 0.95
_ASYMMETRIC = 0.05
_LONG_FIELD = 1.5
UNMIRRORED_ROTATION = 30.0  # degrees, at most, where an axis is not mirrored
_EFFECTIVE_BATCH = 12
_SMALL_STEP_PIXELS = 4 * 224**2
_CT_WINDOW = (-125.0, 275.0)  # Hounsfield units
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


def window(channel_name: str, asked: Sequence[float] | None, unit_range: bool) -> list[float] | None:
    """Lowest and highest value of a CT channel that is brought to 0-1; None for a scheme without a window.

    Args:
        channel_name: As dataset.json has it.
        asked: By the user.
        unit_range: Whether the recipe wants 0-1; then SAMed's window stands for one that nobody asked for.
    """
    if channel_name.casefold() != "ct":
        return None
    return list(asked) if asked else list(_CT_WINDOW) if unit_range else None


def normalization_scheme(
    channel_name: str, largest: float, integer: bool, unit_range: bool = False, window: Sequence[float] | None = None
) -> Decision:
    """Normalisation of one channel by its name (nnU-Net's names, and 8-bit or 16-bit pictures).

    With ``unit_range`` channels that would get a z-score are brought to 0-1 instead; with a ``window`` its ends are.
    """
    name = channel_name.casefold()
    if window:
        return "window", f"{channel_name!r}: {window[0]:g} to {window[1]:g} on 0-1"
    if unit_range and (name == "zscore" or name not in {*_CHANNEL_SCHEMES, *_PICTURE_CHANNELS}):
        return "rescale_to_0_1", f"{channel_name!r} on 0-1, image by image, as the recipe's input is"
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


def structure_width(area: float, perimeter: float) -> float:
    """Mean width of structures: that of a band with their area and perimeter; of a disc its radius.

    Args:
        area: In the plane of the slices.
        perimeter: Sum of the lengths of pixel edges, which on average over all directions is 4 / pi times the border.
    """
    return 2 * area / (perimeter * math.pi / 4)


def input_size(
    facts: EncoderFacts, median_long_side: float, allowed: Sequence[int], thinnest: float = math.inf
) -> Decision:
    """Long side of the network's input in pixels.

    Args:
        facts: The encoder.
        median_long_side: Of the stored slices, in pixels.
        allowed: Sizes that memory allows, with :func:`checkpoint_blocks` if need be, largest first; for the bundled
            encoder it is not consulted.
        thinnest: Mean width of the thinnest class, as a share of the long side; consulted for the bundled encoder.
    """
    if facts.is_sam:
        size = allowed[0]
        native = "SAM's own size" if size == facts.native_size else "the largest that the memory target allows"
        return size, f"{size} px: {native} (enlarging a slice does no harm, reducing it does: SAMed)"
    wanted = median_long_side * _LARGEST_ENLARGING
    size = next((size for size in SMALL_INPUT_SIZES if size >= wanted), SMALL_INPUT_SIZES[-1])
    reason = (
        f"the smallest that enlarges a slice of {median_long_side:g} px {_LARGEST_ENLARGING:g}-fold, "
        f"or else {SMALL_INPUT_SIZES[-1]}"
    )
    for larger in _THIN_INPUT_SIZES:
        if thinnest * size >= _LEAST_WIDTH or size >= median_long_side:
            break
        reason = f"thin structures, {thinnest * size:.1f} px wide at {size} px, are {thinnest * larger:.1f} px wide"
        size = larger
    return size, f"{size} px: {reason}"


def input_shape(long_side: int, extent: Sequence[float], patch: int) -> Decision:
    """Height and width of the input: the median slice's proportions, rounded up to whole patches.

    Args:
        long_side: In pixels.
        extent: Median ``[height, width]`` of the slices in mm (pixels without physical spacing).
        patch: Pixels per token.
    """
    longest = max(extent)
    # A rounding error in the extent must not add a row of patches.
    shape = [math.ceil(max(NARROWEST, side / longest * long_side) / patch - 1e-3) * patch for side in extent]
    return shape, f"proportions of the median slice ({extent[0]:.4g} x {extent[1]:.4g}) in whole patches of {patch} px"


def adaptation(
    facts: EncoderFacts,
    asked: str | Adaptation | None = None,
    components: str | None = None,
    *,
    outer_blocks: bool = False,
) -> tuple[Adaptation, str, str]:
    """How the network is adapted: LoRA on q and v of every block of a SAM (SAMed); the small encoder in full.

    Args:
        facts: The encoder.
        asked: What the user asked for, by name or with settings; None where the rule decides.
        components: The same of what is adapted.
        outer_blocks: Whether only the first two and the last two blocks are adapted where nobody says which.

    Returns:
        The fields ``adaptation`` and ``components`` of a network's plan, and the reason.

    Raises:
        UsageError: If what was asked for does not fit together or the encoder.
    """
    ruled = asked is None and components is None
    method = asked or ("lora" if facts.is_sam else "full")
    if isinstance(method, str):
        _one_of("adaptation", method, tuple(ADAPTATIONS))
        method = ADAPTATIONS[method]()
    components = components or "encoder_decoder"
    _one_of("components", components, ("encoder_decoder", "decoder"))
    chosen = method.for_components(components)
    if outer_blocks and getattr(chosen, "blocks", None) == "all" and "blocks" not in chosen.model_fields_set:
        last = facts.attention_blocks - 1
        chosen = chosen.changed(blocks=sorted({0, min(1, last), max(0, last - 1), last}))
    for key, problem in chosen.problems(facts, components):
        hint = "change or leave out `adaptation` and the arguments that belong to it"
        raise UsageError(f"{argument(f'{chosen.method}.{key}')} {problem}", hint)
    if not ruled:
        return chosen, components, "given by adaptation, components and the arguments that belong to them"
    if outer_blocks and facts.is_sam:
        return chosen, components, "LoRA of rank 4 on q and v of the first two and the last two blocks (Gu et al.)"
    if facts.is_sam:
        why = "pretrained weights: LoRA of rank 4 on q and v of every block, the decoder trained (SAMed)"
        return chosen, components, why
    return chosen, components, "small enough to train in full, which beats LoRA on it (measured)"


def head(facts: EncoderFacts) -> Decision:
    """SAM's own decoder for SAM's encoders (SAMed); with detail from the encoder for the small one."""
    if facts.is_sam:
        return "sam", "the decoder's pretrained weights are kept as they are (SAMed)"
    return (
        "detail",
        "borders are learnt sooner with the encoder's detail than from its last tokens alone (measured)",
    )


def effective_batch(facts: EncoderFacts, input_shape: Sequence[int]) -> int:
    """Images per update: SAM's 12; of the small encoder 2 to 12, so that an update sees about 200,000 pixels."""
    if facts.is_sam:
        return _EFFECTIVE_BATCH
    fitting = _SMALL_STEP_PIXELS // math.prod(input_shape)
    return max(size for size in (12, 6, 4, 3, 2) if size <= max(2, fitting))


def checkpoint_blocks(plain: int, checkpointed: int, budget: int) -> Decision:
    """Whether the encoder's blocks are computed a second time in the backward pass (Chen et al. 2016), to save memory.

    Only where one image does not fit otherwise, but before the input shrinks: that costs accuracy (SAMed), this time.

    Args:
        plain, checkpointed: Bytes of a step with one image, without and with it.
        budget: The memory target in bytes.
    """
    needed = f"a step with one image takes {plain / 1e9:.3g} GB"
    least, target = f"{checkpointed / 1e9:.3g} GB", f"{budget / 1e9:.3g} GB"
    if plain <= budget:
        return False, f"{needed}, within {target}"
    if checkpointed >= plain:
        return False, f"{needed}, more than {target}, and computing blocks twice would save nothing"
    result = "fits" if checkpointed <= budget else "still does not fit, but comes nearest"
    return True, (
        f"{needed}, more than {target}; with the encoder's blocks computed a second time in the backward pass it takes "
        f"{least} and {result}. That costs about a third more time, a smaller input would cost accuracy (SAMed)"
    )


def batch_size(bytes_fixed: int, bytes_per_image: int, budget: int, effective: int = _EFFECTIVE_BATCH) -> Decision:
    """Images per step within the memory target, and accumulation up to the effective batch (SAMed: 24)."""
    fitting = max(1, (budget - bytes_fixed) // max(1, bytes_per_image))
    size = next(size for size in range(effective, 0, -1) if effective % size == 0 and size <= fitting)
    return (size, effective // size), f"{fitting} images fit into {budget / 1e9:.3g} GB; {effective} make one update"


def learning_rate(
    facts: EncoderFacts, adapted: Adaptation, components: str = "encoder_decoder", batch: int = _EFFECTIVE_BATCH
) -> Decision:
    """Peak learning rate by what trains, scaled with the square root of the effective batch."""
    base, kind = adapted.learning_rate(facts, components)
    rate = float(f"{base * math.sqrt(batch / _REFERENCE_BATCH):.2g}")
    return rate, f"{base:g} at a batch of {_REFERENCE_BATCH} for {kind}, scaled with the square root of the batch"


def optimizer(facts: EncoderFacts, adapted: Adaptation, components: str = "encoder_decoder") -> Decision:
    """AdamW, or Muon for the small encoder where all of it trains."""
    if not facts.is_sam and adapted.encoder_trains and components == "encoder_decoder":
        return "muon", "the small encoder, trained in full, learns more per update with Muon (measured)"
    return "adamw", "SAM's and SAMed's"


def recipe(name: str, facts: EncoderFacts) -> Decision:
    """How a network is trained: as asked, where the encoder allows it.

    Raises:
        UsageError: If there is no such recipe.
    """
    check_recipe_name(name)
    asked = recipe_facts(name)
    if asked.needs_sam and not facts.is_sam:
        return "samunet", f"{asked.source} trains a pretrained SAM, not {facts.name}"
    return name, asked.summary


def training_images(num_slices: int, passes: int | None = None) -> Decision:
    """Images in a training without a stated budget, per kind of device: by size of the dataset, within bounds.

    Args:
        num_slices: Of all training cases.
        passes: Over them, that a recipe asks for.
    """
    if passes:
        images = passes * num_slices
        return {"cpu": images, "gpu": images}, f"{num_slices} training slices: {passes} passes, the recipe's"
    images = {
        "cpu": int(np.clip(12 * num_slices, 16_000, 32_000)),
        "gpu": int(np.clip(60 * num_slices, 48_000, 240_000)),
    }
    return images, f"{num_slices} training slices: 12 passes on a CPU, 60 on a GPU, within bounds"


def mirror_axes(
    label_names: Sequence[str],
    order: Sequence[int],
    physical: bool,
    ordered: Mapping[int, tuple[str, str]] = MappingProxyType({}),
    asymmetry: Sequence[float] = (0.0, 0.0, 0.0),
) -> Decision:
    """In-plane axes that may be mirrored: those along which images do not all lie the same way round.

    Args:
        label_names: All of them.
        order: :func:`slicing_order`.
        physical: Whether images have millimetres, and so a left and a right.
        ordered: By array axis two labels that follow each other along it in the same order in all cases
            (:func:`fixed_order`).
        asymmetry: By array axis, how far images agree in what mirroring would change
            (:func:`samunet.planning.asymmetry.asymmetry`).
    """
    reasons = {}
    pair = left_right_pair(label_names)
    if pair is not None:
        # Array axis 2 is x: patient left-right in images whose axes follow the scanner's. Pictures have no such axis
        # but x.
        reasons[2] = f"labels {pair[0]!r} and {pair[1]!r} are mirror images: x is never mirrored"
    for axis, (first, second) in ordered.items():
        reasons.setdefault(axis, f"{first!r} always comes before {second!r} along {'zyx'[axis]}")
    for axis, share in enumerate(asymmetry):
        if share >= _ASYMMETRIC:
            reasons.setdefault(axis, f"images lie the same way round along {'zyx'[axis]} (asymmetry {share:.2f})")
    kept = [index for index, axis in enumerate(order[1:]) if axis not in reasons]
    forbidden = [reasons[axis] for axis in order[1:] if axis in reasons]
    return kept, "; ".join(forbidden) or "neither images nor labels tell which way round they lie"


def rotation(extent: Sequence[float], mirrored: Sequence[int]) -> Decision:
    """Largest angle in degrees by which training images are turned.

    Args:
        extent: In-plane ``(height, width)`` of the median slice.
        mirrored: :func:`mirror_axes`.
    """
    if max(extent) / min(extent) > _LONG_FIELD:
        return 15.0, "in a long field of view a patient turned further would leave the image (nnU-Net)"
    if len(mirrored) < 2:
        return UNMIRRORED_ROTATION, "an axis is not mirrored, and an image turned round is mirrored along both"
    return 180.0, "images lie any way round (nnU-Net)"


def fixed_order(offsets: np.ndarray, reaches: np.ndarray) -> bool:
    """Whether two classes keep their order along an axis, so that their place tells which is which.

    In at least 95 % of the cases, and of five, the centre of one lies beyond that of the other on the same side, and in
    at least half of them further than both classes reach together (one standard deviation each).

    Args:
        offsets: From one centre to the other, one number for each case that has both.
        reaches: Sum of the deviations of both classes' voxels along the axis, likewise.
    """
    if len(offsets) < _ORDERED_CASES:
        return False
    same_side = max(np.mean(offsets > 0), np.mean(offsets < 0))
    return bool(same_side >= _ORDERED_SHARE and np.median(np.abs(offsets) - reaches) >= 0)


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
    """Check a size given by ``image_size`` against an encoder.

    Raises:
        UsageError: If it is no multiple of the encoder's patch size.
    """
    if size is not None and (size < 2 * facts.patch_size or size % facts.patch_size):
        raise UsageError(
            f"{argument('image_size', size)} does not fit the encoder {facts.name}",
            f"use a multiple of {facts.patch_size}, at least {2 * facts.patch_size}",
        )
    return size


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{argument(name)} must be one of {', '.join(allowed)}, got {value!r}")
