"""Tumours as regions that lie in each other, on real images: from dataset.json to painted masks and their scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samunet import api
from samunet.commands import run_command

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "Dataset103_BrainTumourExcerpt"
NAME = "Dataset903_TumourRegions"
TEST_CASE = "brats_2013_pat0001_1"
REGIONS = {"whole tumour": [1, 2, 3, 4], "tumour core": [1, 3, 4], "enhancing": 4}
ORDER = [2, 1, 4]  # edema under necrosis under what enhances


def make_dataset(raw):
    """The dataset with regions in place of its classes; all files are links."""
    folder = raw / NAME
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True)
        for file in (SOURCE / part).iterdir():
            (folder / part / file.name).symlink_to(file)
    content = json.loads((SOURCE / "dataset.json").read_text())
    content |= {"labels": {"background": 0, **REGIONS}, "regions_class_order": ORDER}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def values_of(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.mark.long
@pytest.mark.full_network
@pytest.mark.skipif(not SOURCE.is_dir(), reason=f"the brain tumours are not at {SOURCE}")
def test_regions_of_brain_tumours_are_learnt_and_painted_in_their_order(samunet_folders, tmp_path):
    dataset = make_dataset(samunet_folders / "raw")
    assert run_command("samunet_plan_and_preprocess", ["-d", "903", "-np", "0"]) == 0
    assert (
        run_command("samunet_train", ["903", "2d", "all", "--iterations", "60", "--batch_size", "4", "-device", "cpu"])
        == 0
    )
    output = tmp_path / "preds"
    flags = ["--disable_tta", "--save_probabilities", "-device", "cpu"]
    assert run_command("samunet_predict", ["-i", str(dataset / "imagesTs"), "-o", str(output), *flags]) == 0

    mask = values_of(output / f"{TEST_CASE}.nii.gz")
    image = values_of(dataset / "imagesTs" / f"{TEST_CASE}_0000.nii.gz")
    assert mask.shape == image.shape
    with np.load(output / f"{TEST_CASE}.npz") as saved:
        probabilities = saved["probabilities"]
    assert probabilities.shape == (3, *mask.shape)
    # Later regions cover earlier ones, wherever each output of the network says that they are.
    whole, core, enhancing = probabilities > 0.5
    expected = np.select([enhancing, core, whole], ORDER[::-1], 0)
    decided = (np.abs(probabilities - np.float16(0.5)) > 1e-3).all(0)  # beyond rounding to half precision
    assert decided.mean() > 0.95
    assert np.array_equal(mask[decided], expected[decided])
    assert set(np.unique(mask)) == {0, *ORDER}

    nested = [np.isin(mask, values) for values in REGIONS.values()]
    assert not (nested[1] & ~nested[0]).any()
    assert not (nested[2] & ~nested[1]).any()
    summary = api.evaluate(predictions=output, references=dataset / "labelsTs")
    assert list(summary["mean"]) == ["(1, 2, 3, 4)", "(1, 3, 4)", "4"]
    reference = values_of(dataset / "labelsTs" / f"{TEST_CASE}.nii.gz")
    for (key, mean), values in zip(summary["mean"].items(), REGIONS.values()):
        predicted, true = np.isin(mask, values), np.isin(reference, values)
        assert mean["Dice"] > 0.4, key  # about 0.85, 0.75 and 0.67 with three seeds: learnt, and not painted anywhere
        assert mean["Dice"] == pytest.approx(2 * (predicted & true).sum() / (predicted.sum() + true.sum())), key
