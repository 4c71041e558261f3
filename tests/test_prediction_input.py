"""What prediction takes: folders, files, lists, plain names, other endings, DICOM series."""

import locale
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as pillow

from samunet.dataset.description import description_from_json
from samunet.dataset.layout import list_cases
from samunet.errors import SamunetError, UsageError

DATA = Path(__file__).parents[2] / "shared" / "data"


def model(channels=1, ending=".nii.gz"):
    names = {str(index): f"c{index}" for index in range(channels)}
    labels = {"background": 0, "organ": 1}
    return description_from_json({"channel_names": names, "labels": labels, "file_ending": ending}, "dataset.json")


def write(path, channels=1):
    """An image of the path's ending; a picture of three channels is coloured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    if path.name.endswith(".NII.GZ"):  # which ITK does not write
        return write(path.with_name(name), channels).rename(path)
    if name.endswith((".png", ".jpg", ".bmp")):
        pillow.new("L" if channels == 1 else "RGB", (4, 4), 7 if channels == 1 else (200, 7, 7)).save(path)
    elif channels == 1:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 4, 4), np.float32)), str(path))
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((channels, 2, 4, 4), np.float32), isVector=False), str(path))
    return path


def write_series(folder, slices=3, patient=""):
    folder.mkdir(parents=True)
    before = locale.setlocale(locale.LC_ALL)
    for index in range(slices):
        image = sitk.GetImageFromArray(np.full((1, 4, 4), index, np.int16))
        image.SetOrigin((0, 0, 2.0 * index))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0008|0060": "CT",
            "0020|0032": f"0\\0\\{2 * index}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(index),
            "0008|0018": f"1.2.3.4.{index + 1}", "0010|0020": patient,
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # ITK's DICOM writer leaves "C", in which Python's default is ASCII
    return folder


def found(cases):
    return {name: [path.name for path in case.images] for name, case in cases.items()}


@pytest.mark.parametrize(
    ("channels", "ending", "files", "expected"),
    [
        (1, ".nii.gz", {"b_0000.nii.gz": 1, "a_0000.nii.gz": 1}, {"a": ["a_0000.nii.gz"], "b": ["b_0000.nii.gz"]}),
        (1, ".nii.gz", {"scan.nii.gz": 1, "x_0000.mha": 1}, {"scan": ["scan.nii.gz"], "x": ["x_0000.mha"]}),
        (1, ".nii.gz", {"A.NII.GZ": 1}, {"A": ["A.NII.GZ"]}),
        (1, ".png", {"frame_0017.png": 1, "frame_0018.jpg": 1},
         {"frame_0017": ["frame_0017.png"], "frame_0018": ["frame_0018.jpg"]}),
        (1, ".png", {"0000.png": 1, "0000_0000_0000.png": 1},
         {"0000": ["0000.png"], "0000_0000": ["0000_0000_0000.png"]}),
        (1, ".nii.gz", {"a.png": 1}, {"a": ["a.png"]}),
        (2, ".nii.gz", {"a_0000.nii.gz": 1, "a_0001.mha": 1, "b.nii.gz": 2},
         {"a": ["a_0000.nii.gz", "a_0001.mha"], "b": ["b.nii.gz"]}),
        (3, ".png", {"a.jpg": 3, "b_0000.png": 3, "c_0007.png": 3, "grey.png": 1},
         {"a": ["a.jpg"], "b": ["b_0000.png"], "c_0007": ["c_0007.png"], "grey": ["grey.png"]}),
        (3, ".png", {"a_0000.png": 1, "a_0001.png": 1, "a_0002.png": 1},
         {"a": ["a_0000.png", "a_0001.png", "a_0002.png"]}),
    ],
)  # fmt: skip
def test_folders(tmp_path, channels, ending, files, expected):
    for name, number in files.items():
        write(tmp_path / name, number)
    for other in ("notes.txt", "dataset.json", ".tmp-1-z_0000.nii.gz"):
        (tmp_path / other).touch()
    cases = list_cases(tmp_path, model(channels, ending))
    assert found(cases) == expected
    assert list(cases) == sorted(cases)
    assert all(case.label is None for case in cases.values())


@pytest.mark.parametrize(
    ("channels", "ending", "files", "expected"),
    [
        (1, ".nii.gz", {}, ["has no images: it is empty", "must be called case_0000.nii.gz or case.nii.gz"]),
        (2, ".nii.gz", {}, ["2 channels (c0, c1)", "case_0001.nii.gz, or one file case.nii.gz that holds all"]),
        (1, ".nii.gz", {"scan.nii.gz": 1, "scan_0000.nii.gz": 1},
         ["the same case twice", "scan_0000.nii.gz and scan.nii.gz", "rename one"]),
        (1, ".nii.gz", {"a.nii.gz": 1, "a.mha": 1}, ["the same case twice", "a.mha and a.nii.gz"]),
        (1, ".nii.gz", {"a.nii.gz": 1, "A.nii.gz": 1}, ["only by upper and lower case: A and a"]),
        (1, ".nii.gz", {"a_0000.nii.gz": 1, "a_0001.nii.gz": 1}, ["a has 0000, 0001 (0001 too many)", "one for each"]),
        (1, ".nii.gz", {"a.nii.gz": 2}, ["1 channel expected: a has 2 channels in a.nii.gz"]),
        (2, ".nii.gz", {"a.nii.gz": 1}, ["2 channels expected", "a has 1 channel in a.nii.gz", "(c0, c1)"]),
        (2, ".nii.gz", {"a_0001.nii.gz": 1}, ["a has 0001 (lacks 0000)"]),
        (2, ".nii.gz", {"a_0000.nii.gz": 2, "a_0001.nii.gz": 1}, ["2 channels expected: a has 3 channels"]),
        (1, ".png", {"a.png": 3}, ["a.png has 3 channels"]),
    ],
)  # fmt: skip
def test_wrong_folders(tmp_path, channels, ending, files, expected):
    for name, number in files.items():
        write(tmp_path / name, number)
    with pytest.raises(SamunetError) as caught:
        list_cases(tmp_path, model(channels, ending))
    for part in expected:
        assert part in str(caught.value)


def test_at_most_five_offenders_are_listed(tmp_path):
    for index in range(7):
        write(tmp_path / f"t{index}_0000.nii.gz")
        write(tmp_path / f"t{index}_0002.nii.gz")
    with pytest.raises(SamunetError) as caught:
        list_cases(tmp_path, model(2))
    assert "t4 has 0000, 0002" in str(caught.value)
    assert "t5 has" not in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_unreadable_files_are_told_before_work_begins(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(SamunetError, match=r"(?s)a\.nii\.gz is empty.*copy or export"):
        list_cases(tmp_path, model())


def test_images_of_another_kind_are_left_out_aloud(tmp_path, caplog):
    write(tmp_path / "a_0000.nii.gz")
    write(tmp_path / "preview.png")
    assert list(list_cases(tmp_path, model())) == ["a"]
    assert "1 images of another kind than .nii.gz are left out: preview.png" in caplog.text


def test_folders_that_hold_something_else(tmp_path):
    (tmp_path / "patient").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SamunetError, match=r"it holds notes\.txt, patient/"):
        list_cases(tmp_path, model())
    with pytest.raises(UsageError, match="nothing does not exist"):
        list_cases(Path("nothing"), model())
    with pytest.raises(UsageError, match="list of files is empty"):
        list_cases([], model())
    with pytest.raises(UsageError, match="is a folder, but no DICOM series"):
        list_cases([tmp_path], model())
    with pytest.raises(SamunetError, match=r"notes\.txt has none of the endings"):
        list_cases([tmp_path / "notes.txt"], model())


def test_single_files_and_lists(tmp_path):
    one, other = write(tmp_path / "scan_0000.nii.gz"), write(tmp_path / "b" / "plain.mha")
    assert found(list_cases(one, model())) == {"scan": ["scan_0000.nii.gz"]}
    assert found(list_cases(str(other), model())) == {"plain": ["plain.mha"]}
    assert found(list_cases([one, other], model())) == {"plain": ["plain.mha"], "scan": ["scan_0000.nii.gz"]}
    same = write(tmp_path / "b" / "scan_0000.nii.gz")
    with pytest.raises(SamunetError, match=rf"the same case twice.*{one}.*{same}|{same}.*{one}"):
        list_cases([one, same], model())


def test_channels_beside_a_file_are_found(tmp_path):
    files = [write(tmp_path / f"scan_000{index}.nii.gz") for index in range(2)]
    write(tmp_path / "other_0001.nii.gz")
    for given in (files[0], files[1], files, files[::-1]):
        assert found(list_cases(given, model(2))) == {"scan": ["scan_0000.nii.gz", "scan_0001.nii.gz"]}
    with pytest.raises(SamunetError, match=r"scan has 0000, 0001 \(lacks 0002\)"):
        list_cases(files[1], model(3))
    whole = write(tmp_path / "c" / "scan_0000.nii.gz", 2)
    write(tmp_path / "c" / "scan_0001.nii.gz")
    assert found(list_cases(whole, model(2))) == {"scan": ["scan_0000.nii.gz"]}


def test_one_list_for_each_case(tmp_path):
    t1, t2, both = (write(tmp_path / name, n) for name, n in (("t1.nii.gz", 1), ("t2.mha", 1), ("b_0000.nii.gz", 2)))
    assert found(list_cases([[t1, t2], [both]], model(2))) == {"b": ["b_0000.nii.gz"], "t1": ["t1.nii.gz", "t2.mha"]}
    with pytest.raises(SamunetError, match=r"the cases given: 2 channels expected: t1 has 3 channels in t1\.nii"):
        list_cases([[t1, t2, t2]], model(2))
    with pytest.raises(SamunetError, match="the same case twice"):
        list_cases([[t1, t2], [t1, t2]], model(2))
    with pytest.raises(UsageError, match="a case without files"):
        list_cases([[t1, t2], []], model(2))


def test_dicom_series(tmp_path):
    series = write_series(tmp_path / "patients" / "one 1")
    assert found(list_cases(series, model())) == {"one 1": ["one 1"]}
    write_series(tmp_path / "patients" / "two")
    (tmp_path / "patients" / "empty").mkdir()
    write(tmp_path / "patients" / "three.nii.gz")
    expected = {"one 1": ["one 1"], "three": ["three.nii.gz"], "two": ["two"]}
    assert found(list_cases(tmp_path / "patients", model())) == expected
    assert found(list_cases([series, tmp_path / "patients" / "two"], model())) == {"one 1": ["one 1"], "two": ["two"]}


def test_dicom_series_as_channels(tmp_path):
    for index in range(2):
        write_series(tmp_path / f"p_000{index}")
    assert found(list_cases(tmp_path, model(2))) == {"p": ["p_0000", "p_0001"]}
    assert found(list_cases([tmp_path / "p_0001"], model(2))) == {"p": ["p_0000", "p_0001"]}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real datasets are not at {DATA}")
@pytest.mark.parametrize(("name", "number"), [("Dataset027_ACDC", 20), ("Dataset102_DRIVE", 20)])
def test_real_folders(name, number):
    from samunet.dataset.description import read_description

    assert len(list_cases(DATA / name / "imagesTs", read_description(DATA / name))) == number


def test_a_tree_of_patients_and_series(tmp_path, caplog):
    tree = tmp_path / "tree"
    for patient, series in (("anna", "axial"), ("anna", "late"), ("bert", "axial")):
        write_series(tree / patient / series)
    (tree / "bert" / "notes.txt").touch()
    (tmp_path / "elsewhere").mkdir()
    write_series(tmp_path / "elsewhere" / "axial")
    (tree / "cleo").symlink_to(tmp_path / "elsewhere")
    cases = list_cases(tree, model())
    assert list(cases) == ["anna_axial", "anna_late", "bert_axial", "cleo_axial"]
    assert cases["anna_late"].images == (tree / "anna" / "late",)
    assert "1 files that are no images are left out: bert/notes.txt" in caplog.text


def test_what_is_left_out_is_named(tmp_path, caplog):
    write(tmp_path / "a_0000.nii.gz")
    (tmp_path / "old").mkdir()
    write(tmp_path / "old" / "b.nii.gz")
    (tmp_path / "c.xyz").touch()
    list_cases(tmp_path, model())
    assert "1 images in subfolders are left out: old/b.nii.gz" in caplog.text
    assert "1 files that are no images are left out: c.xyz" in caplog.text
    (tmp_path / "d.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    with pytest.raises(SamunetError, match=r"links that lead nowhere: .*d\.nii\.gz -> .*gone\.nii\.gz"):
        list_cases(tmp_path, model())


def test_a_broken_link_is_a_case_that_fails(tmp_path):
    write(tmp_path / "a_0000.nii.gz")
    (tmp_path / "d_0000.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    failures = {}
    assert list(list_cases(tmp_path, model(), failures)) == ["a"]
    assert list(failures) == ["d"]
    assert "links that lead nowhere: " in failures["d"].message
    (tmp_path / "a_0000.nii.gz").unlink()
    with pytest.raises(SamunetError, match="links that lead nowhere"):
        list_cases(tmp_path, model(), {})


def test_labels_are_not_predicted(tmp_path):
    write(tmp_path / "imagesTr" / "a_0000.nii.gz")
    write(tmp_path / "labelsTr" / "a.nii.gz")
    with pytest.raises(UsageError, match=r"(?s)labelsTr holds labels, not images.*`source='.*/imagesTr'`"):
        list_cases(tmp_path / "labelsTr", model())


def test_a_series_is_called_alike_whichever_folder_is_given(tmp_path):
    write_series(tmp_path / "anna" / "axial", patient="anna")
    write_series(tmp_path / "anna" / "coronal", patient="anna")
    expected = ["anna_axial", "anna_coronal"]
    assert list(list_cases(tmp_path, model())) == expected
    assert list(list_cases(tmp_path / "anna", model())) == expected
    assert list(list_cases(tmp_path / "anna" / "axial", model())) == expected[:1]
    assert list(list_cases([tmp_path / "anna" / name for name in ("coronal", "axial")], model())) == expected
    write_series(tmp_path / "bert" / "axial")  # whose folder is not known
    assert list(list_cases(tmp_path / "bert", model())) == ["axial"]
