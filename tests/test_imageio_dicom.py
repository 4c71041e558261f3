"""A folder with a DICOM series as an image."""

import locale
from contextlib import contextmanager

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.errors import SamunetError
from samunet.imageio.registry import image_reader_for, is_dicom_folder, mask_ending, reader_for

VOXELS = np.random.default_rng(0).integers(0, 2000, (5, 6, 7)).astype(np.int16)
STEEP = np.array([[-10, 2, 11], [10, -5, 10], [5, 14, 2]]) / 15


@contextmanager
def unchanged_locale():
    """Writing DICOM with ITK leaves the process in the locale "C", in which Python reads text as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def reading_leaves_the_locale_alone():
    before = locale.setlocale(locale.LC_ALL)
    yield
    assert locale.setlocale(locale.LC_ALL) == before


def write_series(folder, *, number=1, direction=STEEP, places=range(5), tilt=0.0, description="CT chest"):
    """Slices 2.5 mm apart with pixels of 0.7 x 0.8 mm, in a random order of file names."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    uid = f"1.2.826.0.1.3680043.2.1125.{number}"
    for index, place in enumerate(places):
        position = np.array([1.5, -2.5, 3]) + 2.5 * place * (direction[:, 2] + tilt * direction[:, 1])
        image = sitk.GetImageFromArray(VOXELS[index])
        image.SetSpacing((0.7, 0.8))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{index + 1}",
            "0008|103e": description,
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{number:.10g}" for number in position),
            "0020|0037": "\\".join(f"{number:.10g}" for number in direction[:, :2].T.ravel()),
            "0028|1052": "-1024",
            "0028|1053": "2",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number}_{(index * 3) % 5}.dcm"))
        with unchanged_locale():
            writer.Execute(image)
    return folder


@pytest.fixture
def reader():
    return reader_for(".nii.gz")


def test_a_series_is_read_as_itk_reads_it_and_its_mask_lies_in_the_same_place(reader, tmp_path, capfd):
    folder = write_series(tmp_path / "scan")
    assert is_dicom_folder(folder)
    image = reader.read_image([folder], channels=1)
    # Slope and intercept as written, in the order of the positions.
    stored = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"1_{(index * 3) % 5}.dcm")))[0] for index in range(5)]
    assert np.array_equal(image.array[0], stored)
    assert image.array.min() >= -1024
    assert image.geometry.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert image.geometry.origin == pytest.approx((1.5, -2.5, 3))
    assert image.geometry.direction == pytest.approx(STEEP.ravel(), abs=1e-6)
    mask = tmp_path / f"mask{mask_ending(folder)}"
    reader.write_label(VOXELS % 3, mask, image.geometry)
    written = sitk.ReadImage(str(mask))
    assert np.array_equal(sitk.GetArrayFromImage(written), VOXELS % 3)
    assert written.GetOrigin() == pytest.approx(image.geometry.origin, abs=1e-5)
    assert written.GetDirection() == pytest.approx(image.geometry.direction, abs=1e-6)
    assert written.GetSpacing() == pytest.approx((0.7, 0.8, 2.5))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_reorients_reorients_a_series_too(tmp_path):
    folder = write_series(tmp_path / "scan", direction=np.diag([1.0, 1.0, 1.0]))
    reader = image_reader_for(folder, reader_for(".nii.gz", "NibabelIOWithReorient"))
    image = reader.read_image([folder])
    plain = reader_for(".nii.gz").read_image([folder])
    assert np.array_equal(image.array, plain.array[:, :, ::-1, ::-1])
    reader.write_label(image.array[0].astype(int) + 1024, tmp_path / "m.nii.gz", image.geometry)
    assert np.array_equal(reader_for(".nii.gz").read_label(tmp_path / "m.nii.gz")[0], plain.array[0] + 1024)


def test_other_files_in_the_folder_do_no_harm(reader, tmp_path, capfd):
    folder = write_series(tmp_path / "scan")
    (folder / "notes.txt").write_text("x" * 500)
    (folder / "sub").mkdir()
    assert reader.read_image([folder]).array.shape == (1, 5, 6, 7)
    assert capfd.readouterr() == ("", "")


