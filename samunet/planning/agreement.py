"""Whether plans and dataset.json still belong together: both are files that people edit after planning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from samunet.dataset.description import Description
from samunet.dataset.labels import Labels
from samunet.errors import SamunetError, argument
from samunet.planning.fingerprint import Fingerprint
from samunet.plans import NetworkPlan
from samunet.recipes import recipe_facts

_CHANNELS = {"neighbours": 1, "repeat": 1, "as_they_are": 3}  # a projection takes any number


def recipe_obstacle(recipe: str, labels: Labels) -> str | None:
    """What a recipe's loss cannot learn of these labels, in words; None if it can learn them."""
    if recipe_facts(recipe).exclusive_classes and (labels.has_regions or labels.ignore is not None):
        return "regions" if labels.has_regions else "an ignore label"
    return None


def check_network(network: NetworkPlan, description: Description, source: Path) -> None:
    """Check that a planned network can be trained on what dataset.json says now.

    Args:
        network: Which is to be trained.
        description: Read from ``source``.
        source: The dataset.json, for the message.

    Raises:
        SamunetError: If the recipe's loss cannot learn these labels, or the input layer takes other channels.
    """
    obstacle = recipe_obstacle(network.recipe, description.labels)
    if obstacle:
        raise SamunetError(
            f"{source} has {obstacle}, but the plans say recipe {network.recipe!r}, whose loss knows only classes that "
            "exclude each other",
            f"plan without {argument('recipe', network.recipe)}: `api.plan_and_preprocess(ID)`; or undo the edit of "
            "labels",
        )
    given, taken = len(description.channel_names), _CHANNELS.get(network.input_channels)
    if taken not in (None, given):
        raise SamunetError(
            f"{source}: channel_names lists {given}, but the plans' input_channels of {network.encoder} is "
            f"{network.input_channels!r}, which takes {taken}",
            "plan again: `api.plan_and_preprocess(ID)`",
        )


def check_fingerprint(fingerprint: Fingerprint, description: Description, source: Path) -> None:
    """Check that the label files were measured, and hence stored, with the classes that dataset.json lists now.

    Args:
        fingerprint: From which the plans were made.
        description: Read from ``source``.
        source: The dataset.json, for the message.

    Raises:
        SamunetError: If they were not.
    """
    measured = {int(value) for case in fingerprint.cases.values() for value in case.class_voxels}
    listed = set(description.labels.values[1:])
    if listed != measured:
        raise SamunetError(
            f"{source}: labels lists the values {_values(listed)} besides the background, but the dataset was measured "
            f"with {_values(measured)}",
            "undo the edit of labels, or measure, plan and store again: `api.plan_and_preprocess(ID)`",
        )


def check_unchanged(description: Description, source: Path, other: Description, other_source: Path) -> None:
    """Check that two dataset.json have the same labels and channels.

    Args:
        description: Read from ``source``: what the plans were made for.
        source: The one file.
        other: Read from ``other_source``.
        other_source: The other, which may have been edited since.

    Raises:
        SamunetError: Naming what differs.
    """
    for key, ours, theirs in (
        ("labels", description.labels, other.labels),
        ("channel_names", description.channel_names, other.channel_names),
    ):
        if ours != theirs:
            raise SamunetError(
                f"{key} in {other_source} is not what it was when the dataset was planned ({source})",
                "plan again: `api.plan_and_preprocess(ID)`; or undo the edit",
            )


def check_same_outputs(description: Description, source: Path, trained: Description, model: Path) -> None:
    """Check that a model's folds have the same outputs and inputs.

    The names of classes may change, and an ignore label may come when labels in part do: no output is for it.

    Args:
        description: Read from ``source``: of the fold to be trained.
        source: Its dataset.json, for the message.
        trained: Of the folds that the model has.
        model: The model's folder.

    Raises:
        SamunetError: If the new fold could not be averaged with the others.
    """
    ours, theirs = (replace(one.labels, names=(), ignore=None) for one in (description, trained))
    channels = len(description.channel_names), len(trained.channel_names)
    if ours != theirs or channels[0] != channels[1]:
        what = "labels" if ours != theirs else "channel_names"
        raise SamunetError(
            f"{what} in {source} is not what it was when the folds in {model} were trained",
            "plan under another name (`api.plan_and_preprocess(ID, plans_name=NAME)`) and train with "
            "`plans_name=NAME`, or remove the model's other folds and use `overwrite=True`",
        )


def _values(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))
