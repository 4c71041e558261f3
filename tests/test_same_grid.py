"""Labels, channels and predictions that lie on one grid, stored with other axes; and those that do not."""

import itertools
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from samunet.dataset.cases import Case
from samunet.dataset.description import description_from_json
from samunet.errors import SamunetError
from samunet.evaluation.summary import evaluate_folder
from samunet.imageio.registry import reader_for
from samunet.imageio.same_grid import Grid, difference, on_grid, turn_between
from samunet.preprocessing.case import read_case

SHAPE = (5, 6, 7)
# Every voxel has its own value, so any mistake in a turn shows.
VOXELS = np.arange(1, 1 + np.prod(SHAPE)).reshape(SHAPE)
TILT = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
# All 48 ways to store a volume, as ITK names them.
WAYS = [
    "".join(letters) for order in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*order)
]


def volume(voxels=VOXELS, direction=TILT):
    image = sitk.GetImageFromArray(np.asarray(voxels, np.uint16))
    image.SetSpacing((0.7, 1.3, 3.0))
    image.SetOrigin((-12.5, 7.0, 31.25))
    image.SetDirection(np.ravel(direction).tolist())
    return image


def save(image, file, way=None):
    file.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image if way is None else sitk.DICOMOrient(image, way), str(file))
    return file


def read(file):
    label, geometry = reader_for(".nii.gz").read_label(file)
    return label, Grid(file, label.shape, geometry)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_store_a_volume_is_turned_back(tmp_path, way):
    label, first = read(save(volume(), tmp_path / "image.nii.gz"))
    other, own = read(save(volume(), tmp_path / "label.nii.gz", way))
    assert np.array_equal(label, VOXELS)
    assert np.array_equal(on_grid(other, own, first), VOXELS)
    assert np.array_equal(on_grid(np.stack([other, other]), own, first)[1], VOXELS)
    assert difference(own, first) is None


def test_pictures_in_space_of_two_dimensions(tmp_path):
    affine = np.diag([1.0, 2, 1, 1])
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 6
    nibabel.save(nibabel.Nifti1Image(VOXELS[0].T.astype(np.uint8), affine), tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(VOXELS[0].T[::-1].astype(np.uint8), affine @ flip), tmp_path / "label.nii.gz")
    _, first = read(tmp_path / "image.nii.gz")
    other, own = read(tmp_path / "label.nii.gz")
    assert np.array_equal(on_grid(other, own, first)[0], VOXELS[0])


def moved(image, **changes):
    for what, value in changes.items():
        getattr(image, f"Set{what}")(value)
    return image


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        (moved(volume(), Origin=(-12.0, 7.0, 31.25)), "origin"),
        (moved(volume(), Origin=(-11.8, 7.0, 31.25)), "origin"),  # by one voxel
        (moved(volume(), Spacing=(0.7, 1.4, 3.0)), "spacing"),
        (volume(VOXELS[:4]), "shape"),
        (volume(VOXELS.transpose(0, 2, 1)), "shape"),  # transposed without a word in the header
        (volume(direction=np.eye(3)), "direction"),
        (
            moved(volume(), Direction=(TILT @ np.diag([-1.0, -1, 1])).ravel().tolist()),
            "direction",
        ),  # turned in its place
    ],
)
def test_what_is_no_turn_is_refused(tmp_path, other, kind):
    _, first = read(save(volume(), tmp_path / "image.nii.gz"))
    voxels, own = read(save(other, tmp_path / "label.nii.gz"))
    assert turn_between(own, first) is None
    assert difference(own, first).kind == kind
    with pytest.raises(SamunetError, match=rf"label.nii.gz has (the )?{kind} .* but image.nii.gz has") as caught:
        on_grid(voxels, own, first)
    assert ("`tolerate_geometry=True`" in caught.value.hint) == (kind in ("origin", "direction"))


DESCRIPTION = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}


def test_a_label_stored_otherwise_is_turned_to_its_image(tmp_path):
    image = save(volume(VOXELS), tmp_path / "a_0000.nii.gz")
    label = save(volume(VOXELS % 3), tmp_path / "a.nii.gz", "RAI")
    for tolerate in (False, True):
        _, found = read_case(
            Case("a", (image,), label), description_from_json(DESCRIPTION, ""), tolerate_geometry=tolerate
        )
        assert np.array_equal(found, VOXELS % 3)


@pytest.mark.parametrize("way", ["RAI", "SPR"])
def test_predictions_are_compared_in_space(tmp_path, way):
    truth = np.zeros(SHAPE)
    truth[1:3, 1:4, 2:5] = 1
    predicted = truth.copy()
    predicted[1, 1, 2] = 0
    save(volume(truth), tmp_path / "truth" / "a.nii.gz")
    save(volume(predicted), tmp_path / "preds" / "a.nii.gz", way)
    summary = evaluate_folder(tmp_path / "preds", tmp_path / "truth", [1], reader_for(".nii.gz"))
    # 18 voxels, of which 17 are found.
    assert summary["foreground_mean"]["Dice"] == pytest.approx(2 * 17 / 35)
    save(volume(truth), tmp_path / "preds" / "a.nii.gz", way)
    summary = evaluate_folder(tmp_path / "preds", tmp_path / "truth", [1], reader_for(".nii.gz"), tolerance=2)
    scores = summary["surface_metrics"]["mean"]["1"]
    assert (scores["HD95"], scores["SurfaceDice"], scores["Dice"]) == (0, 1, 1)


