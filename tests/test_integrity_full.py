"""The complete check: every kind of problem is found, named, and comes with its remedy."""

import gzip
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as pillow

from samunet.commands import run_command
from samunet.dataset.check import complete_check
from samunet.dataset.layout import find_dataset, read_dataset

DATA = Path(__file__).parents[2] / "shared" / "data"
NAME = "Dataset027_Toy"
SHAPE = (3, 8, 8)


def volume(array, path, spacing=(1.0, 1.0, 2.0), origin=(0.0, 0.0, 0.0), direction=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.asarray(array))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction or (1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))


def noise(seed):
    return np.random.default_rng(seed).normal(100, 10, SHAPE).astype(np.float32)


def mask(*values):
    array = np.zeros(SHAPE, np.uint8)
    array.reshape(-1)[: len(values)] = values
    return array


@pytest.fixture
def raw(samunet_folders):
    """Three sound cases of two channels, and one test case."""
    folder = samunet_folders / "raw" / NAME
    for index, case in enumerate("abc"):
        for channel in range(2):
            volume(noise(10 * index + channel), folder / "imagesTr" / f"{case}_000{channel}.nii.gz")
        volume(mask(1, 2, 2), folder / "labelsTr" / f"{case}.nii.gz")
    for channel in range(2):
        volume(noise(90 + channel), folder / "imagesTs" / f"t_000{channel}.nii.gz")
    describe(folder)
    return folder


def describe(folder, **keys):
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "organ": 1, "tumour": 2},
        "file_ending": ".nii.gz",
        "numTraining": 3,
    }
    (folder / "dataset.json").write_text(json.dumps(content | keys))


def check(**options):
    return complete_check(read_dataset(NAME), progress=False, **options)


def test_a_sound_dataset_has_no_problems(raw, samunet_folders):
    report = check()
    assert report.problems == []
    assert report.voxels == {0: 3 * (192 - 3), 1: 3, 2: 6}
    assert report.cases_with == {0: 3, 1: 3, 2: 3}
    assert report.summary == f"{NAME}: 3 training cases and 1 of imagesTs checked: 0 errors, 0 warnings"


IMAGE, LABEL = Path("imagesTr/a_0000.nii.gz"), Path("labelsTr/a.nii.gz")


