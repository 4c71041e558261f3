import numpy as np
import pytest
import SimpleITK as sitk

from samunet.conversion.phantoms import draw_phantom, make_phantoms
from samunet.dataset.layout import list_cases, load_dataset
from samunet.errors import SamunetError


def test_layout_is_that_of_a_raw_dataset(tmp_path, monkeypatch):
    folder = tmp_path / "Dataset999_Phantoms"
    make_phantoms(folder, num_training=2, num_test=1)
    monkeypatch.setenv("samunet_raw", str(tmp_path))
    dataset = load_dataset("Dataset999_Phantoms")
    assert list(dataset.cases) == ["phantom_000", "phantom_001"]
    assert dataset.description.labels.names == ("background", "liver", "kidney", "vessel")
    assert list(list_cases(folder / "imagesTs", dataset.description)) == ["phantom_002"]
    for suffix, case in (("Tr", "phantom_000"), ("Ts", "phantom_002")):
        image = sitk.ReadImage(str(folder / f"images{suffix}" / f"{case}_0000.nii.gz"))
        label = sitk.ReadImage(str(folder / f"labels{suffix}" / f"{case}.nii.gz"))
        assert image.GetPixelID() == sitk.sitkInt16
        assert label.GetPixelID() == sitk.sitkUInt8
        assert image.GetSize() == label.GetSize()
        assert image.GetSpacing() == label.GetSpacing()
        assert image.GetOrigin() == label.GetOrigin()
        assert image.GetSpacing()[2] == pytest.approx(3.0)


def test_cases_are_determined_by_seed_and_index():
    image, label, *_ = draw_phantom(5, 1)
    again, label_again, *_ = draw_phantom(5, 1)
    assert np.array_equal(image, again)
    assert np.array_equal(label, label_again)
    assert not np.array_equal(image[:16, :96, :96], draw_phantom(5, 2)[0][:16, :96, :96])
    assert not np.array_equal(image[:16, :96, :96], draw_phantom(6, 1)[0][:16, :96, :96])


def test_every_class_is_present_and_intensity_alone_does_not_tell_them():
    for index in range(3):
        image, label, spacing, _ = draw_phantom(0, index)
        assert image.dtype == np.int16
        assert 16 <= image.shape[0] <= 24
        assert spacing[0] == 3.0
        sizes = np.bincount(label.ravel(), minlength=4)
        assert len(sizes) == 4
        assert sizes.min() > 200
        assert sizes[0] > sizes[1:].sum()
        # Background tissue reaches into the range of every organ.
        background = image[label == 0]
        for value in (1, 2, 3):
            low, high = np.percentile(image[label == value], (25, 75))
            assert np.count_nonzero((background > low) & (background < high)) > 0.1 * sizes[value]


def test_other_folders_are_left_alone(tmp_path):
    folder = tmp_path / "Dataset001_Real"
    folder.mkdir()
    (folder / "precious.txt").write_text("data")
    with pytest.raises(SamunetError, match="does not hold phantoms"):
        make_phantoms(folder, num_training=1, num_test=0)
    assert (folder / "precious.txt").exists()


def test_phantoms_replace_phantoms(tmp_path):
    folder = tmp_path / "Dataset999_Phantoms"
    make_phantoms(folder, num_training=1, num_test=1)
    make_phantoms(folder, num_training=1, num_test=0)
    assert not (folder / "imagesTs").exists()
