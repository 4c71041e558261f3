"""Kinds of datasets and of inputs, each from raw files to masks through the commands."""

import json
import locale

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from samunet.commands import run_command
from samunet.files import read_json

SHORT = ["--iterations", "3", "--batch_size", "2"]


def plan_train(fold="0", length=SHORT):
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    assert run_command("samunet_train", ["998", "2d", fold, *length]) == 0


def change_description(folder, **changes):
    description = json.loads((folder / "dataset.json").read_text()) | changes
    (folder / "dataset.json").write_text(json.dumps(description))


def summary_of(root):
    return read_json(next((root / "results").glob("*/*/fold_0/validation/summary.json")))


def labels_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def relabel(folder, change):
    """Apply ``change`` (array and case number to array) to every training label."""
    for number, path in enumerate(sorted((folder / "labelsTr").iterdir())):
        old = sitk.ReadImage(str(path))
        new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(old), number))
        new.CopyInformation(old)
        sitk.WriteImage(new, str(path))


REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


def test_regions(samunet_folders, tiny_dataset, tmp_path, capsys):
    folder = tiny_dataset()
    change_description(folder, **REGIONS)
    plan_train()
    assert set(summary_of(samunet_folders)["mean"]) == {"(1, 2)", "2"}
    output = tmp_path / "preds"
    flags = ["--save_probabilities", "--save_uncertainty"]
    assert run_command("samunet_predict", ["-i", str(folder / "imagesTs"), "-o", str(output), *flags]) == 0
    mask = labels_of(output / "test_0.nii.gz")
    whole, core = np.load(output / "test_0.npz")["probabilities"].astype(np.float32)
    # Painted in order: core over whole. Half precision may put a probability on the other side of one half.
    expected = np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0))
    assert (mask == expected).mean() > 0.999
    certain = np.minimum(abs(whole - 0.5), abs(core - 0.5))  # of the least certain region
    entropy = labels_of(output / "uncertainty" / "test_0_entropy.nii.gz")
    assert (entropy[certain < 0.05] >= 99).all()
    assert set(read_json(output / "uncertainty" / "test_0.json")["classes"]) == {"(1, 2)", "2"}
    assert run_command("samunet_report", [str(output)]) == 0
    capsys.readouterr()
    assert run_command("samunet_evaluate_folder", [str(folder / "labelsTs"), str(output)]) == 0
    assert "(1, 2) whole" in capsys.readouterr().out


@pytest.mark.slow
def test_regions_are_learnt(samunet_folders, tiny_dataset):
    folder = tiny_dataset()
    change_description(folder, **REGIONS)
    plan_train(length=["--iterations", "80", "--batch_size", "4"])
    means = summary_of(samunet_folders)["mean"]
    assert means["(1, 2)"]["Dice"] > 0.8
    assert means["2"]["Dice"] > 0.6


@pytest.mark.slow
def test_sparse_annotation_is_learnt(samunet_folders, tiny_dataset):
    """Nine tenths of all voxels are without annotation; the masks are scored on whole labels."""
    folder = tiny_dataset()
    change_description(folder, labels={"background": 0, "organ": 1, "core": 2, "ignore": 3})

    def hide(label, number):
        hidden = np.random.default_rng(number).random(label.shape) < 0.9
        return np.where(hidden, 3, label).astype(np.uint8)

    relabel(folder, hide)
    plan_train(length=["--iterations", "80", "--batch_size", "4"])
    output = samunet_folders / "preds"
    assert run_command("samunet_predict", ["-i", str(folder / "imagesTs"), "-o", str(output)]) == 0
    assert set(np.unique(labels_of(output / "test_0.nii.gz"))) <= {0, 1, 2}
    assert run_command("samunet_evaluate_folder", [str(folder / "labelsTs"), str(output)]) == 0
    assert read_json(output / "summary.json")["foreground_mean"]["Dice"] > 0.6


