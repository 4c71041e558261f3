"""Datasets that look unlike the usual: each through fingerprint, planning, preprocessing, loader and prediction."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image as Picture
from torch import nn

from samunet.commands import run_command
from samunet.dataset.layout import load_dataset
from samunet.files import read_json
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.planning.fingerprint import extract_fingerprint
from samunet.planning.planner import PlannerOptions, plan
from samunet.preprocessing.chunks import chunks, sample_positions, unique_values
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.run import store_cases, stored_cases
from samunet.training.loader import SliceLoader

NAME = "Dataset998_Odd"


@dataclass
class Odd:
    """Training cases of one dataset.

    Attributes:
        shapes: One ``(z, y, x)`` per case.
        spacing: Millimetres, the same for all cases.
        dtype: Of the files.
        offset, contrast: Intensity of the background, and of the organ above it.
        channel: Name of the channel, which chooses the normalisation.
        constant: Whether a second channel is 7 everywhere.
        empty: Number of cases, from the first, whose organ is not there.
    """

    shapes: list[tuple[int, int, int]]
    spacing: tuple[float, float, float] = (5.0, 1.0, 1.0)
    dtype: type = np.float32
    offset: float = 100.0
    contrast: float = 100.0
    channel: str = "MRI"
    constant: bool = False
    empty: int = 0


ODD = {
    "one slice in a volume": Odd([(1, 40, 36), (5, 40, 36), (1, 44, 38)]),
    "only single slices": Odd([(1, 40, 36)] * 3),
    "30 pixels": Odd([(3, 30, 30)] * 3),
    "600 slices": Odd([(600, 16, 18), (3, 16, 18)]),
    "one case": Odd([(3, 40, 36)]),
    "slices along the last axis": Odd([(40, 36, 4), (38, 40, 5)], (1.0, 1.0, 6.0)),
    "slices along the middle axis": Odd([(40, 4, 36), (38, 5, 40)], (1.0, 6.0, 1.0)),
    "pixels three times as wide as high": Odd([(4, 60, 20), (4, 66, 22)], (5.0, 1.0, 3.0)),
    "pixels three times as high as wide": Odd([(4, 20, 60), (4, 22, 66)], (5.0, 3.0, 1.0)),
    "float64 up to a million": Odd([(3, 40, 36)] * 2, dtype=np.float64, offset=2e5, contrast=8e5),
    "float64 up to a million, as they are": Odd(
        [(3, 40, 36)] * 2, dtype=np.float64, offset=2e5, contrast=8e5, channel="nonorm"
    ),
    "uint16 up to its end": Odd([(3, 40, 36)] * 2, dtype=np.uint16, offset=1000, contrast=58000),
    "uint16 CT": Odd([(3, 40, 36)] * 2, dtype=np.uint16, offset=1000, contrast=58000, channel="CT"),
    "tiny differences far from zero": Odd([(3, 40, 36)] * 2, dtype=np.float64, offset=1e6, contrast=50),
    "a constant channel": Odd([(3, 40, 36)] * 2, constant=True),
    "empty labels": Odd([(3, 40, 36)] * 3, empty=2),
    "portrait and landscape": Odd([(3, 60, 30), (3, 30, 60), (3, 44, 44)]),
    "much larger and much smaller than the median": Odd([(2, 150, 170), (3, 40, 36), (3, 42, 36), (3, 12, 10)]),
}


def case_of(odd, number):
    """Image ``(channels, z, y, x)`` and label of a case: an ellipsoid in all slices, brighter than what is around."""
    shape = odd.shapes[number]
    rng = np.random.default_rng(number)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in shape), indexing="ij")
    slicing = int(np.argmax(odd.spacing))
    distance = sum(np.square(axis) * (0.1 if index == slicing else 1) for index, axis in enumerate(axes))
    label = (distance < 0.4).astype(np.uint8) * (number >= odd.empty)
    image = odd.offset + odd.contrast * (label + rng.uniform(0, 0.1, shape))
    return np.stack([image, np.full_like(image, 7)])[: 1 + odd.constant].astype(odd.dtype), label


def write_dataset(root, odd):
    folder = root / "raw" / NAME
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(len(odd.shapes)):
        image, label = case_of(odd, number)
        files = {f"imagesTr/c{number}_{index:04d}": channel for index, channel in enumerate(image)}
        for name, array in (files | {f"labelsTr/c{number}": label}).items():
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(odd.spacing[::-1])
            sitk.WriteImage(volume, str(folder / f"{name}.nii.gz"))
    description = {
        "channel_names": {"0": odd.channel, **({"1": "constant"} if odd.constant else {})},
        "labels": {"background": 0, "organ": 1},
        "numTraining": len(odd.shapes),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


class Brighter(nn.Module):
    """Two classes: foreground where the middle of what it sees (or its first of two channels) is above ``level``."""

    def __init__(self, level, channel):
        super().__init__()
        self.level, self.channel = level, channel

    def forward(self, image):
        value = (image[:, self.channel : self.channel + 1] - self.level) / max(1, abs(self.level))
        return torch.cat([-value, value], dim=1)


def prepare(root):
    """Fingerprint, plans and stored slices of the dataset."""
    dataset = load_dataset(NAME)
    fingerprint = extract_fingerprint(dataset, progress=False)
    plans = plan(NAME, dataset.description, fingerprint, PlannerOptions())
    configuration = plans.configuration("2d")
    folder = root / "preprocessed" / NAME
    target = folder / configuration.data_identifier
    store_cases(dataset.cases, dataset.description, plans, configuration, target, progress=False)
    stored = stored_cases(folder, plans, configuration, dataset.description, list(dataset.cases), dataset)
    return dataset, fingerprint, plans, configuration, stored


@pytest.mark.parametrize("name", ODD)
def test_from_files_to_masks(name, samunet_folders):
    odd = ODD[name]
    write_dataset(samunet_folders, odd)
    dataset, fingerprint, plans, configuration, stored = prepare(samunet_folders)
    network = configuration.networks["small"]
    assert len(fingerprint.empty_cases) == odd.empty
    assert plans.transpose_forward[0] == int(np.argmax(odd.spacing))

    loader = SliceLoader(stored, configuration, network, batch_size=2, seed=0)
    for iteration in range(3):
        batch = loader.batch(iteration)
        channels = 3 if network.input_channels == "neighbours" else 1 + odd.constant
        assert batch["data"].shape == (2, channels, *network.input_shape)
        assert batch["seg"].shape == (2, *network.input_shape)
        assert np.isfinite(batch["data"]).all()
        assert set(np.unique(batch["seg"])) <= {0, 1}

    for number, case in enumerate(stored.values()):
        image, label = case_of(odd, number)
        seen = case.image()
        assert np.isfinite(seen).all()
        assert seen.shape[1:] == case.label().shape
        assert set(case.class_locations) == ({1} if label.any() else set())
        if not label.any():
            continue
        first = seen[0]
        level = (np.median(first[case.label() == 1]) + np.median(first[case.label() == 0])) / 2
        middle = 1 if network.input_channels == "neighbours" else 0
        options = PredictionOptions(device="cpu", tta=False)
        model = Brighter(float(level), middle)
        predictor = Predictor([model], plans, configuration, network, dataset.description, options)
        predictor.slices.dtype = None  # half of single precision's digits are not the matter here
        mask = predictor.predict_array(image.astype(np.float32), odd.spacing)
        assert mask.shape == label.shape
        both = 2 * np.count_nonzero(mask & label) / (np.count_nonzero(mask) + np.count_nonzero(label))
        assert both > 0.9, f"case {number}: Dice {both:.3f}"


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("float64 up to a million", True),  # z-scores are small whatever the intensities were
        ("float64 up to a million, as they are", False),
        ("uint16 up to its end", True),
        ("tiny differences far from zero", True),
    ],
)
def test_precision_on_disk(name, half, samunet_folders):
    write_dataset(samunet_folders, ODD[name])
    *_, stored = prepare(samunet_folders)
    image, _ = case_of(ODD[name], 0)
    found = stored["c0"].image()[0]
    expected = image[0] if ODD[name].channel == "nonorm" else (image[0] - image[0].mean()) / image[0].std()
    # Half precision has 11 binary digits, single has 24; z-scores of numbers near 1e6 have lost some in float32.
    assert np.allclose(found, expected, rtol=2**-11 if half else 2**-24, atol=3e-3 if half else 0)
    assert (stored["c0"]._image.dtype == np.float16) == half


def test_a_constant_channel_is_zero(samunet_folders):
    write_dataset(samunet_folders, ODD["a constant channel"])
    *_, stored = prepare(samunet_folders)
    assert all((case.image()[1] == 0).all() for case in stored.values())


def test_large_slices_are_tiled_and_small_ones_padded(samunet_folders):
    odd = ODD["much larger and much smaller than the median"]
    write_dataset(samunet_folders, odd)
    *_, configuration, stored = prepare(samunet_folders)
    network = configuration.networks["small"]
    windows = {}
    for name, case in stored.items():
        grid = SliceGrid.of(case.shape[1:], case.record.stored_spacing, network.spacing, network.input_shape)
        windows[name] = len(grid.window_starts(0.5))
    assert windows["c3"] == windows["c1"] == 1
    assert windows["c0"] >= 9


@pytest.fixture
def photographs(samunet_folders):
    """Two RGB photographs, 3000 x 4000 and 2000 x 1500, and a function that tells the label of one of a shape."""

    def label_of(shape):
        y, x = (np.linspace(-1, 1, side) for side in shape)
        return (np.square(y)[:, None] + np.square(x)[None] < 0.3).astype(np.uint8)

    folder = samunet_folders / "raw" / NAME
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for name, shape in (("a", (3000, 4000)), ("b", (2000, 1500))):
        label = label_of(shape)
        ramp = np.linspace(0, 60, shape[1]).astype(np.uint8)
        picture = np.stack([150 * label + ramp, 20 * label + ramp, np.broadcast_to(ramp, shape)], axis=-1)
        Picture.fromarray(picture.astype(np.uint8)).save(folder / "imagesTr" / f"{name}_0000.png", compress_level=1)
        Picture.fromarray(label).save(folder / "labelsTr" / f"{name}.png", compress_level=1)
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 2,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return label_of


@pytest.mark.slow
def test_photographs_are_reduced_fourfold_and_tiled(photographs, samunet_folders):
    dataset, fingerprint, plans, configuration, stored = prepare(samunet_folders)
    network = configuration.networks["small"]
    assert fingerprint.physical_spacing is False
    assert configuration.normalization == ["divide_by_255"] * 3
    assert stored["a"].shape == (1, 3000, 4000)
    grid = SliceGrid.of((3000, 4000), None, network.spacing, network.input_shape)
    assert grid.zoom == (0.25, 0.25)
    assert len(grid.window_starts(0.5)) > 20

    loader = SliceLoader(stored, configuration, network, batch_size=2, seed=0)
    shares = [float((loader.batch(iteration)["seg"] == 1).mean()) for iteration in range(4)]
    assert max(shares) > 0.3  # a window is a part of the photograph, centred on the lesion by turns
    options = PredictionOptions(device="cpu", tta=False)
    predictor = Predictor([Brighter(0.4, 0)], plans, configuration, network, dataset.description, options)
    mask, _ = predictor.predict_files(dataset.cases["a"].images)
    label = photographs((3000, 4000))
    assert mask.shape == (1, 3000, 4000)
    assert 2 * np.count_nonzero(mask[0] & label) / (mask.sum(dtype=int) + label.sum(dtype=int)) > 0.99


SHORT = ["--iterations", "2", "--batch_size", "2"]


def fold_folder(root, fold):
    return next((root / "results").glob(f"Dataset998_*/samunetTrainer__*/fold_{fold}"))


def clear_labels(folder, change):
    for path in sorted((folder / "labelsTr").iterdir()):
        old = sitk.ReadImage(str(path))
        array = change(sitk.GetArrayFromImage(old), path.name.split(".")[0])
        new = sitk.GetImageFromArray(array)
        new.CopyInformation(old)
        sitk.WriteImage(new, str(path))


def test_one_case_trains_as_fold_all_and_predicts(samunet_folders, tiny_dataset, tmp_path, capsys):
    folder = tiny_dataset(ids=("only",))
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) != 0
    errors = capsys.readouterr().err
    assert "all" in errors
    assert "Traceback" not in errors
    assert run_command("samunet_train", ["998", "2d", "all", *SHORT]) == 0
    assert run_command("samunet_predict", ["-i", str(folder / "imagesTs"), "-o", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_three_cases_are_left_out_one_by_one(samunet_folders, tiny_dataset):
    tiny_dataset(ids=("a", "b", "c"))
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    assert run_command("samunet_train", ["998", "2d", "2", *SHORT]) == 0
    assert len(read_json(fold_folder(samunet_folders, 2) / "validation" / "summary.json")["metric_per_case"]) == 1
    assert run_command("samunet_train", ["998", "2d", "3", *SHORT]) != 0  # there is no fourth


@pytest.mark.parametrize("side", ["train", "val"])
def test_a_class_that_one_side_of_a_fold_lacks(side, samunet_folders, tiny_dataset):
    folder = tiny_dataset(ids=("a", "b", "c"))
    # Fold 0 of leave one out validates on the first case.
    kept = {"train": "a", "val": "bc"}[side]
    clear_labels(folder, lambda label, name: np.where(label == 2, 2 if name in kept else 0, label).astype(np.uint8))
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    summary = read_json(fold_folder(samunet_folders, 0) / "validation" / "summary.json")
    (scores,) = [case["metrics"]["2"] for case in summary["metric_per_case"]]
    assert (scores["n_ref"] > 0) == (side == "train")


def test_empty_labels_on_either_side_of_a_fold(samunet_folders, tiny_dataset):
    folder = tiny_dataset(ids=("a", "b", "c"))
    clear_labels(folder, lambda label, name: label if name == "c" else np.zeros_like(label))
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    for fold in "02":  # 0: the validation case is empty, and one training case; 2: all training cases are
        assert run_command("samunet_train", ["998", "2d", fold, *SHORT]) == 0


MEMORY = """
import json, sys, tempfile
from pathlib import Path
import numpy as np, torch
from torch import nn
import nibabel, blosc2, SimpleITK
from samunet.dataset.cases import Case
from samunet.dataset.description import description_from_json
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.planning import fingerprint
from samunet.planning.planner import PlannerOptions, plan
from samunet.preprocessing import run
from samunet.imageio.base import Geometry

