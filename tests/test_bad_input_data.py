"""What bad input does, row by row: folders, dataset.json, files, splits, planning and preprocessing."""

import numpy as np
import pytest
from bad_input import (
    PLAN,
    PLANS,
    STORE,
    Row,
    both,
    change,
    check,
    copy,
    drop,
    full_disk,
    image,
    locked,
    make_folder,
    make_project,
    move,
    nothing,
    pictures,
    plan,
    raw,
    remove,
    truncate,
    variable,
    voxel,
    write,
)

pytestmark = pytest.mark.full_network

project = pytest.fixture(make_project)

JSON = "raw/*/dataset.json"
IMAGE = "raw/*/imagesTr/case_2_0000.nii.gz"
LABEL = "raw/*/labelsTr/case_2.nii.gz"
PICTURES = "plan_and_preprocess -d 997 -image_size 32"
BASICS = ("preprocessed/*/dataset.json", "preprocessed/*/splits_final.json")
ALL = "preprocessed/*/*"
STORED = "preprocessed/*/samunetPlans_2d/"

FOLDERS = [
    Row("unknown id", nothing, "plan_and_preprocess -d 5", ("no dataset 5", "Dataset998_Tiny"), 2, repaired=False),
    Row("unknown name", nothing, "train Dataset005_Liver 2d 0", ("Dataset005_Liver", "exist"), 2, repaired=False),
    Row("two datasets of one number", make_folder("raw/Dataset998_Other"), PLAN,
        ("Dataset998_Other", "Dataset998_Tiny", "full name"), 2, repaired=False),
    Row("raw folder not set", variable(samunet_raw=None, nnUNet_raw=None), PLAN, ("samunet_raw", "export")),
    Row("preprocessed folder not set", variable(samunet_preprocessed=None), PLAN, ("samunet_preprocessed", "export")),
    Row("results folder not set", variable(samunet_results=None), "train 998 2d 1 --iterations 1",
        ("samunet_results", "export")),
    Row("no folder set", variable(samunet_raw=None, samunet_preprocessed=None, samunet_results=None), PLAN,
        ("samunet_raw", "export"), 2),
    Row("raw folder does not exist", variable(samunet_raw="{root}/nowhere"), PLAN,
        ("nowhere", "samunet_raw", "export")),
    Row("raw folder is a file", both(write("file", ""), variable(samunet_raw="{root}/file")), PLAN,
        ("{root}/file", "not a folder", "export samunet_raw")),
    Row("results folder lies below a file", both(write("file", ""), variable(samunet_results="{root}/file/results")),
        "train 998 2d 1 --iterations 1", ("samunet_results", "cannot be created", "export")),
    Row("preprocessed folder is a new relative path", variable(samunet_preprocessed="new/folder"), PLAN,
        ("samunet_preprocessed", "relative", "export samunet_preprocessed={root}/new/folder")),
    Row("home of an unknown user", variable(samunet_results="~nobody_of_this_name/results"), PLAN,
        ("~nobody_of_this_name", "whole path")),
    Row("raw dataset is gone", remove("raw/Dataset998_Tiny"), PLAN, ("Dataset998_Tiny", "{root}/raw", "samunet_raw")),
]  # fmt: skip

