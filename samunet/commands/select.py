"""Commands that choose between trained models."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from samunet.commands.flags import DATASET, DEVICE, PLANS, SEED, WORKERS, checkpoint, finite, geometry
from samunet.commands.table import Flag, Switch, command

_FOLDS = Flag("-f", dest="folds", nargs="+", metavar="FOLD", help="folds (default: all of the dataset)")


@command(
    "the validation masks of all folds in one folder, scored together",
    DATASET,
    Flag("-c", dest="configuration", default="2d", metavar="CONFIGURATION", help="configuration (default: 2d)"),
    Flag(
        "-o",
        dest="output",
        type=Path,
        metavar="OUTPUT",
        help="new or empty folder (default: crossval_results_folds_0_1_… beside the folds, which is replaced)",
    ),
    _FOLDS,
    PLANS,
    Switch("--json", help="print the summary as JSON instead of a table"),
    WORKERS,
    description="Gather the validation masks of a model's folds in one folder and score them together: each case as "
    "it was predicted by the fold that had not seen it. Only cases that splits_final.json names count. A fold that "
    "was trained on a case which it would validate by now is an error, and so is a case that two folds validate.",
    examples=("samunet_accumulate_crossval_results 027 -c 2d_448 -f 0 1 2",),
)
def accumulate_crossval_results(json: bool, **given: Any) -> None:
    from samunet import api
    from samunet.evaluation.summary import format_table
    from samunet.files import to_json

    summary = api.accumulate_crossval_results(**given)
    if json:
        print(to_json(summary).rstrip())
        return
    print(format_table(summary))
    print(f"masks: {Path(summary['metric_per_case'][0]['prediction_file']).parent}")


@command(
    "compare what is trained by its cross-validation, and record how to predict",
    DATASET,
    Flag("-p", dest="plans_names", nargs="+", metavar="NAME", help="names of plans (default: all that are trained)"),
    Flag(
        "-c",
        dest="configurations",
        nargs="+",
        metavar="CONFIGURATION",
        help="configurations (default: all that are trained); one that is named and not finished is an error",
    ),
    _FOLDS,
    Switch("--disable_ensembling", dest="ensembling", sets=False, help="do not look at pairs of configurations"),
    Switch(
        "--disable_dice_decoding",
        dest="dice_decoding",
        sets=False,
        help="do not try masks of the highest expected Dice",
    ),
    Switch("--no_overwrite", dest="overwrite", sets=False, help="keep cross-validation results that are there already"),
    Switch("--json", help="print inference_information.json instead of the table"),
    WORKERS,
    description="Compare all trained configurations and their pairs by the Dice of cases that they had not seen, "
    "choose postprocessing for the best, and write the commands that predict with it.",
    examples=("samunet_find_best_configuration 027",),
    see="[How the best is found](how_commands_work.md#how-the-best-is-found), [After "
    "training](../guide/after_training.md)",
)
def find_best_configuration(json: bool, **given: Any) -> None:
    from samunet import api, paths
    from samunet.files import to_json
    from samunet.models.choose import INSTRUCTIONS

    information = api.find_best_configuration(**given)
    if json:
        print(to_json(information).rstrip())
        return
    print("\n".join(information["report"]))
    print(f"\npostprocessing: {information['best_model_or_ensemble']['postprocessing']}")
    print("to predict:")
    for words in information["commands"]:
        print(f"  {shlex.join(words)}")
    print(f"written to: {paths.results_folder() / information['dataset_name_or_id'] / INSTRUCTIONS}")


@command(
    "which postprocessing helps a folder of masks",
    Flag("-i", dest="predictions", type=Path, required=True, metavar="MASKS", help="folder with the masks"),
    Flag(
        "-ref",
        dest="references",
        type=Path,
        required=True,
        metavar="LABELS",
        help="folder with their labels; labels without a mask are left out",
    ),
    Flag("-dataset_json", type=Path, metavar="FILE", help="default: the one in MASKS"),
    Flag("-plans_json", type=Path, metavar="FILE", help="accepted as in nnU-Net; not needed"),
    Switch(
        "--remove_postprocessed",
        dest="keep_masks",
        sets=False,
        help="write no postprocessed masks, only postprocessing.json",
    ),
    geometry("where a mask and its label differ in origin or direction"),
    WORKERS,
    description="Find which largest components to keep, from masks of cases that the model had not seen, and write "
    "postprocessing.json into their folder.",
    examples=('samunet_determine_postprocessing -i masks -ref "$samunet_raw/Dataset027_ACDC/labelsTr"',),
    see="[How the best is found](how_commands_work.md#how-the-best-is-found)",
)
def determine_postprocessing(predictions: Path, plans_json: Path | None, **given: Any) -> None:
    from samunet import api
    from samunet.evaluation.bootstrap import mean_dice
    from samunet.inference.postprocessing import FILE_NAME

    chosen = api.determine_postprocessing(predictions=predictions, **given)
    print(f"postprocessing: {chosen.postprocessing.describe()}")
    print(f"mean Dice: {mean_dice(chosen.before):.4f} without, {mean_dice(chosen.after):.4f} with")
    print(f"written to: {predictions / FILE_NAME}")


@command(
    "which images or slices to label next, with files to edit",
    DATASET,
    Flag(
        "-i",
        dest="source",
        type=Path,
        nargs="+",
        required=True,
        metavar="POOL",
        help="images to choose from: a folder, or files; those that are labelled in the dataset are left out",
    ),
    Flag(
        "-o",
        dest="output",
        type=Path,
        default=Path("next"),
        metavar="OUTPUT",
        help="folder for next.csv and the files to edit (default: next); unedited ones of an earlier call are replaced",
    ),
    Flag("-n", dest="number", type=int, default=10, metavar="N", help="how many to choose (default: 10)"),
    Flag(
        "--unit", default="case", help="case (default) or slice: the prediction on the chosen slices, the rest ignored"
    ),
    Flag(
        "--strategy",
        default="auto",
        metavar="NAME",
        help="uncertainty, variety, random_foreground or auto (default): uncertainty, and variety with fewer than five "
        "labelled cases",
    ),
    Flag("--round", type=int, default=1, metavar="R", help="which of the planned rounds of labelling this is, from 1"),
    Flag("--rounds", type=int, default=1, metavar="N", help="how many are planned: chance has more say in the first"),
    SEED,
    Flag("-c", dest="configuration", metavar="CONFIGURATION", help="of the model that is asked, for example 2d"),
    Flag("-p", dest="plans_name", metavar="NAME", help="its plans' name"),
    Flag("-f", dest="folds", nargs="+", metavar="FOLD", help="its folds (default: all that are finished)"),
    checkpoint(),
    DEVICE,
    Flag(
        "-step_size",
        type=finite,
        default=0.5,
        metavar="SHARE",
        help="distance of tiles as share of their side (default: 0.5); for slices larger than the network's input",
    ),
    Switch("--disable_tta", dest="tta", sets=False, help="no averaging over mirrored or shifted images: faster"),
    geometry(),
    Switch("--json", help="print the choice as JSON instead of a table"),
    description="Ask a trained model which images of a pool to label next. Writes a ranked table, next.csv, and for "
    "every chosen image a file to edit: the prediction, with the ignore label on everything that was not chosen. "
    "Corrected and copied into labelsTr, they train as they are.",
    examples=("samunet_next 027 -i pool -n 10", "samunet_next 027 -i pool -n 40 --unit slice --round 2 --rounds 5"),
    see="[Label next](../guide/label_next.md)",
    calls=("label_next",),
)
def next(dataset: str, source: list[Path], json: bool, **given: Any) -> None:
    from samunet import api
    from samunet.files import to_json
    from samunet.selection.label_next import TABLE, place_of
    from samunet.tables import number, text_table

    found = api.label_next(dataset, source[0] if len(source) == 1 else source, **given)
    if json:
        print(to_json(found).rstrip())
        return
    head = ["rank", "label next", "chosen for", "entropy", "distance", "predicted Dice", "by chance instead"]
    rows = [
        [str(row["rank"]), place_of(row), row["chosen_for"], *(number(row[key]) for key in _FIGURES), place_of(other)]
        for row, other in zip(found["chosen"], found["random_foreground"])
    ]
    print("\n".join(text_table(head, rows, left=3)))
    print(f"\nfiles to edit and {TABLE}: {given['output']}")
    print("when they are corrected:")
    if found["ignore_is_new"]:
        description = Path(found["labels_folder"]).parent / "dataset.json"
        print(f'  write "ignore": {found["ignore"]} into labels of {description}: voxels without annotation')
    print(f"  copy them into {found['labels_folder']}")
    if any(row["copy_images_to"] for row in found["chosen"]):
        print(f"  copy their images into {found['images_folder']}, named as in {TABLE} (copy_images_to)")
    print(f"  samunet_add_cases -d {dataset}")


_FIGURES = ("entropy", "distance", "predicted_Dice")
