"""benchmarks/synapse.py on generated files of the three forms that the Synapse CTs come in."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from samunet.encoders import ENCODERS
from samunet.network.encoders.vit import ImageEncoder
from samunet.network.heads import SamHead

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import synapse
import synapse_data
from synapse_data import ORDERS, ORGANS

TRAINING, TEST = ("case0005", "case0006", "case0010"), ("case0001", "case0008")
# Boxes (y, x) of a 32 px slice: the liver is largest, stomach above pancreas, spleen above aorta, left is at large x.
BOXES = {
    "liver": ((4, 16), (3, 14)),
    "stomach": ((4, 11), (16, 24)),
    "spleen": ((5, 13), (25, 30)),
    "pancreas": ((13, 16), (16, 21)),
    "gallbladder": ((17, 19), (10, 13)),
    "aorta": ((18, 21), (15, 18)),
    "right kidney": ((21, 27), (5, 10)),
    "left kidney": ((21, 27), (21, 26)),
}


@pytest.fixture(autouse=True)
def folders_of_the_benchmark(monkeypatch):
    """The script names samunet's folders itself; what it sets must not outlive the test."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"samunet_{name}", "")


def phantom(name, order, depth=4):
    """Image in HU and label ``(z, y, x)``, with the label values of ``order``."""
    rng = np.random.default_rng(int(name[-4:]))
    label = np.zeros((depth, 32, 32), np.uint8)
    for organ, ((top, bottom), (left, right)) in BOXES.items():
        label[:, top:bottom, left:right] = ORDERS[order].index(organ) + 1
    brightness = {ORDERS[order].index(organ) + 1: -100 + 45 * place for place, organ in enumerate(ORGANS)}
    image = np.vectorize(lambda value: brightness.get(value, -400))(label) + rng.normal(0, 4, label.shape)
    return image.astype(np.float32), label


def write_preprocessed(folder, order="transunet", transposed=False, skip=()):
    """Files as TransUNet and SAMed have them."""
    h5py = pytest.importorskip("h5py", reason="the form of the test volumes")
    (folder / "train_npz").mkdir(parents=True)
    (folder / "test_vol_h5").mkdir()
    for name in TRAINING + TEST:
        image, label = phantom(name, order)
        image = (np.clip(image, -125, 275) + 125) / 400
        if transposed:
            image, label = image.swapaxes(1, 2), label.swapaxes(1, 2)
        if name in TEST:
            with h5py.File(folder / "test_vol_h5" / f"{name}.npy.h5", "w") as file:
                file["image"], file["label"] = image, label.astype(np.float32)
            continue
        for number in range(len(image)):
            if (name, number) not in skip:
                path = folder / "train_npz" / f"{name}_slice{number:03d}.npz"
                np.savez(path, image=image[number], label=label[number].astype(np.float32))
    return folder


def write_btcv(folder):
    """Files as the original download has them: 13 organs, HU, real spacing; Testing has images alone."""
    for part, names in (("Training", TRAINING + TEST), ("Testing", ("case0061",))):
        for name in names:
            image, label = phantom(name, "btcv")
            for kind, array in (("img", image.astype(np.int16)), ("label", label)):
                if part == "Testing" and kind == "label":
                    continue
                (folder / "RawData" / part / kind).mkdir(parents=True, exist_ok=True)
                volume = sitk.GetImageFromArray(array)
                volume.SetSpacing((0.7, 0.7, 5.0))
                sitk.WriteImage(volume, str(folder / "RawData" / part / kind / f"{kind}{name[-4:]}.nii.gz"))
    return folder


def written(dataset, part, case):
    image = sitk.ReadImage(str(dataset / f"images{part}" / f"{case}_0000.nii.gz"))
    label = sitk.ReadImage(str(dataset / f"labels{part}" / f"{case}.nii.gz"))
    return sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label), image.GetSpacing()


@pytest.mark.parametrize(("order", "transposed"), [("transunet", True), ("samed", False), ("btcv", False)])
def test_preprocessed_files_become_one_dataset(tmp_path, order, transposed):
    source = write_preprocessed(tmp_path / "data", order, transposed)
    dataset = synapse_data.prepare([source / "train_npz", source / "test_vol_h5"], tmp_path / "raw")
    for part, cases in (("Tr", TRAINING), ("Ts", TEST)):
        assert len(list((dataset / f"images{part}").iterdir())) == len(cases)
        image, label, spacing = written(dataset, part, cases[0])
        hu, expected = phantom(cases[0], "transunet")
        np.testing.assert_array_equal(label, expected)
        # Organs' intensities follow their names, so an image beside the wrong label would differ.
        np.testing.assert_allclose(image, (np.clip(hu, -125, 275) + 125) / 400, atol=1e-5)
        assert spacing == pytest.approx((390 / 32, 390 / 32, 3.0))
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["labels"] == {"background": 0} | {organ: value for value, organ in enumerate(ORGANS, 1)}
    assert description["numTraining"] == 3