def truncate(folder):
    data = (folder / IMAGE).read_bytes()
    (folder / IMAGE).write_bytes(data[: len(data) // 2])


def text_label(folder):
    (folder / LABEL).write_text("not an image")


def without(folder, name):
    (folder / name).unlink()


def negative_spacing(folder):
    data = bytearray(gzip.decompress((folder / IMAGE).read_bytes()))
    data[80:84] = struct.pack("<f", -2)  # pixdim[1] of a NIfTI-1 header
    (folder / IMAGE).write_bytes(gzip.compress(bytes(data)))


def nan(value):
    array = noise(0)
    array[1, 2, 3] = value
    return array


# What is done to the dataset, whether it is a warning, where, and what the row says.
PROBLEMS = {
    "truncated": (truncate, False, "a", ["a_0000.nii.gz is", "truncated", "copy or export the file again"]),
    "empty file": (lambda f: (f / IMAGE).write_bytes(b""), False, "a", ["a_0000.nii.gz is empty", "copy or export"]),
    "no image at all": (text_label, False, "a", ["labelsTr/a.nii.gz", "copy or export|save it again"]),
    "NaN": (lambda f: volume(nan(np.nan), f / IMAGE), False, "a", ["a_0000.nii.gz contains NaN", "nan_to_num"]),
    "inf": (lambda f: volume(nan(np.inf), f / IMAGE), False, "a", ["a_0000.nii.gz contains NaN or inf", "replace"]),
    "channel shape": (
        lambda f: volume(noise(1)[:2], f / "imagesTr/a_0001.nii.gz"), False, "a",
        [r"different shapes: .*a_0001.nii.gz has shape \(2, 8, 8\)", r"a_0000.nii.gz has \(3, 8, 8\)", "resample"],
    ),
    "channel spacing": (
        lambda f: volume(noise(1), f / "imagesTr/a_0001.nii.gz", spacing=(1, 1, 3)), False, "a",
        [r"different spacings: .*a_0001.nii.gz has spacing \(3, 1, 1\) mm", r"\(2, 1, 1\) mm", "correct the header"],
    ),
    "label shape": (
        lambda f: volume(mask(1)[:, :4], f / LABEL), False, "a",
        [r"different shapes: .*a.nii.gz has shape \(3, 4, 8\)"],
    ),
    "label spacing": (
        lambda f: volume(mask(1), f / LABEL, spacing=(2, 1, 2)), False, "a",
        [r"different spacings: .*a.nii.gz has spacing \(2, 1, 2\) mm"],
    ),
    "negative spacing": (
        negative_spacing, False, "a", ["a_0000.nii.gz: the voxels' sides", "must be from 0.0001", "correct"],
    ),
    "origin": (
        lambda f: volume(mask(1), f / LABEL, origin=(5, 0, 0)), False, "a",
        [r"another place: .*a.nii.gz has the origin \(5, 0, 0\) mm", "`tolerate_geometry=True`"],
    ),
    "direction": (
        lambda f: volume(noise(1), f / "imagesTr/a_0001.nii.gz", direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)), False, "a",
        ["another place: .*a_0001.nii.gz has the direction", "`tolerate_geometry=True`"],
    ),
    "0/255": (lambda f: volume(mask(255), f / LABEL), False, "a", ["255", "coded 0/255", "astype"]),
    "unknown value": (lambda f: volume(mask(1, 7), f / LABEL), False, "a", ["not list: 7", "2 = tumour"]),
    "not whole": (
        lambda f: volume(mask(1) * np.float32(0.5), f / LABEL), False, "a", ["not whole numbers", "nearest-neighbour"],
    ),
    "several label channels": (
        lambda f: sitk.WriteImage(sitk.GetImageFromArray(np.zeros((*SHAPE, 3), np.uint8)), str(f / LABEL)), False, "a",
        ["a.nii.gz has 3 channels", "one map"],
    ),
    "only background": (lambda f: volume(mask(), f / LABEL), True, "a", ["a.nii.gz has only background", "healthy"]),
    "constant channel": (
        lambda f: volume(np.full(SHAPE, 5, np.float32), f / IMAGE), True, "a",
        [r"constant channels: a_0000.nii.gz \(everywhere 5\)", "export may have failed"],
    ),
    "channel copied": (
        lambda f: volume(noise(1), f / IMAGE), True, "a", ["channels with the same voxels: a_0000.nii.gz", "copied"],
    ),
    "implausible spacing": (
        lambda f: volume(noise(0), f / IMAGE, spacing=(250, 250, 2000)), False, "a",
        [r"cannot be used:.*a_0000.nii.gz.*\(pixdim\) are 2000, 250, 250 mm", "millimetres"],
    ),
    "the same image twice": (
        lambda f: [volume(noise(c), f / f"imagesTr/b_000{c}.nii.gz") for c in range(2)], True, "a",
        ["the same image under several names: a, b", "groups"],
    ),
    "trained on the test": (
        lambda f: [volume(noise(c), f / f"imagesTs/t_000{c}.nii.gz") for c in range(2)], True, "a",
        ["test images that are trained on: a is t of imagesTs", "remove it"],
    ),
    "test name": (
        lambda f: (f / "imagesTs/t_0001.nii.gz").rename(f / "imagesTs/u.nii.gz"), True, "imagesTs: u.nii.gz",
        ["names without channel number: u.nii.gz", "case_0000"],
    ),
    "test channels": (
        lambda f: without(f, "imagesTs/t_0001.nii.gz"), True, "imagesTs: t", ["t has 1 channel in t_0000.nii.gz"],
    ),
    "broken test image": (
        lambda f: (f / "imagesTs/t_0001.nii.gz").write_bytes(b""), True, "imagesTs: t", ["t_0001.nii.gz is empty"],
    ),
    "label without image": (
        lambda f: volume(mask(1), f / "labelsTr/d.nii.gz"), False, "d", ["labels without image: d.nii.gz", "remove"],
    ),
    "image without label": (lambda f: without(f, LABEL), False, "a", ["labelsTr lacks a.nii.gz", "add the label"]),
    "channel gap": (
        lambda f: (f / "imagesTr/a_0001.nii.gz").rename(f / "imagesTr/a_0002.nii.gz"), False, "a",
        [r"a has 0000, 0002 \(lacks 0001; 0002 too many\)", "case_0001.nii.gz"],
    ),
    "the same id twice": (
        lambda f: volume(noise(0), f / "imagesTr/a_0000.mha"), False, "a",
        ["the same case twice: a is a_0000.mha and a_0000.nii.gz", "rename"],
    ),
    "ids alike": (
        lambda f: [volume(noise(50 + c), f / f"imagesTr/A_000{c}.nii.gz") for c in range(2)]
        + [volume(mask(1), f / "labelsTr/A.nii.gz")], False, "A", ["upper and lower case: A and a"],
    ),
    "numTraining": (lambda f: describe(f, numTraining=4), False, "numTraining", ["announces 4", '"numTraining": 3']),
    "unused label": (
        lambda f: describe(f, labels={"background": 0, "organ": 1, "tumour": 2, "cyst": 3}), True, "labels",
        ['labels that occur in no file: "cyst"', "cannot be learnt"],
    ),
    "another numbering": (
        lambda f: describe(f, labels={"background": 0, "organ": 1}), False, "a", ["not list: 2", "add the missing"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_problem_is_found_with_its_remedy(raw, kind):
    spoil, warning, where, fragments = PROBLEMS[kind]
    spoil(raw)
    rows = [problem for problem in check().problems if problem.where == where and problem.warning == warning]
    texts = [f"{row.text} -> {row.fix}" for row in rows]
    assert any(all(re.search(part, text) for part in fragments) for text in texts), texts or check().to_text()
    assert all(row.fix for row in rows)


def test_labels_numbered_otherwise_are_an_error(raw):
    for case in "abc":
        volume(mask(1, 4, 4), raw / "labelsTr" / f"{case}.nii.gz")
    rows = [problem for problem in check().problems if problem.where == "labels"]
    assert [(row.text, row.warning) for row in rows] == [
        ('labels that occur in no file: "tumour", while files hold 4, which dataset.json does not list', False)
    ]
    assert "the files hold the values 0, 1, 4" in rows[0].fix


def test_all_problems_of_all_cases_are_listed(raw):
    truncate(raw)
    volume(mask(9), raw / LABEL)
    volume(nan(np.nan), raw / "imagesTr/b_0001.nii.gz")
    volume(mask(9), raw / "labelsTr/b.nii.gz")
    assert sorted(problem.where for problem in check().problems if not problem.warning) == ["a", "a", "b", "b"]


def test_origins_can_be_tolerated(raw):
    volume(mask(1, 2), raw / LABEL, origin=(5, 0, 0))
    rows = check(tolerate_geometry=True).problems
    assert [(row.where, row.warning) for row in rows] == [("a", True)]
    assert "has the origin (5, 0, 0) mm" in rows[0].text
    assert check().errors == 1


def test_regions_and_ignore(raw):
    describe(raw, labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, regions_class_order=[1, 2])
    volume(mask(1, 3), raw / LABEL)
    volume(mask(3, 3), raw / "labelsTr/b.nii.gz")
    report = check()
    assert [row.text for row in report.problems] == [
        "labels without any structure: b.nii.gz has only background and ignore"
    ]
    assert "whole and core" in report.to_text()
    assert "ignore" in report.to_text()


@pytest.fixture
def pictures(samunet_folders):
    folder = samunet_folders / "raw" / NAME
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index, case in enumerate("ab"):
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), np.uint8)
        pillow.fromarray(pixels).save(folder / "imagesTr" / f"{case}_0000.jpg")
        pillow.fromarray(np.eye(8, dtype=np.uint8)).save(folder / "labelsTr" / f"{case}.png")
    describe(folder, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"}, numTraining=2,
             labels={"background": 0, "vessel": 1})  # fmt: skip
    return folder


def test_photographs_pass(pictures):
    assert check().problems == []


@pytest.mark.parametrize(
    ("label", "fragments"),
    [
        (np.stack([np.eye(8)] * 2 + [np.zeros((8, 8))], -1).astype(np.uint8), ["a.png", "channel"]),
        (255 * np.eye(8, dtype=np.uint8), ["coded 0/255", "1 in place of 255"]),
    ],
)
def test_picture_labels(pictures, label, fragments):
    pillow.fromarray(label).save(pictures / "labelsTr/a.png")
    rows = [row for row in check().problems if row.where == "a"]
    assert len(rows) == 1
    assert all(part in f"{rows[0].text} {rows[0].fix}" for part in fragments), rows


def test_command_writes_the_report_and_fails_on_errors(raw, samunet_folders, capsys):
    volume(mask(255), raw / LABEL)
    volume(mask(), raw / "labelsTr/b.nii.gz")
    folder = samunet_folders / "preprocessed" / NAME
    assert run_command("samunet_extract_fingerprint", ["-d", "27", "--verify_dataset_integrity", "-np", "1"]) == 1
    printed = capsys.readouterr().err
    content = json.loads((folder / "integrity_report.json").read_text())
    assert (content["errors"], content["warnings"]) == (1, 1)
    assert [row["severity"] for row in content["problems"]] == ["error", "warning"]
    assert content["problems"][0]["where"] == "a"
    assert content["label_values"][-1] == {"value": 255, "cases": 1, "voxels": 1, "meaning": "not in dataset.json"}
    table = (folder / "integrity_report.txt").read_text()
    assert table in printed
    assert "coded 0/255" in table
    assert "1 error, 1 warning; the table is above and in" in printed
    assert not (folder / "dataset_fingerprint.json").exists()
    volume(mask(1, 2), raw / LABEL)
    assert run_command("samunet_extract_fingerprint", ["-d", "27", "--verify_dataset_integrity", "-np", "1"]) == 0
    assert (folder / "dataset_fingerprint.json").exists()


def test_a_failing_fingerprint_points_to_the_complete_check(raw, capsys):
    volume(mask(255), raw / LABEL)
    assert run_command("samunet_extract_fingerprint", ["-d", "27", "-np", "1"]) == 1
    assert "samunet_extract_fingerprint -d 027 --verify_dataset_integrity" in capsys.readouterr().err


def test_tolerance_reaches_the_fingerprint(raw, capsys):
    volume(mask(1, 2), raw / LABEL, origin=(5, 0, 0))
    assert run_command("samunet_extract_fingerprint", ["-d", "27", "-np", "1"]) == 1
    assert "--tolerate_geometry" in capsys.readouterr().err
    assert run_command("samunet_extract_fingerprint", ["-d", "27", "-np", "1", "--tolerate_geometry"]) == 0


def test_folds_without_a_class_are_warned_of(raw, capsys):
    volume(mask(1), raw / LABEL)
    volume(mask(1), raw / "labelsTr/b.nii.gz")
    assert run_command("samunet_extract_fingerprint", ["-d", "27", "-np", "1"]) == 0
    printed = capsys.readouterr().err
    assert 'warning: fold 0: no case to validate has "tumour", which is not scored there' in printed
    assert 'warning: fold 2: no case to train on has "tumour", which is not learnt there' in printed


def test_workers_give_the_same_report(raw):
    truncate(raw)
    assert check(num_workers=2) == check()


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real datasets are not at {DATA}")
@pytest.mark.parametrize("number", ["101", "102"])
def test_real_datasets_are_sound(monkeypatch, number):
    monkeypatch.setenv("samunet_raw", str(DATA))
    report = complete_check(read_dataset(find_dataset(number)), progress=False)
    assert report.problems == []


def test_what_is_left_out_of_imagestr_is_named(raw):
    folder = raw / "imagesTr"
    (folder / "d_0000.mhd").touch()
    (folder / "old").mkdir()
    problems = read_dataset(NAME).problems
    assert [problem.text for problem in problems if problem.warning] == [
        "files that are no images of this dataset are left alone: imagesTr has d_0000.mhd, old/"
    ]
    (folder / "e_0000.nii.gz").symlink_to(raw / "gone.nii.gz")
    errors = [problem.text for problem in read_dataset(NAME).problems if not problem.warning]
    assert any("links that lead nowhere: imagesTr/e_0000.nii.gz -> " in text for text in errors)
