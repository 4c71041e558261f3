"""metrics.csv and metrics.json: surfaces and volumes of whole folders."""

import csv
import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from samunet.commands import run_command
from samunet.dataset.labels import Labels
from samunet.evaluation.summary import evaluate_folder, write_surface_metrics
from samunet.imageio.registry import reader_for

SPACING = (5.0, 2.0, 1.0)  # z, y, x: a voxel has 0.01 ml


def write(path, array, spacing=SPACING):
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path):
    """Case a: class 1 moved by one slice, class 2 only predicted. Case b: class 1 missed, class 2 in neither."""
    reference, prediction = np.zeros((2, 6, 8, 8), np.uint8)
    reference[1:4, 2:6, 2:6], prediction[2:5, 2:6, 2:6] = 1, 1
    prediction[0, 0, 0] = 2
    only = np.zeros((6, 8, 8), np.uint8)
    only[2, 2, 2:4] = 1
    for case, pair in {"a": (reference, prediction), "b": (only, only * 0)}.items():
        for folder, array in zip(("labelsTs", "preds"), pair, strict=True):
            write(tmp_path / folder / f"{case}.nii.gz", array)
    labels = {"background": 0, "organ": 1, "core": 2}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path / "labelsTs", tmp_path / "preds"


def measure(predictions, references, labels, ending=".nii.gz", tolerance=2.0, **options):
    return evaluate_folder(predictions, references, labels, reader_for(ending), tolerance=tolerance, **options)[
        "surface_metrics"
    ]


LONGEST = math.sqrt((5 * 5) ** 2 + (7 * 2) ** 2 + 7**2)


def test_command_writes_csv_and_json_beside_the_summary(folders, capsys):
    arguments = [*map(str, folders), "--surface_metrics", "-tolerance", "4"]
    assert run_command("samunet_evaluate_folder", arguments) == 0
    out, err = capsys.readouterr()
    assert "HD95 mm" in out
    assert "surface Dice (4 mm)" in out
    assert "metrics.csv" in err
    summary = json.loads((folders[1] / "summary.json").read_text())
    keys = {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}
    assert set(summary["metric_per_case"][0]["metrics"]["1"]) == keys  # nnU-Net's, and no other
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    a, b = metrics["metric_per_case"]
    assert (a["case"], a["unit"]) == ("a", "mm")
    assert a["metrics"]["1"]["HD95"] == pytest.approx(5)
    assert a["metrics"]["1"]["VolumeDifference_ml"] == 0
    assert a["metrics"]["2"] == {
        "Dice": 0, "IoU": 0, "HD95": pytest.approx(LONGEST), "SurfaceDice": 0,
        "VolumeDifference_ml": pytest.approx(0.01), "RelativeVolumeDifference": None,
    }  # fmt: skip
    assert b["metrics"]["1"]["VolumeDifference_ml"] == pytest.approx(-0.02)
    assert b["metrics"]["1"]["RelativeVolumeDifference"] == -1
    assert b["metrics"]["1"]["HD95"] == pytest.approx(LONGEST)
    assert b["metrics"]["2"]["Dice"] is None
    assert b["metrics"]["2"]["HD95"] is None
    assert metrics["mean"]["1"]["HD95"] == pytest.approx((5 + LONGEST) / 2)
    assert metrics["mean"]["2"]["HD95"] == pytest.approx(LONGEST)  # b is left out
    with open(folders[1] / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["name"]) for row in rows] == [
        ("a", "organ"),
        ("a", "core"),
        ("b", "organ"),
        ("b", "core"),
    ]
    assert float(rows[0]["HD95"]) == 5
    assert rows[3]["HD95"] == ""
    assert {row["tolerance"] for row in rows} == {"4"}


def test_surface_dice_follows_the_slice_distance(folders):
    """Moved by 5 mm across slices: within 5 mm everything agrees, within 4 mm only what the two share."""

    def surface_dice(tolerance):
        found = measure(folders[1], folders[0], [1], tolerance=tolerance)
        return found["metric_per_case"][0]["metrics"]["1"]["SurfaceDice"]

    assert surface_dice(5) == 1
    # A surface of 16 + 12 + 16 voxels. One cap is a slice away from the other mask, all of it 5 mm off. The other
    # cap has its 12 outer voxels on the other's rim, and its 4 inner ones are 1 mm from it.
    assert surface_dice(4) == pytest.approx((44 - 16) / 44)
    assert surface_dice(0) == pytest.approx((44 - 16 - 4) / 44)


def test_simple_command_prints_json_only(folders, capsys):
    assert run_command("samunet_evaluate_simple", [*map(str, folders), "-l", "1", "--surface_metrics", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"foreground_mean", "mean", "metric_per_case"}
    assert (folders[1] / "metrics.json").is_file()


@pytest.mark.parametrize("value", ["-1", "inf", "far"])
def test_wrong_tolerance(folders, value, capsys):
    assert run_command("samunet_evaluate_folder", [*map(str, folders), "--surface_metrics", f"-tolerance={value}"]) == 2
    assert "-tolerance" in capsys.readouterr().err
    assert not (folders[1] / "summary.json").exists()


def test_ignored_voxels_belong_to_no_class(folders):
    """The predicted voxel of class 2 lies where nobody annotated: then there is nothing to score."""
    labels = Labels(("background", "organ", "core"), ((0,), (1,), (2,)), ignore=3)
    file = folders[0] / "a.nii.gz"
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    reference[0, 0] = 3
    write(file, reference)
    scores = measure(folders[1], folders[0], labels, cases=["a"])["metric_per_case"][0]["metrics"]["2"]
    assert math.isnan(scores["HD95"])
    assert scores["VolumeDifference_ml"] == 0


def test_pictures_are_measured_in_pixels_and_have_no_volume(tmp_path):
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:10] = 1
    for folder, shift in (("labelsTs", 0), ("preds", 3)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.roll(mask, shift, 1)).save(tmp_path / folder / "x.png")
    metrics = measure(tmp_path / "preds", tmp_path / "labelsTs", [1], ".png")
    (case,) = metrics["metric_per_case"]
    assert case["unit"] == "px"
    assert case["metrics"]["1"]["HD95"] == 3
    assert math.isnan(case["metrics"]["1"]["VolumeDifference_ml"])
    write_surface_metrics(metrics, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["mean"]["1"]["VolumeDifference_ml"] is None
