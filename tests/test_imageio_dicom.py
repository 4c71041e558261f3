"""A folder with a DICOM series as an image."""

import locale
from contextlib import contextmanager

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from samunet.errors import SamunetError
from samunet.imageio.registry import image_reader_for, is_dicom_folder, mask_ending, reader_for
from samunet.preprocessing.orientation import orientation_of, reorient, wanted_orientation

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
    own, wanted = orientation_of(image.geometry), wanted_orientation(image.geometry, "")
    assert (own, wanted) == ("LPS", "RAS")
    assert np.array_equal(reorient(image.array, own, wanted), plain.array[:, :, ::-1, ::-1])
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


LARGER = np.random.default_rng(1).integers(-500, 2000, (3, 20, 24)).astype(np.int16)
CT = "1.2.840.10008.5.1.4.1.1.2"


def save(file, pixels, *, preamble=True, syntax="1.2.840.10008.1.2.1", **elements):
    """A file of one frame ``(y, x)``, or of several, with elements added or (as None) left out."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    dataset = pydicom.Dataset()
    values = {
        "SOPClassUID": CT, "SOPInstanceUID": f"2.25.{abs(hash(str(file))) % 10**9}", "Modality": "CT",
        "StudyInstanceUID": "2.25.1", "SeriesInstanceUID": "2.25.2", "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelSpacing": [0.5, 0.75], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    } | elements  # fmt: skip
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.add_new("PixelData", "OW", pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    file.parent.mkdir(exist_ok=True)
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    if not preamble:
        start = 132 + 12 + int.from_bytes(file.read_bytes()[140:144], "little")  # behind the group of the file itself
        file.write_bytes(file.read_bytes()[start:])


def save_slices(folder, number=4, changes=None, **elements):
    """Slices 3 mm apart whose voxels are all 1, 2, 3, ...; ``changes`` are elements of single ones."""
    for z in range(number):
        own = {"ImagePositionPatient": [0, 0, 3 * z]} | elements | (changes or {}).get(z, {})
        save(folder / f"{z}.dcm", own.pop("pixels", np.full((4, 5), z + 1, np.int16)), **own)
    return folder


def values_along(image):
    return image.array[0, :, 0, 0].tolist()


@pytest.mark.parametrize(
    ("slopes", "intercepts", "expected"),
    [
        ([1, 0.5, 0.25, 0.001], [0] * 4, [1, 1, 0.75, 0.004]),
        ([1, 20000, 1, 1], [0] * 4, [1, 40000, 3, 4]),  # beyond the 16 bits of the first
        ([1, 1, 1, 1], [0, 0.5, -70000, 0], [1, 2.5, -69997, 4]),
        ([2, 1, 1, 0.5], [-1024, 0, 0, 0], [-1022, 2, 3, 2]),
    ],
)
def test_every_slice_has_its_own_slope_and_intercept(reader, tmp_path, slopes, intercepts, expected):
    changes = {z: {"RescaleSlope": slopes[z], "RescaleIntercept": intercepts[z]} for z in range(4)}
    image = reader.read_image([save_slices(tmp_path / "scan", changes=changes)])
    assert values_along(image) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, "ImageOrientationPatient"),
        ({"PixelSpacing": [0.5, 0.8]}, "PixelSpacing"),
        ({"pixels": np.zeros((5, 4), np.int16)}, "Rows and Columns"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "PhotometricInterpretation"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no two directions at right angles"),
        ({"RescaleSlope": 0}, "RescaleSlope"),
        ({"ImagePositionPatient": None}, "1 of 4 DICOM files have no position"),
        ({"ImagePositionPatient": [5, 0, 6]}, "displaced within their plane"),
    ],
)
def test_a_slice_that_differs_is_named(reader, tmp_path, change, says):
    folder = save_slices(tmp_path / "scan", changes={2: change})
    with pytest.raises(SamunetError, match=rf"(?s)(?=.*{says})(?=.*2\.dcm)"):
        reader.read_image([folder])


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "PixelSpacing", "RescaleSlope", "ImageOrientationPatient"])
@pytest.mark.parametrize("text", [b"-10,5\\-20,5\\0 ", b"abc ", b"1\\nan\\3", b"1\\2\\3\\4 "])
def test_a_broken_value_names_file_and_tag(reader, tmp_path, tag, text):
    from pydicom.datadict import tag_for_keyword

    folder = save_slices(tmp_path / "scan", RescaleSlope=7)
    file, number = folder / "1.dcm", tag_for_keyword(tag)
    content = file.read_bytes()
    name = (number >> 16).to_bytes(2, "little") + (number & 0xFFFF).to_bytes(2, "little") + b"DS"
    at = content.index(name) + 6
    end = at + 2 + int.from_bytes(content[at : at + 2], "little")
    file.write_bytes(content[:at] + len(text).to_bytes(2, "little") + text + content[end:])
    with pytest.raises(SamunetError, match=rf"1\.dcm: {tag} \([0-9a-f]{{4}},[0-9a-f]{{4}}\) is '"):
        reader.read_image([folder])


def functional(positions, slopes=None, orientations=None):
    """Functional groups of an enhanced file."""
    from pydicom import Dataset

    def item(**elements):
        dataset = Dataset()
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        return dataset

    frames = []
    for index, position in enumerate(positions):
        frame = item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, position])])
        orientation = orientations[index] if orientations else [1, 0, 0, 0, 1, 0]
        frame.PlaneOrientationSequence = [item(ImageOrientationPatient=orientation)]
        if slopes:
            frame.PixelValueTransformationSequence = [item(RescaleSlope=slopes[index], RescaleIntercept=0)]
        frames.append(frame)
    shared = item(PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75])])
    return {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1", "NumberOfFrames": len(positions), "PixelSpacing": None,
        "ImageOrientationPatient": None, "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }  # fmt: skip


def frames_of(values):
    return np.stack([np.full((4, 5), value, np.uint16) for value in values])


def test_frames_of_one_file_are_sorted_and_have_their_own_slope(reader, tmp_path):
    save(tmp_path / "scan" / "a", frames_of([3, 1, 2]), **functional([12, 0, 6], slopes=[0.5, 1, 2]))
    image = reader.read_image([tmp_path / "scan"])
    assert values_along(image) == [1, 4, 1.5]
    assert image.geometry.spacing == (6, 0.5, 0.75)
    assert image.geometry.origin == (0, 0, 0)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (functional([0, 3, 9, 12]), "a frame 2 and a frame 3 are 6 mm apart, the others 3 mm"),
        (functional([0, 3, 0, 3]), "missing, doubled or unevenly spaced"),
        (
            functional([0, 3, 6, 9], orientations=[[1, 0, 0, 0, 1, 0]] * 3 + [[0, 1, 0, 0, 0, 1]]),
            "ImageOrientationPatient .* its first frame",
        ),
        (functional([0, 3, 6]) | {"NumberOfFrames": 4}, "NumberOfFrames .* is 4, but the places of 3"),
    ],
)
def test_frames_that_are_no_volume_are_refused(reader, tmp_path, groups, says):
    save(tmp_path / "scan" / "a", frames_of([1, 2, 3, 4]), **groups)
    with pytest.raises(SamunetError, match=says):
        reader.read_image([tmp_path / "scan"])


def test_frames_without_places_keep_their_order(reader, tmp_path, caplog):
    save(tmp_path / "cine" / "a", frames_of([3, 1, 2]), NumberOfFrames=3, ImageOrientationPatient=None)
    assert values_along(reader.read_image([tmp_path / "cine"])) == [3, 1, 2]
    assert "without positions, taken as slices 1 mm apart" in caplog.text


def test_frames_at_stated_distances(reader, tmp_path):
    places = {"ImagePositionPatient": [0, 0, 5], "GridFrameOffsetVector": [0, -2, -4]}
    save(
        tmp_path / "dose" / "a",
        frames_of([1, 2, 3]),
        NumberOfFrames=3,
        Modality="RTDOSE",
        DoseGridScaling=0.5,
        **places,
    )
    image = reader.read_image([tmp_path / "dose"])
    assert values_along(image) == [1.5, 1, 0.5]
    assert (image.geometry.origin, image.geometry.spacing[0]) == ((0, 0, 1), 2)


def test_files_without_preamble(reader, tmp_path):
    folder = save_slices(tmp_path / "scan", preamble=False)
    assert (folder / "0.dcm").read_bytes()[:2] == b"\x08\0"
    assert is_dicom_folder(folder)
    assert values_along(reader.read_image([folder])) == [1, 2, 3, 4]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.bin").write_bytes(b"\x08\0\0\0" + bytes(400))
    assert not is_dicom_folder(tmp_path / "notes")


def test_a_series_for_every_slice_is_one_volume(reader, tmp_path):
    each = {z: {"SeriesInstanceUID": f"2.25.7.{z}"} for z in range(4)}
    folder = save_slices(tmp_path / "scan", changes=each)
    assert values_along(reader.read_image([folder])) == [1, 2, 3, 4]
    other = {z: {"SeriesInstanceUID": f"2.25.7.{z}", "StudyInstanceUID": f"2.25.8.{z}"} for z in range(9)}
    with pytest.raises(SamunetError, match=r"holds 9 DICOM series") as caught:
        reader.read_image([save_slices(tmp_path / "others", 9, other)])
    assert str(caught.value).count("\n  - ") == 6
    assert "and 4 more" in str(caught.value)


def test_bits_above_the_highest_are_no_part_of_the_voxel(reader, tmp_path):
    stored = {"BitsStored": 12, "HighBit": 11}
    save(tmp_path / "scan" / "a", np.array([[0xF001, 0x0FFF]], np.uint16), **stored)
    assert reader.read_image([tmp_path / "scan"]).array.ravel().tolist() == [1, 4095]
    save(tmp_path / "signed" / "a", np.array([[0x0FFF, 0x0001]], np.int16), **stored)
    assert reader.read_image([tmp_path / "signed"]).array.ravel().tolist() == [-1, 1]


def compressed(folder, compressor="JPEG2000", number=3):
    """Slices 2 mm apart with slopes 2, 1.5 and 1, and intercepts 0, 1 and 2."""
    import pydicom

    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    folder.mkdir()
    for z in range(number):
        image = sitk.GetImageFromArray(LARGER[z : z + 1])
        image.SetOrigin((0, 0, 2 * z))
        for tag, value in {"0020|000d": "1.2.3", "0020|000e": "1.2.4"}.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z}.dcm"))
        with unchanged_locale():
            writer.Execute(image)
        dataset = pydicom.dcmread(folder / f"{z}.dcm")
        dataset.RescaleSlope, dataset.RescaleIntercept = 2 - z / 2, z
        dataset.save_as(folder / f"{z}.dcm")
    return folder


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_files_are_decoded_in_one_child_process(reader, tmp_path, monkeypatch, compressor):
    import subprocess

    folder, started = compressed(tmp_path / "scan", compressor), []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1])
    image = reader.read_image([folder])
    assert np.array_equal(
        image.array[0], LARGER * np.reshape([2, 1.5, 1], (3, 1, 1)) + np.reshape([0, 1, 2], (3, 1, 1))
    )
    assert image.geometry.spacing[0] == 2
    assert len(started) == 1
    assert started[0].poll() is not None


@pytest.mark.parametrize("does", ["import time; time.sleep(60)", "import os; os.abort()"])
def test_a_decoder_that_hangs_or_crashes_is_an_error(reader, tmp_path, monkeypatch, does):
    from samunet.imageio import dicom_file

    # In place of GDCM on a file that it never returns from: the same watchdog runs.
    child = f"import SimpleITK\ndef read(*a, **k):\n    {does}\nSimpleITK.ReadImage = read\n{dicom_file._CHILD}"
    monkeypatch.setattr(dicom_file, "_CHILD", child)
    monkeypatch.setattr(dicom_file, "_SECONDS", 0.3)
    with pytest.raises(SamunetError, match=r"0\.dcm cannot be decoded: .* \(compression: JPEG 2000"):
        reader.read_image([compressed(tmp_path / "scan")])


def test_pixels_of_more_frames_than_announced_are_refused(reader, tmp_path):
    write_series(tmp_path / "scan")
    file = sorted((tmp_path / "scan").iterdir())[2]
    dataset = pydicom.dcmread(file)
    dataset.PixelData = dataset.PixelData * 9
    dataset.save_as(file)
    with pytest.raises(SamunetError, match=rf"{file.name} holds the pixels of more frames than it announces \(1\)"):
        reader.read_image([tmp_path / "scan"])
