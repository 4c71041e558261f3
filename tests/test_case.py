"""One case through all steps and back."""

import json
from itertools import permutations

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.dataset.cases import Case
from samunet.dataset.description import description_from_json
from samunet.errors import SamunetError
from samunet.imageio.base import Geometry, Image
from samunet.plans import ConfigurationPlan, IntensityStatistics, Plans
from samunet.preprocessing.case import OUTSIDE, CaseRecord, prepare_case, read_case, restore_mask, stored_shape

STATISTICS = IntensityStatistics(
    mean=0.0, median=0.0, std=1.0, min=0.0, max=1.0, percentile_00_5=0.0, percentile_99_5=1.0
)
SPACING = (3.0, 0.5, 0.8)
GEOMETRY = Geometry(SPACING, True, (1.5, -2.0, 0.1), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), 3)


def plans_and_configuration(channels, *, order=(0, 1, 2), orientation="", spacing=None, scheme="nonorm", masked=False):
    configuration = ConfigurationPlan.model_construct(
        data_identifier="x", spacing=spacing, median_shape=[1, 1, 1], normalization=[scheme] * channels,
        use_mask_for_norm=[masked] * channels, mirror_axes=[0, 1], foreground_share=0.33, networks={},
    )  # fmt: skip
    plans = Plans(
        dataset_name="Dataset001_A", plans_name="p", samunet_version="0", image_reader="", physical_spacing=True,
        original_median_spacing=[1.0] * 3, original_median_shape=[1] * 3, transpose_forward=list(order),
        foreground_intensity_properties_per_channel={str(index): STATISTICS for index in range(channels)},
        gpu_memory_target_gb=8.0, encoder="auto", configurations={}, orientation=orientation,
    )  # fmt: skip
    return plans, configuration


def prepare(array, label=None, **decisions):
    plans, configuration = plans_and_configuration(len(array), **decisions)
    return prepare_case(Image(array, GEOMETRY), label, plans, configuration)


@pytest.fixture
def volume():
    """An image of shape (6, 9, 12) with content in [1:4, 2:8, 3:7] before a negative background, and its label."""
    rng = np.random.default_rng(0)
    image, label = np.full((2, 6, 9, 12), -7, dtype=np.float32), np.zeros((6, 9, 12), dtype=np.int32)
    image[:, 1:4, 2:8, 3:7] = rng.uniform(1, 2, (2, 3, 6, 4))
    label[1:4, 2:8, 3:7] = rng.integers(0, 4, (3, 6, 4))
    return image, label


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_transposed_cropped_and_restored(volume, order):
    image, label = volume
    before = image.copy()
    case = prepare(image, label, order=order)
    content = image[:, 1:4, 2:8, 3:7].transpose(0, *(axis + 1 for axis in order))
    assert np.array_equal(case.image, content)
    assert case.record.cropped_shape == content.shape[1:]
    assert case.image.dtype == np.float32
    assert np.array_equal(case.label, label[1:4, 2:8, 3:7].transpose(order))
    assert np.array_equal(restore_mask(case.label, case.record), label)
    probabilities = np.stack([case.label == value for value in range(4)]).astype(np.float32)
    restored = restore_mask(probabilities, case.record)
    assert np.array_equal(restored[3], label == 3)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_plane_is_reduced_in_its_own_axes(volume, order):
    image, label = volume
    coarsest = [2 * SPACING[axis] for axis in order[1:]]
    case = prepare(image, label, order=order, spacing=coarsest)
    depth, height, width = ((3, 6, 4)[axis] for axis in order)
    halved = (round(height / 2), round(width / 2))
    assert case.image.shape == (2, depth, *halved)
    assert case.label.shape == (depth, *halved)
    expected = [SPACING[order[1]] * height / halved[0], SPACING[order[2]] * width / halved[1]]
    assert np.allclose(case.record.stored_spacing, expected)
    assert case.record.cropped_shape == (depth, height, width)


def test_record_survives_json(volume):
    record = prepare(*volume, order=(2, 0, 1), spacing=[1.0, 1.0]).record
    assert CaseRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_without_a_label(volume):
    assert prepare(volume[0]).label is None


def test_outside_the_mask_is_minus_one_and_zero():
    image, label = np.zeros((1, 1, 7, 7), dtype=np.float32), np.zeros((1, 7, 7), dtype=np.int32)
    image[0, 0, 1:6, 3] = [2, 4, 6, 4, 2]  # a cross whose bounding box is [1:6, 1:6]
    image[0, 0, 3, 1:6] = [2, 4, 6, 4, 2]
    label[0, 3, 3] = 1
    label[0, 1, 1] = 2  # annotated outside of the content: kept
    case = prepare(image, label, scheme="zscore", masked=True)
    cross = np.zeros((5, 5), dtype=bool)
    cross[2], cross[:, 2] = True, True
    expected = np.where(cross, 0, OUTSIDE)
    expected[2, 2], expected[0, 0] = 1, 2
    assert np.array_equal(case.label[0], expected)
    # One 6, four 4, four 2: mean 10/3, variance 116/9 - 100/9, so deviation 4/3.
    assert np.allclose(case.image[0, 0][2], [-1, 0.5, 2, 0.5, -1], atol=1e-5)
    assert (case.image[0, 0][~cross] == 0).all()


