"""Published forms of datasets become raw datasets that pass the complete check."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from samunet.commands import run_command
from samunet.dataset.check import complete_check
from samunet.dataset.layout import read_dataset
from samunet.dataset.splits import load_or_make_splits
from samunet.imageio.registry import reader_for
from samunet.preprocessing.case import read_case

LABEL = np.zeros((3, 12, 10), np.uint8)
LABEL[:2, 2:6, 3:7], LABEL[1:, 8:10] = 1, 2


@pytest.fixture(autouse=True)
def work(samunet_folders, monkeypatch):
    (samunet_folders / "work").mkdir()
    monkeypatch.chdir(samunet_folders / "work")


def run(command, *arguments, status=0):
    assert run_command(f"samunet_convert_{command}_dataset", [str(argument) for argument in arguments]) == status


def checked(name):
    dataset = read_dataset(name)
    report = complete_check(dataset, progress=False)
    assert [problem.text for problem in report.problems if not problem.warning] == []
    return dataset


def volume(array, path):
    """NIfTI with an oblique direction; ``(channel, z, y, x)`` becomes the Decathlon's x, y, z, channel."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    affine = np.array([[1.2, -0.9, 0, 5], [0.9, 1.2, 0, -3], [0, 0, 10, 2], [0, 0, 0, 1]])
    axes = (2, 1, 0) if array.ndim == 3 else (3, 2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(array.transpose(axes), affine), path)


def noise(seed, shape=LABEL.shape):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def damage_json(path, **keys):
    content = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps({key: value for key, value in (content | keys).items() if value is not None}))


# The Medical Segmentation Decathlon


@pytest.fixture
def decathlon():
    """Two cases of two channels in one file each, and a test case; as unpacked by macOS."""
    folder = Path("Task05_Prostate")
    for seed, case in enumerate(("prostate_00", "prostate_01")):
        volume(noise(seed, (2, *LABEL.shape)), folder / "imagesTr" / f"{case}.nii.gz")
        volume(LABEL, folder / "labelsTr" / f"{case}.nii.gz")
    volume(noise(7, (2, *LABEL.shape)), folder / "imagesTs" / "prostate_03.nii.gz")
    (folder / "imagesTr" / "._prostate_00.nii.gz").write_bytes(b"macOS")
    content = {
        "name": "PROSTATE",
        "description": "Prostate transitional zone and peripheral zone",
        "licence": "CC-BY-SA 4.0",
        "release": "1.0",
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in ("prostate_00", "prostate_01")
        ],
        "test": ["./imagesTs/prostate_03.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("flags", "name"), [([], "Dataset005_Prostate"), (["-overwrite_id", 50], "Dataset050_Prostate")]
)
def test_decathlon(decathlon, flags, name):
    run("MSD", "-i", decathlon, *flags)
    dataset = checked(name)
    assert dataset.description.channel_names == ("T2", "ADC")
    assert dataset.description.labels.names == ("background", "PZ", "TZ")
    assert dataset.description.raw["licence"] == "CC-BY-SA 4.0"
    image, label = read_case(dataset.cases["prostate_01"], dataset.description)
    assert np.array_equal(image.array, noise(1, (2, *LABEL.shape)))
    assert np.array_equal(label, LABEL)
    assert names(dataset.folder / "imagesTs") == ["prostate_03_0000.nii.gz"]


def test_decathlon_says_what_is_wrong(decathlon, capsys):
    (decathlon / "imagesTs" / "prostate_03.nii.gz").unlink()
    (decathlon / "labelsTr" / "prostate_01.nii.gz").unlink()
    run("MSD", "-i", decathlon, status=1)
    message = capsys.readouterr().err
    assert "./labelsTr/prostate_01.nii.gz" in message
    assert "./imagesTs/prostate_03.nii.gz" in message
    assert not list(Path("../raw").iterdir())


