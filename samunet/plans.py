"""Plans: every decision of the planner as typed data, written to and read from ``samunetPlans.json``.

A plans file is meant to be read and edited by people. Unknown keys and wrong types are errors that name the key;
each group of decisions carries its reasons under ``why``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import permutations, product
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Len
from pydantic import BaseModel

from samunet import paths
from samunet.adaptations import AdaptationPlan, AdapterPlan, LoraPlan  # noqa: F401 (the two are imported from here)
from samunet.encoders import ENCODERS
from samunet.errors import SamunetError, UsageError, argument, call
from samunet.files import as_kind, read_as
from samunet.plain_model import PlainModel
from samunet.recipes import RECIPES, is_recipe_name, recipe_facts

_OTHER_FILES = ("dataset", "dataset_fingerprint", "splits_final", "integrity_report")
DEFAULT_PLANS_NAME = "samunetPlans"
_HINT = "undo the edit, or plan again with `api.plan_experiment`"

# Plans may come from a stranger: beyond these lies nothing that anybody trains or predicts with.
MOST_MM = 1e5  # a 2D file has a third side of 999 times its largest
MOST_MEMORY_GB = 1e4
MOST_SIDE = 4096  # pixels of a network's input
_MOST_CONFIGURATIONS = 100
Positive = Annotated[float, Gt(0), Le(MOST_MM)]
Rate = Annotated[float, Gt(0), Le(100)]
AtLeastOne = Annotated[int, Interval(ge=1, le=10**9)]
Count = Annotated[int, Interval(ge=1, le=10**5)]
Pixels = Annotated[int, Interval(ge=1, le=MOST_SIDE)]
Axis = Annotated[int, Interval(ge=0, le=2)]
InPlaneAxis = Annotated[int, Interval(ge=0, le=1)]
# Where a file's axes x, y, z lead: left or right, backwards or forwards, up or down, in any order.
Orientation = Literal[
    ("", *sorted("".join(axes) for three in product("LR", "PA", "SI") for axes in permutations(three)))
]


class IntensityStatistics(PlainModel):
    """Of one channel's foreground voxels over all training cases."""

    mean: float
    median: float
    std: Annotated[float, Ge(0)]
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


class SynthesisPlan(PlainModel):
    """New training slices made of exemplars (:mod:`samunet.training.synthesis`).

    Attributes:
        share: Of the training images; None for the rule: half with up to 500 slices, none from 5000 on.
        kinds: ``paste`` (small components), ``exchange`` (textures of organs), ``carve`` (the foreground of another
            slice); each image gets one of them that is possible.
    """

    share: Annotated[float, Interval(ge=0, le=1)] | None = None
    kinds: Annotated[list[Literal["paste", "exchange", "carve"]], Len(1, 3)] = ["paste", "exchange", "carve"]


