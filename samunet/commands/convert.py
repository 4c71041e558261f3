"""Commands that make raw datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from samunet.commands.flags import WORKERS, finite, geometry
from samunet.commands.table import Command, Flag, Group, Switch
from samunet.commands.table import command as _command
from samunet.errors import quoted

_SEE = "[Prepare a dataset](../guide/prepare.md)"
_TARGET = (
    Flag("--name", required=True, help="name of the dataset, such as Vessels"),
    Flag("--id", required=True, metavar="ID", help="its number, such as 12; both make Dataset012_Vessels"),
)
_LABELS = "names of the classes 1, 2, ... in this order; the last may be ignore"
_VALUES = (
    Flag("--labels", nargs="+", metavar="NAME", help=_LABELS),
    Flag(
        "--remap",
        nargs="*",
        action="extend",  # so that values below zero can be written: --remap=-1=0
        metavar="OLD=NEW",
        help="give values of the masks other numbers, such as 4=3 or '#ff0000=1', or --remap=-1=2 below 0; alone: "
        "number them in order",
    ),
)
_THRESHOLD = Flag(
    "--threshold", type=finite, metavar="T", help="make one class of all mask values above T, such as 127"
)
_PATIENTS = Flag(
    "--patient_pattern",
    metavar="REGEX",
    help=r"what of a case's name is its patient, such as 'p\d+' (of parentheses, the first): folds never divide a "
    "patient's cases",
)
_WRITING = (
    Switch("--overwrite", help="replace a dataset of the same name"),
    Switch("--dry_run", help="read everything, show the table, and write nothing"),
)


def command(summary: str, *flags: Flag | Group, **options: Any) -> Callable[[Callable], Command]:
    """As :func:`samunet.commands.table.command`, with flags and texts of every command that writes a dataset."""
    told = {"go_on": "nothing has been written; run the same command again", "see": _SEE}
    return _command(summary, *flags, *_WRITING, WORKERS, **(told | options))


@command(
    "a raw dataset from folders of images and masks",
    Flag(
        "images",
        help="a folder with its subfolders, or a pattern such as 'scans/{case}_ct.nii.gz', with {patient}, {channel} "
        "and * if need be. A folder with a DICOM series counts as an image",
    ),
    Flag(
        "masks", help="the same for masks; with {class} where each class has a file of its own: '{case}_{class}.nii.gz'"
    ),
    *_TARGET,
    Flag(
        "--channel_names",
        nargs="+",
        metavar="NAME[=TEXT]",
        help="what images show: CT, T2, ...; with {channel} in a pattern, NAME=TEXT gives the text of its file names",
    ),
    Flag(
        "--labels",
        nargs="+",
        metavar="NAME[=TEXT]",
        help=f"{_LABELS}; NAME=red or NAME=#ff0000 gives its colour in masks, or, with {{class}} in their pattern, the "
        "text of its files (several with commas, where they are joined: lung=leftMask,rightMask)",
    ),
    _VALUES[1],
    Switch(
        "--paint_in_order",
        help="with {class} or Slicer's segmentations: where classes overlap, later --labels cover earlier ones",
    ),
    Group(
        None,
        Flag(
            "--not_annotated",
            metavar="COLOUR",
            help="for scribbles: the colour (black, '#000000') or value of what nobody annotated. It becomes the "
            "ignore label, and background is what has a colour of its own: --labels background=blue liver=red",
        ),
        Switch(
            "--zero_is_not_annotated",
            help="the same for 0, or where no segment is drawn, as in label layers of Slicer or napari: --labels then "
            "names the values 1, 2, ..., one of them background",
        ),
    ),
    _THRESHOLD,
    _PATIENTS,
    Flag("--test_images", metavar="IMAGES", help="images to predict later, for imagesTs"),
    Flag("--test_masks", metavar="MASKS", help="their masks, for labelsTs"),
    geometry(),
    description="Make a dataset of images and their masks. All files are read first; then the dataset is written to "
    "samunet_raw, whole or not at all. The files given are never changed.",
    examples=(
        "samunet_make_dataset photos masks --name Vessels --id 12 --labels vessel",
        "samunet_make_dataset 'scans/{case}_ct.nii.gz' 'scans/{case}_liver.nii.gz' --name Liver --id 11 "
        "--channel_names CT",
        "samunet_make_dataset photos 'masks/{class}/{case}.png' --name Eyes --id 14 --labels cup disc",
        "samunet_make_dataset CXR_png 'ManualMask/{class}/{case}.png' --name Lungs --id 16 --labels "
        "lung=leftMask,rightMask",
    ),
    see=f"[How masks are read](how_commands_work.md#how-masks-are-read), {_SEE}",
)
def make_dataset(**given: Any) -> None:
    _make("make_dataset", given)


@command(
    "a task of the Medical Segmentation Decathlon as a raw dataset",
    Flag("-i", dest="folder", type=Path, required=True, metavar="FOLDER", help="the task, such as Task04_Hippocampus"),
    Flag("-overwrite_id", type=int, metavar="ID", help="another number than the task's"),
    geometry(),
    description="Make a dataset of a task of the Medical Segmentation Decathlon (http://medicaldecathlon.com). "
    "Several channels stay together in one file, as they come.",
    examples=("samunet_convert_MSD_dataset -i Task04_Hippocampus",),
)
def convert_MSD_dataset(**given: Any) -> None:
    _make("convert_MSD_dataset", given)


@command(
    "a task of nnU-Net v1 as a raw dataset",
    Flag("folder", metavar="input_folder", type=Path, help="the task, with imagesTr, labelsTr and dataset.json"),
    Flag("name", metavar="output_dataset_name", help="such as Dataset004_Hippocampus"),
    geometry(),
    description="Make a dataset of a task in nnU-Net v1's raw format. Label values with gaps are numbered in "
    "ascending order, with their names.",
    examples=("samunet_convert_old_nnUNet_dataset nnUNet_raw_data/Task017_Abdomen Dataset017_Abdomen",),
)
def convert_old_nnUNet_dataset(**given: Any) -> None:
    _make("convert_old_nnUNet_dataset", given)


@command(
    "the ACDC challenge's download as a raw dataset",
    Flag(
        "-i",
        dest="folder",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the download, its folder database, or a folder with patient001 and so on",
    ),
    Flag("--name", default="ACDC", help="name of the dataset, such as Vessels (default: ACDC)"),
    Flag("--id", default=27, metavar="ID", help="its number, such as 12 (default: 27)"),
    geometry(),
    description="Make a dataset of the ACDC challenge's download: the frames of end-diastole and end-systole that "
    "Info.cfg names, as patient001_frame01, by patient. The folder testing becomes imagesTs and labelsTs; phases in "
    "dataset.json says which case is which.",
    examples=("samunet_convert_ACDC_dataset -i ACDC",),
)
def convert_ACDC_dataset(**given: Any) -> None:
    _make("convert_ACDC_dataset", given)


@command(
    "pictures listed in finetune-SAM's CSV files as a raw dataset",
    Flag(
        "-img_folder",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder that the lists' paths of images are relative to",
    ),
    Flag(
        "-mask_folder",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder that the lists' paths of masks are relative to",
    ),
    Flag("-train_img_list", type=Path, required=True, metavar="CSV", help="training: IMAGE,MASK"),
    Flag("-val_img_list", type=Path, metavar="CSV", help="validation; makes the only fold"),
    Flag("-test_img_list", type=Path, metavar="CSV", help="test, for imagesTs and labelsTs"),
    *_TARGET,
    Flag("--channel_names", nargs="+", metavar="NAME", help="what images show (default: told by them)"),
    *_VALUES,
    _THRESHOLD,
    _PATIENTS,
    description="Make a dataset of pictures that are listed as for finetune-SAM: CSV files without a header whose "
    "lines are IMAGE,MASK, or separated by a tab. A case is called by its image's path with _ for /, without the "
    "folders that all have in common. Slices with an empty mask are kept, which finetune-SAM leaves out.",
    examples=(
        "samunet_convert_finetune_SAM_dataset -img_folder images -mask_folder masks -train_img_list train.csv "
        "-val_img_list val.csv --name Hip --id 31",
    ),
)
def convert_finetune_SAM_dataset(**given: Any) -> None:
    _make("convert_finetune_SAM_dataset", given)


@command(
    "SAMed's npz slices and h5 volumes as a raw dataset",
    Flag("--root_path", type=Path, required=True, metavar="FOLDER", help="train_npz"),
    Flag("--volume_path", type=Path, metavar="FOLDER", help="test_vol_h5, for imagesTs and labelsTs"),
    Flag("--list_dir", type=Path, metavar="FOLDER", help="take what train.txt and test_vol.txt there name"),
    *_TARGET,
    Flag("--channel_names", nargs=1, default=["image"], metavar="NAME", help="what images show (default: image)"),
    Flag(
        "--spacing",
        nargs=3,
        type=finite,
        default=(1.0, 1.0, 1.0),
        metavar=("Z", "Y", "X"),
        help="of all volumes in mm, which the files do not tell (default: 1 1 1)",
    ),
    *_VALUES,
    description="Make a dataset of SAMed's (and TransUNet's) folders. Slices case0005_slice000.npz, "
    "case0005_slice001.npz and so on become the volume case0005. HDF5 volumes need the package h5py.",
    examples=("samunet_convert_SAMed_dataset --root_path train_npz --volume_path test_vol_h5 --name Synapse --id 40",),
)
def convert_SAMed_dataset(**given: Any) -> None:
    _make("convert_SAMed_dataset", given)


def _make(function: str, given: dict[str, Any]) -> None:
    """Show the table; unless it is a dry run, write the dataset and tell what comes next."""
    from samunet import api, paths

    draft = getattr(api, function)(**given, show=lambda draft: print(draft.to_text(), flush=True))
    if given["dry_run"]:
        print("\nnothing was written: run the command again without --dry_run")
        return
    folder = paths.raw_folder_to_write() / draft.name
    print(f"\nwritten to {folder}")
    if draft.splits:
        print(f"its folds are the source's; for five folds: rm {quoted(folder / 'splits_final.json')}")
    print(f"next: samunet_plan_and_preprocess -d {paths.number_in(draft.name)} --verify_dataset_integrity")
