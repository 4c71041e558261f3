"""Slices along all three axes: cutting, stored reading, training batches, and averaged predictions."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from test_loader import make_loader
from test_logits import Threshold
from test_store import KEY, RECORD, make_case
from torch import nn

from samunet.commands import run_command
from samunet.dataset.labels import Labels
from samunet.imageio.base import Geometry
from samunet.inference.logits import SlicePredictor, decode
from samunet.inference.planes import PlanePredictor
from samunet.inference.uncertainty import CaseUncertainty
from samunet.preprocessing.case import CaseRecord
from samunet.preprocessing.planes import ALONG_Z, SlicingPlane
from samunet.preprocessing.store import StoredCase, write_case

ALL = [SlicingPlane((0, 1, 2)), SlicingPlane((1, 0, 2)), SlicingPlane((2, 1, 0))]
ORDERS = [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
LABELS = Labels(("background", "bright"), ((0,), (1,)))


@pytest.mark.parametrize("axes", ORDERS)
def test_a_plane_cuts_arrays_tensors_and_positions_alike(axes):
    plane, volume = SlicingPlane(axes), np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    slices = plane.cut(volume)
    assert slices.shape == (2, *(volume.shape[1 + axis] for axis in axes))
    assert np.array_equal(plane.cut(torch.from_numpy(volume)).numpy(), slices)
    places = np.argwhere(volume[1] % 7 == 0)
    inside = plane.positions(places)
    assert np.array_equal(slices[1][tuple(inside.T)], volume[1][tuple(places.T)])
    assert np.array_equal(np.sort(volume[1][volume[1] % 7 == 0]), np.sort(slices[1][tuple(inside.T)]))


def test_a_plane_changes_a_view_in_place():
    volume = torch.zeros(1, 3, 4, 5)
    SlicingPlane((2, 1, 0)).cut(volume)[:, 4] += 1  # the last column of every slice
    assert torch.equal(volume[0, :, :, 4], torch.ones(3, 4))
    assert volume.sum() == 12


@pytest.mark.parametrize(
    ("axes", "expected"), [((0, 1, 2), [0.7, 0.9]), ((1, 0, 2), [0.1, 0.9]), ((2, 1, 0), [0.7, 0.1])]
)
def test_spacing_of_a_plane(axes, expected):
    """The record's volume is stored with the file's y axis first, whose spacing in (3, 0.1, 1/3) is 0.1."""
    record = CaseRecord(RECORD.geometry, [1, 0, 2], RECORD.transposed_shape, RECORD.box, [0.7, 0.9])
    assert record.slice_spacing == 0.1
    assert SlicingPlane(axes).spacing(record) == expected


def test_spacing_of_a_turned_volume():
    """A file whose axes x, y, z lead to the right, up and forwards, turned to right, forwards, up."""
    geometry = Geometry((2.0, 3.0, 5.0), True, (0, 0, 0), (-1.0, 0, 0, 0, 0, -1, 0, 1, 0), 3)
    record = CaseRecord(geometry, [0, 1, 2], [9, 9, 9], [[0, 9]] * 3, [2.0, 5.0], "RAS")
    assert record.slice_spacing == 3.0


def test_no_spacing_without_physical_spacing():
    record = CaseRecord(RECORD.geometry, [0, 1, 2], RECORD.transposed_shape, RECORD.box, None)
    assert SlicingPlane((1, 0, 2)).spacing(record) is None


@pytest.mark.parametrize(
    ("axes", "mirrored", "expected"),
    [
        ((0, 1, 2), [0, 1], [0, 1]),
        ((0, 1, 2), [1], [1]),
        ((1, 0, 2), [0, 1], [1]),  # rows are z, which is never mirrored; columns are x
        ((1, 2, 0), [0, 1], [0]),
        ((2, 1, 0), [1], []),
    ],
)
def test_mirrored_axes_of_a_plane(axes, mirrored, expected):
    assert SlicingPlane(axes).mirrored(mirrored) == expected


@pytest.mark.parametrize("cubes", [False, True])
@pytest.mark.parametrize("axes", ORDERS)
def test_a_stored_case_reads_along_every_axis(tmp_path, axes, cubes):
    case, plane = make_case(), SlicingPlane(axes)
    write_case(tmp_path, "a", case, KEY, isotropic_chunks=cubes)
    stored = StoredCase(tmp_path, "a").along(plane)
    image, label = plane.cut(case.image.astype(np.float16)), plane.cut(case.label)
    assert stored.shape == label.shape
    assert np.array_equal(stored.image(), image)
    assert np.array_equal(stored.image(1, 3), image[:, 1:3])
    assert np.array_equal(stored.label(2, 3), label[2:3])
    for value, places in stored.class_locations.items():
        assert (label[tuple(places.T)] == value).all()
    assert stored.spacing == plane.spacing(RECORD)


def test_a_case_along_an_axis_is_kept_and_finds_its_way_back(tmp_path):
    case = StoredCase(tmp_path, "a")
    assert case.along(ALONG_Z) is case
    assert case.along(ALL[1]) is case.along(ALL[1])
    assert case.along(ALL[1]).along(ALL[2]).plane == ALL[2]
    assert case.along(ALL[1]).__reduce__()[1][:3] == (tmp_path, "a", ALL[1])


def test_large_volumes_are_stored_in_cubes(tmp_path):
    import blosc2

    case = make_case()
    case.image = np.zeros((2, 40, 50, 60), np.float32)
    case.label = np.zeros((40, 50, 60), np.int16)
    write_case(tmp_path, "a", case, KEY, isotropic_chunks=True)
    assert blosc2.open(str(tmp_path / "a.b2nd")).blocks == (2, 16, 16, 16)
    write_case(tmp_path, "a", case, KEY)
    assert blosc2.open(str(tmp_path / "a.b2nd")).blocks == (2, 1, 50, 60)


def test_training_draws_slices_along_all_planes(tmp_path):
    """Every slice along z is a gradient downwards; along y all rows are equal, and along x gradients run sideways."""
    case = make_case()
    case.image = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None], (1, 24, 24, 24)).copy()
    case.label = np.ones((24, 24, 24), np.int16)
    record = CaseRecord(
        Geometry((1.0, 1.0, 1.0), True, (0, 0, 0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), 3),
        [0, 1, 2], [24, 24, 24], [[0, 24]] * 3, [1.0, 1.0],
    )  # fmt: skip
    case.record = record
    write_case(tmp_path, "a", case, KEY, isotropic_chunks=True)
    loader = make_loader(cases={"a": StoredCase(tmp_path, "a")}, planes=[[0, 1, 2], [1, 0, 2], [2, 0, 1]], rotation=0.0)
    kinds = []
    for number in range(24):
        for image in loader.batch(number)["data"][:, 0]:
            down, right = (np.abs(np.diff(image, axis=axis)).mean() for axis in (0, 1))
            kinds.append(0 if down > 2 * right else 2 if right > 2 * down else 1)
    counts = np.bincount(kinds, minlength=3) / len(kinds)
    assert counts.min() > 0.2
    assert np.array_equal(loader.batch(3)["data"], loader.batch(3)["data"])


def make_record(shape, spacing=(1.0, 1.0, 1.0), stored=None):
    geometry = Geometry(tuple(spacing), True, (0, 0, 0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), 3)
    return CaseRecord(geometry, [0, 1, 2], list(shape), [[0, side] for side in shape], stored or list(spacing[1:]))


def make_predictor(models, planes=ALL, labels=LABELS, **changes):
    loader = make_loader(input_shape=(32, 32))
    settings = {"neighbours": False, "device": torch.device("cpu"), "dtype": None, "batch_size": 2} | changes
    return PlanePredictor(SlicePredictor(models, **settings), planes, loader.network, labels)


def smooth_volume(*shape):
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return (np.sin(y / 6 + z / 5) * np.cos(x / 8 - z / 7))[None].astype(np.float32)


class Rows(nn.Module):
    """Says of every pixel its row, on the input of 32 px."""

    def forward(self, image):
        rows = torch.arange(image.shape[2], dtype=torch.float32)[:, None].expand(len(image), 1, -1, image.shape[3])
        return torch.cat([torch.zeros_like(rows), rows], dim=1)


def test_the_mean_over_planes():
    """Rows are y along z, z along y and y along x; a plane of 20 x 24 x 28 voxels lies in the middle of 32 px."""
    shape = (20, 24, 28)
    logits = dict(make_predictor([Rows()]).logits(np.zeros((1, *shape), np.float32), make_record(shape), shape[1:]))
    assert sorted(logits) == list(range(20))
    y, z = np.arange(24)[:, None] + 4, np.arange(20) + 6
    for index in logits:
        expected = np.broadcast_to((2 * y + z[index]) / 3, (24, 28))
        assert np.allclose(logits[index][1], expected, atol=0.05)  # half precision


def test_models_that_see_every_pixel_alone_give_the_same_along_every_axis():
    image = smooth_volume(20, 24, 28)
    record = make_record((20, 24, 28))
    for _, logits in make_predictor([Threshold(), Threshold()]).logits(image, record, (24, 28)):
        assert logits.dtype == torch.float32
    logits = dict(make_predictor([Threshold(), Threshold()]).logits(image, record, (24, 28)))
    for z in range(20):
        assert np.allclose(logits[z][1], image[0, z], atol=2e-3)


def test_logits_on_a_finer_grid_than_the_stored_one():
    """What was stored with 2 mm is asked for with 1 mm."""
    fine = smooth_volume(20, 24, 28)
    stored = fine.reshape(1, 20, 12, 2, 14, 2).mean((3, 5))
    record = make_record((20, 24, 28), stored=[2.0, 2.0])
    logits = dict(make_predictor([Threshold()]).logits(stored, record, (24, 28)))
    difference = np.stack([logits[z][1] for z in range(20)]) - fine[0]
    assert np.abs(difference[1:-1, 3:-3, 3:-3]).max() < 0.05  # at the border an input mixes with the nothing beyond


def test_neighbours_are_those_along_the_plane():
    image = smooth_volume(12, 16, 20)
    sagittal = [SlicingPlane((2, 1, 0))]
    predictor = make_predictor([Threshold(channel=2)], planes=sagittal, neighbours=True)  # the next slice
    logits = dict(predictor.logits(image, make_record((12, 16, 20)), (16, 20)))
    found = np.stack([logits[z][1] for z in range(12)])
    assert np.allclose(found[:, :, :-1], image[0, :, :, 1:], atol=2e-3)
    assert np.allclose(found[:, :, -1], image[0, :, :, -1], atol=2e-3)


def watched(models, image, labels=LABELS, planes=ALL):
    shape = image.shape[1:]
    watch = CaseUncertainty(labels, shape, len(models))
    predictor = make_predictor(models, planes, labels)
    record = make_record(shape)
    masks = [decode(band.logits, labels) for band in predictor.bands(image, record, shape[1:], watch)]
    plain = [decode(logits, labels) for _, logits in predictor.logits(image, record, shape[1:])]
    assert all(torch.equal(one, other) for one, other in zip(masks, plain, strict=True))
    return torch.stack(masks).numpy(), watch


def test_planes_that_agree_have_no_disagreement():
    mask, watch = watched([Threshold()], smooth_volume(12, 16, 20))
    doubt = watch.classes()["bright"]
    assert doubt.tta_disagreement == pytest.approx(0, abs=2e-3)
    assert np.isnan(doubt.fold_disagreement)
    assert 0 < mask.mean() < 1


class UpperHalf(nn.Module):
    """Foreground in the upper half of what it sees."""

    def forward(self, image):
        side = torch.full((len(image), 1, *image.shape[2:]), -20.0)
        side[:, :, : image.shape[2] // 2] = 20.0
        return torch.cat([-side, side], dim=1)


def test_disagreement_of_planes():
    """Cubes of 16: along z and x the upper half of y is bright, along y that of z. The mean follows the majority."""
    mask, watch = watched([UpperHalf()], np.zeros((1, 16, 16, 16), np.float32))
    assert mask[:, :8].all()
    assert not mask[:, 8:].any()
    # Of three planes two say what the mean says, one has half in common with it: 1 - 2 (8 + 8 + 4) / (3 * 16).
    assert watch.classes()["bright"].tta_disagreement == pytest.approx(1 / 6, abs=1e-6)
    assert watch.entropy[:, :8].max() <= 1


def test_folds_over_planes():
    """One fold says yes everywhere, one nowhere: their mean is undecided, and they contradict each other wholly."""

    class Says(nn.Module):
        def __init__(self, yes):
            super().__init__()
            self.yes = yes

        def forward(self, image):
            side = torch.full((len(image), 1, *image.shape[2:]), 20.0 if self.yes else -20.0)
            return torch.cat([-side, side], dim=1)

    _, watch = watched([Says(True), Says(False)], np.zeros((1, 16, 16, 16), np.float32))
    assert (watch.disagreement >= 99).all()
    assert (watch.entropy >= 99).all()


def test_regions_over_planes():
    labels = Labels(("whole", "core"), ((1, 2), (2,)), class_order=(1, 2))

    class Two(nn.Module):
        def forward(self, image):
            return torch.cat([image, image - 0.5], dim=1)

    mask, watch = watched([Two()], smooth_volume(12, 16, 20), labels)
    image = smooth_volume(12, 16, 20)[0]
    assert ((mask == (image > 0).astype(int) + (image > 0.5)).mean()) > 0.99
    assert watch.classes()["core"].tta_disagreement == pytest.approx(0, abs=5e-3)


def cube_dataset(root, name="Dataset998_Cubes", spacing=(1.1, 1.0, 1.2)):
    """Balls in noise, in volumes of near cubes."""
    folder, rng = root / "raw" / name, np.random.default_rng(1)
    z, y, x = np.mgrid[:18, :22, :20]
    for part, ids in (("Tr", [f"case_{i}" for i in range(6)]), ("Ts", ["test_0"])):
        for case in ids:
            centre = rng.uniform(7, 11, 3)
            label = (np.hypot(np.hypot(z - centre[0], y - centre[1]), x - centre[2]) < 6).astype(np.uint8)
            for array, file in (
                (rng.normal(100 * label + 50, 15).astype(np.float32), f"images{part}/{case}_0000.nii.gz"),
                (label, f"labels{part}/{case}.nii.gz"),
            ):
                image = sitk.GetImageFromArray(array)
                image.SetSpacing(spacing[::-1])
                image.SetOrigin((-3.0, 5.0, 8.5))
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(image, str(folder / file))
    (folder / "dataset.json").write_text(
        json.dumps({
            "channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}, "numTraining": 6,
            "file_ending": ".nii.gz",
        })
    )  # fmt: skip
    return folder


def test_from_raw_data_to_masks(samunet_folders, capsys):
    """Planned, trained and predicted over three planes: the mask is what the saved probabilities say, in its place."""
    raw = cube_dataset(samunet_folders)
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    plans = json.loads(next((samunet_folders / "preprocessed").glob("*/samunetPlans.json")).read_text())
    assert [axes[0] for axes in plans["configurations"]["2d"]["planes"]] == [0, 1, 2]
    assert plans["transpose_forward"] == [2, 0, 1]  # x is the coarsest
    assert run_command("samunet_train", ["998", "2d", "0", "--iterations", "40", "--batch_size", "4"]) == 0
    fold = next((samunet_folders / "results").glob("*/*/fold_0"))
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] > 0.5
    masks, bright = {}, {}
    for name, flags in {"three": ["--save_uncertainty"], "one": ["--disable_tta"]}.items():
        out = samunet_folders / name
        command = ["-i", str(raw / "imagesTs"), "-o", str(out), "-d", "998", "-c", "2d", "--save_probabilities", *flags]
        assert run_command("samunet_predict", command) == 0
        image = sitk.ReadImage(str(out / "test_0.nii.gz"))
        assert image.GetOrigin() == pytest.approx((-3.0, 5.0, 8.5))
        masks[name] = sitk.GetArrayFromImage(image)
        with np.load(out / "test_0.npz") as saved:
            bright[name] = saved["probabilities"][1].astype(np.float32)
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTs" / "test_0.nii.gz")))
    for name, mask in masks.items():
        decided = np.abs(bright[name] - 0.5) > 1e-3  # half precision may round to a draw
        assert np.array_equal((bright[name] > 0.5)[decided], (mask == 1)[decided])
        assert 2 * (mask * label).sum() / (mask.sum() + label.sum()) > 0.5
    assert np.abs(bright["three"] - bright["one"]).max() > 0.01  # masks may well be the same
    quality = (samunet_folders / "three" / "quality.csv").read_text()
    assert "test_0" in quality
    assert (samunet_folders / "three" / "uncertainty" / "test_0_entropy.nii.gz").is_file()
