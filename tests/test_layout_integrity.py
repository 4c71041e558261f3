import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from samunet.dataset.cases import mask_files
from samunet.dataset.description import read_description
from samunet.dataset.layout import Case, find_dataset, list_cases, load_dataset
from samunet.errors import SamunetError, UsageError
from samunet.imageio.registry import reader_for

NAME = "Dataset027_Toy"
DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def raw(tmp_path, monkeypatch):
    for name in ("samunet_raw", "samunet_preprocessed", "samunet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "samunet_raw"


@pytest.fixture
def folder(raw):
    """Two cases of two channels; quick checks read only names here, so the files may be empty."""
    return make_dataset(raw / NAME, ["a_0000", "a_0001", "b_0000", "b_0001"], ["a", "b"], 2)


def make_dataset(folder, images, labels, number, channels=2, ending=".nii.gz"):
    for name, files in (("imagesTr", images), ("labelsTr", labels)):
        (folder / name).mkdir(parents=True)
        for file in files:
            (folder / name / f"{file}{ending}").touch()
    content = {
        "channel_names": {str(index): f"c{index}" for index in range(channels)},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ending,
        "numTraining": number,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def message(function, *arguments):
    with pytest.raises(SamunetError) as caught:
        function(*arguments)
    return str(caught.value)


def test_ids_are_accepted_in_every_form(raw):
    (raw / "Dataset027_ACDC").mkdir()
    (raw / "Dataset003_Liver").mkdir()
    (raw / "Dataset005_file").touch()
    for text in (27, "27", "027", "Dataset027_ACDC", "ACDC"):
        assert find_dataset(text) == "Dataset027_ACDC"
    assert "Dataset003_Liver, Dataset027_ACDC" in message(find_dataset, "28")
    for text in ("Dataset027_Other", "AC", "-27", 5):
        assert f"there is no dataset {text}" in message(find_dataset, text)


def test_datasets_are_found_in_all_folders(raw):
    (raw.parent / "samunet_results" / "Dataset001_A").mkdir()
    (raw.parent / "samunet_preprocessed" / "Dataset001_A").mkdir()
    assert find_dataset(1) == "Dataset001_A"
    (raw / "Dataset001_B").mkdir()
    with pytest.raises(UsageError, match="several datasets have the number 1: Dataset001_A, Dataset001_B"):
        find_dataset("001")
    assert find_dataset("Dataset001_B") == "Dataset001_B"


def test_no_folders_are_set(monkeypatch):
    for name in ("samunet_raw", "nnUNet_raw", "samunet_preprocessed", "samunet_results"):
        monkeypatch.delenv(name, raising=False)
    assert "export samunet_raw=" in message(find_dataset, 1)


def test_a_mistyped_raw_folder_is_what_the_error_names(raw, monkeypatch):
    monkeypatch.setenv("samunet_raw", f"{raw}x")
    text = message(find_dataset, 1)
    assert f"samunet_raw is {raw}x, and there is no such folder" in text
    assert "export samunet_raw=" in text
    (raw.parent / "samunet_results" / "Dataset001_A").mkdir()
    assert find_dataset(1) == "Dataset001_A"  # a trained model needs no raw folder


def test_names_alone_and_misspelt_names(raw):
    for name in ("Dataset001_Heart", "Dataset002_Liver", "Dataset003_liver"):
        (raw / name).mkdir()
    assert find_dataset("Heart") == find_dataset("heart") == "Dataset001_Heart"
    assert "several datasets have the name liver: Dataset002_Liver, Dataset003_liver" in message(find_dataset, "liver")
    for misspelt in ("Haert", "Dataset001_Haert", "Dataset01_Heart"):
        assert "did you mean Dataset001_Heart?" in message(find_dataset, misspelt)
    assert "did you mean" not in message(find_dataset, "17")


def test_load_dataset(folder):
    (folder / "imagesTr" / ".tmp-1-c_0000.nii.gz").touch()
    (folder / "imagesTr" / "notes.txt").touch()
    dataset = load_dataset(NAME)
    assert (dataset.name, dataset.folder) == (NAME, folder)
    images = folder / "imagesTr"
    label = folder / "labelsTr" / "a.nii.gz"
    assert dataset.cases["a"] == Case("a", (images / "a_0000.nii.gz", images / "a_0001.nii.gz"), label)
    assert list(dataset.cases) == ["a", "b"]


def test_missing_dataset(raw):
    assert "is not in the raw folder" in message(load_dataset, NAME)


def test_all_problems_come_in_one_error(folder):
    (folder / "imagesTr" / "b_0001.nii.gz").rename(folder / "imagesTr" / "b_0002.nii.gz")
    (folder / "imagesTr" / "c_0000.nii.gz").touch()
    (folder / "imagesTr" / "c_0001.nii.gz").touch()
    (folder / "imagesTr" / "stray.nii.gz").touch()
    (folder / "labelsTr" / "d.nii.gz").touch()
    text = message(load_dataset, NAME)
    assert "b has 0000, 0002" in text
    assert "labelsTr lacks c.nii.gz" in text
    assert "without channel number: stray.nii.gz" in text
    assert "(lacks 0001; 0002 too many)" in text
    assert "labels without image: d.nii.gz" in text
    assert "2 training cases (numTraining), imagesTr has 3" in text
    assert "case_0000.nii.gz to case_0001.nii.gz" in text


def test_wrong_number_of_training_cases_comes_with_the_fix(raw):
    make_dataset(raw / NAME, ["a_0000"], ["a"], 5, channels=1)
    assert message(load_dataset, NAME).endswith('if none is missing, write "numTraining": 1')


def test_empty_dataset(raw):
    folder = make_dataset(raw / NAME, [], ["a"], 1)
    assert "imagesTr has no file ending in .nii.gz (it is empty)" in message(load_dataset, NAME)
    (folder / "imagesTr" / "a_0000.png").touch()
    assert "1 others, such as a_0000.png: does file_ending" in message(load_dataset, NAME)
    (folder / "imagesTr" / "a_0000.png").unlink()
    (folder / "imagesTr").rmdir()
    assert "the folder imagesTr is missing" in message(load_dataset, NAME)


def test_missing_labels_folder(folder):
    for file in (folder / "labelsTr").iterdir():
        file.unlink()
    (folder / "labelsTr").rmdir()
    assert "the folder labelsTr is missing" in message(load_dataset, NAME)


def describe(folder, **keys):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_colour_pictures_hold_three_channels_in_one_file(raw):
    folder = make_dataset(raw / NAME, [], ["a"], 1, channels=3, ending=".png")
    path = folder / "imagesTr" / "a_0000.png"
    for mode in ("RGB", "L"):  # grey pictures are repeated for red, green and blue
        pillow.new(mode, (4, 4)).save(path)
        assert load_dataset(NAME).cases["a"].images == (path,)
    make_dataset(raw / "Dataset028_Two", ["a_0000"], ["a"], 1, channels=2, ending=".png")
    pillow.new("RGB", (4, 4)).save(raw / "Dataset028_Two" / "imagesTr" / "a_0000.png")
    assert "2 channels expected: a has 3 channels in a_0000.png" in message(load_dataset, "Dataset028_Two")


@pytest.mark.parametrize("image", ["a_0000.jpg", "a_0000.jpeg", "a_0000.bmp", "a_0000.tif", "A_0000.PNG"])
def test_images_may_have_another_ending_than_labels(raw, image):
    name = image.split("_")[0]
    folder = make_dataset(raw / NAME, [], [name], 1, channels=1, ending=".png")
    (folder / "imagesTr" / image).touch()
    case = load_dataset(NAME).cases[name]
    assert (case.images, case.label) == ((folder / "imagesTr" / image,), folder / "labelsTr" / f"{name}.png")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("a_0000.jpg",), ["the same case twice: a is a_0000.jpg and a_0000.png", "keep one"]),
        (("b_0000.png", "B_0000.png"), ["differ only by upper and lower case: B and b", "rename one"]),
        (("a_0002.png",), ["wrong channels: a has 0000, 0002 (0002 too many)"]),
    ],
)
def test_ids_that_are_taken_twice_or_have_gaps(raw, files, expected):
    folder = make_dataset(raw / NAME, ["a_0000"], ["a"], 1, channels=1, ending=".png")
    for file in files:
        (folder / "imagesTr" / file).touch()
    text = message(load_dataset, NAME)
    assert all(part in text for part in expected), text


