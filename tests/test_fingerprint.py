"""Fingerprints of volumes small enough to count by hand."""

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.dataset.layout import load_dataset
from samunet.errors import SamunetError
from samunet.planning.fingerprint import _positions, extract_fingerprint, read_fingerprint, source_hash

NAME = "Dataset001_Hand"


def write(folder, name, images, label, spacing=(4.0, 0.5, 0.25)):
    for kind, arrays in (("imagesTr", [(f"{name}_{i:04d}", image) for i, image in enumerate(images)]),
                         ("labelsTr", [(name, label)])):  # fmt: skip
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for file, array in arrays:
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(spacing[::-1])
            sitk.WriteImage(image, str(folder / kind / f"{file}.nii.gz"))


def first_case():
    """Shape (4, 5, 6); foreground intensities 10, 20, 30, 40 and 50 in channel 0, quarters of them in channel 1."""
    label = np.zeros((4, 5, 6), dtype=np.uint8)
    image = np.zeros((4, 5, 6), dtype=np.float32)
    for value, position, intensity in (
        (1, (1, 1, 1), 10),
        (1, (2, 2, 2), 20),  # touches the one before at a corner: one component
        (1, (2, 1, 4), 30),
        (2, (2, 2, 1), 40),  # beside class 1, but of another class
        (2, (2, 3, 1), 50),
    ):
        label[position], image[position] = value, intensity
    image[1, 3, 4] = -5  # content, but background
    return [image, image / 4], label


@pytest.fixture
def dataset(samunet_folders):
    folder = samunet_folders / "raw" / NAME
    write(folder, "a", *first_case())
    empty = np.arange(240, dtype=np.float32).reshape(2, 2, 10, 6)
    write(folder, "b", empty, np.zeros((2, 10, 6), dtype=np.uint8), spacing=(3.0, 1.0, 1.0))
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "first": 1, "second": 2, "third": 3},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return load_dataset(NAME)


@pytest.fixture
def fingerprint(dataset):
    return extract_fingerprint(dataset, progress=False)


def test_shapes_and_spacings(fingerprint):
    assert fingerprint.cases["a"].shape == [4, 5, 6]
    assert fingerprint.cases["a"].shape_after_crop == [2, 3, 4]  # z 1 to 2, y 1 to 3, x 1 to 4
    assert fingerprint.cases["b"].shape_after_crop == [2, 10, 6]  # no constant border
    assert fingerprint.shapes_after_crop == [[2, 3, 4], [2, 10, 6]]
    assert fingerprint.spacings == [[4.0, 0.5, 0.25], [3.0, 1.0, 1.0]]
    assert fingerprint.median_relative_size_after_cropping == pytest.approx((24 / 120 + 1) / 2)
    assert fingerprint.physical_spacing is True


def test_classes(fingerprint):
    case = fingerprint.cases["a"]
    assert case.class_voxels == {"1": 3, "2": 2, "3": 0}
    # Three single voxels; two voxels side by side along y.
    assert case.class_faces == {"1": [6, 6, 6], "2": [4, 2, 4], "3": [0, 0, 0]}


def test_where_classes_lie(fingerprint):
    case = fingerprint.cases["a"]
    assert case.class_centres["1"] == pytest.approx([5 / 3, 4 / 3, 7 / 3])
    assert case.class_spreads["1"] == pytest.approx([(2 / 9) ** 0.5, (2 / 9) ** 0.5, (14 / 9) ** 0.5])
    assert (case.class_centres["2"], case.class_spreads["2"]) == ([2, 2.5, 1], [0, 0.5, 0])
    assert (case.class_centres["3"], case.class_spreads["3"]) == ([], [])


def test_where_classes_lie_in_a_large_label():
    """More voxels than are looked at together."""
    label = np.random.default_rng(0).integers(0, 4, (3, 400, 500)).astype(np.uint8)
    for value, (centre, spread) in enumerate(_positions(label, 4)[1:], start=1):
        places = np.argwhere(label == value)
        assert centre == pytest.approx(places.mean(0))
        assert spread == pytest.approx(places.std(0))