def test_a_prediction_elsewhere_is_refused(tmp_path, caplog):
    save(volume(VOXELS % 2), tmp_path / "truth" / "a.nii.gz")
    save(moved(volume(VOXELS % 2), Origin=(0, 0, 0)), tmp_path / "preds" / "a.nii.gz")
    with pytest.raises(SamunetError, match=r"preds/a.nii.gz has the origin .* but .*truth/a.nii.gz has"):
        evaluate_folder(tmp_path / "preds", tmp_path / "truth", [1], reader_for(".nii.gz"))
    tolerated = evaluate_folder(
        tmp_path / "preds", tmp_path / "truth", [1], reader_for(".nii.gz"), tolerate_geometry=True
    )
    assert tolerated["foreground_mean"]["Dice"] == 1
    assert "has the origin" in caplog.text


def test_postprocessing_is_determined_in_space(tmp_path):
    from samunet.selection.determine import determine_postprocessing

    truth = np.zeros(SHAPE)
    truth[1:3, 1:4, 1:4] = 1
    predicted = truth.copy()
    predicted[4, 5, 6] = 1
    save(volume(truth), tmp_path / "truth" / "a.nii.gz")
    save(volume(predicted), tmp_path / "preds" / "a.nii.gz", "RAI")
    (tmp_path / "preds" / "dataset.json").write_text(
        json.dumps(DESCRIPTION | {"labels": {"background": 0, "organ": 1}})
    )
    chosen = determine_postprocessing(predictions=tmp_path / "preds", references=tmp_path / "truth", keep_masks=False)
    assert (chosen.before[0, 0], chosen.after[0, 0]) == (pytest.approx(36 / 37), 1)


def test_an_ensemble_of_masks_in_two_orientations(tmp_path):
    from samunet.selection.ensemble import ensemble

    first = np.zeros(SHAPE)
    first[1:3, 1:4, 1:4] = 1
    for name, way in (("one", None), ("two", "SPR")):
        mask, _ = read(save(volume(first), tmp_path / name / "a.nii.gz", way))
        np.savez_compressed(tmp_path / name / "a.npz", probabilities=np.stack([1 - mask, mask]).astype(np.float16))
        (tmp_path / name / "dataset.json").write_text(
            json.dumps(DESCRIPTION | {"labels": {"background": 0, "organ": 1}})
        )
        shutil.copy(tmp_path / name / "dataset.json", tmp_path / name / "plans.json")
    ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert np.array_equal(read(tmp_path / "both" / "a.nii.gz")[0], first)


def test_class_files_and_masks_of_a_new_dataset_are_turned(tmp_path, monkeypatch):
    from samunet.commands import run_command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    monkeypatch.setenv("samunet_raw", str(tmp_path / "raw"))
    for case in ("anna", "bert"):
        save(volume(), tmp_path / "scans" / f"{case}.nii.gz")
        save(volume(VOXELS == 5), tmp_path / "masks" / f"{case}_liver.nii.gz", "SPR")
        save(volume(VOXELS == 9), tmp_path / "masks" / f"{case}_tumour.nii.gz", "RAI")
        save(volume(VOXELS % 3), tmp_path / "whole" / f"{case}.nii.gz", "SPR")
    flags = ["--channel_names", "CT", "--labels", "liver", "tumour", "-np", "0"]
    assert (
        run_command(
            "samunet_make_dataset", ["scans", "masks/{case}_{class}.nii.gz", "--name", "Parts", "--id", "1", *flags]
        )
        == 0
    )
    assert run_command("samunet_make_dataset", ["scans", "whole", "--name", "Whole", "--id", "2", *flags]) == 0
    parts, _ = read(Path("raw/Dataset001_Parts/labelsTr/anna.nii.gz"))
    whole, _ = read(Path("raw/Dataset002_Whole/labelsTr/anna.nii.gz"))
    assert np.array_equal(parts, (VOXELS == 5) + 2 * (VOXELS == 9))
    assert np.array_equal(whole, VOXELS % 3)


def test_a_report_shows_masks_on_the_image(tmp_path, monkeypatch):
    from samunet.report import sections

    shown = {}
    draw = sections.draw_overlay
    monkeypatch.setattr(
        sections,
        "draw_overlay",
        lambda *call, **more: shown.update(mask=call[1], reference=call[2]) or draw(*call, **more),
    )
    truth = np.zeros(SHAPE)
    truth[1:3, 1:4, 1:4] = 1
    image = save(volume(), tmp_path / "a_0000.nii.gz")
    mask, reference = (save(volume(truth), tmp_path / f"{way}.nii.gz", way) for way in ("SPR", "RAI"))
    sections.case_picture("a", "", (image,), mask, reference, description_from_json(DESCRIPTION, ""), None)
    assert np.array_equal(shown["mask"], truth)
    assert np.array_equal(shown["reference"], truth)