class Simple(nn.Module):
    def forward(self, image):
        return torch.cat([-image[:, :1]] + [image[:, :1]] * (outputs - 1), dim=1)

folder, shape, outputs = Path(sys.argv[1]), (100, 256, 256), 5
rng = np.random.default_rng(0)
for kind, array in (("image", rng.integers(0, 999, shape, dtype=np.int16)),
                    ("label", np.ones(shape, dtype=np.uint8))):
    nibabel.save(nibabel.Nifti1Image(array.T, np.diag([1.0, 1, 3, 1])), folder / f"{kind}.nii")
del array
raw = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **{str(v): v for v in range(1, outputs)}},
       "numTraining": 1, "file_ending": ".nii"}
description = description_from_json(raw, "dataset.json")
case = Case("a", (folder / "image.nii",), folder / "label.nii")
found = {}

def measure(name, step):
    import ctypes, gc
    def status(key):
        line = next(line for line in open("/proc/self/status") if line.startswith(key))
        return int(line.split()[1]) * 1024
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = step()
    found[name] = (status("VmHWM") - before) / (4 * np.prod(shape))
    return result

one, values, _, _ = measure("fingerprint", lambda: fingerprint._measure_case(case, description, 1000, False))
whole = fingerprint.Fingerprint(
    spacings=[one.spacing], shapes_after_crop=[one.shape_after_crop], cases={"a": one}, asymmetry=[0.0, 0.0, 0.0],
    foreground_intensity_properties_per_channel=fingerprint._statistics([values]), empty_cases=[], source="",
    median_relative_size_after_cropping=1.0, physical_spacing=True)
