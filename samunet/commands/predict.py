"""Commands about masks: predicting, averaging, postprocessing, scoring and showing them."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from samunet.commands.flags import (
    DEVICE,
    OVERWRITE,
    PLANS_NAME,
    WINDOW,
    WORKERS,
    checkpoint,
    finite,
    geometry,
)
from samunet.commands.table import Flag, Switch, command

_INPUT = (
    Flag(
        "-i",
        dest="source",
        type=Path,
        nargs="+",
        required=True,
        metavar="INPUT",
        help="a folder of images, one or several files, or a DICOM folder",
    ),
    Flag(
        "-o",
        dest="output",
        type=Path,
        required=True,
        metavar="OUTPUT",
        help="folder for the masks; for a single case also a file",
    ),
)
_PREDICTION = (
    Flag("-f", dest="folds", nargs="+", metavar="FOLD", help="folds to average (default: all that are finished)"),
    checkpoint(),
    DEVICE,
    Flag(
        "-step_size",
        type=finite,
        default=0.5,
        metavar="SHARE",
        help="distance of tiles as share of their side (default: 0.5); for slices larger than the network's input",
    ),
    Switch(
        "--disable_tta",
        dest="tta",
        sets=False,
        help="no averaging over mirrored or shifted images, nor over slices along several axes: faster",
    ),
    Switch(
        "--disable_postprocessing",
        dest="postprocessing",
        sets=False,
        help="leave out what samunet_find_best_configuration found to help",
    ),
    Switch("--save_probabilities", help="also write CASE.npz with the probabilities, (classes, z, y, x) in 16 bits"),
    Switch(
        "--save_uncertainty",
        help="also write images of the uncertainty, and quality.csv with a predicted Dice for every case",
    ),
    Switch("--continue_prediction", "--c", dest="skip_existing", help="keep masks that this model has made already"),
    OVERWRITE,
    geometry("where channels differ in origin or direction"),
    Flag(
        "-num_parts",
        type=int,
        default=1,
        metavar="N",
        help="divide the cases into N parts, for N processes or machines (default: 1)",
    ),
    Flag("-part_id", also=("part",), type=int, default=0, metavar="I", help="which part to predict, from 0"),
)
_GO_ON = "the same command with --continue_prediction goes on from here"
_SEE = (
    "[How a prediction goes](how_commands_work.md#how-a-prediction-goes), "
    "[Which masks are kept](how_commands_work.md#which-masks-are-kept), [Quality](../guide/quality.md)"
)


@command(
    "masks for a folder of images, or for single files",
    *_INPUT,
    Flag("-d", dest="dataset", metavar="ID", help="dataset the model was trained on"),
    Flag("-c", dest="configuration", metavar="CONFIGURATION", help="configuration, for example 2d"),
    Flag("-p", dest="plans_name", metavar="NAME", help="plans' name"),
    *_PREDICTION,
    description="Predict masks for a folder of images or for single files. Finds the model itself where only one fits.",
    examples=(
        "samunet_predict -i imagesTs -o preds",
        "samunet_predict -i scan.nii.gz -o mask.nii.gz",
        "samunet_predict -i imagesTs -o preds -d 027 -c 2d -f 0 1 2 --disable_tta",
    ),
    see=_SEE,
    go_on=_GO_ON,
)
def predict(**given: Any) -> None:
    _predict(**given)


@command(
    "masks with a model that lies anywhere",
    *_INPUT,
    Flag(
        "-m",
        dest="model_folder",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the model's folder, with plans.json and fold_0; it may have any name",
    ),
    *_PREDICTION,
    description="Predict masks with a model that is given by its folder. Needs no environment variable; pretrained "
    "weights, where the model needs some and has no copy of them, are looked for in samunet_checkpoints or "
    "~/.cache/samunet.",
    examples=("samunet_predict_from_modelfolder -i imagesTs -o preds -m /models/acdc",),
    see=_SEE,
    go_on=_GO_ON,
    calls=("predict",),
)
def predict_from_modelfolder(**given: Any) -> None:
    _predict(**given)


def _predict(source: list[Path], part_id: int, num_parts: int, **given: Any) -> None:
    from samunet import api

    api.predict(source[0] if len(source) == 1 else source, part=(part_id, num_parts), **given)


@command(
    "masks from the mean of saved probabilities",
    Flag(
        "-i",
        dest="folders",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="two or more folders made by samunet_predict --save_probabilities, of the same cases",
    ),
    Flag("-o", dest="output", type=Path, required=True, metavar="OUTPUT", help="another folder for the masks"),
    Switch("--save_npz", dest="save_probabilities", help="also write the mean probabilities as CASE.npz"),
    Flag(
        "-decoding",
        choices=("argmax", "dice"),
        default="argmax",
        help="dice: masks of the highest expected Dice (default: argmax)",
    ),
    OVERWRITE,
    WORKERS,
    description="Average the probabilities of several predictions of the same images, and write the masks. With "
    "regions the mean of the sigmoids is compared with one half, otherwise the largest mean wins.",
    examples=(
        "samunet_predict -i imagesTs -o first -d 027 -c 2d --save_probabilities",
        "samunet_predict -i imagesTs -o second -d 027 -c 2d_448 --save_probabilities",
        "samunet_ensemble -i first second -o both",
    ),
)
def ensemble(output: Path, **given: Any) -> None:
    from samunet import api

    print(f"{len(api.ensemble(output=output, **given))} masks written to {output}")


@command(
    "apply chosen postprocessing to a folder of masks",
    Flag("-i", dest="source", type=Path, required=True, metavar="MASKS", help="folder with the masks"),
    Flag("-o", dest="output", type=Path, required=True, metavar="OUTPUT", help="another folder for the results"),
    Flag(
        "-pp_json",
        dest="postprocessing",
        type=Path,
        metavar="FILE",
        help="what to apply (default: postprocessing.json in MASKS)",
    ),
    Flag("-dataset_json", type=Path, metavar="FILE", help="default: the one in MASKS, if there is one"),
    Flag("-plans_json", type=Path, metavar="FILE", help="accepted as in nnU-Net; not needed"),
    OVERWRITE,
    WORKERS,
    description="Write postprocessed copies of the masks of a folder. Not needed after samunet_predict, which does it "
    "itself. nnU-Net's file is a pickle, which can run code; samunet's is JSON and holds label values only.",
    examples=("samunet_apply_postprocessing -i masks -o final -pp_json postprocessing.json",),
)
def apply_postprocessing(output: Path, plans_json: Path | None, **given: Any) -> None:
    from samunet import api

    print(f"{len(api.apply_postprocessing(output=output, **given))} masks written to {output}")


def _millimetres(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more millimetres, got {text}")
    return value


def _label(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a foreground label is 1 or more, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


_FOLDERS = (
    Flag("references", metavar="gt_folder", type=Path, help="folder with the references (labelsTr, labelsTs)"),
    Flag(
        "predictions",
        metavar="pred_folder",
        type=Path,
        help="folder with the predictions, named like the references; endings may differ",
    ),
)
_EVALUATION = (
    Flag("-o", dest="output", type=Path, metavar="FILE", help="file to write (default: pred_folder/summary.json)"),
    WORKERS,
    Switch("--chill", dest="allow_missing", help="leave out references that have no prediction"),
    Switch(
        "--surface_metrics",
        help="also HD95, surface Dice and volume differences, in metrics.csv and metrics.json beside the summary",
    ),
    Flag(
        "-tolerance",
        type=_millimetres,
        default=2.0,
        metavar="MM",
        help="of the surface Dice, in millimetres (default: 2)",
    ),
    geometry("where a mask and its reference differ in origin or direction"),
    Switch("--json", help="print the summary as JSON instead of a table"),
)
_COMPARE = (
    "Compare predicted label maps with their references and write summary.json (nnU-Net's keys). A class that is in "
    "neither the prediction nor the reference of a case has no score for that case (null) and is left out of the "
    "means; a class that is predicted but not in the reference scores 0."
)
_SEE_QUALITY = "[Quality](../guide/quality.md)"


@command(
    "score predictions with the labels of the dataset they belong to",
    *_FOLDERS,
    Flag(
        "-djfile",
        dest="dataset_json",
        type=Path,
        metavar="FILE",
        help="dataset.json (default: the one in pred_folder, else the one beside gt_folder)",
    ),
    Flag("-pfile", type=Path, metavar="FILE", help="accepted as in nnU-Net; not needed"),
    *_EVALUATION,
    description=_COMPARE,
    examples=("samunet_evaluate_folder labelsTs preds",),
    see=_SEE_QUALITY,
    go_on="nothing was written",
    calls=("evaluate",),
)
def evaluate_folder(pfile: Path | None, **given: Any) -> None:
    _evaluate(**given)


@command(
    "score predictions without a dataset.json, given only the label values",
    *_FOLDERS,
    Flag(
        "-l",
        dest="labels",
        type=_label,
        nargs="+",
        required=True,
        metavar="VALUE",
        help="label values to score, 1 or more",
    ),
    *_EVALUATION,
    description=f"{_COMPARE} Voxels with other values than those of -l count as background.",
    examples=("samunet_evaluate_simple labelsTs preds -l 1 2 3",),
    see=_SEE_QUALITY,
    go_on="nothing was written",
    calls=("evaluate",),
)
def evaluate_simple(**given: Any) -> None:
    _evaluate(**given)


def _evaluate(json: bool, **given: Any) -> None:
    from samunet import api
    from samunet.errors import raise_failures
    from samunet.evaluation.summary import FAILED, format_table, labels_to_score, surface_table
    from samunet.files import to_json

    failures: dict = {}
    summary = api.evaluate(failures=failures, **given)
    metrics = summary.pop("surface_metrics", None)
    target = given["output"] or given["predictions"] / "summary.json"
    if json:
        print(to_json(summary).rstrip())
    else:
        known = ("predictions", "references", "dataset_json")
        named = None if "labels" in given else labels_to_score(*(given[name] for name in known))[0]
        print(format_table(summary, named))
        if metrics:
            print(f"\n{surface_table(metrics, named)}")
    print(f"written to {target}", file=sys.stderr)
    if metrics:
        print(f"written to {target.parent / 'metrics.csv'} and metrics.json", file=sys.stderr)
    raise_failures(failures, len(failures) + len(summary["metric_per_case"]), FAILED)


@command(
    "one self-contained page about a cross-validation or a prediction",
    Flag("source", help="a dataset (27, 027 or Dataset027_ACDC), a model's folder, or a folder of masks"),
    Flag(
        "-c",
        dest="configuration",
        default="2d",
        metavar="CONFIGURATION",
        help="of a dataset: configuration (default: 2d)",
    ),
    Flag(
        "-p", dest="plans_name", default=PLANS_NAME, metavar="NAME", help=f"of a dataset: plans (default: {PLANS_NAME})"
    ),
    Flag(
        "-i",
        dest="images",
        type=Path,
        metavar="IMAGES",
        help="of a prediction: its images (default: where they were when predicted)",
    ),
    Flag(
        "-n",
        dest="pictures",
        type=_count,
        default=6,
        metavar="N",
        help="cases to show in pictures, the worst by true or predicted Dice (default: 6)",
    ),
    WINDOW,
    Flag("-o", dest="output", type=Path, metavar="FILE", help="where to write (default: report.html in the folder)"),
    Switch("--json", help="print where the page was written as JSON"),
    description="Write report.html about a cross-validation (give a dataset, or a model's folder) or about a "
    "prediction (give the folder of masks): one file without anything from elsewhere, worst cases first.",
    examples=("samunet_report 027", "samunet_report preds"),
    see="[Quality](../guide/quality.md#reports)",
    go_on="nothing was written",
)
def report(json: bool, **given: Any) -> None:
    from samunet import api
    from samunet.files import to_json

    target = api.report(**given)
    if json:
        print(to_json({"report": str(target)}).rstrip())
    print(f"report written to {target}", file=sys.stderr)
