"""Commands from a raw dataset to stored slices."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    window_of,
    workers,
)
from samunet.commands.table import Flag, Switch, command
from samunet.errors import UsageError, quoted

if TYPE_CHECKING:
    from samunet.planning.planner import PlannerOptions


@command(
    "fingerprint, plans and stored slices in one go",
    DATASETS,
    *FINGERPRINT,
    geometry(),
    *PLANNER,
    *SHOWING,
    CONFIGURATIONS,
    WORKERS_ONE_NUMBER,
    Switch("--no_pp", help="stop after planning"),
    description="Measure a raw dataset, plan, and store its slices. The fingerprint is measured again when files, "
    "labels or channels have changed; a case is stored again when its files or the plan's decisions about storing "
    "have changed.",
    examples=(
        "samunet_plan_and_preprocess -d 027",
        "samunet_plan_and_preprocess -d 027 -encoder vit_b -adaptation adapter -overwrite_plans_name adapterPlans",
    ),
    see="[Ways to adapt SAM](how_commands_work.md#ways-to-adapt-sam)",
)
def plan_and_preprocess(arguments: argparse.Namespace) -> None:
    from samunet import api, paths
    from samunet.dataset.splits import FILE_NAME, read_splits

    for dataset in arguments.d:
        if arguments.dry_run:
            _show(api.plan_experiment(dataset, _options(arguments), dry_run=True), arguments)
            continue
        plans = api.plan_and_preprocess(
            dataset, _options(arguments), arguments.c, **_measuring(arguments), store=not arguments.no_pp
        )
        splits = read_splits(paths.preprocessed_folder() / plans.dataset_name / FILE_NAME)
        words = ["samunet_train", dataset, next(iter(plans.configurations)), "0" if splits else "all"]
        words += [] if plans.plans_name == PLANS_NAME else ["-p", plans.plans_name]
        _show(plans, arguments)
        print(f"next: {shlex.join(words)}", file=sys.stderr if arguments.json else sys.stdout)


@command(
    "measure a raw dataset",
    DATASETS,
    *FINGERPRINT,
    geometry(),
    WORKERS,
    description="The first step alone: check a raw dataset, make its splits, and measure it.",
    examples=("samunet_extract_fingerprint -d 027 --verify_dataset_integrity",),
)
def extract_fingerprint(arguments: argparse.Namespace) -> None:
    from samunet import api

    for dataset in arguments.d:
        api.extract_fingerprint(dataset, **_measuring(arguments))


@command(
    "plan from an existing fingerprint",
    DATASETS,
    *PLANNER,
    *SHOWING,
    description="The second step alone: plan from an existing fingerprint. Configurations that you added to an "
    "existing plans file under names of your own are kept.",
    examples=("samunet_plan_experiment -d 027 -gpu_memory_target 24 -overwrite_plans_name largePlans",),
)
def plan_experiment(arguments: argparse.Namespace) -> None:
    from samunet import api

    for dataset in arguments.d:
        _show(api.plan_experiment(dataset, _options(arguments), dry_run=arguments.dry_run), arguments)


@command(
    "store the slices of a planned dataset",
    DATASETS,
    Flag("-p", "-plans_name", dest="p", default=PLANS_NAME, metavar="NAME", help=PLANS.options["help"]),
    CONFIGURATIONS,
    geometry(),
    WORKERS_ONE_NUMBER,
    description="The third step alone: store the slices of a planned dataset. To be run after plans were edited by "
    "hand.",
    examples=("samunet_preprocess -d 027 -c 2d_448",),
)
def preprocess(arguments: argparse.Namespace) -> None:
    from samunet import api

    for dataset in arguments.d:
        api.preprocess(
            dataset, arguments.c, arguments.p, tolerate_geometry=arguments.tolerate_geometry, num_workers=arguments.np
        )


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
def add_cases(arguments: argparse.Namespace) -> None:
    from samunet import api

    for dataset in arguments.d:
        joined = api.add_cases(dataset, tolerate_geometry=arguments.tolerate_geometry, num_workers=arguments.np)
        for case, where in joined.items():
            print(f"{case}: {where}")
        if not joined:
            print("no new cases")
        print("folds trained before do not know of the change: samunet_train --overwrite trains one anew")


@command(
    "a picture of every training case with its label",
    Flag("-d", required=True, metavar="ID", help="27, 027 or Dataset027_ACDC"),
    Flag("-o", type=Path, required=True, metavar="OUTPUT", help="folder for the pictures"),
    Flag("-c", metavar="CONFIGURATION", help="show the slices stored for it (default: the raw images and labels)"),
    Flag("-p", default=PLANS_NAME, metavar="NAME", help="plans' name, with -c"),
    Switch("--use_raw", help="accepted as in nnU-Net: raw files are the default"),
    Flag("-channel_idx", type=int, metavar="N", help="channel to show (default: the first; colour pictures in colour)"),
    Flag(
        "-overlay_intensity",
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
)
def plot_overlay_pngs(arguments: argparse.Namespace) -> None:
    from samunet import api

    if arguments.use_raw and arguments.c:
        raise UsageError("--use_raw and -c exclude each other", "leave out -c for the raw images")
    files = api.plot_overlays(
        arguments.d,
        arguments.o,
        configuration=arguments.c,
        plans_name=arguments.p,
        channel=arguments.channel_idx,
        intensity=arguments.overlay_intensity,
        overwrite=arguments.overwrite,
        window=window_of(arguments.window),
        num_workers=workers(arguments),
    )
    print(f"{len(files)} pictures written to {arguments.o}")


@command(
    "use one dataset's plans for another",
    Flag("-s", required=True, metavar="ID", help="dataset that the plans are from"),
    Flag("-t", required=True, metavar="ID", help="dataset that they are for; needs its fingerprint"),
    Flag("-sp", default=PLANS_NAME, metavar="NAME", help=PLANS.options["help"]),
    Flag("-tp", metavar="NAME", help="their name there (default: the same)"),
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
def move_plans_between_datasets(arguments: argparse.Namespace) -> None:
    from samunet import api

    path = api.move_plans_between_datasets(arguments.s, arguments.t, arguments.sp, arguments.tp)
    print(path)
    print(f"next: samunet_preprocess -d {quoted(path.parent.name)} -p {quoted(path.stem)}")


def _measuring(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :func:`samunet.api.extract_fingerprint`."""
    return {
        "clean": arguments.clean,
        "verify": arguments.verify_dataset_integrity,
        "no_groups": arguments.no_groups,
        "tolerate_geometry": arguments.tolerate_geometry,
        "num_workers": arguments.np,
    }


def _show(plans, arguments: argparse.Namespace) -> None:
    """Print :class:`samunet.plans.Plans` where ``--json`` asks for them; say that nothing was written where so."""
    from samunet.files import to_json

    if arguments.json:
        print(to_json(plans.model_dump()))
    if arguments.dry_run:
        print("nothing was written: run the command again without --dry_run", file=sys.stderr)


def _options(arguments: argparse.Namespace) -> PlannerOptions:
    from samunet.planning.planner import PlannerOptions

    return PlannerOptions(
        plans_name=arguments.overwrite_plans_name,
        gpu_memory_target_gb=arguments.gpu_memory_target,
        encoder=arguments.encoder,
        image_size=arguments.image_size,
        target_spacing=arguments.overwrite_target_spacing,
        window=arguments.window,
        adaptation=ADAPTATION.chosen(arguments),
        components=arguments.components,
        recipe=arguments.recipe,
    )