@pytest.mark.parametrize(
    ("keys", "says", "status"),
    [
        ({"modality": None}, "modality: Field required", 1),
        ({"modality": ["T2"]}, "modality: Input should be an object, got ['T2']", 1),
        ({"labels": {"0": "background", "1": 3}}, "labels.1: Input should be a valid string, got 3", 1),
        ({"labels": {"0": "background"}}, 'labels must have "0", the background, and others', 1),
        ({"labels": {"0": "background", "1": "PZ"}}, "values that are not listed: 2", 1),
        ({"training": ["a"]}, "training.0: Input should be an object, got 'a'", 1),
        ({"training": [{"image": "../x.nii.gz", "label": "../y.nii.gz"}]}, "files outside the task's folder", 1),
        ({"training": []}, "there are no cases to train on", 1),
        ({"channel_names": {"0": "T2"}}, "nnU-Net v2's format already", 2),
    ],
)
def test_decathlon_json(decathlon, keys, says, status, capsys):
    damage_json(decathlon / "dataset.json", **keys)
    run("MSD", "-i", decathlon, status=status)
    assert says in capsys.readouterr().err


def test_decathlon_refuses_a_case_that_is_listed_twice(decathlon, capsys):
    content = json.loads((decathlon / "dataset.json").read_text())
    content["training"] += content["training"][:1]
    (decathlon / "dataset.json").write_text(json.dumps(content))
    run("MSD", "-i", decathlon, status=1)
    assert "the same case twice: prostate_00 is" in capsys.readouterr().err


def test_decathlon_needs_the_task(decathlon, capsys):
    run("MSD", "-i", decathlon / "imagesTr", status=2)
    assert "Task04_Hippocampus" in capsys.readouterr().err
    (decathlon / "dataset.json").unlink()
    run("MSD", "-i", decathlon, status=2)
    assert "there is no dataset.json" in capsys.readouterr().err


# nnU-Net v1


@pytest.fixture
def version_1():
    folder = Path("nnUNet_raw_data/Task017_Abdomen")
    for part, cases in (("Tr", ("a", "b")), ("Ts", ("x", "y"))):
        for seed, case in enumerate(cases):
            for channel in range(2):
                volume(noise(10 * seed + channel), folder / f"images{part}" / f"{case}_000{channel}.nii.gz")
            volume(np.array([0, 1, 4])[LABEL].astype(np.uint8), folder / f"labels{part}" / f"{case}.nii.gz")
    content = {"modality": {"0": "CT", "1": "PET"}, "labels": {"0": "Background", "1": "liver", "4": "spleen"}}
    (folder / "dataset.json").write_text(json.dumps(content | {"training": [], "test": []}))
    return folder


def test_old_nnunet(version_1, capsys):
    run("old_nnUNet", version_1, "Dataset017_Abdomen")
    dataset = checked("Dataset017_Abdomen")
    assert dataset.description.channel_names == ("CT", "PET")
    assert dataset.description.labels.names == ("background", "liver", "spleen")
    image, label = read_case(dataset.cases["b"], dataset.description)
    assert np.array_equal(image.array, np.stack([noise(10), noise(11)]))
    assert np.array_equal(label, LABEL)  # 4 is 2 now
    assert names(dataset.folder / "labelsTs") == ["x.nii.gz", "y.nii.gz"]
    assert "4      2" in capsys.readouterr().out


def test_old_nnunet_says_what_is_wrong(version_1, capsys):
    (version_1 / "imagesTr" / "a_0001.nii.gz").unlink()
    run("old_nnUNet", version_1, "Dataset017_Abdomen", status=1)  # one file could hold both channels; this one has one
    assert "2 channels expected: a has 1" in capsys.readouterr().err
    (version_1 / "imagesTr" / "b_0001.nii.gz").rename(version_1 / "imagesTr" / "b_0002.nii.gz")
    run("old_nnUNet", version_1, "Dataset017_Abdomen", status=1)
    assert "numbers of channels with gaps: b has 0000, 0002" in capsys.readouterr().err
    (version_1 / "labelsTr" / "b.nii.gz").unlink()
    run("old_nnUNet", version_1, "Dataset017_Abdomen", status=1)
    assert "images without label: b" in capsys.readouterr().err
    run("old_nnUNet", version_1, "Task017_Abdomen", status=2)
    assert "must be called like" in capsys.readouterr().err


