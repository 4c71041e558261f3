"""Plans of one dataset for another: the same preprocessing and network, as fine-tuning across datasets needs."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path

from samunet import paths
from samunet.dataset.description import read_description
from samunet.dataset.layout import find_dataset
from samunet.errors import SamunetError, UsageError, argument, call
from samunet.planning.agreement import check_fingerprint
from samunet.planning.fingerprint import FILE_NAME, read_fingerprint
from samunet.planning.orientation import choose_orientation, mirrored_axes, turned_fingerprint
from samunet.planning.rules import UNMIRRORED_ROTATION
from samunet.plans import DEFAULT_PLANS_NAME, Plans, check_plans_name, plans_called, read_plans
from samunet.preprocessing.orientation import reorient_axes
from samunet.preprocessing.run import check_channels

log = logging.getLogger(__name__)


def move_plans_between_datasets(
    source: str | int, target: str | int, plans_name: str = DEFAULT_PLANS_NAME, target_plans_name: str | None = None
) -> Path:
    """Write a dataset's plans for another dataset, which then only needs to be preprocessed with them.

    Everything stays as it was planned, intensity statistics included, but for the names and for mirroring: an axis is
    dropped where the target's images or labels forbid it, and images are then turned less.

    Args:
        source, target: Ids or names. The target's fingerprint must exist.
        plans_name: The source's plans.
        target_plans_name: What they are called there; None for the same.

    Returns:
        The plans file of the target.

    Raises:
        UsageError: If a dataset or plans do not exist, or the target has other plans of that name already.
        SamunetError: If the plans do not fit the target: another number of channels, or only one of the two datasets
            has spacing in millimetres.
    """
    source_name, target_name = find_dataset(source), find_dataset(target)
    if source_name == target_name:
        raise UsageError(f"`source` and `target` are both {source_name}", "give two datasets")
    new_name = target_plans_name or plans_name
    check_plans_name(new_name, "target_plans_name")
    plans = plans_called(plans_name, paths.preprocessed_folder() / source_name)
    folder = paths.preprocessed_folder() / target_name
    if not (folder / FILE_NAME).is_file():
        raise SamunetError(f"{target_name} has no fingerprint yet", call("extract_fingerprint", target_name))
    moved = _moved(plans, target_name, new_name, folder)
    path = folder / f"{new_name}.json"
    if path.is_file() and read_plans(path) != moved:
        other = argument("target_plans_name", f"{source_name}Plans")
        raise UsageError(f"{path} exists already and holds other plans", f"give another name: {other}")
    moved.write(path)
    log.info("plans written to %s", path)
    return path


def _moved(plans: Plans, target_name: str, new_name: str, folder: Path) -> Plans:
    description = read_description(folder)
    for name in plans.configurations:
        check_channels(
            plans.configuration(name), description, folder / "dataset.json",
            "plans can be moved only between datasets with the same channels",
        )  # fmt: skip
    fingerprint = read_fingerprint(folder / FILE_NAME)
    check_fingerprint(fingerprint, description, folder / "dataset.json")
    if fingerprint.physical_spacing != plans.physical_spacing:
        with_spacing = plans.dataset_name if plans.physical_spacing else target_name
        raise SamunetError(
            f"only {with_spacing} has spacing in millimetres", "plan the target for itself: `api.plan_experiment`"
        )
    # The target is measured in its own axes; names of left and right are told from the plans' axes.
    own, _ = choose_orientation(fingerprint)
    fingerprint = turned_fingerprint(fingerprint, own)
    own_axis = reorient_axes(range(3), own, plans.orientation)
    frames = plans.transpose_forward, [int(own_axis[axis]) for axis in plans.transpose_forward]
    found = [mirrored_axes(description.labels, fingerprint, order) for order in frames]
    allowed = [axis for axis in found[0][0] if axis in found[1][0]]
    why = "; ".join(dict.fromkeys(reason for _, reason in found))
    configurations = deepcopy(plans.configurations)
    for name, configuration in configurations.items():
        if "data_identifier" in configuration:
            rest = configuration["data_identifier"].removeprefix(f"{plans.plans_name}_")
            configuration["data_identifier"] = f"{new_name}_{rest}"
        axes = configuration.get("mirror_axes", [])
        if not set(axes) <= set(allowed):
            configuration["mirror_axes"] = [axis for axis in axes if axis in allowed]
            configuration["rotation"] = min(plans.configuration(name).rotation, UNMIRRORED_ROTATION)
            left = f"mirroring along axes {configuration['mirror_axes']} only" if configuration["mirror_axes"] else ""
            log.warning("%s: %s (%s)", name, left or "no mirroring", why)
    return plans.changed(dataset_name=target_name, plans_name=new_name, configurations=configurations)
