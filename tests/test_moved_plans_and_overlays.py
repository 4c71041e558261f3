"""Plans of one dataset for another, and pictures of a dataset's cases."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from samunet.commands import run_command
from samunet.plans import read_plans

LEFT_RIGHT = {"background": 0, "left kidney": 1, "right kidney": 2}


@pytest.fixture
def planned(samunet_folders, tiny_dataset):
    """Dataset 998, planned; and its folder of preprocessed data."""
    tiny_dataset(ids=("case_0", "case_1"))
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    return samunet_folders / "preprocessed" / "Dataset998_Tiny"


def test_moved_plans_are_the_sources_but_for_names_and_mirroring(planned, samunet_folders, tiny_dataset, capsys):
    tiny_dataset(name="Dataset997_Kidneys", ids=("a", "b"), spacing=(4.0, 0.5, 0.5), labels=LEFT_RIGHT)
    flags = ["-s", "998", "-t", "997", "-tp", "tinyPlans"]
    assert run_command("samunet_move_plans_between_datasets", flags) == 1
    assert "samunet_extract_fingerprint -d Dataset997_Kidneys" in capsys.readouterr().err
    assert run_command("samunet_extract_fingerprint", ["-d", "997"]) == 0
    assert run_command("samunet_move_plans_between_datasets", flags) == 0
    captured = capsys.readouterr()
    assert "samunet_preprocess -d Dataset997_Kidneys -p tinyPlans" in captured.out
    assert "are mirror images" in captured.err
    source = read_plans(planned / "samunetPlans.json")
    target = samunet_folders / "preprocessed" / "Dataset997_Kidneys"
    moved = read_plans(target / "tinyPlans.json")
    assert (moved.dataset_name, moved.plans_name) == ("Dataset997_Kidneys", "tinyPlans")
    ours, theirs = moved.configuration("2d"), source.configuration("2d")
    assert ours.data_identifier == "tinyPlans_2d"
    assert (theirs.mirror_axes, ours.mirror_axes) == ([0, 1], [0])
    assert (theirs.rotation, ours.rotation) == (180, 30)
    assert (ours.networks, ours.spacing, ours.normalization) == (theirs.networks, theirs.spacing, theirs.normalization)
    assert run_command("samunet_preprocess", ["-d", "997", "-p", "tinyPlans"]) == 0
    assert (target / "tinyPlans_2d" / "a.b2nd").exists()
    assert run_command("samunet_move_plans_between_datasets", flags) == 0  # the same once more
    content = json.loads((target / "tinyPlans.json").read_text())
    (target / "tinyPlans.json").write_text(json.dumps(content | {"gpu_memory_target_gb": 24.0}))
    assert run_command("samunet_move_plans_between_datasets", flags) == 2
    assert "holds other plans" in capsys.readouterr().err


def test_what_the_target_forbids_is_told_in_its_own_axes(planned, samunet_folders, tiny_dataset):
    """All of its images are brighter in front, along what is its array axis z and, turned as the source lies, y."""
    tiny_dataset(name="Dataset997_Turned", ids=tuple("abcde"))
    for file in sorted((samunet_folders / "raw" / "Dataset997_Turned").glob("*Tr/*.nii.gz")):
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image)
        if file.name.endswith("_0000.nii.gz"):
            array = array + 1000 * np.linspace(1, 0, array.shape[1], dtype=np.float32)[:, None]
        turned = sitk.GetImageFromArray(array)
        turned.CopyInformation(image)
        sitk.WriteImage(sitk.DICOMOrient(turned, "LSP"), str(file))
    assert run_command("samunet_extract_fingerprint", ["-d", "997"]) == 0
    assert run_command("samunet_move_plans_between_datasets", ["-s", "998", "-t", "997", "-tp", "tinyPlans"]) == 0
    moved = read_plans(samunet_folders / "preprocessed" / "Dataset997_Turned" / "tinyPlans.json")
    assert moved.orientation == "LPS"
    assert moved.configuration("2d").mirror_axes == [1]
    assert run_command("samunet_preprocess", ["-d", "997", "-p", "tinyPlans"]) == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-s", "998", "-t", "998"], "give two datasets"),
        (["-s", "998", "-t", "997", "-sp", "otherPlans"], "no plans called otherPlans (plans there: samunetPlans)"),
        (["-s", "998", "-t", "997", "-tp", "a/b"], "is no name for plans"),
        (["-s", "998", "-t", "997"], "channel_names lists 2 channels (T1, T2), but the plans were made for 1"),
        (["-s", "998", "-t", "5"], "no dataset 5"),
    ],
)
def test_plans_that_cannot_be_moved(planned, samunet_folders, tiny_dataset, capsys, flags, expected):
    folder = tiny_dataset(name="Dataset997_Two", ids=("a", "b"), channel_names={"0": "T1", "1": "T2"})
    for file in [*folder.glob("images*/*_0000.nii.gz")]:
        file.with_name(file.name.replace("_0000", "_0001")).write_bytes(file.read_bytes())
    assert run_command("samunet_extract_fingerprint", ["-d", "997"]) == 0
    assert run_command("samunet_move_plans_between_datasets", flags) in (1, 2)
    assert expected in capsys.readouterr().err


def colourfulness(file):
    """The strongest colour in the upper part, above the legend."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    return np.ptp(pixels[: int(0.8 * len(pixels))], axis=2).max()