class NetworkPlan(PlainModel):
    """One network for one configuration.

    Attributes:
        encoder: Name in ``samunet/encoders.py``.
        input_shape: ``[height, width]`` of the network's input in pixels.
        spacing: Millimetres per input pixel (the same along both axes); None without physical spacing, where the long
            side of each image is scaled to the input, or reduced fourfold if it is still larger then.
        stretch: Whether every slice fills the input, whatever its proportions.
        head: Which decoder makes class logits: ``sam`` (SAMed's) or ``detail`` (with features
            of the encoder's depths and of a stem).
        adaptation: Its ``method`` with its settings (:mod:`samunet.adaptations`): ``lora`` or ``adapter`` (SAM's
            weights stay, small modules beside them train) or ``full`` (SAM's weights train). What is new, such as the
            class tokens, always trains.
        input_channels: How stored channels become the encoder's three: ``neighbours`` (previous, this and next slice),
            ``repeat`` (one channel three times), ``as_they_are`` (three channels), ``projection`` (a trained
            combination of any number).
        batch_size: Images per step; ``accumulation`` steps make one update.
        optimizer, learning_rate, weight_decay: ``muon`` leaves what is no matrix to AdamW; peak rate; matrices decay.
        training_images: Images drawn in a whole training where the user states no budget, per kind of device.
        passes: Over all slices of a fold, which are a whole training instead; None where slices are drawn.
        memory_bytes: Predicted peak memory of a training step, without what the program itself takes.
        training_gflops: Predicted work per training image, in 10^9 floating-point operations, none counted twice.
        components: What is adapted: ``encoder_decoder``, or ``decoder`` with the encoder frozen.
        recipe: How the network is trained: a name in :mod:`samunet.recipes`, or one of somebody's own,
            ``package.module:Class``.
        checkpoint_blocks: Whether the encoder's blocks are computed a second time in the backward pass instead of
            keeping what it needs (activation checkpointing). Changes memory and time, not the result.
        synthesis: New training slices made of the labelled ones; None for none.
        augmentation: ``standard`` (nnU-Net's), or ``strong`` (more, and more often).
        why: Reasons.
    """

    encoder: str
    input_shape: Annotated[list[Pixels], Len(2, 2)]
    spacing: Positive | None
    head: Literal["sam", "detail"]
    adaptation: AdaptationPlan
    input_channels: Literal["neighbours", "repeat", "as_they_are", "projection"]
    batch_size: Count
    accumulation: Count
    learning_rate: Rate
    weight_decay: Annotated[float, Interval(ge=0, le=100)]
    training_images: Annotated[dict[Literal["cpu", "gpu"], AtLeastOne], Len(2)]
    memory_bytes: int
    training_gflops: float
    stretch: bool = False
    passes: Count | None = None
    components: Literal["encoder_decoder", "decoder"] = "encoder_decoder"
    recipe: str = "samunet"
    checkpoint_blocks: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    synthesis: SynthesisPlan | None = None
    augmentation: Literal["standard", "strong"] = "standard"
    why: dict[str, str] = {}


class ConfigurationPlan(PlainModel):
    """Preprocessing and training of one configuration.

    Attributes:
        data_identifier: Name of the folder of stored slices; configurations that share it share the slices.
        spacing: In-plane ``[y, x]`` spacing in mm below which stored slices never go; None without physical spacing.
        median_shape: Median stored shape ``[z, y, x]``.
        normalization: One scheme per channel.
        windows: Per channel, for the scheme ``window``, the values that become 0 and 1; None where no channel has it.
        crop: Whether volumes are cropped to their content.
        use_mask_for_norm: Per channel, whether statistics are taken (and values kept) inside the nonzero mask only.
        mirror_axes: In-plane axes (0: y, 1: x) mirrored in training and prediction.
        foreground_share: Probability that a training image is drawn around a foreground voxel.
        rotation: Largest angle in degrees by which training images are turned.
        planes: Ways to cut stored volumes into slices, each as the stored axes (0: z, 1: y, 2: x) that become slice,
            row and column. The network is trained on slices of all of them, and predictions are averaged over them.
        networks: By the encoder's name, the default first; at least one.
        why: Reasons.
    """

    data_identifier: str
    spacing: Annotated[list[Positive], Len(2, 2)] | None
    median_shape: Annotated[list[AtLeastOne], Len(3, 3)]
    normalization: list[
        Literal["zscore", "ct", "divide_by_255", "divide_by_65535", "rescale_to_0_1", "ct_to_0_1", "nonorm", "window"]
    ]
    use_mask_for_norm: list[bool]
    mirror_axes: list[InPlaneAxis]
    foreground_share: Annotated[float, Interval(ge=0, le=1)]
    networks: Annotated[dict[str, NetworkPlan], Len(1)]
    windows: list[Annotated[list[float], Len(2, 2)] | None] | None = None
    crop: bool = True
    rotation: Annotated[float, Interval(ge=0, le=180)] = 180.0
    planes: Annotated[list[Annotated[list[Axis], Len(3, 3)]], Len(1)] = [[0, 1, 2]]
    why: dict[str, str] = {}

    @property
    def default_sam(self) -> str:
        """The first of the planned encoders that is a SAM's; the first of all where none is."""
        return next((name for name in self.networks if ENCODERS[name].is_sam), next(iter(self.networks)))


