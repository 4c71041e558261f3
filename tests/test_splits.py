import json
from pathlib import Path

import pytest
from sklearn.model_selection import KFold

from samunet.dataset.labels import Labels
from samunet.dataset.layout import load_dataset
from samunet.dataset.splits import (
    fold_cases,
    folds_missing_classes,
    infer_groups,
    join_folds,
    load_or_make_splits,
    make_splits,
    named_cases,
)
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
    assert infer_groups([f"{part}_{index}" for part in ("train", "test", "val") for index in range(9)]) is None
    assert infer_groups([f"BRATS{year}_{index}" for year in (20, 21) for index in range(9)]) is None
    few = [f"P{index}_{frame}" for index in (1, 2) for frame in "12"]
    assert infer_groups(few) == {name: name[:2] for name in few}
    assert infer_groups(["p1_1", "p1_2", "p2_1", "p3_1", "p4_1", "p5_1"]) is not None
    assert infer_groups(["p1_1", "p1_2", "p2_1", "p3_1", "p4_1", "p5_1", "plain"]) is None


PATIENTS = [
    ("sub-9709Ses1", "sub-9709"),
    ("sub-01_ses-02_T1w", "sub-01"),
    ("patient01_visit2", "patient01"),
    ("patient01_visit_2", "patient01"),
    ("anna_session1", "anna"),
    ("P12_T0", "P12"),
    ("P12_tp1", "P12"),
    ("P12-TP-1", "P12"),
    ("P12_day30", "P12"),
    ("P12_m06", "P12"),
    ("P12_baseline", "P12"),
    ("P12_followup", "P12"),
    ("P12_follow-up2", "P12"),
    ("P12_2019-03-01", "P12"),
    ("P12_20190301", "P12"),
    ("case07_L", "case07"),
    ("case07_right", "case07"),
    ("case07Left", "case07"),
    ("left_case07", "case07"),
    ("case07_OD", "case07"),
    ("patient001_frame01", "patient001"),
    ("patient001_ES", "patient001"),
    ("P12_T1_L", "P12"),
]


@pytest.mark.parametrize(("name", "patient"), PATIENTS)
def test_sessions_times_sides_and_frames_are_of_one_patient(name, patient):
    others = {"other_1": "other_1", patient: patient}
    assert infer_groups([name, *others]) == {name: patient} | others


@pytest.mark.parametrize(
    "names",
    [
        ["case_1", "case_2"],
        ["001", "002", "010"],
        ["img_d01", "img_d02"],  # what is short says something only after a patient's number
        ["visit_1", "visit_2"],
        ["brain_t1_001", "brain_t2_002"],
        ["la_003_L", "la_004_L"],
        ["BraTS20_Training_001", "BraTS20_Training_002"],
        ["scan_2019-03-01", "scan_2019-04-01"],
        ["frame_001", "frame_002"],
        ["movie_frame001", "movie_frame002"],  # one patient alone cannot be divided
        ["TCGA-CS-4941", "TCGA-CS-4942", "TCGA-DU-5849"],
        ["p01_slice_scan_a", "p02_slice_scan_a"],
    ],
)
def test_names_of_one_case_each_give_no_groups(names):
    assert infer_groups(names) is None


def test_a_guess_is_told_with_how_to_switch_it_off(tmp_path, caplog):
    folder = tmp_path / "Dataset007_Brains"
    names = [f"sub-{patient}Ses{visit}" for patient in range(9701, 9707) for visit in (1, 2)]
    splits = load_or_make_splits(folder, names, None, None)
    assert all({name[:8] for name in split["train"]}.isdisjoint(name[:8] for name in split["val"]) for split in splits)
    assert "sub-9701Ses1 and sub-9701Ses2 count as one patient, sub-9701." in caplog.text
    assert "`api.plan_and_preprocess('007', no_groups=True)`" in caplog.text
    assert '"groups": {"sub-9701Ses1": "sub-9701", "sub-9701Ses2": "sub-9701", ...}' in caplog.text
    assert load_or_make_splits(folder, names, {}, None) == make_splits(names, {})[0] != splits
    assert json.loads((folder / "splits_final.json").read_text()) == make_splits(names, {})[0]