# ACDC


@pytest.fixture
def acdc():
    root = Path("ACDC/database")
    for part, patients in (("training", (1, 2)), ("testing", (101,))):
        for number in patients:
            folder = root / part / f"patient{number:03d}"
            for frame in (1, 12):
                stem = f"{folder.name}_frame{frame:02d}"
                volume(noise(100 * number + frame), folder / f"{stem}.nii.gz")
                volume(LABEL + (LABEL == 2), folder / f"{stem}_gt.nii.gz")
            volume(noise(0), folder / f"{folder.name}_4d.nii.gz")
            (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    return root


@pytest.mark.parametrize("folder", ["ACDC", "ACDC/database", "ACDC/database/training"])
def test_acdc(acdc, folder):
    run("ACDC", "-i", folder)
    dataset = checked("Dataset027_ACDC")
    assert list(dataset.cases) == [f"patient{number:03d}_frame{frame:02d}" for number in (1, 2) for frame in (1, 12)]
    assert dataset.description.channel_names == ("cineMRI",)
    assert dataset.description.labels.names == ("background", "RV", "MYO", "LV")
    assert dataset.description.groups["patient001_frame12"] == "patient001"
    assert dataset.description.raw["phases"]["patient002_frame12"] == "ES"
    _, label = read_case(dataset.cases["patient001_frame01"], dataset.description)
    assert np.array_equal(label, LABEL + (LABEL == 2))
    test = dataset.folder / "labelsTs"
    assert test.is_dir() == (folder != "ACDC/database/training")
    if test.is_dir():
        assert names(test) == ["patient101_frame01.nii.gz", "patient101_frame12.nii.gz"]


def test_acdc_says_what_is_wrong(acdc, capsys):
    (acdc / "training/patient001/patient001_frame12_gt.nii.gz").unlink()
    (acdc / "training/patient002/Info.cfg").write_text("ED: 1\n")
    run("ACDC", "-i", "ACDC", status=1)
    message = capsys.readouterr().err
    assert "lacks patient001_frame12_gt.nii.gz (ES)" in message
    assert "ES: missing" in message
    run("ACDC", "-i", acdc / "training/patient001", status=2)
    assert "patient001 and so on" in capsys.readouterr().err
    run("ACDC", "-i", "nowhere", status=2)
    assert "there is no folder nowhere" in capsys.readouterr().err


# finetune-SAM


@pytest.fixture
def lists():
    """Slices of four patients, two of them for validation and one more for the test, with masks coded 0 and 255."""
    rows = {"train": [], "val": [], "test": []}
    for patient, part in enumerate(("train", "train", "val", "test")):
        for number in range(2):
            image, mask = f"hip/p{patient}/{number}.png", f"hip/p{patient}/{number}_m.png"
            for folder, path in (("images", image), ("masks", mask)):
                Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
            picture = np.random.default_rng(10 * patient + number).integers(0, 256, (12, 10, 3), np.uint8)
            Image.fromarray(picture).save(Path("images", image))
            Image.fromarray(255 * (LABEL[number] > 0).astype(np.uint8)).save(Path("masks", mask))
            rows[part].append((image, mask))
    for part, delimiter in (("train", ","), ("val", "\t"), ("test", ", ")):
        Path(f"{part}.csv").write_text("\n".join(delimiter.join(row) for row in rows[part]) + "\n\n")
    return [
        "-img_folder",
        "images",
        "-mask_folder",
        "masks",
        "-train_img_list",
        "train.csv",
        "--name",
        "Hip",
        "--id",
        31,
    ]


def test_finetune_sam(lists, samunet_folders, capsys):
    run("finetune_SAM", *lists, "-val_img_list", "val.csv", "-test_img_list", "test.csv", "--patient_pattern", "p.")
    dataset = checked("Dataset031_Hip")
    assert list(dataset.cases) == [f"p{patient}_{number}" for patient in range(3) for number in range(2)]
    assert dataset.description.groups["p1_0"] == "p1"
    _, label = read_case(dataset.cases["p2_1"], dataset.description)
    assert np.array_equal(label[0], LABEL[1] > 0)
    assert names(dataset.folder / "labelsTs") == ["p3_0.png", "p3_1.png"]
    splits = load_or_make_splits(samunet_folders, list(dataset.cases), dataset.description.groups, dataset.folder)
    assert splits == [{"train": ["p0_0", "p0_1", "p1_0", "p1_1"], "val": ["p2_0", "p2_1"]}]
    assert "splits_final.json" in capsys.readouterr().out


def test_finetune_sam_without_validation_leaves_the_folds_to_samunet(lists):
    run("finetune_SAM", *lists)
    dataset = checked("Dataset031_Hip")
    assert len(dataset.cases) == 4
    assert not (dataset.folder / "splits_final.json").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("img,mask\n", "img and masks/mask (train.csv, line 1)"),
        ("hip/p0/0.png\n", "train.csv, line 1: ['hip/p0/0.png']"),
        ("\n\n", "train.csv lists nothing"),
        (b"\xff\xfe\x00", "is not a text file"),
    ],
)
def test_finetune_sam_lists(lists, content, says, capsys):
    Path("train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    run("finetune_SAM", *lists, status=1)
    assert says in capsys.readouterr().err


def test_finetune_sam_refuses_different_slices_of_one_name(lists, capsys):
    """``hip/p0/0.png`` and ``hip/p0_0.png`` would both be the case p0_0."""
    other = Path("images/hip/p0_0.png")
    other.write_bytes(Path("images/hip/p0/0.png").read_bytes())
    Path("train.csv").write_text(Path("train.csv").read_text() + "hip/p0_0.png,hip/p0/0_m.png\n")
    run("finetune_SAM", *lists, status=1)
    assert "the same case twice: p0_0 is" in capsys.readouterr().err


def test_finetune_sam_refuses_slices_in_two_lists(lists, capsys):
    run("finetune_SAM", *lists, "-val_img_list", "train.csv", status=1)
    assert "slices listed twice" in capsys.readouterr().err
    run("finetune_SAM", *lists, "-val_img_list", "missing.csv", status=2)
    assert "missing.csv" in capsys.readouterr().err


# SAMed


@pytest.fixture
def samed():
    """Two cases of three slices; without the last slice of the second."""
    Path("train_npz").mkdir()
    for case in (5, 6):
        image = noise(case) / 255
        for index in range(3):
            if (case, index) != (6, 2):
                file = f"train_npz/case{case:04d}_slice{index:03d}.npz"
                np.savez(file, image=image[index], label=LABEL[index].astype(np.float32))
    return ["--root_path", "train_npz", "--name", "Synapse", "--id", 40]


def test_samed(samed):
    run("SAMed", *samed, "--spacing", 3, 1, 1, "--labels", "aorta", "liver")
    dataset = checked("Dataset040_Synapse")
    assert dataset.description.labels.names == ("background", "aorta", "liver")
    image, label = read_case(dataset.cases["case0005"], dataset.description)
    assert np.array_equal(image.array[0], noise(5) / 255)
    assert image.geometry.spacing == (3.0, 1.0, 1.0)
    assert np.array_equal(label, LABEL)
    assert read_case(dataset.cases["case0006"], dataset.description)[1].shape == (2, 12, 10)


def test_samed_with_lists(samed, capsys):
    Path("lists").mkdir()
    Path("lists/train.txt").write_text("".join(f"case0005_slice00{index}\n" for index in range(3)))
    run("SAMed", *samed, "--list_dir", "lists")
    assert list(checked("Dataset040_Synapse").cases) == ["case0005"]
    Path("lists/train.txt").write_text("case0009_slice000\n")
    run("SAMed", *samed, "--list_dir", "lists", "--overwrite", status=1)
    assert "case0009_slice000" in capsys.readouterr().err


def test_samed_test_volumes(samed):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")
    Path("test_vol_h5").mkdir()
    with h5py.File("test_vol_h5/case0001.npy.h5", "w") as file:
        file["image"], file["label"] = noise(1), LABEL
    run("SAMed", *samed, "--volume_path", "test_vol_h5")
    dataset = checked("Dataset040_Synapse")
    assert names(dataset.folder / "imagesTs") == ["case0001_0000.nii.gz"]
    label, _ = reader_for(".nii.gz").read_label(dataset.folder / "labelsTs" / "case0001.nii.gz")
    assert np.array_equal(label, LABEL)
    Path("test_vol_h5/case0002.npy.h5").write_bytes(b"not HDF5")
    run("SAMed", *samed, "--volume_path", "test_vol_h5", "--overwrite", status=1)


def test_samed_names_the_package_that_is_missing(samed, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    Path("test_vol_h5").mkdir()
    run("SAMed", *samed, "--volume_path", "test_vol_h5", status=1)
    assert "pip install h5py" in capsys.readouterr().err


def keyless(file):
    np.savez(file, img=LABEL[0])


def unequal(file):
    np.savez(file, image=noise(0)[0], label=LABEL[0][:4])


def other_shape(file):
    np.savez(file, image=noise(0)[0][:4], label=LABEL[0][:4])


def pickled(file):
    np.savez(file, image=np.array([{}], object), label=LABEL[0])


def truncated(file):
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (keyless, "neither of the arrays"),
        (unequal, "image is (12, 10) and label (4, 10)"),
        (other_shape, "slices of (4, 10) pixels"),
        (pickled, "Object arrays"),
        (truncated, "could not read"),
    ],
)
def test_samed_damaged_slices(samed, damage, says, capsys):
    damage(Path("train_npz/case0005_slice001.npz"))
    run("SAMed", *samed, status=1)
    message = capsys.readouterr().err
    assert "case0005_slice001.npz" in message
    assert says in message
    assert not list(Path("../raw").iterdir())