class Plans(PlainModel):
    """Everything the planner decided for one dataset.

    Attributes:
        transpose_forward: Order in which array axes are stored; the slicing axis comes first.
        orientation: Of all training images, before that (:mod:`samunet.preprocessing.orientation`): images that lie
            otherwise are turned to it. Empty if they differ or it is unknown, and then nothing is turned.
        encoder: ``auto``, or the encoder that ``-encoder`` fixed at planning time.
        configurations: By name; each as JSON, possibly with ``inherits_from``. Use :meth:`configuration`.
    """

    dataset_name: str
    plans_name: str
    samunet_version: str
    image_reader: str
    physical_spacing: bool
    original_median_spacing: Annotated[list[Positive], Len(3, 3)]
    original_median_shape: Annotated[list[AtLeastOne], Len(3, 3)]
    transpose_forward: Annotated[list[Axis], Len(3, 3)]
    foreground_intensity_properties_per_channel: dict[str, IntensityStatistics]
    gpu_memory_target_gb: Positive
    encoder: str
    configurations: Annotated[dict[str, dict[str, Any]], Len(0, _MOST_CONFIGURATIONS)]
    orientation: Orientation = ""
    why: dict[str, str] = {}

    def configuration(self, name: str) -> ConfigurationPlan:
        """Resolve a configuration with everything it inherits.

        Raises:
            UsageError: If there is no such configuration; lists those there are.
            SamunetError: If a key is unknown or has the wrong type, or the inheritance is circular.
        """
        if name not in self.configurations:
            known = ", ".join(self.configurations)
            if name.startswith("3d"):
                raise UsageError(
                    f"there is no configuration {name!r}: samunet segments slice by slice (with the neighbouring "
                    "slices as context where they are near enough) and has no 3D configurations",
                    f"use one of: {known}",
                )
            raise UsageError(f"there is no configuration {name!r} in {self.plans_name}", f"use one of: {known}")
        where = f"configuration {name!r} of {self.plans_name}"
        configuration = as_kind(ConfigurationPlan, self._merged(name, ()), where, _HINT)
        _refuse(where, self._contradictions(configuration))
        return configuration

    def network(self, configuration: ConfigurationPlan, encoder: str) -> NetworkPlan:
        """The configuration's network with an encoder.

        Raises:
            UsageError: If none is planned; lists those that are.
        """
        if encoder not in configuration.networks:
            raise UsageError(
                f"these plans hold networks for {' and '.join(configuration.networks)}, not for {encoder}",
                f"plan for it: {call('plan_experiment', self.dataset_name, encoder=encoder)}",
            )
        return configuration.networks[encoder]

    def _contradictions(self, configuration: ConfigurationPlan) -> Iterator[tuple[str, str]]:
        """Keys that do not fit each other, each with what is wrong."""
        channels, folder = len(configuration.normalization), configuration.data_identifier
        if len(configuration.use_mask_for_norm) != channels:
            yield "use_mask_for_norm", f"must have one entry per channel of normalization, {channels}"
        if sorted(self.foreground_intensity_properties_per_channel) != sorted(map(str, range(channels))):
            yield (
                "normalization",
                (f"must have one entry per channel, {len(self.foreground_intensity_properties_per_channel)}"),
            )
        if len(set(configuration.mirror_axes)) != len(configuration.mirror_axes):
            yield "mirror_axes", f"must not repeat an axis, got {configuration.mirror_axes}"
        windows = configuration.windows or [None] * channels
        if len(windows) != channels:
            yield "windows", f"must have one entry per channel, {channels}"
        elif any((s == "window") != bool(w and w[0] < w[1]) for s, w in zip(configuration.normalization, windows)):
            yield (
                "windows",
                "must have two rising numbers for every channel with the scheme window, and null for others",
            )
        yield from _plane_contradictions(configuration, self.physical_spacing)
        if not folder or Path(folder).name != folder or folder.startswith("."):
            yield "data_identifier", f"must be the name of a folder, got {folder!r}"
        if (configuration.spacing is None) == self.physical_spacing:
            yield "spacing", "must be two numbers with physical_spacing, and null without"
        for name, network in configuration.networks.items():
            for key, problem in _network_contradictions(name, network, self.physical_spacing):
                yield f"networks.{name}.{key}", problem

    def _merged(self, name: str, seen: tuple[str, ...]) -> dict[str, Any]:
        if name in seen:
            raise SamunetError(f"plans: configurations inherit in a circle: {' -> '.join((*seen, name))}")
        if name not in self.configurations:
            raise SamunetError(f"plans: configuration {seen[-1]!r} inherits from {name!r}, which does not exist")
        own = dict(self.configurations[name])
        parent = own.pop("inherits_from", None)
        if not isinstance(parent, str | None):
            raise SamunetError(f"plans: inherits_from of {name!r} must be the name of a configuration, got {parent!r}")
        merged = own if parent is None else _deep_merge(self._merged(parent, (*seen, name)), own)
        networks = merged.get("networks")
        if isinstance(networks, dict):  # null leaves out one of those that are inherited
            merged["networks"] = {key: network for key, network in networks.items() if network is not None}
        return merged


