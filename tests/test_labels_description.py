import json

import numpy as np
import pytest

from samunet.dataset.description import CaseFiles, description_from_json, misspelt_keys, read_description
from samunet.dataset.labels import Labels
from samunet.errors import SamunetError

MINIMAL = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def test_labels_are_ordered_by_value():
    labels = Labels.from_json({"vessel": 2, "background": 0, "nerve": 1})
    assert labels.names == ("background", "nerve", "vessel")
    assert labels.num_outputs == 3
    assert labels.values == (0, 1, 2)
    assert labels.foreground == [("nerve", (1,)), ("vessel", (2,))]
    assert not labels.has_regions
    assert labels.ignore is None
    assert labels == Labels.from_json({"background": 0, "nerve": [1], "vessel": [2]})


BRAIN = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def test_regions_keep_the_order_of_the_file():
    labels = Labels.from_json(BRAIN | {"ignore": 4}, regions_class_order=[1, 2, 3])
    assert labels.names == ("whole", "core", "enhancing")
    assert labels.foreground == [("whole", (1, 2, 3)), ("core", (2, 3)), ("enhancing", (3,))]
    assert labels.class_order == (1, 2, 3)
    assert labels.num_outputs == 3
    assert labels.values == (0, 1, 2, 3)
    assert labels.ignore == 4
    assert labels.unknown([0, 3, 4, 5]) == [5]
    with pytest.raises(SamunetError, match="2 = whole and core, 3 = whole and core and enhancing, 4 = ignore"):
        labels.check([9], "a.png")


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        (BRAIN, None, 'one value for each of the regions "whole", "core", "enhancing", but it is missing'),
        (BRAIN, [1, 2], r"but got \[1, 2\]"),
        (BRAIN, [1, 2, "x"], r"but got \[1, 2, 'x'\]"),
        (BRAIN, [1, 2, 2], 'paints the region "enhancing" with 2, which is not one of its values 3'),
        (BRAIN, [1, 1, 3], r'paints the region "core" with 1, which is not one of its values \[2, 3\]'),
        ({"background": 0, "core": [2, 3], "whole": [1, 2, 3]}, [2, 1], '"whole" contains "core" and is painted after'),
        ({"background": 0, "a": [1, 2], "b": [2, 1]}, [1, 2], '"b" contains "a" and is painted after'),
        ({"background": 0, "whole": [0, 1, 2], "core": 2}, [1, 2], '"whole" contains the background'),
        ({"background": 0, "whole": [1, 3], "core": 3}, [1, 3], r"without gaps, got \[0, 1, 3\]"),
        ({"background": 0, "whole": [1, 1, 2]}, [1], r"labels\.whole: lists a value twice, got \[1, 1, 2\]"),
        ({"background": 0, "whole": []}, [1], r"labels\.whole: must be an integer, or a list .*, got \[\]"),
        (BRAIN | {"ignore": 3}, [1, 2, 3], '"ignore" must be one more than the highest other value, 4, got 3'),
        (BRAIN | {"ignore": [4, 5]}, [1, 2, 3], r"got \[4, 5\]"),
    ],
)
def test_wrong_regions_are_refused(labels, order, message):
    with pytest.raises(SamunetError, match=f"^here: .*{message}"):
        Labels.from_json(labels, "here", order)


@pytest.mark.parametrize("quoted", [{"background": "0", "organ": "1"}, {"background": 0, "organ": " 1"}])
def test_values_in_quotes_are_numbers(quoted):
    assert Labels.from_json(quoted) == Labels.from_json({"background": 0, "organ": 1})


def test_regions_in_quotes_are_numbers():
    quoted = {name: [str(value) for value in np.ravel(values)] for name, values in BRAIN.items()}
    assert Labels.from_json(quoted, "here", ["1", "2", "3"]) == Labels.from_json(BRAIN, "here", [1, 2, 3])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"organ": 1}, '"background" must exist and be 0, but got "organ"'),
        ({"background": 1, "organ": 0}, '"background" must exist and be 0, but it has the value 1'),
        ({"background": 0, "organ": 2}, r"without gaps and each used once, got \[0, 2\]"),
        ({"background": 0, "a": 1, "b": 1}, r"without gaps and each used once, got \[0, 1, 1\]"),
        ({"background": 0, "organ": -1}, r"got \[-1, 0\]"),
        ({"background": 0, "organ": 1.0}, r"\.organ: must be an integer, .*got 1\.0"),
        ({"background": 0, "organ": True}, r"\.organ: must be an integer, .*got True"),
        ({"background": 0}, "nothing to segment"),
        ({"0": "background", "1": "organ"}, "map values to names"),
        ({"background": "0", "organ": "one"}, r"\.organ: must be an integer, .*got 'one'"),
        (
            {"background": 0, **{str(value): value for value in range(1, 1001)}},
            "1001 classes, and a network can have 1000",
        ),
        ({"background": 0, "or\x1b[2Jgan": 1}, "characters that cannot be seen"),
        ({}, "must be an object"),
        (["background", "organ"], "must be an object"),
        (
            {"background": 0, "organ": 1, "ignore": 3},
            '"ignore" must be one more than the highest .*, 2, got 3',
        ),
        ({"background": 0, "ignore": 1}, "nothing to segment"),
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


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("chanel_names", "channel_names"), ("label", "labels"), ("file_endings", "file_ending"), ("Labels", "labels")],
)
def test_misspelt_keys_are_suggested(wrong, right):
    raw = {wrong if key == right else key: value for key, value in MINIMAL.items()}
    with pytest.raises(SamunetError, match=f'^here lacks {right}\n.*rename the key "{wrong}" to "{right}"'):
        description_from_json(raw, "here")


def test_unknown_keys_are_no_misspellings():
    raw = {**MINIMAL, "licence": "", "license": "", "tensorImageSize": "4D", "numTest": 2, "test": [], "label": {}}
    assert misspelt_keys(raw) == {}
    assert misspelt_keys({**MINIMAL, "numtraining": 2}) == {"numtraining": "numTraining"}
    assert misspelt_keys({**MINIMAL, "group": {}}) == {"group": "groups"}


def test_listed_files_are_read():
    files = {"b": {"images": ["x_t1.nii.gz", "x_t2.nii.gz"], "label": "$M/x.nii.gz"}, "a": {"images": ["y.nii.gz"]}}
    description = description_from_json({**MINIMAL, "dataset": files}, "here")
    assert description.files == {
        "a": CaseFiles(("y.nii.gz",), None),
        "b": CaseFiles(("x_t1.nii.gz", "x_t2.nii.gz"), "$M/x.nii.gz"),
    }


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
        ("groups", {"case": True}),
        ("dataset", []),
        ("dataset", {}),
        ("dataset", {"a": "a.png"}),
        ("dataset", {"a": {"images": "a.png", "label": "b.png"}}),
        ("dataset", {"a": {"images": [], "label": "b.png"}}),
        ("dataset", {"a": {"images": ["a.png"], "label": 3}}),
        ("dataset", {"../a": {"images": ["a.png"], "label": "b.png"}}),
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