DESCRIPTION = [
    Row("missing", remove(JSON), PLAN, ("no dataset.json in", "channel_names")),
    Row("not JSON", write(JSON, '{"labels": {,}}'), PLAN, ("dataset.json", "line 1")),
    Row("not text", write(JSON, b"\xff\xfd\x00\x81"), PLAN, ("dataset.json", "text")),
    Row("a list", write(JSON, "[]"), PLAN, ("dataset.json", "object", "channel_names")),
    Row("lacks labels", drop(JSON, "labels"), PLAN, ("dataset.json", "lacks labels", "channel_names")),
    Row("lacks channel_names and file_ending", both(drop(JSON, "channel_names"), drop(JSON, "file_ending")), PLAN,
        ("dataset.json", "channel_names, file_ending")),
    Row("channel_names is a list", raw("channel_names", ["MRI"]), PLAN, ("channel_names", '{{"0": "T1"')),
    Row("channels counted from 1", raw("channel_names", {"1": "MRI"}), PLAN, ("channel_names", "keys 0")),
    Row("numTraining is text", raw("numTraining", "6"), PLAN, ("numTraining", "'6'")),
    Row("numTraining is wrong", raw("numTraining", 7), PLAN, ("numTraining", "7", "6")),
    Row("file_ending without dot", raw("file_ending", "nii.gz"), PLAN, ("file_ending", "dot", ".nii.gz")),
    Row("file_ending nobody reads", raw("file_ending", ".docx"), PLAN, ("file_ending", ".docx", ".nii.gz")),
    Row("labels is a list", raw("labels", ["background", "organ"]), PLAN, ("labels", "background")),
    Row("labels not consecutive", raw("labels", {"background": 0, "organ": 1, "core": 3}), PLAN, ("labels", "2")),
    Row("background is not 0", raw("labels", {"background": 1, "organ": 0, "core": 2}), PLAN, ("background", "0")),
    Row("no background", raw("labels", {"organ": 1, "core": 2}), PLAN, ("labels", "background")),
    Row("two labels with one value", raw("labels", {"background": 0, "organ": 1, "core": 1}), PLAN,
        ("labels", "[0, 1, 1]")),
    Row("a label that is text", raw("labels", {"background": 0, "organ": "one"}), PLAN, ("organ", "'one'")),
    Row("only background", raw("labels", {"background": 0}), PLAN, ("labels", "background")),
    Row("regions without order", raw("labels", {"background": 0, "all": [1, 2], "core": 2}), PLAN,
        ("regions_class_order", "missing")),
    Row("regions in the wrong order", both(raw("labels", {"background": 0, "core": 2, "all": [1, 2]}),
        raw("regions_class_order", [2, 1])), PLAN, ("regions_class_order", "core", "largest")),
    Row("region order of the wrong length", both(raw("labels", {"background": 0, "all": [1, 2], "core": 2}),
        raw("regions_class_order", [1])), PLAN, ("regions_class_order", "[1]")),
    Row("groups lack a case", raw("groups", {"case_0": "a"}), "extract_fingerprint -d 998", ("groups", "case_1"),
        repaired=False),
]  # fmt: skip

