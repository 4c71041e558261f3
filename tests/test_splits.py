import json
from pathlib import Path

import pytest
from sklearn.model_selection import KFold

from samunet.dataset.labels import Labels
from samunet.dataset.layout import load_dataset
from samunet.dataset.splits import fold_cases, infer_groups, load_or_make_splits, lopsided_folds, make_splits
from samunet.errors import SamunetError, UsageError

DATA = Path(__file__).parents[2] / "shared" / "data"


def reference_folds(units):
    """nnU-Net's folds, from scikit-learn itself."""
    folds = KFold(5, shuffle=True, random_state=12345).split(units)
    return [sorted(units[index] for index in part) for _, part in folds]


@pytest.mark.parametrize("number", [5, 7, 23])
def test_folds_are_those_of_nnunet(number):
    names = [f"case{index:02d}" for index in range(number)]
    splits, why = make_splits(names[::-1], None)
    assert [split["val"] for split in splits] == reference_folds(names)
    assert all(split["train"] == [name for name in names if name not in split["val"]] for split in splits)
    assert why == f"5 folds over {number} cases"


def test_cases_follow_their_inferred_patient():
    names = [f"p{patient}_frame{frame}" for patient in range(7) for frame in range(1 + patient % 2)]
    splits, why = make_splits(names, None)
    patients = [sorted({name.split("_")[0] for name in split["val"]}) for split in splits]
    assert patients == reference_folds([f"p{patient}" for patient in range(7)])
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(names)
        assert not {name[:2] for name in split["train"]} & {name[:2] for name in split["val"]}
    assert why == "5 folds over 7 groups (10 cases)"


def test_given_groups_win_over_names():
    names = [f"{letter}_{frame}" for letter in "abcdef" for frame in "12"]
    assert infer_groups(names) == {name: name[0] for name in names}
    groups = {name: f"site{index // 2 % 5}" for index, name in enumerate(names)}
    splits, _ = make_splits(names, groups)
    found = [{groups[name] for name in split["val"]} for split in splits]
    assert found == [set(part) for part in reference_folds([f"site{index}" for index in range(5)])]


def test_no_groups_are_inferred_without_repeated_patients_or_from_few():
    assert infer_groups([f"hippocampus_{index:03d}" for index in range(20)]) is None
    assert infer_groups([f"p{index}_1" for index in range(20)]) is None
    assert infer_groups([f"p{index}_{frame}" for index in range(4) for frame in "12"]) is None
    assert infer_groups(["p1_1", "p1_2", "p2_1", "p3_1", "p4_1", "p5_1"]) is not None
    assert infer_groups(["p1_1", "p1_2", "p2_1", "p3_1", "p4_1", "p5_1", "plain"]) is None


def test_few_groups_leave_one_out():
    splits, why = make_splits(["a", "b", "c"], None)
    assert [split["val"] for split in splits] == [["a"], ["b"], ["c"]]
    assert splits[1]["train"] == ["a", "c"]
    assert why == "leave one case out: there are only 3"
    splits, why = make_splits(["a", "b", "c"], {"a": "x", "b": "y", "c": "x"})
    assert [split["val"] for split in splits] == [["a", "c"], ["b"]]
    assert why.startswith("leave one group out")


def test_one_group_gives_no_folds():
    assert make_splits(["a"], None)[0] == []
    assert make_splits(["a", "b"], {"a": "x", "b": "x"})[0] == []


def test_groups_must_name_every_case():
    with pytest.raises(SamunetError, match="lacks 1 of 2 cases: b"):
        make_splits(["a", "b"], {"a": "x", "c": "y"})


def test_splits_are_written_once_and_then_read(tmp_path):
    names = [f"case{index}" for index in range(6)]
    splits = load_or_make_splits(tmp_path, names, None)
    assert splits == make_splits(names, None)[0]
    path = tmp_path / "splits_final.json"
    assert json.loads(path.read_text()) == splits
    own = [{"train": names[:4], "val": names[4:]}]
    path.write_text(json.dumps(own))
    assert load_or_make_splits(tmp_path, names, None) == own