def check_plans_name(name: str, given_as: str) -> None:
    """Check a name for plans: of the file ``NAME.json`` beside a dataset's others, and a part of models' folders.

    Args:
        name: What was given.
        given_as: The argument that it was given as.

    Raises:
        UsageError: If it cannot be both.
    """
    given = argument(given_as, name)
    if not name or name.startswith(".") or set(name) & set("/\\") or "__" in name:
        raise UsageError(f"{given} is no name for plans", "use letters, digits and single underscores")
    if name in _OTHER_FILES:
        raise UsageError(f"{given} would replace the dataset's {name}.json", "use another name, such as myPlans")


def read_plans(path: Path) -> Plans:
    """Read and check a plans file, with all its configurations.

    Raises:
        SamunetError: Naming the file and the key that is missing, unknown or of the wrong type.
    """
    plans = read_as(Plans, path, _HINT)
    plans = plans.changed(configurations=in_todays_form(plans.configurations))
    if sorted(plans.transpose_forward) != [0, 1, 2]:
        problem = f"must hold each of the axes 0, 1 and 2 once, got {plans.transpose_forward}"
        _refuse(str(path), [("transpose_forward", problem)])
    for name in plans.configurations:
        try:
            plans.configuration(name)
        except SamunetError as error:
            raise SamunetError(f"{path}: {error.message}", error.hint or _HINT) from None
    return plans