FILES = [
    Row("a case without label", remove(LABEL), PLAN, ("case_2.nii.gz", "without label")),
    Row("a label without case", remove(IMAGE), PLAN, ("case_2", "without image")),
    Row("a surplus channel", copy(IMAGE, "case_2_0001.nii.gz"), PLAN, ("case_2", "0001", "MRI")),
    Row("a missing channel", move(IMAGE, "case_2_0001.nii.gz"), PLAN, ("case_2", "0001", "_0000")),
    Row("an image without channel number", move(IMAGE, "case_2.nii.gz"), PLAN, ("case_2.nii.gz", "_0000")),
    Row("no training images", remove("raw/*/imagesTr/*.nii.gz"), PLAN, ("imagesTr", "empty", ".nii.gz")),
    Row("no folder imagesTr", remove("raw/*/imagesTr"), PLAN, ("imagesTr", "missing")),
    Row("no folder labelsTr", remove("raw/*/labelsTr"), PLAN, ("labelsTr", "missing")),
    Row("files of another ending", raw("file_ending", ".nrrd"), PLAN, ("labelsTr lacks case_0.nrrd",)),
    Row("two files of one case", copy(IMAGE, "case_2_0000.nii"), PLAN,
        ("case_2_0000.nii and case_2_0000.nii.gz", "keep one")),
    Row("an empty image", write(IMAGE, ""), PLAN, ("case_2_0000.nii.gz", "empty", "again")),
    Row("a truncated image", truncate(IMAGE), PLAN, ("case_2_0000.nii.gz", "truncated", "again")),
    Row("a truncated label", truncate(LABEL, 0.9), PLAN, ("case_2.nii.gz", "truncated", "again")),
    Row("text instead of an image", write(IMAGE, "not an image " * 40), PLAN, ("case_2_0000.nii.gz", "NIfTI", "again")),
    Row("an image that may not be read", both(remove(STORED + "case_2*"), locked(IMAGE, 0)), STORE,
        ("case_2_0000.nii.gz", "Permission denied"), repaired=False),
    Row("a folder instead of an image", both(remove(IMAGE), make_folder(
        "raw/Dataset998_Tiny/imagesTr/case_2_0000.nii.gz")), PLAN, ("case_2.nii.gz", "without image"), repaired=False),
    Row("label of another shape", image(LABEL, voxels=lambda array: array[:, :-2]), PLAN,
        ("case_2.nii.gz", "shape", "resample")),
    Row("label of another spacing", image(LABEL, spacing=(1.5, 1.5, 3.0)), PLAN,
        ("case_2.nii.gz", "spacing", "header")),
    Row("label at another place", image(LABEL, origin=(40.0, 0.0, 0.0)), PLAN,
        ("case_2.nii.gz", "origin", "--tolerate_geometry")),
    Row("label turned", image(LABEL, direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)), PLAN,
        ("case_2.nii.gz", "direction", "--tolerate_geometry")),
    Row("NaN voxels", image(IMAGE, voxels=voxel(np.nan)), PLAN, ("case_2_0000.nii.gz", "NaN", "nan_to_num")),
    Row("infinite voxels", image(IMAGE, voxels=voxel(np.inf)), PLAN, ("case_2_0000.nii.gz", "infinite", "nan_to_num")),
    Row("a label value that dataset.json lacks", image(LABEL, voxels=voxel(7)), PLAN, ("case_2", "7", "dataset.json")),
    Row("a negative label value", image(LABEL, voxels=lambda array: voxel(-1)(array.astype(np.int16))), PLAN,
        ("case_2", "-1")),
    Row("a fractional label value", image(LABEL, voxels=lambda array: voxel(0.5)(array.astype(np.float32))), PLAN,
        ("case_2.nii.gz", "0.5", "nearest-neighbour")),
    Row("no foreground anywhere", both(*(image(f"raw/*/labelsTr/case_{index}.nii.gz", voxels=np.zeros_like)
        for index in range(6))), PLAN, ("foreground", "annotate")),
    Row("a picture's mask of 0 and 255", pictures(high=255), PICTURES, ("255", "p0", "dataset.json"),
        writes=BASICS, repaired=False),
    Row("pictures with transparency", pictures("RGBA"), PICTURES, ("p0_0000.png", "alpha"),
        writes=BASICS, repaired=False),
    Row("a mask in colour", pictures(label_mode="RGB", high=(200, 30, 30)), PICTURES, ("p0.png", "colour"),
        writes=BASICS, repaired=False),
    Row("masks saved as JPEG", pictures(label_ending=".jpg"), PICTURES, ("labelsTr lacks p0.png",), repaired=False),
]  # fmt: skip