def test_several_series_are_listed(reader, tmp_path):
    folder = write_series(tmp_path / "scan")
    write_series(folder, number=2, description="Scout")
    with pytest.raises(SamunetError) as caught:
        reader.read_image([folder])
    message = str(caught.value)
    assert "scan holds 2 DICOM series" in message
    assert "CT chest, CT: 5 files" in message
    assert "Scout, CT: 5 files" in message
    assert "folder of its own" in message


def test_a_folder_without_dicom(reader, tmp_path, capfd):
    (tmp_path / "empty.nii.gz").mkdir()
    (tmp_path / "empty.nii.gz" / "notes.txt").write_text("x" * 500)
    assert not is_dicom_folder(tmp_path / "empty.nii.gz")
    with pytest.raises(SamunetError, match=r"empty.nii.gz is a folder without DICOM"):
        reader.read_image([tmp_path / "empty.nii.gz"])
    with pytest.raises(SamunetError, match=r"empty.nii.gz is a folder without DICOM"):
        image_reader_for(tmp_path / "empty.nii.gz", reader)
    assert capfd.readouterr() == ("", "")


def test_only_damaged_dicom(reader, tmp_path, capfd):
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\1" * 50)
    with pytest.raises(SamunetError, match=r"scan"):
        reader.read_image([tmp_path / "scan"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("places", [[0, 1, 3, 4, 5], [0, 1, 2, 3, 3], [0, 1, 2.5, 3, 4], [1, 1, 1, 1, 1]])
def test_missing_doubled_and_uneven_slices_are_refused(reader, tmp_path, capfd, places):
    folder = write_series(tmp_path / "scan", places=places)
    with pytest.raises(SamunetError, match=r"scan: slices are missing, doubled or unevenly spaced: 1_\d.dcm and 1_"):
        reader.read_image([folder])
    assert capfd.readouterr() == ("", "")


def test_rounded_positions_are_even(reader, tmp_path):
    folder = write_series(tmp_path / "scan", places=[0, 1.004, 2, 2.997, 4])
    assert reader.read_image([folder]).geometry.spacing[0] == pytest.approx(2.5, rel=1e-3)


def test_a_tilted_gantry_is_told(reader, tmp_path, caplog):
    folder = write_series(tmp_path / "scan", tilt=0.2)
    assert reader.read_image([folder]).array.shape == (1, 5, 6, 7)
    assert "tilted gantry" in caplog.text


@pytest.mark.parametrize("cut", [20, 84, 300, 700])
@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_truncated_slice_is_refused(reader, tmp_path, capfd, cut, index):
    # The last slice, too: without it the others are evenly spaced.
    folder = write_series(tmp_path / "scan")
    file = folder / f"1_{index}.dcm"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(SamunetError, match=rf"1_{index}.dcm is a damaged or truncated DICOM image"):
        reader.read_image([folder])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("modality", [b"\x08\0\x60\0CS\x08\0RTSTRUCT", b"\x08\0\x60\0\x02\0\0\0SR"])
def test_dicom_without_an_image_is_left_out(reader, tmp_path, modality):
    folder = write_series(tmp_path / "scan")
    (folder / "report.dcm").write_bytes(bytes(128) + b"DICM" + modality + bytes(40))
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(40))
    assert reader.read_image([folder]).array.shape == (1, 5, 6, 7)


def test_one_slice(reader, tmp_path):
    folder = write_series(tmp_path / "scan", places=[0])
    assert reader.read_image([folder]).array.shape == (1, 1, 6, 7)


@pytest.mark.parametrize(
    ("shape", "colour", "expected"), [((4, 6, 7), False, (1, 4, 6, 7)), ((6, 7, 3), True, (3, 1, 6, 7))]
)
def test_frames_and_colours_in_one_file(reader, tmp_path, shape, colour, expected):
    voxels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    (tmp_path / "scan").mkdir()
    with unchanged_locale():
        sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=colour), str(tmp_path / "scan" / "a.dcm"))
    image = reader.read_image([tmp_path / "scan"])
    assert np.array_equal(image.array, (np.moveaxis(voxels, -1, 0) if colour else voxels).reshape(expected))