def test_cases_in_no_fold_are_reported(tmp_path, caplog):
    (tmp_path / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    load_or_make_splits(tmp_path, ["a", "b", "c"], None)
    assert "1 cases are in no fold" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"train": ["a", "b"], "val": ["b"]}], "fold 0 both trains and validates on 1 cases: b"),
        ([{"train": ["a"], "val": ["z"]}], "fold 0 has 1 cases that the dataset lacks: z"),
        ([{"train": ["a"], "val": []}], "fold 0 has no cases to validate on"),
        ([{"train": ["a"]}], "must be a list of"),
        ([{"train": ["a"], "val": "b"}], "must be a list of"),
        ({"train": ["a"], "val": ["b"]}, "must be a list of"),
    ],
)
def test_wrong_split_files_are_refused(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(SamunetError, match=rf"splits_final.json:? {message}"):
        load_or_make_splits(tmp_path, ["a", "b"], None)


def test_fold_cases():
    splits = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
    assert fold_cases(splits, 1, ["b", "a"]) == (["a"], ["b"])
    assert fold_cases(splits, "all", ["b", "a"]) == (["a", "b"], [])
    for fold in (2, -1, "0"):
        with pytest.raises(UsageError, match=r"(?s)there is no fold.*one of 0, 1, all"):
            fold_cases(splits, fold, ["a", "b"])


def test_one_case_can_only_be_trained_on():
    with pytest.raises(UsageError, match=r"(?s)only one case \(a\), so nothing can be held out.*fold all"):
        fold_cases([], 0, ["a"])
    with pytest.raises(UsageError, match="cases of one group only"):
        fold_cases([], 0, ["a", "b"])
    assert fold_cases([], "all", ["a"]) == (["a"], [])


def test_folds_are_made_once_there_are_more_cases(tmp_path):
    assert load_or_make_splits(tmp_path, ["a"], None) == []
    assert load_or_make_splits(tmp_path, ["a"], None) == []
    splits = load_or_make_splits(tmp_path, ["a", "b"], None)
    assert splits == [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
    assert json.loads((tmp_path / "splits_final.json").read_text()) == splits


def test_splits_that_came_with_the_dataset_are_taken_over(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    given = [{"train": ["b", "a"], "val": ["c"]}]
    (raw / "splits_final.json").write_text(json.dumps(given))
    assert load_or_make_splits(folder, ["a", "b", "c"], None, raw) == given
    assert json.loads((folder / "splits_final.json").read_text()) == given
    (raw / "splits_final.json").write_text('[{"train": ["a", "b"], "val": ["c"]}]')  # another order is no difference
    assert load_or_make_splits(folder, ["a", "b", "c"], None, raw) == given
    (raw / "splits_final.json").write_text('[{"train": ["a", "c"], "val": ["b"]}]')
    with pytest.raises(SamunetError, match=r"(?s)differ.*rm .*preprocessed/splits_final.json.*rm .*raw/splits_final"):
        load_or_make_splits(folder, ["a", "b", "c"], None, raw)
    assert json.loads((folder / "splits_final.json").read_text()) == given
    (raw / "splits_final.json").write_text('[{"train": ["a"], "val": ["a"]}]')
    with pytest.raises(SamunetError, match=r"raw/splits_final\.json: fold 0 both trains and validates"):
        load_or_make_splits(tmp_path / "other", ["a", "b", "c"], None, raw)
    assert not (tmp_path / "other").exists()


def test_folds_without_a_class_are_named():
    labels = Labels.from_json({"background": 0, "organ": 1, "tumour": 2})
    voxels = {"a": {"1": 5, "2": 1}, "b": {"1": 5, "2": 0}, "c": {"1": 0, "2": 0}}
    splits = [
        {"train": ["a", "b"], "val": ["c"]},
        {"train": ["b", "c"], "val": ["a"]},
        {"train": ["a"], "val": ["b"]},
    ]
    assert lopsided_folds(splits, voxels, labels) == [
        "fold 0: no case to validate has any structure",
        'fold 1: no case to train on has "tumour", which is not learnt there',
        'fold 2: no case to validate has "tumour", which is not scored there',
    ]
    regions = Labels.from_json({"background": 0, "whole": [1, 2], "core": 2}, "here", [1, 2])
    assert lopsided_folds([{"train": ["a"], "val": ["b"]}], voxels, regions) == [
        'fold 0: no case to validate has "core", which is not scored there'
    ]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real datasets are not at {DATA}")
@pytest.mark.parametrize(
    ("name", "groups"), [("Dataset027_ACDC", 70), ("Dataset004_Hippocampus", 0), ("Dataset102_DRIVE", 0)]
)
def test_real_datasets(monkeypatch, name, groups):
    monkeypatch.setenv("samunet_raw", str(DATA))
    cases = list(load_dataset(name).cases)
    splits, _ = make_splits(cases, None)
    units = sorted({case.rsplit("_", 1)[0] for case in cases}) if groups else cases
    assert len(units) == (groups or len(cases))
    found = [sorted({case.rsplit("_", 1)[0] for case in split["val"]} if groups else split["val"]) for split in splits]
    assert found == reference_folds(units)