# All of them


def test_datasets_are_written_to_samunet_raw_alone(decathlon, samunet_folders, monkeypatch, capsys):
    monkeypatch.delenv("samunet_raw")
    monkeypatch.setenv("nnUNet_raw", str(samunet_folders / "raw"))
    run("MSD", "-i", decathlon, status=1)
    assert "export samunet_raw=" in capsys.readouterr().err
    run("MSD", "-i", decathlon, "--dry_run")
    assert names(samunet_folders / "raw") == []
    monkeypatch.setenv("samunet_raw", str(samunet_folders / "new" / "raw"))
    run("MSD", "-i", decathlon)
    assert names(samunet_folders / "new" / "raw") == ["Dataset005_Prostate"]


def test_sources_stay_as_they_are(decathlon, version_1, acdc, lists, samed):
    def content():
        return {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()}

    before = content()
    for folder in (file.parent for file in before):
        folder.chmod(0o555)
    try:
        run("MSD", "-i", decathlon)
        run("old_nnUNet", version_1, "Dataset017_Abdomen")
        run("ACDC", "-i", "ACDC", "--dry_run")
        run("finetune_SAM", *lists)
        run("SAMed", *samed)
    finally:
        for folder in (file.parent for file in before):
            folder.chmod(0o755)
    assert content() == before
    made = ["Dataset005_Prostate", "Dataset017_Abdomen", "Dataset031_Hip", "Dataset040_Synapse"]
    assert names(Path("../raw")) == made