def test_holes_belong_to_the_content():
    image = np.zeros((1, 5, 7, 7), dtype=np.float32)
    image[0, 1:4, 1:6, 1:6] = 5
    image[0, 2, 3, 3] = 0
    case = prepare(image, np.zeros((5, 7, 7), dtype=np.int32), scheme="zscore", masked=True)
    assert (case.label == 0).all()
    assert case.image[0, 1, 2, 2] < 0  # normalised as a dark voxel, not set to 0 as if outside


def test_without_a_mask_nothing_is_outside(volume):
    assert prepare(*volume, scheme="zscore").label.min() == 0


def test_a_wrong_number_of_channels_is_an_error(volume):
    image = volume[0]
    plans, configuration = plans_and_configuration(1)
    with pytest.raises(SamunetError, match="the image has 2 channels, the plans expect 1"):
        prepare_case(Image(image, GEOMETRY), None, plans, configuration)


@pytest.mark.parametrize(
    ("shape", "spacing", "coarsest", "expected_shape", "expected_spacing"),
    [
        ((100, 80), [1.0, 1.0], None, (100, 80), None),
        ((100, 80), [1.0, 1.0], [1.0, 1.0], (100, 80), [1.0, 1.0]),
        ((100, 80), [2.0, 2.0], [1.0, 1.0], (100, 80), [2.0, 2.0]),  # coarser: never enlarged
        ((100, 80), [0.5, 0.5], [1.0, 1.0], (50, 40), [1.0, 1.0]),
        ((100, 80), [0.5, 2.0], [1.0, 1.0], (50, 80), [1.0, 2.0]),  # each axis by itself
        ((100, 80), [0.999999, 0.995], [1.0, 1.0], (100, 80), [0.999999, 0.995]),  # a rounded header
        ((101, 80), [0.5, 1.0], [1.0, 1.0], (50, 80), [1.01, 1.0]),  # whole pixels over the same extent
        ((3, 80), [0.1, 1.0], [10.0, 1.0], (1, 80), [0.3, 1.0]),  # one pixel remains
    ],
)
def test_stored_shape(shape, spacing, coarsest, expected_shape, expected_spacing):
    got_shape, got_spacing = stored_shape(shape, spacing, coarsest)
    assert got_shape == expected_shape
    assert got_spacing == (expected_spacing if expected_spacing is None else pytest.approx(expected_spacing))


@pytest.fixture
def case_files(tiny_dataset):
    folder = tiny_dataset(ids=("a",))
    return Case("a", (folder / "imagesTr" / "a_0000.nii.gz",), folder / "labelsTr" / "a.nii.gz")


def change_label(case, change):
    image = sitk.ReadImage(str(case.label))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(image.GetSpacing())
    changed.SetOrigin(image.GetOrigin())
    sitk.WriteImage(changed, str(case.label))


def read(case, **options):
    labels = {"background": 0, "organ": 1, "core": 2}
    raw = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    return read_case(case, description_from_json(raw, "dataset.json"), **options)


def test_read_case(case_files):
    image, label = read(case_files)
    assert image.array.shape == (1, *label.shape)
    assert label.dtype == np.int16
    assert set(np.unique(label)) == {0, 1, 2}
    assert read(Case("a", case_files.images, None))[1] is None


def test_label_of_another_shape(case_files):
    change_label(case_files, lambda label: label[1:])
    with pytest.raises(SamunetError, match=r"a\.nii\.gz has shape .* but a_0000"):
        read(case_files)


def test_label_of_another_spacing(case_files):
    image = sitk.ReadImage(str(case_files.label))
    image.SetSpacing((1.0, 1.2, 3.0))
    sitk.WriteImage(image, str(case_files.label))
    with pytest.raises(SamunetError, match=r"a\.nii\.gz has spacing .* but a_0000"):
        read(case_files)


def test_label_at_another_place(case_files, caplog):
    image = sitk.ReadImage(str(case_files.label))
    image.SetOrigin((0.0, 0.0, 0.0))
    sitk.WriteImage(image, str(case_files.label))
    with pytest.raises(SamunetError, match=r"a\.nii\.gz has the origin") as caught:
        read(case_files)
    assert "`tolerate_geometry=True`" in caught.value.hint
    assert read(case_files, tolerate_geometry=True)[1] is not None
    assert "a.nii.gz has the origin" in caplog.text


def test_a_wrong_number_of_channels_in_the_files_is_an_error(case_files):
    with pytest.raises(SamunetError, match="2 channels"):
        read(Case("a", case_files.images * 2, case_files.label))


def test_label_with_an_unknown_value(case_files):
    change_label(case_files, lambda label: np.where(label == 2, 9, label).astype(np.uint8))
    with pytest.raises(SamunetError, match=r"a\.nii\.gz contains label values .*: 9"):
        read(case_files)