def test_faces_to_voxels_without_annotation_do_not_count(dataset, samunet_folders):
    _, label = first_case()
    label[2, 2, 2] = 4  # of class 1; beside class 2 along x, and beside background everywhere else
    write(samunet_folders / "raw" / NAME, "a", [], label)
    content = json.loads((samunet_folders / "raw" / NAME / "dataset.json").read_text())
    content["labels"]["ignore"] = 4
    (samunet_folders / "raw" / NAME / "dataset.json").write_text(json.dumps(content))
    case = extract_fingerprint(load_dataset(NAME), progress=False).cases["a"]
    assert case.class_faces == {"1": [4, 4, 4], "2": [4, 2, 3], "3": [0, 0, 0]}


def test_a_case_without_foreground(fingerprint):
    case = fingerprint.cases["b"]
    assert fingerprint.empty_cases == ["b"]
    assert case.class_voxels == {"1": 0, "2": 0, "3": 0}


def test_intensities(fingerprint):
    case, other = fingerprint.cases["a"], fingerprint.cases["b"]
    assert (case.minimum, case.maximum, case.integer) == ([-5, -1.25], [50, 12.5], False)
    assert (other.minimum, other.maximum, other.integer) == ([0, 120], [119, 239], True)
    first, second = (fingerprint.foreground_intensity_properties_per_channel[channel] for channel in "01")
    assert (first.mean, first.median, first.min, first.max) == (30, 30, 10, 50)
    assert first.std == pytest.approx(200**0.5)
    # Between five sorted values lie four steps of a quarter of the distribution each.
    assert first.percentile_00_5 == pytest.approx(10 + 0.005 * 4 * 10)
    assert first.percentile_99_5 == pytest.approx(50 - 0.005 * 4 * 10)
    assert (second.mean, second.max) == (7.5, 12.5)


def test_round_trip(fingerprint, tmp_path):
    fingerprint.write(tmp_path / "f.json")
    assert read_fingerprint(tmp_path / "f.json") == fingerprint


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("[]", "the whole file"),
        ("{}", "spacings"),
        ('{"spacings": [], "shapes_after_crop": [], "cases": {"a": {}}}', r"cases\.a\.spacing|foreground_intensity"),
    ],
)
def test_a_damaged_fingerprint_is_an_error_that_names_the_key(tmp_path, content, key):
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(SamunetError, match=rf"f\.json: ({key})(?s:.)*plan_and_preprocess\(.*, clean=True\)"):
        read_fingerprint(tmp_path / "f.json")


def test_large_foregrounds_are_sampled(dataset, monkeypatch):
    from samunet.planning import fingerprint as module

    write(dataset.folder, "b", *(np.full((2, 1, 40, 50), 7, np.float32), np.ones((1, 40, 50), np.uint8)))
    write(dataset.folder, "a", *(np.full((2, 1, 40, 50), 9, np.float32), np.ones((1, 40, 50), np.uint8)))
    monkeypatch.setattr(module, "FOREGROUND_SAMPLES", 200)
    statistics = extract_fingerprint(dataset, progress=False).foreground_intensity_properties_per_channel["0"]
    assert (statistics.mean, statistics.std) == (8, 1)  # a hundred from each


def test_no_foreground_at_all_is_an_error(dataset):
    images, label = first_case()
    write(dataset.folder, "a", images, np.zeros_like(label))
    with pytest.raises(SamunetError, match="no training case has any foreground"):
        extract_fingerprint(dataset, progress=False)


def test_a_failing_case_is_named(dataset):
    images, label = first_case()
    label[0, 0, 0] = 4
    write(dataset.folder, "a", images, label)
    with pytest.raises(SamunetError, match=r"case a: .*a\.nii\.gz contains label values.*: 4"):
        extract_fingerprint(dataset, progress=False)


def test_source_hash_notices_changed_files(dataset):
    before = source_hash(dataset)
    assert before == source_hash(load_dataset(NAME))
    os.utime(dataset.cases["b"].label, (1, 1))
    assert source_hash(dataset) != before
