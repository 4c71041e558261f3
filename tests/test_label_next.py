"""samunet_next: from a pool of images to files that train as they are."""

import csv
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from samunet import api
from samunet.commands import run_command
from samunet.errors import SamunetError, UsageError

pytestmark = pytest.mark.slow
SHORT = ["--iterations", "4", "--batch_size", "2"]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A tiny dataset with two trained folds: (its folder, the three folders)."""
    from conftest import write_tiny_dataset

    root = tmp_path_factory.mktemp("next")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"samunet_{name}", str(root / name))
        write_tiny_dataset(root)
        assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
        assert run_command("samunet_train", ["998", "2d", "0", "1", *SHORT]) == 0
    return root


@pytest.fixture
def trained(trained_once, samunet_folders, monkeypatch):
    """A copy of it for one test; returns the raw dataset's folder."""
    for name in ("raw", "preprocessed", "results"):
        shutil.copytree(trained_once / name, samunet_folders / name, dirs_exist_ok=True)
    monkeypatch.chdir(samunet_folders)
    return samunet_folders / "raw" / "Dataset998_Tiny"


def pixels(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def take_over(raw, chosen, output):
    """Do what the command says when the files are corrected."""
    for row in chosen:
        shutil.copyfile(output / row["file"], raw / "labelsTr" / row["file"])
        for image, name in zip(row["images"], row["copy_images_to"]):
            shutil.copyfile(image, raw / "imagesTr" / name)
    content = json.loads((raw / "dataset.json").read_text())
    content["labels"] = json.loads((output / "dataset.json").read_text())["labels"]
    del content["numTraining"]
    (raw / "dataset.json").write_text(json.dumps(content))


def test_cases_are_chosen_and_train_as_they_are(trained, tmp_path, capsys):
    words = ["998", "-i", trained / "imagesTs", "-n", "2", "-o", "chosen", "--disable_tta"]
    assert run_command("samunet_next", words) == 0
    shown = capsys.readouterr()
    assert "label next" in shown.out
    assert "by chance instead" in shown.out
    assert "samunet_add_cases -d 998" in shown.out
    assert '"ignore"' not in shown.out
    assert "strategy uncertainty: 6 labelled cases" in shown.err
    with open("chosen/next.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert {row["case"] for row in rows} == {row["random_foreground"] for row in rows} == {"test_0", "test_1"}
    assert all(0 < float(row["entropy"]) < np.log(3) for row in rows)
    for name in ("test_0", "test_1"):
        image = sitk.ReadImage(str(trained / "imagesTs" / f"{name}_0000.nii.gz"))
        label = sitk.ReadImage(str(tmp_path / "chosen" / f"{name}.nii.gz"))
        assert label.GetSize() == image.GetSize()
        assert label.GetOrigin() == image.GetOrigin()
    assert run_command("samunet_predict", ["-i", trained / "imagesTs", "-o", "preds", "--disable_tta"]) == 0
    assert np.array_equal(pixels("preds/test_0.nii.gz"), pixels("chosen/test_0.nii.gz"))


def test_slices_have_the_prediction_and_the_rest_is_ignored_and_trains(trained, tmp_path, capsys):
    found = api.label_next(998, trained / "imagesTs", "chosen", number=3, unit="slice", tta=False, progress=False)
    assert (found["ignore"], found["ignore_is_new"]) == (3, True)
    places = {}
    for row in found["chosen"]:
        assert row["axis"] == "z"
        places.setdefault(row["case"], set()).add(row["slice"])
    assert sum(map(len, places.values())) == 3
    api.predict(trained / "imagesTs", "preds", tta=False, progress=False)
    for case, slices in places.items():
        label, mask = pixels(f"chosen/{case}.nii.gz"), pixels(f"preds/{case}.nii.gz")
        for z in range(len(label)):
            assert np.array_equal(label[z], mask[z]) if z in slices else (label[z] == 3).all()
    take_over(trained, found["chosen"], tmp_path / "chosen")
    assert run_command("samunet_add_cases", ["-d", "998"]) == 0
    # A fold without these cases in its validation; the other one was trained before there was an ignore label.
    assert run_command("samunet_train", ["998", "2d", "0", "--overwrite", *SHORT]) == 0
    capsys.readouterr()
    # What is annotated is not chosen again, and stays in the file as the person left it.
    again = api.label_next(998, trained / "imagesTs", "chosen", number=2, unit="slice", tta=False, progress=False)
    assert not again["ignore_is_new"]
    assert all(row["slice"] not in places.get(row["case"], ()) for row in again["chosen"])
    assert all(row["copy_images_to"] == [] for row in again["chosen"] if row["case"] in places)
    for name in {row["case"] for row in again["chosen"]} & set(places):
        label, before = pixels(f"chosen/{name}.nii.gz"), pixels(trained / "labelsTr" / f"{name}.nii.gz")
        assert np.array_equal(label[before != 3], before[before != 3])


def test_the_same_seed_chooses_the_same(trained):
    options = {"number": 4, "unit": "slice", "round": 1, "rounds": 5, "tta": False, "progress": False}
    one, two, other = (
        api.label_next(998, trained / "imagesTs", f"next_{seed}_{turn}", seed=seed, **options)
        for seed, turn in ((1, 0), (1, 1), (2, 0))
    )
    for key in ("chosen", "random_foreground"):
        assert one[key] == two[key]
    assert (one["chosen"], one["random_foreground"]) != (other["chosen"], other["random_foreground"])


def test_few_labelled_cases_are_chosen_from_for_variety(samunet_folders, tiny_dataset, tmp_path, monkeypatch, capsys):
    raw = tiny_dataset(ids=("a", "b", "c"))
    monkeypatch.chdir(tmp_path)
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    assert run_command("samunet_train", ["998", "2d", "all", *SHORT]) == 0
    # Of two like the others and one unlike, the latter.
    odd = sitk.ReadImage(str(raw / "imagesTs" / "test_1_0000.nii.gz"))
    noise = np.random.default_rng(0).normal(0, 500, pixels(raw / "imagesTs" / "test_1_0000.nii.gz").shape)
    unlike = sitk.GetImageFromArray(noise.astype(np.float32))
    unlike.CopyInformation(odd)
    sitk.WriteImage(unlike, str(raw / "imagesTs" / "odd_0000.nii.gz"))
    capsys.readouterr()
    assert run_command("samunet_next", ["998", "-i", raw / "imagesTs", "-n", "1", "--json", "--disable_tta"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["strategy"] == "variety"
    assert "3 labelled cases, fewer than 5" in found["why"]
    assert found["why"] in shown.err
    assert [row["case"] for row in found["chosen"]] == ["odd"]
    assert found["chosen"][0]["chosen_for"] == "variety"


def test_what_is_labelled_already_is_left_out_by_its_content(trained, tmp_path):
    pool = tmp_path / "pool"
    shutil.copytree(trained / "imagesTs", pool)
    image = sitk.ReadImage(str(trained / "imagesTr" / "case_2_0000.nii.gz"))
    sitk.WriteImage(image, str(pool / "other_name_0000.nii.gz"), useCompression=False)
    shutil.copyfile(pool / "test_0_0000.nii.gz", pool / "twin_0000.nii.gz")
    (pool / "broken_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(UsageError, match="more than the pool has: 2 cases without labels") as raised:
        api.label_next(998, pool, number=3, progress=False)
    assert raised.value.hint == "ask for fewer: `number=2`"
    assert not (tmp_path / "next").exists()
    found = api.label_next(998, pool, number=1, tta=False, progress=False)
    assert found["left_out"]["other_name"] == "labelled already, as case_2"
    assert found["left_out"]["twin"] == "the same image as test_0"
    assert "broken" in found["left_out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 0}, "`number` must be at least 1"),
        ({"unit": "patch"}, "`unit` must be one of case, slice"),
        ({"strategy": "best"}, "`strategy` must be one of auto, uncertainty"),
        ({"round": 3, "rounds": 2}, "`round` must be at least 1 and at most 2"),
        ({"source": "nowhere"}, "nowhere does not exist"),
        ({"source": []}, "the pool is empty"),
    ],
)
def test_wrong_arguments(trained, change, message):
    with pytest.raises(UsageError, match=message):
        api.label_next(**{"dataset": 998, "source": trained / "imagesTs", "progress": False} | change)


def test_refusals(trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SamunetError, match="has no images: it is empty"):
        api.label_next(998, "empty", progress=False)
    with pytest.raises(UsageError, match="the pool has no case left to label"):
        api.label_next(998, trained / "imagesTr", progress=False)
    pool = tmp_path / "pool"
    pool.mkdir()
    shutil.copyfile(trained / "imagesTs" / "test_0_0000.nii.gz", pool / "case_1_0000.nii.gz")
    with pytest.raises(UsageError, match=r"called like training cases .* \(case_1\)"):
        api.label_next(998, pool, number=1, progress=False)
    api.label_next(998, trained / "imagesTs", number=1, tta=False, progress=False)
    mask = next((tmp_path / "next").glob("*.nii.gz"))
    label = sitk.ReadImage(str(mask)) * 0
    sitk.WriteImage(label, str(mask))
    with pytest.raises(SamunetError, match="edited since they were written"):
        api.label_next(998, trained / "imagesTs", number=1, progress=False)
    assert pixels(mask).max() == 0
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "results").mkdir()
    assert run_command("samunet_next", ["998", "-i", trained / "imagesTs", "-n", "1", "-o", "fresh"]) == 2
    error = capsys.readouterr().err
    assert "there is no trained model" in error
    assert "samunet_train" in error


def test_slices_of_a_volume_that_lies_otherwise(trained, tmp_path):
    """A pool image whose axes run otherwise: the chosen slice lies along the axis that is named."""
    pool = tmp_path / "pool"
    pool.mkdir()
    image = sitk.ReadImage(str(trained / "imagesTs" / "test_0_0000.nii.gz"))
    sitk.WriteImage(sitk.PermuteAxes(image, (2, 0, 1)), str(pool / "lying_0000.nii.gz"))
    found = api.label_next(998, pool, number=1, unit="slice", tta=False, progress=False)
    row = found["chosen"][0]
    label = pixels(f"next/{row['file']}")
    assert label.shape == pixels(pool / "lying_0000.nii.gz").shape
    axis = "zyx".index(row["axis"])
    assert label.shape[axis] == 4
    kept = np.moveaxis(label, axis, 0) != 3
    assert kept[row["slice"]].all()
    assert kept.sum() == kept[0].size