def test_no_groups_leaves_folds_of_other_origin(tmp_path):
    names = ["sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1"]
    own = [{"train": [names[0], names[2]], "val": [names[1]]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(own))
    assert load_or_make_splits(tmp_path, names, {}, None) == own


def test_splits_that_divide_a_patient_are_refused_or_warned_about(tmp_path, caplog):
    names = ["a", "b", "c"]
    (tmp_path / "splits_final.json").write_text('[{"train": ["a", "c"], "val": ["b"]}]')
    groups = {"a": "anna", "b": "anna", "c": "carl"}
    with pytest.raises(SamunetError, match=r"(?s)fold 0 both .* 1 patient, such as anna \(a, b\), by groups.*rm "):
        load_or_make_splits(tmp_path, names, groups, None)
    assert load_or_make_splits(tmp_path, names, {"a": "x", "b": "y", "c": "x"}, None)
    assert not caplog.text
    (tmp_path / "splits_final.json").write_text('[{"train": ["p1_L", "p2_L"], "val": ["p1_R"]}]')
    assert load_or_make_splits(tmp_path, ["p1_L", "p1_R", "p2_L"], None, None)
    assert "such as p1 (p1_L, p1_R), as far as names tell" in caplog.text
    assert "no_groups=True" in caplog.text
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "splits_final.json").write_text('[{"train": ["a", "c"], "val": ["b"]}]')
    with pytest.raises(SamunetError, match=r"raw/splits_final\.json: fold 0 both"):
        load_or_make_splits(tmp_path / "new", names, groups, raw)
    assert not (tmp_path / "new").exists()


def test_new_cases_join_the_smallest_folds_and_the_others_stay(tmp_path):
    names = [f"case{index}" for index in range(7)]  # validation sets of 2, 2, 1, 1, 1
    before = load_or_make_splits(tmp_path, names, None, None)
    assert join_folds(tmp_path, [*names, "x", "y"], None, None) == {
        "x": "validated by fold 2", "y": "validated by fold 3"
    }  # fmt: skip
    after = json.loads((tmp_path / "splits_final.json").read_text())
    for fold, (old, new) in enumerate(zip(before, after)):
        held_out = {2: {"x"}, 3: {"y"}}.get(fold, set())
        assert set(new["val"]) == set(old["val"]) | held_out
        assert set(new["train"]) == set(old["train"]) | ({"x", "y"} - held_out)
    assert join_folds(tmp_path, [*names, "x", "y"], None, None) == {}


