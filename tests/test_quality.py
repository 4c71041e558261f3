"""Predicted Dice from doubt, and the table of cases: lines with known slopes, rules by hand."""

import csv
import json
import math

import numpy as np
import pytest

from samunet.errors import SamunetError
from samunet.evaluation.quality import FILE_NAME, Calibration, read_calibration, write_calibration, write_quality

NAN = math.nan


def point(entropy, mirror, dice, in_reference=True):
    return {"entropy": entropy, "tta_disagreement": mirror, "Dice": dice, "in_reference": in_reference}


def straight(count=40, tta=True):
    """Cases whose Dice is exactly 0.95 - 0.5 x entropy - 0.8 x disagreement of views."""
    rng = np.random.default_rng(0)
    cases = []
    for entropy, mirror in rng.uniform(0, 0.5, (count, 2)):
        dice = 0.95 - 0.5 * entropy - (0.8 * mirror if tta else 0)
        cases.append({"1": point(entropy, mirror if tta else NAN, dice)})
    return cases


@pytest.mark.parametrize("tta", [True, False])
def test_a_straight_line_is_found_again(tta):
    calibration = Calibration(straight(400, tta), tta)
    doubt = {"1": {"entropy": 0.2, "tta_disagreement": 0.1 if tta else None}}
    expected = 0.95 - 0.1 - (0.08 if tta else 0)
    assert calibration.predict(doubt)["1"] == pytest.approx(expected, abs=2e-3)
    assert calibration.errors["1"] < 2e-3
    assert calibration.predict({"1": {"entropy": 3.0, "tta_disagreement": 3.0 if tta else None}})["1"] == 0


def test_few_cases_are_drawn_towards_the_mean():
    """Ridge by hand: six points at -1 and 1, standardised, and a penalty of one more: slope 6 / 7 of 0.1."""
    cases = [{"1": point(entropy, NAN, dice)} for entropy, dice in ((0.2, 0.9), (0.4, 0.7)) * 3]
    predicted = Calibration(cases, False).predict({"1": {"entropy": 0.2, "tta_disagreement": None}})["1"]
    assert predicted == pytest.approx(0.8 + 0.1 * 6 / 7)


def test_classes_without_enough_cases_have_no_prediction():
    cases = [case | {"2": point(NAN, NAN, NAN, False)} for case in straight(6)]
    cases[0]["2"] = point(0.1, 0.1, 0.9)
    calibration = Calibration(cases, True)
    predicted = calibration.predict({"1": point(0.2, 0.1, NAN), "2": point(0.1, 0.1, NAN)})
    assert math.isnan(predicted["2"])
    assert not math.isnan(predicted["1"])
    assert calibration.usual == ["1"]


def test_a_usual_class_that_is_missing_counts_as_zero():
    cases = [{"1": case["1"], "2": case["1"]} for case in straight(20)]
    calibration = Calibration(cases, True)
    case = {"1": point(0.2, 0.1, NAN), "2": point(None, None, NAN)}
    assert calibration.missing(case) == ["2"]
    assert calibration.score(case) == pytest.approx(calibration.predict(case)["1"] / 2)


def test_without_views_entropy_alone_tells_the_dice():
    """A slice larger than the input is not shifted: its class is predicted, and not missing."""
    cases = straight(200)
    calibration = Calibration(cases, True)
    tiled = {"1": point(0.2, None, NAN)}
    alone = Calibration([{"1": case["1"] | {"tta_disagreement": NAN}} for case in cases], True)
    assert calibration.missing(tiled) == []
    assert calibration.score(tiled) == alone.predict(tiled)["1"] == pytest.approx(0.95 - 0.1 - 0.8 * 0.25, abs=0.03)
    few = [{"1": case["1"] | {"tta_disagreement": NAN}} for case in cases[4:]] + cases[:4]  # too few with views
    assert Calibration(few, True).predict({"1": point(0.2, 0.1, NAN)})["1"] == pytest.approx(0.65, abs=0.03)


def test_errors_and_threshold_leave_the_case_out():
    """One case far from the line: predicted from the others, it is missed by what it is off."""
    cases = straight(200)
    cases[0]["1"]["Dice"] -= 0.5
    calibration = Calibration(cases, True)
    others = Calibration(cases[1:], True).predict({"1": cases[0]["1"]})["1"]
    assert abs(others - cases[0]["1"]["Dice"]) == pytest.approx(0.5, abs=5e-3)
    scores = [calibration.score(case) for case in cases]
    below = np.mean(np.array(scores) <= calibration.threshold)
    assert 0.18 <= below <= 0.22