def test_original_download_becomes_the_same_dataset(tmp_path):
    dataset = synapse_data.prepare([write_btcv(tmp_path / "Abdomen")], tmp_path / "raw")
    assert sorted(path.name[:8] for path in (dataset / "labelsTs").iterdir()) == list(TEST)
    image, label, spacing = written(dataset, "Tr", "case0005")
    hu, expected = phantom("case0005", "transunet")
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_allclose(image, (np.clip(hu.astype(np.int16), -125, 275) + 125) / 400, atol=1e-5)
    assert spacing == pytest.approx((0.7, 0.7, 5.0))


def arguments(source, tmp_path, *more):
    return ["--data", str(source), "--work", str(tmp_path / "work"), "--num_workers", "0", *more]


def test_bad_sources_are_told(tmp_path, capsys):
    def message(source, status, *more):
        assert synapse.main(arguments(source, tmp_path, "--prepare_only", *more)) == status
        assert not (tmp_path / "work" / "raw" / synapse_data.DATASET / "dataset.json").exists()
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return text

    assert "is not a folder" in message(tmp_path / "none", 2)
    (tmp_path / "empty").mkdir()
    assert "nothing of the Synapse data" in message(tmp_path / "empty", 2)
    gap = write_preprocessed(tmp_path / "gap", skip=[("case0006", 2)])
    assert "case0006 lacks 1 of its slices, such as number 2" in message(gap, 1)
    assert "there are not the test volumes" in message(gap / "train_npz", 2)
    good = write_preprocessed(tmp_path / "good")
    thirteen = write_preprocessed(tmp_path / "thirteen", "btcv")
    assert "has 8 organs" in message(thirteen, 2, "--labels", "samed")
    assert "in several folders" in message(tmp_path, 2)
    first = good / "train_npz" / "case0005_slice000.npz"
    content = first.read_bytes()
    for damaged in (content[:200], b""):
        first.write_bytes(damaged)
        assert f"could not read {first}: " in message(good, 1)
    np.savez(first, image=np.zeros((32, 32)), mask=np.zeros((32, 32)))
    assert "it must have the arrays image and label" in message(good, 1)
    np.savez(first, image=np.full((32, 32), 200.0), label=np.zeros((32, 32)))
    assert "values from" in message(good, 1)
    np.savez(first, image=np.zeros((32, 32)), label=np.full((32, 32), 0.5))
    assert "not just whole numbers" in message(good, 1)
    first.write_bytes(content)
    (good / "test_vol_h5" / "case0005.npy.h5").write_bytes(b"")
    assert "case0005 would be both trained on and tested on" in message(good, 1)
    (good / "test_vol_h5" / "case0005.npy.h5").rename(good / "test_vol_h5" / "case0002.npy.h5")
    assert f"could not read {good / 'test_vol_h5' / 'case0002.npy.h5'}: " in message(good, 1)