def test_endings_of_other_kinds_are_left_alone(raw):
    folder = make_dataset(raw / NAME, ["a_0000"], ["a"], 1, channels=1)
    for name in ("a_0000.png", "preview.jpg", "notes.txt", "a_0000.json"):
        (folder / "imagesTr" / name).touch()
    assert load_dataset(NAME).cases["a"].images == (folder / "imagesTr" / "a_0000.nii.gz",)


def test_dataset_json_may_list_the_files(raw, tmp_path, monkeypatch):
    """nnU-Net's key "dataset": relative to the dataset's folder, absolute, or with variables."""
    folder = make_dataset(raw / NAME, [], [], 2, channels=1, ending=".png")
    (tmp_path / "elsewhere").mkdir()
    for file in (folder / "x.jpg", tmp_path / "elsewhere" / "y.png", folder / "m.png"):
        file.touch()
    monkeypatch.setenv("PLACE", str(tmp_path / "elsewhere"))
    files = {
        "b": {"images": ["x.jpg"], "label": "m.png"},
        "a": {"images": ["$PLACE/y.png"], "label": str(tmp_path / "elsewhere" / "y.png")},
    }
    describe(folder, dataset=files)
    cases = load_dataset(NAME).cases
    assert cases == {
        "a": Case("a", (tmp_path / "elsewhere" / "y.png",), tmp_path / "elsewhere" / "y.png"),
        "b": Case("b", (folder / "x.jpg",), folder / "m.png"),
    }
    assert list(cases) == ["a", "b"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"images": ["x.png"]}, ["images without label", "none for a", '"label"']),
        ({"images": ["no.png"], "label": "x.png"}, ["files that do not exist:", "no.png of a", "key dataset"]),
        ({"images": ["$NOWHERE/x.png"], "label": "x.png"}, ["NOWHERE is not set", "export NOWHERE="]),
        ({"images": ["x.png", "x.png"], "label": "x.png"}, ["1 channel expected: a has 2 channels", 'in "images"']),
        ({"images": ["x.png"], "label": "x.jpg"}, ["label files that NaturalImage2DIO cannot read", "save it as .png"]),
    ],
)
def test_listed_files_are_checked(raw, entry, expected):
    folder = make_dataset(raw / NAME, [], [], 1, channels=1, ending=".png")
    pillow.new("L", (4, 4)).save(folder / "x.png")
    (folder / "x.jpg").touch()
    describe(folder, dataset={"a": entry})
    text = message(load_dataset, NAME)
    assert all(part in text for part in expected), text


