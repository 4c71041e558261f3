"""SAMed's setting: the Synapse multi-organ CTs in TransUNet's split, from the user's files to Dice and HD95 per organ.

    python benchmarks/synapse.py --data /data/Synapse --work /data/synapse_run --recipe samed
    python benchmarks/synapse.py --data /data/Synapse --work /data/synapse_run --recipe samunet

``--data`` takes one or several folders with TransUNet's preprocessed files (``train_npz`` and ``test_vol_h5``, which
SAMed uses as well; reading them needs h5py) or with the original BTCV download (``img`` and ``label``). See
``synapse_data.py`` for what is made of them. Nothing is downloaded but SAM's published weights, as by samunet_train.

Recipes: ``samed`` adapts ViT-B with LoRA at 512 px with SAMed's loss, optimiser, schedule and length (14,880 updates
of 24 images), on the files' own values on 0-1, and predicts without test-time augmentation. What differs
is in documentation/results/recipes.md.
``samunet`` is what samunet plans by itself. Both train on all 18 training cases, and their last model is tested:
nothing is chosen on the 12 test cases.

The scores are averaged as SAMed and TransUNet average theirs: over all test volumes for each organ, then over organs;
HD95 in voxels, whatever the spacing. There a volume without an organ counts as Dice 1 and HD95 0 if some is predicted,
and as Dice 0 and HD95 0 if none is; so does an organ that is missed. Beside it stands a stricter average: Dice without
the volumes where an organ is in neither mask, 0 where it is in one of them; HD95 where it is in both.

The same command goes on where it was interrupted. Everything is written below ``--work``.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from synapse_data import DATASET, ORDERS, ORGANS, prepare

from samunet.commands.table import VERBOSE, run
from samunet.errors import UsageError
from samunet.files import read_json, write_json

if TYPE_CHECKING:
    from samunet.plans import Plans

RECIPES = {"samed": "samedPlans", "samunet": "samunetPlans"}
SAMED_ITERATIONS = 14_880  # 160 epochs of 2,211 slices, 24 at a time, the last 3 by themselves

log = logging.getLogger("samunet.synapse")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="with your files")
    parser.add_argument(
        "--work", type=Path, required=True, metavar="FOLDER", help="for datasets, models, masks, scores"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="samed", help="how to train (default: samed)")
    parser.add_argument("--labels", choices=("auto", *ORDERS), default="auto", help="order of the label values")
    parser.add_argument("--encoder", help="default: vit_b with samed; else what this machine allows")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="base weights: any file in SAM's layout")
    parser.add_argument("--image_size", type=int, metavar="PX", help="default: 512 with samed; else as planned")
    parser.add_argument("--gpu_memory_target", type=float, default=8.0, metavar="GB", help="of a step (default: 8)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--iterations", type=int, metavar="N", help="updates (default: SAMed's, or as planned)")
    length.add_argument("--time_budget", metavar="T", help="length of the training as time: 90s, 20m, 1.5h")
    parser.add_argument("--batch_size", type=int, metavar="N", help="images per update (default: as planned)")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--num_workers", type=int, metavar="N", help="processes that prepare data")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    parser.add_argument("--prepare_only", action="store_true", help="stop when the dataset is made")
    VERBOSE.add_to(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet.files import make_folder

    work = make_folder(arguments.work.expanduser().resolve())
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"samunet_{name}"] = str(make_folder(work / name))
    dataset = prepare(arguments.data, work / "raw", arguments.labels)
    if arguments.prepare_only:
        print(f"dataset: {dataset}")
        return
    _plan(arguments)
    fold = _train(arguments)
    predictions = work / "predictions" / RECIPES[arguments.recipe]
    _predict(arguments, fold, dataset, predictions)
    scores = score_folder(predictions, dataset / "labelsTs")
    run = read_json(fold / "run.json")
    facts = {key: run[key] for key in ("encoder", "seed", "base", "versions") if key in run}
    file = work / f"scores_{arguments.recipe}.json"
    write_json(file, {"recipe": arguments.recipe, **facts, "model": str(fold), **average(scores), "cases": scores})
    print(format_scores(scores))
    print(f"written to {file}", file=sys.stderr)


def _plan(arguments: argparse.Namespace) -> None:
    from samunet import api
    from samunet.planning.planner import BUNDLED

    samed = arguments.recipe == "samed"
    options = api.PlannerOptions(
        plans_name=RECIPES[arguments.recipe],
        gpu_memory_target_gb=arguments.gpu_memory_target,
        encoder=arguments.encoder or ("vit_b" if samed else "auto"),
        image_size=arguments.image_size,
        recipe=arguments.recipe,
    )
    if samed and arguments.encoder == BUNDLED:
        raise UsageError("SAMed's recipe trains a pretrained SAM", "use --encoder vit_b, or --recipe samunet")
    plans = api.plan_and_preprocess(DATASET, options, store=False, num_workers=arguments.num_workers)
    if samed:
        _values_as_they_are(plans).write(
            Path(os.environ["samunet_preprocessed"]) / DATASET / f"{plans.plans_name}.json"
        )
    api.preprocess(DATASET, plans_name=plans.plans_name, num_workers=arguments.num_workers)


def _values_as_they_are(plans: Plans) -> Plans:
    """The files' own values on 0-1, as SAMed's network gets them, instead of another clipping by percentiles."""
    configurations = {name: dict(configuration) for name, configuration in plans.configurations.items()}
    why = configurations["2d"]["why"] | {"normalization": "HU from -125 to 275 are on 0-1 already, as in SAMed"}
    configurations["2d"] |= {"normalization": ["nonorm"], "windows": None, "why": why}
    return plans.changed(configurations=configurations)


def _train(arguments: argparse.Namespace) -> Path:
    from samunet import api
    from samunet.models.folder import ModelFolder, model_folder_name
    from samunet.training.schedule import parse_duration
    from samunet.workers import default_workers

    plans_name = RECIPES[arguments.recipe]
    seconds = parse_duration(arguments.time_budget) if arguments.time_budget else None
    iterations = arguments.iterations
    if arguments.recipe == "samed" and iterations is None and seconds is None:
        iterations = SAMED_ITERATIONS
    options = api.TrainingOptions(
        encoder=arguments.encoder,
        checkpoint=arguments.checkpoint,
        iterations=iterations,
        seconds=seconds,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_workers=default_workers() if arguments.num_workers is None else arguments.num_workers,
        device=arguments.device,
    )
    model = ModelFolder(Path(os.environ["samunet_results"]) / DATASET / model_folder_name(plans_name, "2d"))
    fold = model.fold("all")
    if (fold / "checkpoint_final.safetensors").is_file():
        log.info("%s is trained already; delete it to train anew", fold)
        return fold
    return api.train(DATASET, "2d", "all", options, plans_name)


def _predict(arguments: argparse.Namespace, fold: Path, dataset: Path, output: Path) -> None:
    from samunet import api

    trained = (fold / "checkpoint_final.safetensors").stat().st_mtime
    if any(file.stat().st_mtime < trained for file in output.glob("*.nii.gz")):
        shutil.rmtree(output)  # masks of an earlier model
    tta = arguments.recipe == "samunet"
    options = api.PredictionOptions(device=arguments.device, tta=tta, skip_existing=True)
    api.predict(
        dataset / "imagesTs", output, dataset=DATASET, configuration="2d", plans_name=RECIPES[arguments.recipe],
        folds=["all"], options=options,
    )  # fmt: skip


def score_folder(predictions: Path, references: Path) -> dict[str, dict[str, dict]]:
    """Scores by case and organ; see :func:`score`."""
    import SimpleITK as sitk

    scores = {}
    for file in sorted(references.glob("*.nii.gz")):
        reference = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        prediction = sitk.GetArrayFromImage(sitk.ReadImage(str(predictions / file.name)))
        name = file.name.removesuffix(".nii.gz")
        log.info("scoring %s", name)
        scores[name] = {
            organ: score(prediction == value, reference == value) for value, organ in enumerate(ORGANS, start=1)
        }
    return scores


def score(prediction: np.ndarray, reference: np.ndarray) -> dict:
    """Dice and HD95 of one organ in one volume.

    Args:
        prediction, reference: Boolean, of one shape.

    Returns:
        ``dice`` and ``hd95`` (None where they do not exist: in neither mask; not in both), and ``samed_dice`` and
        ``samed_hd95``, with what SAMed puts in their place.
    """
    predicted, present = bool(prediction.any()), bool(reference.any())
    if predicted and present:
        dice = 2 * float((prediction & reference).sum()) / float(prediction.sum() + reference.sum())
        distance = hd95(prediction, reference)
        return {"dice": dice, "hd95": distance, "samed_dice": dice, "samed_hd95": distance}
    dice = 0.0 if predicted or present else None
    return {"dice": dice, "hd95": None, "samed_dice": 1.0 if predicted else 0.0, "samed_hd95": 0.0}


def hd95(first: np.ndarray, second: np.ndarray) -> float:
    """The 95th percentile of the distances, in voxels, from each surface's voxels to the other surface.

    As in medpy, which SAMed uses: a surface voxel has a face neighbour outside the mask or lies on the volume's border,
    and the distances of both directions are taken together.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

    # Erosion and distances need no more than what lies around both masks.
    either = np.argwhere(first | second)
    low, high = np.maximum(either.min(0) - 1, 0), either.max(0) + 2
    box = tuple(slice(a, b) for a, b in zip(low, high))
    faces = generate_binary_structure(first.ndim, 1)
    surfaces = [mask[box] & ~binary_erosion(mask[box], faces) for mask in (first, second)]
    distances = [distance_transform_edt(~other)[one] for one, other in (surfaces, surfaces[::-1])]
    return float(np.percentile(np.concatenate(distances), 95))