plans = plan("Dataset001_A", description, whole, PlannerOptions())
configuration = plans.configuration("2d")
measure("preprocessing", lambda: run._store(case, description, plans, configuration, folder, "", False))
network = configuration.networks["small"]
predictor = Predictor([Simple()], plans, configuration, network, description, PredictionOptions(device="cpu"))
predictor.slices.batch_size = 1
predictor.predict_array(np.zeros((1, 2, 256, 256)), (3.0, 1.0, 1.0))
measure("prediction", lambda: predictor.predict_files(case.images))
outputs = 40
raw["labels"] = {"background": 0, **{str(v): v for v in range(1, outputs)}}
options = PredictionOptions(device="cpu", save_uncertainty=True)
description = description_from_json(raw, "dataset.json")
predictor = Predictor([Simple(), Simple(), Simple()], plans, configuration, network, description, options)
predictor.slices.batch_size = 1
part = folder / "part.nii"
nibabel.save(nibabel.load(folder / "image.nii").slicer[:, :, :20], part)
warm_up = Case("part", (part,), None)
predictor.predict_case(warm_up, folder / "part_mask.nii")
measure("a fifth", lambda: predictor.predict_case(warm_up, folder / "part_mask.nii"))
measure("whole", lambda: predictor.predict_case(case, folder / "mask.nii"))
found["uncertainty"] = (found["whole"] - found["a fifth"]) / (4 / 5)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_each_step_holds_few_copies_of_a_case(tmp_path):
    """Peak memory in units of the image as float32; a volume of foreground throughout is the worst."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], check=True, capture_output=True, text=True)
    copies = json.loads(done.stdout.splitlines()[-1])
    assert copies["fingerprint"] < 4
    assert copies["preprocessing"] < 4.5
    assert copies["prediction"] < 4
    # By how much it grows with the slices, with three folds of 40 classes.
    assert copies["uncertainty"] < 5.5


def test_pieces_are_views_of_the_whole(monkeypatch):
    monkeypatch.setattr("samunet.preprocessing.chunks._CHUNK", 7)
    array, other = np.arange(60).reshape(3, 4, 5), np.ones((3, 4, 5), dtype=bool)
    sizes = []
    for values, where in chunks(array, other):
        assert values.shape == where.shape
        sizes.append(len(values))
        values += 1
    assert sizes == [7] * 8 + [4]
    assert np.array_equal(array.reshape(-1), np.arange(1, 61))


def test_values_and_places(monkeypatch):
    monkeypatch.setattr("samunet.preprocessing.chunks._CHUNK", 7)
    label = np.random.default_rng(0).integers(-1, 4, (5, 6, 7)).astype(np.int16)
    assert unique_values(label) == [-1, 0, 1, 2, 3]
    whole = np.flatnonzero(label == 2)

    def twos(piece):
        return piece == 2

    assert np.array_equal(sample_positions(label, twos, np.arange), whole)
    ranks = np.array([0, 3, 3, 8, len(whole) - 1])
    assert np.array_equal(sample_positions(label, twos, lambda number: ranks), whole[ranks])
    assert len(sample_positions(label, lambda piece: piece == 9, np.arange)) == 0