def test_a_new_case_follows_its_patient_and_a_removed_one_leaves(tmp_path):
    own = [{"train": ["p1_L", "p3_L"], "val": ["p2_L"]}, {"train": ["p2_L"], "val": ["p1_L", "p3_L"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(own))
    names = ["p1_L", "p1_R", "p2_L"]
    assert join_folds(tmp_path, names, None, None) == {"p1_R": "validated by fold 1"}
    assert json.loads((tmp_path / "splits_final.json").read_text()) == [
        {"train": ["p1_L", "p1_R"], "val": ["p2_L"]},
        {"train": ["p2_L"], "val": ["p1_L", "p1_R"]},
    ]
    with pytest.raises(SamunetError, match="fold 0 has no cases to validate on"):
        join_folds(tmp_path, ["p1_L", "p1_R"], None, None)


def test_new_cases_are_trained_on_where_one_fold_was_given(tmp_path):
    (tmp_path / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    assert join_folds(tmp_path, ["a", "b", "c"], None, None) == {"c": "trained on only"}


def test_the_raw_folders_splits_are_taken_over_if_old_cases_stay(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    (raw / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    load_or_make_splits(folder, ["a", "b"], None, raw)
    given = [{"train": ["a"], "val": ["b", "c"]}]
    (raw / "splits_final.json").write_text(json.dumps(given))
    assert join_folds(folder, ["a", "b", "c"], None, raw) == {"c": "validated by fold 0"}
    assert json.loads((folder / "splits_final.json").read_text()) == given
    (raw / "splits_final.json").write_text('[{"train": ["b"], "val": ["a", "c"]}]')
    with pytest.raises(SamunetError, match="differ"):
        join_folds(folder, ["a", "b", "c"], None, raw)
    assert json.loads((folder / "splits_final.json").read_text()) == given


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
    splits = load_or_make_splits(tmp_path, names, None, None)
    assert splits == make_splits(names, None)[0]
    path = tmp_path / "splits_final.json"
    assert json.loads(path.read_text()) == splits
    own = [{"train": names[:4], "val": names[4:]}]
    path.write_text(json.dumps(own))
    assert load_or_make_splits(tmp_path, names, None, None) == own


def test_cases_in_no_fold_are_reported(tmp_path, caplog):
    (tmp_path / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    load_or_make_splits(tmp_path, ["a", "b", "c"], None, None)
    assert "1 cases are in no fold" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"train": ["a", "b"], "val": ["b"]}], "fold 0 both trains and validates on 1 cases: b"),
        ([{"train": ["a"], "val": ["z"]}], "fold 0 has 1 cases that the dataset lacks: z"),
        ([{"train": ["a"], "val": []}], "fold 0 has no cases to validate on"),
        ([{"train": ["a"]}], r"0\.val: Field required\n.*a list of"),
        ([{"train": ["a"], "val": "b"}], r"0\.val: .*valid array, got 'b'\n.*a list of"),
        ([{"train": ["a"], "val": ["b"], "test": []}], r"0\.test: there is no such key\n.*a list of"),
        ({"train": ["a"], "val": ["b"]}, r"the whole file: .*valid array.*\n.*a list of"),
    ],
)
def test_wrong_split_files_are_refused(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(SamunetError, match=rf"splits_final.json:? {message}"):
        load_or_make_splits(tmp_path, ["a", "b"], None, None)


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
    assert load_or_make_splits(tmp_path, ["a"], None, None) == []
    assert load_or_make_splits(tmp_path, ["a"], None, None) == []
    splits = load_or_make_splits(tmp_path, ["a", "b"], None, None)
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
    assert folds_missing_classes(splits, voxels, labels) == [
        "fold 0: no case to validate has any structure",
        'fold 1: no case to train on has "tumour", which is not learnt there',
        'fold 2: no case to validate has "tumour", which is not scored there',
    ]
    regions = Labels.from_json({"background": 0, "whole": [1, 2], "core": 2}, "here", [1, 2])
    assert folds_missing_classes([{"train": ["a"], "val": ["b"]}], voxels, regions) == [
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


ALL = [f"case_{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labelled.json", '["case_2", "case_0", "case_2"]'),
        ("labelled.json", '{"patients": [1], "cases": ["case_0", "case_2"]}'),
        ("labelled.txt", "\ufeffcase_2  # the second\n\n# by A. B.\r\ncase_0\n"),
    ],
)
def test_cases_to_train_on_are_named_in_a_file(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert named_cases(ALL[:4], ALL, tmp_path / name) == ["case_0", "case_2"]
    assert named_cases(ALL[:4], ALL, ["case_2", "case_0"]) == ["case_0", "case_2"]


def test_named_cases_that_the_fold_validates_are_left_out_aloud(caplog):
    assert named_cases(ALL[:4], ALL, ["case_1", "case_5"]) == ["case_1"]
    assert "validated by this fold, so it does not train on them: case_5" in caplog.text
    with pytest.raises(UsageError, match="trains on none of the cases"):
        named_cases(ALL[:4], ALL, ["case_5"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"# nobody\n", "names no case"),
        ("a.json", b"[]", "names no case"),
        ("a.json", b'{"case": []}', "holds no list of names"),
        ("a.json", b"[1]", "holds no list of names"),
        ("a.json", b"[", "a.json"),
        ("a.txt", b"case_1\ncas_3\n", "lacks: cas_3"),
        ("a.txt", b"\xff\xfe\x00\x81", "is no text"),
        ("a.txt", None, "cannot be read"),
        ("", None, "is no file"),
    ],
)
def test_files_that_name_no_cases(name, content, says, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SamunetError, match=says) as caught:
        named_cases(ALL[:4], ALL, tmp_path / name)
    assert caught.value.hint