def test_numbers_and_groups_are_compared_with_the_cases(folder, caplog):
    describe(folder, groups={"a": "p", "c": "q"}, numTraining=7)
    text = message(load_dataset, NAME)
    assert "groups of dataset.json lack 1 of 2 cases: b" in text
    assert "announces 7 training cases" in text
    describe(folder, groups={"a": "p", "b": "q", "c": "r"}, numTraining=2)
    load_dataset(NAME)
    assert "groups of dataset.json name 1 cases that the dataset lacks: c" in caplog.text


def test_keys_that_are_nearly_right_are_pointed_out(folder, caplog):
    describe(folder, region_class_order=[1])
    load_dataset(NAME)
    assert 'a key that nothing reads: "region_class_order"' in caplog.text
    assert 'rename it to "regions_class_order"' in caplog.text


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real datasets are not at {DATA}")
@pytest.mark.parametrize(
    ("text", "training", "test", "channels"),
    [("4", 180, 20, 1), ("027", 140, 20, 1), ("101", 100, 40, 1), ("102", 20, 20, 3), ("103", 4, 1, 2)],
)
def test_real_datasets_load(monkeypatch, text, training, test, channels):
    monkeypatch.setenv("samunet_raw", str(DATA))
    dataset = load_dataset(find_dataset(text))
    assert len(dataset.cases) == training
    assert len(list_cases(dataset.folder / "imagesTs", dataset.description)) == test
    case = next(iter(dataset.cases.values()))
    reader = reader_for(dataset.description.file_ending)
    image = reader.read_image(case.images)
    label, geometry = reader.read_label(case.label)
    assert image.array.shape == (channels, *label.shape)
    assert image.geometry.spacing == pytest.approx(geometry.spacing)
    dataset.description.labels.check(np.unique(label).tolist(), case.label)