def test_overlays_of_raw_and_stored_cases(planned, tmp_path, capsys):
    assert run_command("samunet_plot_overlay_pngs", ["-d", "998", "-o", str(tmp_path / "whole")]) == 0
    assert "2 pictures written" in capsys.readouterr().out
    assert (
        run_command(
            "samunet_plot_overlay_pngs", ["-d", "998", "-o", str(tmp_path / "faint"), "-overlay_intensity", "0.1"]
        )
        == 0
    )
    assert run_command("samunet_plot_overlay_pngs", ["-d", "998", "-o", str(tmp_path / "stored"), "-c", "2d"]) == 0
    for folder in ("whole", "faint", "stored"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["case_0.png", "case_1.png"]
        assert colourfulness(tmp_path / folder / "case_0.png") > 60
    strong, faint = (np.asarray(Image.open(tmp_path / name / "case_0.png")).astype(int) for name in ("whole", "faint"))
    assert np.ptp(strong[..., :3], axis=2).mean() > 1.5 * np.ptp(faint[..., :3], axis=2).mean()


def test_overlays_with_regions_an_ignore_label_and_many_classes(samunet_folders, tiny_dataset, tmp_path):
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    tiny_dataset(ids=("case_0", "case_1"), labels=regions, regions_class_order=[1, 2])
    assert run_command("samunet_plot_overlay_pngs", ["-d", "998", "-o", str(tmp_path / "regions")]) == 0
    many = {"background": 0, **{f"structure {value}": value for value in range(1, 41)}}
    tiny_dataset(name="Dataset996_Many", ids=("case_0", "case_1"), labels=many)
    assert run_command("samunet_plot_overlay_pngs", ["-d", "996", "-o", str(tmp_path / "many")]) == 0
    assert len(list(tmp_path.glob("*/case_*.png"))) == 4


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-channel_idx", "1"], "must be 0 to 0, got 1"),
        (["-overlay_intensity", "2"], "must be 0 to 1, got 2"),
        (["-c", "2d", "--use_raw"], "exclude each other"),
        (["-c", "3d_fullres"], "has no 3D configurations"),
    ],
)
def test_wrong_overlays_are_explained(planned, tmp_path, capsys, flags, expected):
    assert run_command("samunet_plot_overlay_pngs", ["-d", "998", "-o", str(tmp_path / "out"), *flags]) == 2
    assert expected in capsys.readouterr().err


def test_colour_pictures_are_shown_in_colour(samunet_folders, tmp_path):
    folder = samunet_folders / "raw" / "Dataset995_Colour"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    red = np.zeros((16, 16, 3), np.uint8)
    red[4:12, 4:12, 0] = 255
    Image.fromarray(red).save(folder / "imagesTr" / "a_0000.png")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "labelsTr" / "a.png")
    description = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "polyp": 1}}
    (folder / "dataset.json").write_text(json.dumps(description | {"numTraining": 1, "file_ending": ".png"}))
    assert run_command("samunet_plot_overlay_pngs", ["-d", "995", "-o", str(tmp_path / "colour")]) == 0
    assert colourfulness(tmp_path / "colour" / "a.png") > 200
    assert (
        run_command("samunet_plot_overlay_pngs", ["-d", "995", "-o", str(tmp_path / "grey"), "-channel_idx", "0"]) == 0
    )
    assert colourfulness(tmp_path / "grey" / "a.png") == 0
