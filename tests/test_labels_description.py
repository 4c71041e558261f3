import json

import pytest

from samunet.dataset.description import description_from_json, read_description
from samunet.dataset.labels import Labels
from samunet.errors import SamunetError

MINIMAL = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def test_labels_are_ordered_by_value():
    labels = Labels.from_json({"vessel": 2, "background": 0, "nerve": 1})
    assert labels.names == ("background", "nerve", "vessel")
    assert labels.num_classes == 3
    assert labels.foreground == [("nerve", 1), ("vessel", 2)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"organ": 1}, '"background" must exist and be 0, but there are "organ"'),
        ({"background": 1, "organ": 0}, '"background" must exist and be 0, but it has the value 1'),
        ({"background": 0, "organ": 2}, r"without gaps and each used once, got \[0, 2\]"),
        ({"background": 0, "a": 1, "b": 1}, r"without gaps and each used once, got \[0, 1, 1\]"),
        ({"background": 0, "organ": -1}, r"got \[-1, 0\]"),
        ({"background": 0, "organ": 1.0}, '"organ" has the value 1.0, it must be an integer'),
        ({"background": 0, "organ": True}, '"organ" has the value True, it must be an integer'),
        ({"background": 0}, "nothing to segment"),
        ({"0": "background", "1": "organ"}, "map values to names"),
        ({}, "must be an object"),
        (["background", "organ"], "must be an object"),
        ({"background": 0, "whole": [1, 2], "core": 2}, r'"whole" consist of several values.*comes in a later version'),
        ({"background": 0, "organ": 1, "ignore": 2}, r'"ignore" marks voxels.*comes in a later version'),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(SamunetError, match=f"^here: labels.*{message}"):
        Labels.from_json(labels, "here")


def test_values_in_files_are_checked():
    labels = Labels.from_json({"background": 0, "nerve": 1})
    labels.check([0, 1], "a.png")
    labels.check([], "a.png")
    with pytest.raises(SamunetError, match=r"a.png contains .*: 2, 3\n.*0 = background, 1 = nerve"):
        labels.check([0, 1, 2, 3], "a.png")
    with pytest.raises(SamunetError, match=r"a.png contains .*: -1\n"):
        labels.check([-1, 0], "a.png")
    with pytest.raises(SamunetError, match=r"a.png contains .*: 255\n.*coded 0/255.*1 in place of 255"):
        labels.check([0, 255], "a.png")


def test_all_keys_are_read(tmp_path):
    raw = {
        "channel_names": {str(index): f"channel {index}" for index in range(11)},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ".png",
        "numTraining": 3,
        "groups": {"case_1": "patient", "case_2": 7},
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "licence": "kept",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    description = read_description(tmp_path)
    assert description.channel_names == tuple(f"channel {index}" for index in range(11))
    assert description.labels.names == ("background", "organ")
    assert description.file_ending == ".png"
    assert description.num_training == 3
    assert description.groups == {"case_1": "patient", "case_2": "7"}
    assert description.reader_override == "NaturalImage2DIO"
    assert description.raw == raw


def test_optional_keys_and_the_older_name_of_channel_names():
    description = description_from_json(MINIMAL, "here")
    assert (description.num_training, description.groups, description.reader_override) == (None, None, None)
    legacy = {**MINIMAL, "modality": MINIMAL["channel_names"]}
    del legacy["channel_names"]
    assert description_from_json(legacy, "here").channel_names == ("MRI",)


@pytest.mark.parametrize("key", ["channel_names", "labels", "file_ending"])
def test_missing_keys_are_named(key):
    with pytest.raises(SamunetError, match=f"^here lacks {key}"):
        description_from_json({name: value for name, value in MINIMAL.items() if name != key}, "here")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channel_names", ["MRI"]),
        ("channel_names", {}),
        ("channel_names", {"0": 1}),
        ("channel_names", {"1": "MRI"}),
        ("channel_names", {"0": "T1", "2": "T2"}),
        ("labels", "organ"),
        ("file_ending", "nii.gz"),
        ("file_ending", 3),
        ("numTraining", "20"),
        ("numTraining", 20.0),
        ("groups", ["a"]),
        ("groups", {"case": None}),
        ("overwrite_image_reader_writer", 5),
    ],
)
def test_wrong_types_are_refused_by_key(key, value):
    with pytest.raises(SamunetError, match=f"^here: {key}"):
        description_from_json({**MINIMAL, key: value}, "here")


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(SamunetError, match=r"no dataset\.json in "):
        read_description(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(SamunetError, match=r"dataset\.json is not valid JSON"):
        read_description(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(SamunetError, match=r"dataset\.json must hold a JSON object, got list"):
        read_description(tmp_path)
