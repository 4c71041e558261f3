"""Commands from a raw dataset to stored slices."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from samunet.commands.flags import (
    ADAPTATION,
    CONFIGURATIONS,
    DATASETS,
    FINGERPRINT,
    OVERWRITE,
    PLANNER,
    PLANS,
    PLANS_NAME,
    SHOWING,
    WINDOW,
    WORKERS,
    WORKERS_ONE_NUMBER,
    finite,
    geometry,
)
from samunet.commands.table import Flag, Switch, command
from samunet.errors import UsageError, quoted


@command(
    "fingerprint, plans and stored slices in one go",
    DATASETS,
    *FINGERPRINT,
    geometry(),
    *PLANNER,
    *SHOWING,
    CONFIGURATIONS,
    WORKERS_ONE_NUMBER,
    Switch("--no_pp", dest="store", sets=False, help="stop after planning"),
    description="Measure a raw dataset, plan, and store its slices. The fingerprint is measured again when files, "
    "labels or channels have changed; a case is stored again when its files or the plan's decisions about storing "
    "have changed.",
    examples=(
        "samunet_plan_and_preprocess -d 027",
        "samunet_plan_and_preprocess -d 027 -encoder vit_b -adaptation adapter -overwrite_plans_name adapterPlans",
    ),
    see="[Ways to adapt SAM](how_commands_work.md#ways-to-adapt-sam)",
)
def plan_and_preprocess(datasets: list[str], dry_run: bool, json: bool, **given: Any) -> None:
    from samunet import api, paths
    from samunet.dataset.splits import FILE_NAME, read_splits

    for dataset in datasets:
        if dry_run:
            _plan_experiment(dataset, True, json, given)
            continue
        options, others = _options(given)
        plans = api.plan_and_preprocess(dataset, options, **others)
        splits = read_splits(paths.preprocessed_folder() / plans.dataset_name / FILE_NAME)
        words = ["samunet_train", dataset, next(iter(plans.configurations)), "0" if splits else "all"]
        words += [] if plans.plans_name == PLANS_NAME else ["-p", plans.plans_name]
        _show(plans, False, json)
        print(f"next: {shlex.join(words)}", file=sys.stderr if json else sys.stdout)


@command(
    "measure a raw dataset",
    DATASETS,
    *FINGERPRINT,
    geometry(),
    WORKERS,
    description="The first step alone: check a raw dataset, make its splits, and measure it.",
    examples=("samunet_extract_fingerprint -d 027 --verify_dataset_integrity",),
)
def extract_fingerprint(datasets: list[str], **given: Any) -> None:
    from samunet import api

    for dataset in datasets:
        api.extract_fingerprint(dataset, **given)


@command(
    "plan from an existing fingerprint",
    DATASETS,
    *PLANNER,
    *SHOWING,
    description="The second step alone: plan from an existing fingerprint. Configurations that you added to an "
    "existing plans file under names of your own are kept.",
    examples=("samunet_plan_experiment -d 027 -gpu_memory_target 24 -overwrite_plans_name largePlans",),
)
def plan_experiment(datasets: list[str], dry_run: bool, json: bool, **given: Any) -> None:
    for dataset in datasets:
        _plan_experiment(dataset, dry_run, json, given)


@command(
    "store the slices of a planned dataset",
    DATASETS,
    Flag("-p", "-plans_name", dest="plans_name", default=PLANS_NAME, metavar="NAME", help=PLANS.options["help"]),
    CONFIGURATIONS,
    geometry(),
    WORKERS_ONE_NUMBER,
    description="The third step alone: store the slices of a planned dataset. To be run after plans were edited by "
    "hand.",
    examples=("samunet_preprocess -d 027 -c 2d_448",),
)
def preprocess(datasets: list[str], **given: Any) -> None:
    from samunet import api

    for dataset in datasets:
        api.preprocess(dataset, **given)


@command(
    "take over what changed in a raw dataset since it was preprocessed",
    DATASETS,
    geometry(),
    WORKERS,
    description="Put new cases of a dataset into its folds (beside other cases of their patient, or where the "
    "validation set is smallest), take removed ones out, and store what changed; plans and all other cases stay as "
    "they are. A fold that was trained before does not know of the change.",
    examples=("samunet_add_cases -d 027",),
)
def add_cases(datasets: list[str], **given: Any) -> None:
    from samunet import api

    for dataset in datasets:
        joined = api.add_cases(dataset, **given)
        for case, where in joined.items():
            print(f"{case}: {where}")
        if not joined:
            print("no new cases")
        print("folds trained before do not know of the change: samunet_train --overwrite trains one anew")


@command(
    "a picture of every training case with its label",
    Flag("-d", dest="dataset", required=True, metavar="ID", help="27, 027 or Dataset027_ACDC"),
    Flag("-o", dest="output", type=Path, required=True, metavar="OUTPUT", help="folder for the pictures"),
    Flag(
        "-c",
        dest="configuration",
        metavar="CONFIGURATION",
        help="show the slices stored for it (default: the raw images and labels)",
    ),
    Flag("-p", dest="plans_name", default=PLANS_NAME, metavar="NAME", help="plans' name, with -c"),
    Switch("--use_raw", help="accepted as in nnU-Net: raw files are the default"),
    Flag(
        "-channel_idx",
        dest="channel",
        type=int,
        metavar="N",
        help="channel to show (default: the first; colour pictures in colour)",
    ),
    Flag(
        "-overlay_intensity",
        dest="intensity",
        type=finite,
        default=0.6,
        metavar="SHARE",
        help="strength of the colours, 0 to 1 (default: 0.6)",
    ),
    WINDOW,
    OVERWRITE,
    WORKERS,
    description="Write a picture of every training case with its label drawn on it, to look a dataset through before "
    "training: up to three slices, those with most foreground in the first, middle and last third of its extent.",
    examples=("samunet_plot_overlay_pngs -d 027 -o pictures",),
    calls=("plot_overlays",),
)
def plot_overlay_pngs(dataset: str, output: Path, use_raw: bool, **given: Any) -> None:
    from samunet import api

    if use_raw and given["configuration"]:
        raise UsageError("--use_raw and -c exclude each other", "leave out -c for the raw images")
    print(f"{len(api.plot_overlays(dataset, output, **given))} pictures written to {output}")


@command(
    "use one dataset's plans for another",
    Flag("-s", dest="source", required=True, metavar="ID", help="dataset that the plans are from"),
    Flag("-t", dest="target", required=True, metavar="ID", help="dataset that they are for; needs its fingerprint"),
    Flag("-sp", dest="plans_name", default=PLANS_NAME, metavar="NAME", help=PLANS.options["help"]),
    Flag("-tp", dest="target_plans_name", metavar="NAME", help="their name there (default: the same)"),
    description="Write a dataset's plans for another dataset, so that both are preprocessed alike and one's model can "
    "start from the other's (samunet_train --pretrained). Only the names change, and an axis is no longer mirrored "
    "where the target's images or labels forbid it; images are then turned by 30 degrees at most. Other plans of that "
    "name are never replaced. Both datasets need the same number of channels, and both or neither spacing in "
    "millimetres.",
    examples=(
        "samunet_extract_fingerprint -d 103",
        "samunet_move_plans_between_datasets -s 027 -t 103 -tp acdcPlans",
        "samunet_preprocess -d 103 -p acdcPlans",
    ),
)
def move_plans_between_datasets(**given: Any) -> None:
    from samunet import api

    path = api.move_plans_between_datasets(**given)
    print(path)
    print(f"next: samunet_preprocess -d {quoted(path.parent.name)} -p {quoted(path.stem)}")


def _plan_experiment(dataset: str, dry_run: bool, json: bool, given: dict[str, Any]) -> None:
    from samunet import api

    _show(api.plan_experiment(dataset, _options(given)[0], dry_run=dry_run), dry_run, json)


def _show(plans, dry_run: bool, json: bool) -> None:
    """Print :class:`samunet.plans.Plans` where ``--json`` asks for them; say that nothing was written where so."""
    from samunet.files import to_json

    if json:
        print(to_json(plans.model_dump()))
    if dry_run:
        print("nothing was written: run the command again without --dry_run", file=sys.stderr)


def _options(given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """``PlannerOptions``, and what is none of them."""
    from dataclasses import fields

    from samunet import api

    known = {field.name for field in fields(api.PlannerOptions)}
    options = {name: value for name, value in given.items() if name in known}
    others = {name: value for name, value in given.items() if name not in known and "." not in name}
    return api.PlannerOptions(**options | {"adaptation": ADAPTATION.chosen(given)}), others