def write_pictures(root, ending, colour=True, cases=5):
    """A dataset of pictures of several sizes with a bright ellipse, labels in PNG."""
    folder = root / "raw" / "Dataset998_Pictures"
    rng = np.random.default_rng(0)
    for part, number in (("Tr", cases), ("Ts", 2)):
        for name in (f"images{part}", f"labels{part}"):
            (folder / name).mkdir(parents=True)
        for case in range(number):
            height, width = rng.integers(40, 70, 2)
            y, x = np.mgrid[:height, :width]
            label = (np.hypot((y - height / 2) / 12, (x - width / 2) / 16) < 1).astype(np.uint8)
            grey = 60 + 120 * label + rng.integers(0, 20, label.shape)
            picture = np.stack([grey, grey // 2, grey // 3], -1) if colour else grey
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"images{part}" / f"eye_{case}_0000{ending}")
            Image.fromarray(label).save(folder / f"labels{part}" / f"eye_{case}.png")
    channels = {"0": "R", "1": "G", "2": "B"} if colour else {"0": "grayscale"}
    description = {"channel_names": channels, "labels": {"background": 0, "disc": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(description | {"numTraining": cases}))
    return folder


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp"])
def test_colour_pictures(samunet_folders, ending):
    folder = write_pictures(samunet_folders, ending)
    plan_train()
    output = samunet_folders / "preds"
    assert (
        run_command("samunet_predict", ["-i", str(folder / "imagesTs"), "-o", str(output), "--save_uncertainty"]) == 0
    )
    mask_ending = ".png" if ending == ".jpg" else ending
    mask = np.asarray(Image.open(output / f"eye_0{mask_ending}"))
    assert np.asarray(Image.open(output / "uncertainty" / f"eye_0_entropy{mask_ending}")).shape == mask.shape
    assert run_command("samunet_report", [str(output), "-n", "1"]) == 0
    assert mask.shape == np.asarray(Image.open(folder / "imagesTs" / f"eye_0_0000{ending}")).shape[:2]
    assert set(np.unique(mask)) <= {0, 1}


def test_grey_pictures_of_which_some_are_stored_as_colour(samunet_folders):
    folder = write_pictures(samunet_folders, ".png", colour=False)
    for part, name in (("Tr", "eye_1"), ("Ts", "eye_0")):
        file = folder / f"images{part}" / f"{name}_0000.png"
        Image.open(file).convert("RGB").save(file)
    plan_train()
    assert run_command("samunet_predict", ["-i", str(folder / "imagesTs"), "-o", str(samunet_folders / "preds")]) == 0
    assert (samunet_folders / "preds" / "eye_0.png").is_file()


def test_files_listed_in_dataset_json(samunet_folders, tiny_dataset, monkeypatch):
    """nnU-Net's ``dataset`` key: images and labels lie anywhere."""
    folder = tiny_dataset()
    elsewhere = samunet_folders / "elsewhere"
    elsewhere.mkdir()
    (folder / "imagesTr").rename(elsewhere / "scans")
    (folder / "labelsTr").rename(folder / "masks")
    monkeypatch.setenv("SCANS", str(elsewhere))
    listed = {
        f"patient_{i}": {"images": [f"$SCANS/scans/case_{i}_0000.nii.gz"], "label": f"masks/case_{i}.nii.gz"}
        for i in range(6)
    }
    change_description(folder, dataset=listed)
    plan_train()
    cases = summary_of(samunet_folders)["metric_per_case"]
    assert all("patient_" in case["prediction_file"] and "/masks/" in case["reference_file"] for case in cases)


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_readers_by_name(samunet_folders, tiny_dataset, reader):
    folder = tiny_dataset()
    change_description(folder, overwrite_image_reader_writer=reader)
    plan_train()
    source = folder / "imagesTs" / "test_0_0000.nii.gz"
    mask = samunet_folders / "mask.nii.gz"
    assert run_command("samunet_predict", ["-i", str(source), "-o", str(mask)]) == 0
    image, predicted = sitk.ReadImage(str(source)), sitk.ReadImage(str(mask))
    assert (predicted.GetSize(), predicted.GetOrigin()) == (image.GetSize(), image.GetOrigin())
    assert predicted.GetDirection() == image.GetDirection()


@pytest.fixture
def trained(samunet_folders, tiny_dataset, capsys):
    folder = tiny_dataset()
    plan_train()
    capsys.readouterr()
    return folder


def test_what_can_be_predicted(trained, samunet_folders, capsys):
    """A file, a list of files, other names, another ending, a DICOM series, in sizes and orientations of their own."""
    source = trained / "imagesTs" / "test_0_0000.nii.gz"
    folder_masks, single = samunet_folders / "preds", samunet_folders / "mask.nii.gz"
    assert run_command("samunet_predict", ["-i", str(trained / "imagesTs"), "-o", str(folder_masks)]) == 0
    expected = labels_of(folder_masks / "test_0.nii.gz")

    assert run_command("samunet_predict", ["-i", str(source), "-o", str(single)]) == 0
    assert np.array_equal(labels_of(single), expected)
    other_part = samunet_folders / "other_part.nii.gz"
    arguments = ["-i", str(source), "-o", str(other_part), "-num_parts", "2"]
    assert run_command("samunet_predict", [*arguments, "-part_id", "1"]) == 0
    assert not other_part.exists()
    listed = samunet_folders / "listed"
    files = [str(path) for path in sorted((trained / "imagesTs").iterdir())]
    assert run_command("samunet_predict", ["-i", *files, "-o", str(listed)]) == 0
    assert np.array_equal(labels_of(listed / "test_0.nii.gz"), expected)
    assert (listed / "test_1.nii.gz").is_file()

    others = samunet_folders / "others"
    others.mkdir()
    image = sitk.ReadImage(str(source))
    sitk.WriteImage(image, str(others / "plain name.nrrd"))
    turned = sitk.PermuteAxes(sitk.ConstantPad(image, [3, 9, 2], [4, 0, 1]), [2, 0, 1])
    sitk.WriteImage(turned, str(others / "turned.mha"))
    assert run_command("samunet_predict", ["-i", str(others), "-o", str(samunet_folders / "others_preds")]) == 0
    assert np.array_equal(labels_of(samunet_folders / "others_preds" / "plain name.nrrd"), expected)
    mask = sitk.ReadImage(str(samunet_folders / "others_preds" / "turned.mha"))
    assert (mask.GetSize(), mask.GetDirection()) == (turned.GetSize(), turned.GetDirection())

    series = samunet_folders / "series"
    write_dicom(image, series)
    assert run_command("samunet_predict", ["-i", str(series), "-o", str(samunet_folders / "series_preds")]) == 0
    mask = sitk.ReadImage(str(samunet_folders / "series_preds" / "series.nii.gz"))
    assert mask.GetSize() == image.GetSize()
    assert np.allclose(mask.GetSpacing(), image.GetSpacing())

    capsys.readouterr()
    assert run_command("samunet_predict", ["-i", *files, "-o", str(single)]) == 2
    assert "there are 2 cases" in capsys.readouterr().err
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(samunet_folders / "photo.png")
    assert run_command("samunet_predict", ["-i", str(samunet_folders / "photo.png"), "-o", str(listed)]) == 1
    assert "photo.png has no spacing in millimetres" in capsys.readouterr().err


def write_dicom(image, folder):
    """One file per slice, with the tags that place it."""
    folder.mkdir()
    # Writing DICOM leaves the process in the C locale, where Python takes text files for ASCII.
    before = locale.setlocale(locale.LC_ALL)
    volume = sitk.Cast(image, sitk.sitkInt16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(volume.GetDepth()):
        one = volume[:, :, z]
        place = volume.TransformIndexToPhysicalPoint((0, 0, z))
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"1.2.3.4.{z + 1}",
            "0020|000e": "1.2.3.4",
            "0020|000d": "1.2.3",
            "0020|0013": str(z),
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": str(volume.GetSpacing()[2]),
        }
        for tag, value in tags.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(one)
    locale.setlocale(locale.LC_ALL, before)