def average(scores: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """Means over volumes of each organ, and over organs; NaN where nothing is to be averaged."""
    keys = ("samed_dice", "samed_hd95", "dice", "hd95")
    organs = {}
    for organ in ORGANS:
        values = {key: [case[organ][key] for case in scores.values() if case[organ][key] is not None] for key in keys}
        organs[organ] = {key: float(np.mean(numbers)) if numbers else math.nan for key, numbers in values.items()}
    means = {}
    for key in keys:
        numbers = [organ[key] for organ in organs.values() if not math.isnan(organ[key])]
        means[key] = float(np.mean(numbers)) if numbers else math.nan
    return {"mean": means, "organs": organs}


def format_scores(scores: dict[str, dict[str, dict]]) -> str:
    """The table that is printed."""
    averages = average(scores)
    lines = [
        f"{len(scores)} test volumes; Dice in percent, HD95 in voxels",
        "",
        f"{'':<14}|{'as SAMed averages':^19}|{'where defined':^19}",
        f"{'organ':<14}|{'Dice':>9}{'HD95':>9} |{'Dice':>9}{'HD95':>9}",
    ]
    for name, row in [*averages["organs"].items(), ("mean", averages["mean"])]:
        columns = (100 * row["samed_dice"], row["samed_hd95"], 100 * row["dice"], row["hd95"])
        cells = [f"{'-':>9}" if math.isnan(value) else f"{value:>9.2f}" for value in columns]
        lines.append(f"{name:<14}|{cells[0]}{cells[1]} |{cells[2]}{cells[3]}")
    return "\n".join([
        *lines,
        "",
        "SAMed and TransUNet: mean over all volumes, then over organs. A volume without the organ counts as Dice 100,",
        "HD95 0 if some is predicted, and as Dice 0, HD95 0 if none is; a missed organ as Dice 0, HD95 0.",
        "Where defined: Dice without volumes where the organ is in neither mask; HD95 where it is in both.",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