COMPOSED, SEPARATE = "caf\u00e9", "cafe\u0301"  # é as one letter, and as e and an accent


def test_two_spellings_of_the_same_letters_are_one_name(raw):
    folder = make_dataset(raw / NAME, [f"{SEPARATE}_0000", "b_0000"], [COMPOSED, "b"], 2, channels=1)
    case = load_dataset(NAME).cases[COMPOSED]
    assert case == Case(
        COMPOSED, (folder / "imagesTr" / f"{SEPARATE}_0000.nii.gz",), folder / f"labelsTr/{COMPOSED}.nii.gz"
    )
    content = json.loads((folder / "dataset.json").read_text()) | {"groups": {SEPARATE: "p", "b": "q"}}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert load_dataset(NAME).description.groups == {COMPOSED: "p", "b": "q"}
    assert list(mask_files(folder / "labelsTr")) == ["b", COMPOSED]


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_two_files_whose_names_have_the_same_letters_are_refused(raw, part):
    folder = make_dataset(raw / NAME, [f"{SEPARATE}_0000"], [COMPOSED], 1, channels=1)
    number = "_0000" if part == "imagesTr" else ""
    for name in (COMPOSED, SEPARATE):
        (folder / part / f"{name}{number}.nii.gz").touch()
    assert "the same case twice" in message(load_dataset, NAME)
    assert "the same letters, composed and with separate accents" in message(load_dataset, NAME)


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_names_that_are_not_utf_8_are_refused(raw, part):
    folder = make_dataset(raw / NAME, ["a_0000"], ["a"], 1, channels=1)
    file = b"m\xe9re_0000.nii.gz" if part == "imagesTr" else b"m\xe9re.nii.gz"
    with open(os.path.join(os.fsencode(folder / part), file), "wb"):
        pass
    said = message(load_dataset, NAME)
    assert "m\\xe9re" in said
    said.encode()
    if part == "imagesTr":
        assert "names that are not UTF-8" in message(list_cases, folder / part, read_description(folder))


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\n  -> rm -rf x", "a\u202eb"])
def test_names_with_control_characters_are_refused(raw, name):
    folder = make_dataset(raw / NAME, ["a_0000"], ["a"], 1, channels=1)
    (folder / "imagesTr" / f"{name}_0000.nii.gz").touch()
    said = message(list_cases, folder / "imagesTr", read_description(folder))
    assert "have control characters" in said
    assert name not in said


def test_names_that_leave_no_room_for_what_is_added_are_refused(raw):
    allowed, longer = "a" * 225, "ä" * 113
    folder = make_dataset(raw / NAME, [f"{allowed}_0000"], [allowed], 1, channels=1)
    assert list(load_dataset(NAME).cases) == [allowed]
    for file in (f"imagesTr/{longer}_0000", f"labelsTr/{longer}"):
        (folder / f"{file}.nii.gz").touch()
    said = message(load_dataset, NAME)
    assert "names that are too long" in said
    assert "(226 bytes)" in said
    assert "a case's name may have 225 bytes" in said
