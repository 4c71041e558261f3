"""Applies the rules to a fingerprint: one configuration, ``2d``, and smaller input sizes that inherit from it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samunet import __version__
from samunet.adaptations import Adaptation, AdapterPlan, LoraPlan
from samunet.dataset.description import Description
from samunet.encoders import EncoderFacts, encoder_facts
from samunet.errors import UsageError, argument, check_number
from samunet.files import as_kind, read_as
from samunet.planning import resources, rules
from samunet.planning.agreement import recipe_obstacle
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.orientation import choose_orientation, mirrored_axes, otherwise, turned_fingerprint
from samunet.planning.planes import planes as sliced_planes
from samunet.plans import (
    DEFAULT_PLANS_NAME,
    MOST_MEMORY_GB,
    MOST_MM,
    MOST_SIDE,
    ConfigurationPlan,
    NetworkPlan,
    Plans,
    check_plans_name,
    in_todays_form,
)
from samunet.preprocessing.case import stored_shape
from samunet.recipes import RecipeFacts, recipe_facts

log = logging.getLogger(__name__)

DEFAULT_SAM = "vit_b"
BUNDLED = "small"


@dataclass(frozen=True)
class PlannerOptions:
    """What a user may fix instead of leaving it to the rules.

    Attributes:
        plans_name: Of the plans file and the folder of stored slices.
        gpu_memory_target_gb: Memory that a training step may take.
        encoder: ``auto`` or an encoder's name.
        image_size: Long side of the network's input in pixels.
        target_spacing: In-plane and slice spacing ``[z, y, x]`` in mm instead of the median.
        window: Lowest and highest value of CT, which become 0 and 1.
        adaptation: A name, or one with settings such as ``LoraPlan(rank=8)`` (:mod:`samunet.adaptations`).
        components: As in a network's plan.
        lora, adapter: Settings of these instead, also as dictionaries; they become ``adaptation``. With the encoder
            ``auto`` all this is meant for SAM; the small encoder is planned by the rules.
        recipe: How networks are trained: a name in :mod:`samunet.recipes`, or ``package.module:Class``.
    """

    plans_name: str = DEFAULT_PLANS_NAME
    gpu_memory_target_gb: float = 8.0
    encoder: str = "auto"
    image_size: int | None = None
    target_spacing: list[float] | None = None
    window: list[float] | None = None
    adaptation: str | Adaptation | None = None
    components: str | None = None
    lora: LoraPlan | dict[str, Any] | None = None
    adapter: AdapterPlan | dict[str, Any] | None = None
    recipe: str = "samunet"

    def __post_init__(self) -> None:
        for kind, given in ((LoraPlan, self.lora), (AdapterPlan, self.adapter)):
            if given is None:
                continue
            method = kind.model_fields["method"].default
            if self.adaptation not in (None, method):
                named = self.adaptation if isinstance(self.adaptation, str) else self.adaptation.method
                raise UsageError(
                    f"{argument(method)} must not be given with the adaptation {named!r}",
                    "change or leave out one of the two",
                )
            object.__setattr__(self, "adaptation", kind.of(given) if isinstance(given, dict) else given)
            object.__setattr__(self, method, None)


@dataclass(frozen=True)
class _Slices:
    """The stored slices, as far as the rules of a network depend on them.

    Attributes:
        median_shape: ``[z, y, x]`` in voxels.
        extent: Median ``[height, width]`` of a slice in mm, or in pixels without physical spacing.
        physical: Whether that is in mm.
        count: Over all cases and planes.
        thinnest: Mean width of the thinnest class as a share of the longer side.
        input_channels: How channels become the encoder's three, with the reason.
        num_outputs: Classes including background, or regions.
    """

    median_shape: list[int]
    extent: list[float]
    physical: bool
    count: int
    thinnest: float
    input_channels: rules.Decision
    num_outputs: int


def plan(dataset_name: str, description: Description, fingerprint: Fingerprint, options: PlannerOptions) -> Plans:
    """Decide everything.

    Raises:
        UsageError: If an option does not fit the dataset or the encoder.
    """
    _check(options, description, fingerprint)
    orientation, orientation_why = choose_orientation(fingerprint)
    mixed = otherwise(fingerprint, orientation)
    if mixed:
        log.warning("%s: %s", dataset_name, mixed)
    fingerprint = turned_fingerprint(fingerprint, orientation)
    median = [float(value) for value in np.median(fingerprint.spacings, axis=0)]
    target = options.target_spacing or median
    order, order_why = _slicing_order(fingerprint, target)
    slices, decisions = _stored_slices(description, fingerprint, options, order, target)
    sam = options.encoder if options.encoder not in ("auto", BUNDLED) else DEFAULT_SAM
    own = {name: _meant_for(name, options) for name in (sam, BUNDLED)}
    networks = {name: plan_network(encoder_facts(name), slices, given) for name, given in own.items()}
    configuration = ConfigurationPlan(
        data_identifier=f"{options.plans_name}_2d",
        median_shape=slices.median_shape,
        networks=networks,
        **{key: value for key, (value, _) in decisions.items()},
        why={key: why for key, (_, why) in decisions.items()},
    )
    shapes = [case.shape for case in fingerprint.cases.values()]
    return Plans(
        dataset_name=dataset_name,
        plans_name=options.plans_name,
        samunet_version=__version__,
        image_reader=description.reader.name,
        physical_spacing=fingerprint.physical_spacing,
        original_median_spacing=[median[axis] for axis in order],
        original_median_shape=[round(float(side)) for side in np.median(shapes, axis=0)[order]],
        transpose_forward=order,
        orientation=orientation,
        foreground_intensity_properties_per_channel=fingerprint.foreground_intensity_properties_per_channel,
        gpu_memory_target_gb=options.gpu_memory_target_gb,
        encoder=options.encoder,
        configurations={"2d": configuration.model_dump(), **_smaller_inputs(networks[sam], slices, own[sam])},
        why={"transpose_forward": order_why, "orientation": orientation_why},
    )


def _stored_slices(
    description: Description,
    fingerprint: Fingerprint,
    options: PlannerOptions,
    order: list[int],
    target: Sequence[float],
) -> tuple[_Slices, dict[str, rules.Decision]]:
    """What slices will be stored, and the decisions of a configuration about them, by field."""
    physical, num_outputs = fingerprint.physical_spacing, description.labels.num_outputs
    spacing, spacing_why = rules.in_plane_spacing(target, order, physical)
    recipe = recipe_facts(options.recipe)
    if options.target_spacing:
        spacing_why = "given by target_spacing"
    elif recipe.whole_slices and physical:
        finest = np.min(fingerprint.spacings, axis=0)
        spacing, spacing_why = [float(finest[axis]) for axis in order[1:]], f"the finest case's ({recipe.source})"
    shapes, pixels = _stored(fingerprint, order, spacing, recipe.whole_slices)
    median_shape = [round(float(side)) for side in np.median(shapes, axis=0)]
    voxel = [target[order[0]], *np.median(pixels, axis=0)]
    planes = sliced_planes(median_shape, voxel, num_outputs, physical, options.recipe)
    extent = _extent(fingerprint, order, shapes, pixels, planes[0])
    windows = [rules.window(name, options.window, recipe.unit_range) for name in description.channel_names]
    schemes = _normalization(description, fingerprint, recipe.unit_range, windows)
    mirrored = mirrored_axes(description.labels, fingerprint, order)
    kept = 1.0 if recipe.whole_slices else fingerprint.median_relative_size_after_cropping
    decisions = {
        "spacing": (spacing, spacing_why),
        "crop": (not recipe.whole_slices, f"{recipe.source} crops nothing" if recipe.whole_slices else "nnU-Net's"),
        "normalization": schemes,
        "windows": (windows if any(windows) else None, "of the scheme window"),
        "use_mask_for_norm": rules.masked_normalization(schemes[0], kept),
        "mirror_axes": mirrored,
        "foreground_share": (0.33, "a third of the images is drawn around foreground, decided item by item"),
        "rotation": rules.rotation(extent, mirrored[0]),
        "planes": planes,
    }
    slices = _Slices(
        median_shape=median_shape,
        extent=extent,
        physical=physical,
        count=int(shapes[:, [axes[0] for axes in planes[0]]].sum()),
        thinnest=_thinnest(fingerprint, order) / max(extent),
        input_channels=rules.input_channels(
            len(description.channel_names), target[order[0]], float(np.median(pixels)), physical
        ),
        num_outputs=num_outputs,
    )
    return slices, decisions


def _slicing_order(fingerprint: Fingerprint, spacing: Sequence[float]) -> rules.Decision:
    """:func:`samunet.planning.rules.slicing_order`, but for pictures in a medical format: across their flat axis."""
    shapes = np.array([case.shape for case in fingerprint.cases.values()])
    flat = np.flatnonzero((shapes == 1).all(axis=0)).tolist()
    if not (fingerprint.physical_spacing and flat):
        return rules.slicing_order(spacing, fingerprint.physical_spacing)
    order = [flat[0], *(axis for axis in range(3) if axis != flat[0])]
    return order, f"slices are cut across array axis {flat[0]}, along which every image has one voxel"


def keep_own_configurations(path: Path, plans: Plans) -> None:
    """Carry over configurations that are in an older plans file and that the planner never makes itself."""
    if not path.is_file():
        return
    planned = {"2d", *(f"2d_{size}" for size in rules.SAM_INPUT_SIZES)}
    before = read_as(dict[str, Any], path, "remove it to have it made anew")
    own = as_kind(dict[str, dict[str, Any]], before.get("configurations", {}), f"{path}: configurations")
    for name, configuration in in_todays_form(own).items():
        if name not in planned:
            plans.configurations[name] = configuration


def plan_network(facts: EncoderFacts, slices: _Slices, options: PlannerOptions) -> NetworkPlan:
    """Plan the network with one encoder for the stored slices."""
    budget = int(options.gpu_memory_target_gb * 1e9)
    name, recipe_why = rules.recipe(options.recipe, facts)
    recipe = recipe_facts(name)
    adapted, components, adaptation_why = rules.adaptation(
        facts, options.adaptation, options.components, outer_blocks=recipe.outer_blocks
    )
    predict = partial(
        resources.estimate, facts, adaptation=adapted, components=components, num_outputs=slices.num_outputs,
        upsampled=recipe.upsampled,
    )  # fmt: skip
    size, size_why = _input_size(
        facts,
        slices,
        options,
        lambda shape: predict(shape, checkpoint_blocks=True).for_batch(adapted.slab),
        budget,
        recipe,
    )
    extent = [1.0, 1.0] if recipe.whole_slices else slices.extent
    shape, shape_why = rules.input_shape(size, extent, facts.patch_size)
    if recipe.whole_slices:
        shape_why = f"slices are stretched to a square ({recipe.source})"
    plain, checkpointed = (predict(shape, checkpoint_blocks=twice) for twice in (False, True))
    twice, twice_why = rules.checkpoint_blocks(
        plain.for_batch(adapted.slab), checkpointed.for_batch(adapted.slab), budget
    )
    estimate = checkpointed if twice else plain
    effective = recipe.batch or rules.effective_batch(facts, shape)
    (batch, accumulation), batch_why = rules.batch_size(estimate.fixed_bytes, estimate.image_bytes, budget, effective)
    channels = slices.input_channels
    if recipe.source and channels[0] == "neighbours":
        channels = "repeat", f"one channel three times ({recipe.source})"
    passes = dict(recipe.passes_of).get(facts.name, recipe.passes)
    learning_rate = rules.learning_rate(facts, adapted, components, batch * accumulation)
    if recipe.learning_rate:
        learning_rate = recipe.learning_rate, recipe.source
    decisions = {
        "input_shape": (shape, f"{size_why}; {shape_why}"),
        "head": rules.head(facts),
        "input_channels": channels,
        "batch_size": (batch, batch_why),
        "learning_rate": learning_rate,
        "training_images": rules.training_images(slices.count, passes),
        "recipe": (name, recipe_why),
        "checkpoint_blocks": (twice, twice_why),
        "optimizer": ("adamw", recipe.source) if recipe.source else rules.optimizer(facts, adapted, components),
    }
    return NetworkPlan(
        encoder=facts.name,
        spacing=max(slices.extent) / size if slices.physical else None,
        stretch=recipe.whole_slices,
        passes=passes,
        accumulation=accumulation,
        weight_decay=0.1,
        memory_bytes=estimate.for_batch(max(batch, adapted.slab)),
        training_gflops=round(estimate.training_flops / 1e9, 1),
        adaptation=adapted,
        components=components,
        **{key: value for key, (value, _) in decisions.items()},
        why={"adaptation": adaptation_why} | {key: why for key, (_, why) in decisions.items()},
    )


def _input_size(
    facts: EncoderFacts,
    slices: _Slices,
    options: PlannerOptions,
    least: Callable[[list[int]], int],
    budget: int,
    recipe: RecipeFacts,
) -> rules.Decision:
    """Long side of the input: as asked for, the recipe's, or the largest for which memory is enough.

    ``least`` gives the bytes of the smallest step by the input's shape.
    """
    asked = rules.parse_image_size(options.image_size, facts)
    if asked is not None:
        return asked, "given by image_size"
    if recipe.input_size and facts.is_sam:
        return recipe.input_size, f"{recipe.input_size} px ({recipe.source})"
    shapes = {side: rules.input_shape(side, slices.extent, facts.patch_size)[0] for side in rules.SAM_INPUT_SIZES}
    fitting = [side for side, shape in shapes.items() if least(shape) <= budget]
    allowed = fitting or [rules.SAM_INPUT_SIZES[-1]]
    return rules.input_size(facts, max(slices.median_shape[1:]), allowed, slices.thinnest)


def _meant_for(encoder: str, options: PlannerOptions) -> PlannerOptions:
    """The options as they concern one network: of another than was asked for, and of the small one with ``auto``,
    the rules decide the adaptation.
    """
    if encoder == options.encoder or (options.encoder == "auto" and encoder != BUNDLED):
        return options
    size = options.image_size if options.encoder == "auto" else None
    return replace(options, image_size=size, adaptation=None, components=None)


def _smaller_inputs(sam: NetworkPlan, slices: _Slices, options: PlannerOptions) -> dict[str, dict]:
    """Configurations ``2d_896`` and so on, below the default's size, that differ in what follows from the size."""
    smaller = {}
    for size in rules.SAM_INPUT_SIZES:
        if size >= max(sam.input_shape):
            continue
        other = plan_network(encoder_facts(sam.encoder), slices, replace(options, image_size=size))
        base = sam.model_dump()
        changed = {key: value for key, value in other.model_dump().items() if key != "why" and value != base[key]}
        why = {"input_shape": f"{size} px: less memory and time than 2d"}
        if "checkpoint_blocks" in changed:
            why["checkpoint_blocks"] = other.why["checkpoint_blocks"]
        networks = {sam.encoder: {**changed, "why": why}, BUNDLED: None}
        smaller[f"2d_{size}"] = {"inherits_from": "2d", "networks": networks}
    return smaller