def test_missing_h5py_and_other_sources_are_told(tmp_path, capsys, monkeypatch):
    source = write_preprocessed(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert synapse.main(arguments(source, tmp_path, "--prepare_only")) == 1
    assert "pip install h5py" in capsys.readouterr().err
    monkeypatch.undo()
    assert synapse.main(arguments(source, tmp_path, "--prepare_only")) == 0
    assert synapse.main(arguments(source, tmp_path, "--prepare_only", "--labels", "samed")) == 2
    assert "another --work" in capsys.readouterr().err


def test_order_of_labels_that_sizes_do_not_tell(tmp_path):
    assert synapse_data.label_order({6: 10, 8: 50, 1: 5, 7: 20}) == "transunet"
    assert synapse_data.label_order({6: 50, 8: 10, 1: 20, 7: 5}) == "samed"
    for voxels in ({6: 10, 8: 50, 1: 20, 7: 5}, {5: 7}):
        with pytest.raises(synapse_data.SamunetError, match="do not tell"):
            synapse_data.label_order(voxels)


def brute_hd95(first, second):
    """The definition: all pairs of surface voxels."""

    def surface(mask):
        padded = np.pad(mask, 1)
        points = []
        for point in np.argwhere(mask):
            neighbours = [
                padded[tuple(point + 1 + step * np.eye(3, dtype=int)[axis])] for axis in range(3) for step in (-1, 1)
            ]
            if not all(neighbours):
                points.append(point)
        return np.array(points)

    a, b = surface(first), surface(second)
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return np.percentile(np.concatenate([distances.min(1), distances.min(0)]), 95)


def test_scores_are_those_of_the_definitions():
    rng = np.random.default_rng(0)
    volumes = [rng.random((5, 9, 8)) > 0.6 for _ in range(3)]
    solid = np.zeros((5, 9, 8), bool)
    solid[0:4, 2:8, 1:7] = True  # touches the border of the volume in z
    for first, second in itertools.combinations([*volumes, solid], 2):
        assert synapse.hd95(first, second) == pytest.approx(brute_hd95(first, second))
    moved = np.roll(solid, 1, axis=2)
    result = synapse.score(moved, solid)
    assert result["dice"] == pytest.approx(2 * 5 / 12)
    assert result["samed_dice"] == result["dice"]
    assert result["hd95"] == result["samed_hd95"] == 1


def test_averages_with_organs_that_are_absent():
    nothing, some = np.zeros((2, 3, 3), bool), np.ones((2, 3, 3), bool)
    right, absent = synapse.score(some, some), synapse.score(nothing, nothing)
    invented, missed = synapse.score(some, nothing), synapse.score(nothing, some)
    assert (absent["dice"], absent["hd95"], absent["samed_dice"], absent["samed_hd95"]) == (None, None, 0, 0)
    assert (invented["dice"], invented["hd95"], invented["samed_dice"], invented["samed_hd95"]) == (0, None, 1, 0)
    assert (missed["dice"], missed["hd95"], missed["samed_dice"], missed["samed_hd95"]) == (0, None, 0, 0)
    scores = {"a": dict.fromkeys(ORGANS, right), "b": dict.fromkeys(ORGANS, right) | {"gallbladder": absent}}
    averages = synapse.average(scores)
    assert averages["organs"]["gallbladder"] == {"samed_dice": 0.5, "samed_hd95": 0, "dice": 1, "hd95": 0}
    assert averages["mean"]["samed_dice"] == pytest.approx(7.5 / 8)
    assert averages["mean"]["dice"] == 1
    table = synapse.format_scores(scores).splitlines()
    assert next(line for line in table if line.startswith("gallbladder")).split() == (
        ["gallbladder", "|", "50.00", "0.00", "|", "100.00", "0.00"]
    )


@pytest.fixture
def sam_file(monkeypatch, tmp_path):
    """A small vit_b, and a checkpoint in SAM's layout for it."""
    facts = replace(ENCODERS["vit_b"], width=48, depth=3, heads=3, global_blocks=(1,), native_size=256)
    monkeypatch.setitem(ENCODERS, "vit_b", facts)
    monkeypatch.setenv("samunet_checkpoints", str(tmp_path / "checkpoints"))
    torch.manual_seed(3)
    encoder, head = ImageEncoder(facts), SamHead(4, 16, 16)
    state = {f"image_encoder.{name}": value for name, value in encoder.state_dict().items()} | head.state_dict()
    torch.save(state, tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def test_from_files_to_scores(tmp_path, sam_file, capsys):
    source = write_preprocessed(tmp_path / "data", "samed")
    samed = arguments(source, tmp_path, "--iterations", "2", "--batch_size", "2", "--image_size", "64")
    samed += ["--checkpoint", str(sam_file), "--device", "cpu"]
    assert synapse.main(samed) == 0
    work = tmp_path / "work"
    plans = json.loads(next(work.glob("preprocessed/*/samedPlans.json")).read_text())
    network = plans["configurations"]["2d"]["networks"]["vit_b"]
    assert plans["configurations"]["2d"]["normalization"] == ["nonorm"]
    assert plans["configurations"]["2d"]["mirror_axes"] == [0]
    assert (network["recipe"], network["adaptation"]["method"], network["encoder"]) == ("samed", "lora", "vit_b")
    result = json.loads((work / "scores_samed.json").read_text())
    assert sorted(result["cases"]) == list(TEST)
    assert list(result["organs"]) == list(ORGANS)
    run = json.loads(next(work.glob("results/*/*samedPlans__2d/fold_all/run.json")).read_text())
    assert run["training_cases"] == list(TRAINING)
    table = capsys.readouterr().out
    assert "2 test volumes" in table
    # Again: nothing is trained anew, and the result is the same.
    masks = {path.name: path.stat().st_mtime_ns for path in (work / "predictions" / "samedPlans").glob("*.nii.gz")}
    assert len(masks) == 2
    assert synapse.main(samed) == 0
    again = {path.name: path.stat().st_mtime_ns for path in (work / "predictions" / "samedPlans").glob("*.nii.gz")}
    assert again == masks
    assert capsys.readouterr().out == table


@pytest.mark.long
def test_samunet_s_own_plan_learns_the_organs(tmp_path):
    """The whole way with the small encoder; what it learns comes back under the organs' names."""
    source = write_btcv(tmp_path / "Abdomen")
    own = arguments(source, tmp_path, "--recipe", "samunet", "--encoder", "small", "--iterations", "60")
    assert synapse.main([*own, "--batch_size", "4", "--device", "cpu"]) == 0
    result = json.loads((tmp_path / "work" / "scores_samunet.json").read_text())
    assert result["encoder"] == "small"
    assert result["mean"]["dice"] > 0.5