def write_case(folder, name, entropy, mirror, voxels=10):
    (folder / "uncertainty").mkdir(parents=True, exist_ok=True)
    seen = {"entropy": entropy, "tta_disagreement": mirror, "fold_disagreement": None}
    content = {"tta": True, "folds": [0], "classes": {"1": {"name": "organ", "voxels": voxels, **seen}}}
    (folder / "uncertainty" / f"{name}.json").write_text(json.dumps(content))


def write_fold(folder, cases, tta=True):
    folder.mkdir(exist_ok=True)
    plain = [
        {key: {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in value.items()}}
        for case in cases
        for key, value in case.items()
    ]
    (folder / FILE_NAME).write_text(json.dumps({"tta": tta, "cases": plain}))
    return folder


def test_table_lists_the_worst_first_and_marks_them(tmp_path):
    fold = write_fold(tmp_path / "fold_0", straight(100))
    masks = tmp_path / "preds"
    for name, entropy, mirror in (("good", 0.01, 0.01), ("bad", 0.49, 0.49), ("middle", 0.25, 0.25)):
        write_case(masks, name, entropy, mirror)
    write_case(masks, "empty", None, None, voxels=0)
    quality = write_quality(masks, [fold])
    assert [row["case"] for row in quality["cases"]] == ["empty", "bad", "middle", "good"]
    with open(masks / "quality.csv", newline="") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    assert {name for name, row in rows.items() if row["look"] == "yes"} == {"bad", "empty"}
    assert "no organ found" in rows["empty"]["why"]
    assert "worst 20%" in rows["bad"]["why"]
    assert float(rows["good"]["predicted_Dice_organ"]) == pytest.approx(0.937, abs=5e-3)
    assert rows["empty"]["predicted_Dice_organ"] == ""
    assert rows["good"]["fold_disagreement_organ"] == ""
    assert json.loads((masks / "quality.json").read_text())["calibration"]["threshold"] > 0.4


def test_without_a_calibration_the_most_uncertain_fifth_is_marked(tmp_path):
    for index in range(10):
        write_case(tmp_path, f"case_{index}", 0.05 * index, 0.1)
    quality = write_quality(tmp_path, [tmp_path / "fold_0"])
    assert "validation_only=True" in quality["calibration"]["about"]
    assert [row["case"] for row in quality["cases"] if row["look"]] == ["case_9", "case_8"]
    assert [row["case"] for row in write_quality(tmp_path, [], ["case_3", "gone"])["cases"]] == ["case_3"]


def test_calibrations_must_fit_the_prediction(tmp_path):
    fold = write_fold(tmp_path / "fold_0", straight(8), tta=False)
    assert read_calibration([fold], tta=True)[1].startswith("the folds were calibrated without test-time augmentation")
    assert read_calibration([write_fold(tmp_path / "fold_1", straight(3))], True)[0] is None
    assert "final" in read_calibration([], True)[1]
    both = [write_fold(tmp_path / f"fold_{index}", straight(4)) for index in (2, 3)]
    assert len(read_calibration(both, True)[0].cases) == 8


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"tta": true, "cases": [{}, {"1": ' + json.dumps(point(0.1, 0.1, 0.9)) + "}]}",
        '{"tta": true, "cases": [{"1": {"entropy": "x"}}]}',
        "[]",
        "{",
    ],
)
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(SamunetError, match=FILE_NAME):
        read_calibration([tmp_path], True)
    (tmp_path / "uncertainty").mkdir()
    (tmp_path / "uncertainty" / "a.json").write_text(content)
    with pytest.raises(SamunetError, match=r"a\.json"):
        write_quality(tmp_path, [])


def test_calibration_file_has_no_names(tmp_path):
    write_case(tmp_path / "validation", "patient_7", 0.1, 0.2)
    summary = {"metric_per_case": [{"metrics": {"1": {"Dice": 0.8, "n_ref": 5}}}]}
    write_calibration(tmp_path, ["patient_7"], summary)
    text = (tmp_path / FILE_NAME).read_text()
    assert "patient_7" not in text
    assert json.loads(text)["cases"] == [{"1": point(0.1, 0.2, 0.8)}]