def _stored(
    fingerprint: Fingerprint, order: list[int], spacing: list[float] | None, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Stored shapes ``(cases, 3)`` and in-plane pixel sizes ``(cases, 2)``; size 1 without physical spacing."""
    shapes, pixels = [], []
    for case in fingerprint.cases.values():
        depth, *plane = ((case.shape if whole else case.shape_after_crop)[axis] for axis in order)
        shape, pixel = stored_shape(tuple(plane), [case.spacing[axis] for axis in order[1:]], spacing)
        shapes.append([depth, *shape])
        pixels.append(pixel or [1.0, 1.0])
    return np.array(shapes), np.array(pixels)


def _extent(
    fingerprint: Fingerprint, order: list[int], shapes: np.ndarray, pixels: np.ndarray, planes: list[list[int]]
) -> list[float]:
    """Median ``[rows, columns]`` of the slices in mm (pixels without physical spacing), the largest of all planes."""
    depths = np.array([[case.spacing[order[0]]] for case in fingerprint.cases.values()])
    extents = np.median(shapes * np.hstack([depths, pixels]), axis=0)
    return [float(max(extents[axes[place]] for axes in planes)) for place in (1, 2)]


def _thinnest(fingerprint: Fingerprint, order: list[int]) -> float:
    """Mean in-plane width of the thinnest class over all cases, in mm, or in pixels without physical spacing."""
    _, down, across = order
    areas, perimeters = Counter(), Counter()
    for case in fingerprint.cases.values():
        height, width = case.spacing[down], case.spacing[across]
        for value, voxels in case.class_voxels.items():
            faces = case.class_faces[value]
            areas[value] += voxels * height * width
            perimeters[value] += faces[down] * width + faces[across] * height
    widths = [rules.structure_width(areas[value], length) for value, length in perimeters.items() if length]
    return min(widths, default=math.inf)


def _normalization(
    description: Description, fingerprint: Fingerprint, unit_range: bool, windows: list[list[float] | None]
) -> rules.Decision:
    """One scheme per channel."""
    cases = fingerprint.cases.values()
    schemes = [
        rules.normalization_scheme(
            name,
            max(case.maximum[index] for case in cases),
            all(case.integer for case in cases),
            unit_range,
            windows[index],
        )
        for index, name in enumerate(description.channel_names)
    ]
    return [scheme for scheme, _ in schemes], "; ".join(why for _, why in schemes)


def _check(options: PlannerOptions, description: Description, fingerprint: Fingerprint) -> None:
    check_plans_name(options.plans_name, "plans_name")
    obstacle = recipe_obstacle(options.recipe, description.labels)
    if obstacle:
        raise UsageError(
            f"{argument('recipe', options.recipe)}: its loss knows classes that exclude each other, and dataset.json "
            f"has {obstacle}",
            "leave out `recipe`",
        )
    if options.window is not None:
        _check_window(options.window, description.channel_names)
    if options.encoder != "auto":
        encoder_facts(options.encoder)
        if recipe_facts(options.recipe).needs_sam and not encoder_facts(options.encoder).is_sam:
            raise UsageError(
                f"{argument('recipe', options.recipe)} trains a pretrained SAM, which {options.encoder} is not",
                "use `encoder='vit_b'`, or leave out `recipe`",
            )
    check_number("gpu_memory_target_gb", options.gpu_memory_target_gb, above=0, most=MOST_MEMORY_GB)
    if options.image_size is not None:
        check_number("image_size", options.image_size, above=0, most=MOST_SIDE)
    if options.target_spacing is not None:
        if not fingerprint.physical_spacing:
            raise UsageError("`target_spacing`: these images have no physical spacing", "leave it out")
        if len(options.target_spacing) != 3:
            raise UsageError(f"`target_spacing` takes three numbers z y x, got {options.target_spacing}")
        for side in options.target_spacing:
            check_number("target_spacing", side, least=1e-4, most=MOST_MM)


def _check_window(window: Sequence[float], channel_names: Sequence[str]) -> None:
    for value in window:
        check_number("window", value, least=-1e6, most=1e6)
    if len(window) != 2 or window[0] >= window[1]:
        raise UsageError(f"`window` takes two numbers, the lower first, got {' '.join(map(str, window))}")
    if "ct" not in [name.casefold() for name in channel_names]:
        raise UsageError(
            f"`window` is for CT, and dataset.json has the channels {', '.join(channel_names)}",
            "leave it out, or call the channel CT in dataset.json if it holds Hounsfield units",
        )
