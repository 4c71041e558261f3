import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

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
    for text in (27, "27", "027", "Dataset027_ACDC"):
        assert find_dataset(text) == "Dataset027_ACDC"
    assert "Dataset003_Liver, Dataset027_ACDC" in message(find_dataset, "28")
    for text in ("Dataset027_Other", "ACDC", "-27", 5):
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


def test_file_lists_are_refused(folder):
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": {}}))
    assert "the key dataset" in message(load_dataset, NAME)


def test_list_cases_names_at_most_five_offenders(folder):
    images = folder / "imagesTs"
    images.mkdir()
    for index in range(7):
        (images / f"t{index}_0000.nii.gz").write_bytes(b"")
        (images / f"t{index}_0002.nii.gz").write_bytes(b"")
    text = message(list_cases, images, read_description(folder))
    assert "t0 has 0000, 0002" in text
    assert "t4 has" in text
    assert "t5 has" not in text
    assert "and 2 more" in text


def test_list_cases(folder):
    description = read_description(folder)
    cases = list_cases(folder / "imagesTr", description)
    assert list(cases) == ["a", "b"]
    assert cases["a"].label is None
    assert "the folder imagesTs is missing" in message(list_cases, folder / "imagesTs", description)


def test_surplus_channels(raw):
    folder = make_dataset(raw / NAME, ["a_0000", "a_0001"], ["a"], 1, channels=1)
    assert "a has 0000, 0001" in message(list_cases, folder / "imagesTr", read_description(folder))


def test_case_names_may_look_like_channels(raw):
    folder = make_dataset(raw / NAME, ["0000_0000", "x_0001_0000"], ["0000", "x_0001"], 2, channels=1)
    assert list(list_cases(folder / "imagesTr", read_description(folder))) == ["0000", "x_0001"]


def test_colour_pictures_hold_three_channels_in_one_file(raw):
    folder = make_dataset(raw / NAME, [], ["a"], 1, channels=3, ending=".png")
    path = folder / "imagesTr" / "a_0000.png"
    pillow.new("RGB", (4, 4)).save(path)
    assert load_dataset(NAME).cases["a"].images == (path,)
    pillow.new("L", (4, 4)).save(path)
    assert "a has 0000" in message(load_dataset, NAME)


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