def in_todays_form(configurations: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configurations of older plans, in today's form.

    In samunet 0.1.0 networks were called ``sam`` and ``bundled`` instead of by their encoders' names; and until 0.2.0
    ``adaptation`` was the method's name, with its settings beside it as ``lora`` or ``adapter``.
    """
    configurations = {
        name: configuration | {"networks": {key: _with_one_adaptation(own) for key, own in networks.items()}}
        if isinstance(networks := configuration.get("networks"), dict)
        else configuration
        for name, configuration in configurations.items()
    }

    def inherited(name: Any, seen: tuple = ()) -> dict[str, Any]:
        own = configurations.get(name) if isinstance(name, str) and name not in seen else None
        return {} if own is None else _deep_merge(inherited(own.get("inherits_from"), (*seen, name)), own)

    renamed = {}
    for name, configuration in configurations.items():
        given, whole = configuration.get("networks"), inherited(name).get("networks")
        renamed[name] = configuration
        if isinstance(given, dict) and given.keys() & {"sam", "bundled"}:
            networks = {}
            for key, own in given.items():
                network = whole[key] if isinstance(whole[key], dict) else {}
                encoder = network.get("encoder") if key in ("sam", "bundled") else key
                # One that names another encoder than it inherits begins with what it inherits otherwise.
                whole_one = isinstance(own, dict) and "encoder" in own
                networks[encoder if isinstance(encoder, str) else key] = network if whole_one else own
            renamed[name] = configuration | {"networks": networks}
    return renamed


def _with_one_adaptation(network: Any) -> Any:
    if not isinstance(network, dict):
        return network
    own, given = dict(network), network.get("adaptation")
    adaptation = {"method": given} if isinstance(given, str) else given or {}
    for method in ("lora", "adapter"):
        settings = own.get(method)
        if settings is None or (isinstance(settings, dict) and adaptation.get("method", method) == method):
            adaptation = adaptation | (own.pop(method, None) or {})
    return own | {"adaptation": adaptation} if adaptation else own


def plans_called(name: str, folder: Path, function: str = "plan_and_preprocess") -> Plans:
    """The plans of a dataset by their name.

    Args:
        name: Such as ``samunetPlans``.
        folder: The dataset's, in ``samunet_preprocessed``.
        function: Of the API, which makes them, for the message.

    Raises:
        SamunetError: If there are none of that name, with those there are; or as :func:`read_plans`.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        there = ", ".join(file.stem for file in sorted(folder.glob("*Plans*.json"))) or "none"
        own_name = {} if name == DEFAULT_PLANS_NAME else {"plans_name": name}
        raise SamunetError(
            f"{folder.name} has no plans called {name} (plans there: {there})",
            call(function, paths.number_in(folder.name), **own_name),
        )
    return read_plans(path)


def fingerprint_of(*parts: Any) -> str:
    """A short hash of plain data, and of dataclasses and models anywhere in it, to notice that something changed."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else asdict(value)


def _plane_contradictions(configuration: ConfigurationPlan, physical: bool) -> Iterator[tuple[str, str]]:
    planes = configuration.planes
    if any(sorted(axes) != [0, 1, 2] for axes in planes) or len({axes[0] for axes in planes}) != len(planes):
        yield "planes", f"must each hold the axes 0, 1 and 2, and each begin with another one, got {planes}"
    if planes[0] != [0, 1, 2]:
        yield "planes", f"must begin with [0, 1, 2], got {planes}"
    if len(planes) > 1 and not physical:
        yield "planes", "must be [[0, 1, 2]] without physical spacing"
    if len(planes) > 1 and any(
        not recipe_facts(network.recipe).averages for network in configuration.networks.values()
    ):
        recipes = sorted({n.recipe for n in configuration.networks.values() if not recipe_facts(n.recipe).averages})
        yield "planes", f"must be [[0, 1, 2]] with the recipe {' and '.join(recipes)}"


def _network_contradictions(name: str, network: NetworkPlan, physical: bool) -> Iterator[tuple[str, str]]:
    facts = ENCODERS.get(network.encoder)
    if facts is None:
        yield "encoder", f"must be one of {', '.join(ENCODERS)}, got {network.encoder!r}"
    elif network.encoder != name:
        yield "encoder", f"must be {name!r}, as the network is called, got {network.encoder!r}"
    elif any(side % facts.patch_size for side in network.input_shape):
        yield "input_shape", f"must be multiples of the encoder's patch, {facts.patch_size}, got {network.input_shape}"
    for key, problem in network.adaptation.problems(facts, network.components) if facts else ():
        yield f"adaptation.{key}", problem
    if not is_recipe_name(network.recipe):
        yield "recipe", f"must be one of {', '.join(RECIPES)} or package.module:Class, got {network.recipe!r}"
    if network.checkpoint_blocks and facts and facts.stages:
        yield "checkpoint_blocks", f"must be false for {network.encoder}, whose blocks keep what they compute"
    if (network.spacing is None) == physical:
        yield "spacing", "must be a number with physical_spacing, and null without"


def _refuse(where: str, contradictions: Iterable[tuple[str, str]]) -> None:
    for key, problem in contradictions:
        raise SamunetError(f"{where}: {key} {problem}", _HINT)


def _deep_merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    if changes.get("method", base.get("method")) != base.get("method"):  # another adaptation has other settings
        return changes
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _deep_merge(merged[key], value) if nested else value
    return merged