SPLITS = "preprocessed/*/splits_final.json"
PLANNING = [
    Row("folds that overlap", change(SPLITS, "1.val", ["case_0", "case_1"]), PLAN,
        ("splits_final.json", "fold 1", "rm ")),
    Row("folds with an unknown case", change(SPLITS, "2.train", ["case_77"]), "train 998 2d 1 --iterations 1",
        ("splits_final.json", "case_77", "rm ")),
    Row("a fold without validation", change(SPLITS, "0.val", []), PLAN, ("splits_final.json", "fold 0", "validate")),
    Row("folds not JSON", write(SPLITS, "fold 0: all"), PLAN, ("splits_final.json", "not valid JSON")),
    Row("folds of the wrong form", write(SPLITS, '{"train": []}'), PLAN, ("splits_final.json", "train", "rm ")),
    Row("fingerprint missing", remove("preprocessed/*/dataset_fingerprint.json"), "plan_experiment -d 998",
        ("no fingerprint", "samunet_extract_fingerprint -d 998")),
    Row("fingerprint truncated", truncate("preprocessed/*/dataset_fingerprint.json"), "plan_experiment -d 998",
        ("dataset_fingerprint.json", "not valid JSON"), writes=(ALL,)),
    Row("fingerprint of another program", write("preprocessed/*/dataset_fingerprint.json", "{}"),
        "plan_experiment -d 998", ("dataset_fingerprint.json", "--clean"), writes=(ALL,)),
    Row("unknown encoder", nothing, PLAN + " -encoder vit_x", ("vit_x", "vit_b"), 2, repaired=False),
    Row("input no multiple of the patch", nothing, "plan_and_preprocess -d 998 -image_size 33", ("33", "16"), 2,
        repaired=False),
    Row("no memory at all", nothing, PLAN + " -gpu_memory_target 0", ("gpu_memory_target", "0"), 2, repaired=False),
    Row("negative spacing asked for", nothing, PLAN + " -overwrite_target_spacing 3 -1 1", ("-1",), 2, repaired=False),
    Row("a 3D configuration", nothing, PLAN + " -c 3d_fullres", ("3d_fullres", "2d"), 2, repaired=False),
    Row("a negative number of processes", nothing, PLAN + " --clean -np -3", ("-np", "-3"), 2, repaired=False),
    Row("a number of processes that is text", nothing, PLAN + " -np many", ("-np", "many"), 2, repaired=False),
    Row("plans missing", remove(PLANS), STORE, ("samunetPlans", "samunet_plan_experiment -d 998"), repaired=False),
    Row("plans truncated", truncate(PLANS), STORE, ("samunetPlans.json", "not valid JSON")),
    Row("plans with an unknown key", plan("batch", 4), STORE,
        ("samunetPlans.json", "batch", "samunet_plan_experiment")),
    Row("plans without a key", plan("networks", {}), STORE,
        ("samunetPlans.json", "networks", "samunet_plan_experiment")),
    Row("plans that mirror axis 5", plan("mirror_axes", [5]), STORE, ("mirror_axes", "5", "samunet_plan_experiment")),
    Row("plans with axes [0, 0, 1]", change(PLANS, "transpose_forward", [0, 0, 1]), STORE,
        ("samunetPlans.json", "transpose_forward", "[0, 0, 1]")),
    Row("plans with negative spacing", plan("spacing", [-1.0, 1.0]), STORE, ("samunetPlans.json", "spacing", "-1")),
    Row("plans with an input of 30 px", plan("networks.small.input_shape", [30, 32]), STORE,
        ("samunetPlans.json", "networks.small.input_shape", "16", "[30, 32]")),
    Row("plans with batch size 0", plan("networks.small.batch_size", 0), STORE, ("networks.small.batch_size", "0")),
    Row("plans with an unknown normalisation", plan("normalization", ["z"]), STORE, ("normalization", "'z'", "zscore")),
    Row("plans with normalisations for two channels", plan("normalization", ["zscore", "zscore"]), STORE,
        ("samunetPlans.json", "use_mask_for_norm", "2")),
    Row("plans that inherit in a circle", plan("inherits_from", "2d"), STORE,
        ("samunetPlans.json", "2d -> 2d", "samunet_plan_experiment")),
    Row("plans that write elsewhere", plan("data_identifier", "../../raw"), STORE, ("data_identifier", "../../raw")),
]  # fmt: skip

STORING = [
    Row("disk full at the fingerprint", both(remove("preprocessed/*/*"), full_disk(6000)), PLAN,
        ("dataset_fingerprint.json", "free some space"), writes=(ALL,)),
    Row("disk full at the plans", both(remove(PLANS), full_disk(4000)), "plan_experiment -d 998 -image_size 32",
        ("samunetPlans.json", "free some space")),
    Row("disk full at the slices", both(remove("preprocessed/*/samunetPlans_2d"), full_disk(2000)), STORE,
        ("case_0", ".b2nd", "free some space"), writes=(STORED + "*",)),
    Row("stored slices in a read-only folder", both(remove(STORED + "*"), locked("preprocessed/*/samunetPlans_2d")),
        STORE, ("case_0", "Permission denied", "folder that you may write to")),
    Row("preprocessed folder is read-only", both(remove("preprocessed/*"), locked("preprocessed")), PLAN,
        ("{root}/preprocessed/Dataset998_Tiny", "Permission denied", "folder that you may write to")),
    Row("a file where the slices' folder goes", both(remove(STORED[:-1]), write(
        "preprocessed/Dataset998_Tiny/samunetPlans_2d", "")), STORE,
        ("{root}/preprocessed/Dataset998_Tiny/samunetPlans_2d",)),
]  # fmt: skip

TABLE = {"folders": FOLDERS, "dataset.json": DESCRIPTION, "files": FILES, "planning": PLANNING, "storing": STORING}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{stage}: {row.name}") for stage, rows in TABLE.items() for row in rows]
)
def test_bad_data(row, project, capsys):
    check(row, project, capsys)
