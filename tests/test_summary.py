import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.dataset.labels import Labels
from samunet.errors import SamunetError, UsageError
from samunet.evaluation.metrics import Counts
from samunet.evaluation.summary import KEYS, evaluate_folder, format_table, scores, summarize
from samunet.files import read_json, write_json
from samunet.imageio.base import PICTURE_GEOMETRY
from samunet.imageio.registry import reader_for

LABELS = Labels.from_json({"background": 0, "liver": 1, "kidney": 2})
NOTHING = Counts(0, 0, 0, 8)


def write(file: Path, values: list[int], spacing: float = 1.0) -> None:
    file.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(np.array(values, np.uint8).reshape(2, 2, -1))
    image.SetSpacing((1.0, 1.0, spacing))
    sitk.WriteImage(image, str(file))


def case(one: Counts, two: Counts, name: str = "a") -> dict:
    return {
        "metrics": {"1": scores(one), "2": scores(two)},
        "prediction_file": f"{name}.nii.gz",
        "reference_file": "r.nii.gz",
    }


@pytest.fixture
def folders(tmp_path):
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write(references / "a.nii.gz", [1, 1, 0, 0, 0, 0, 2, 2])
    write(predictions / "a.nii.gz", [1, 0, 0, 0, 0, 0, 2, 2])
    write(references / "b.nii.gz", [1, 1, 0, 0, 0, 0, 0, 0])
    write(predictions / "b.nii.gz", [1, 1, 0, 0, 0, 0, 0, 0])
    return predictions, references


def test_keys_are_those_of_nnunet(folders, tmp_path):
    summary = evaluate_folder(*folders, LABELS, reader_for(".nii.gz"))
    assert list(summary) == ["foreground_mean", "mean", "metric_per_case"]
    assert set(summary["foreground_mean"]) == {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"} == set(KEYS)
    assert set(summary["mean"]) == {"1", "2"}
    first, second = summary["metric_per_case"]
    assert set(first) == {"metrics", "prediction_file", "reference_file"}
    assert first["prediction_file"] == str(folders[0] / "a.nii.gz")
    assert first["reference_file"] == str(folders[1] / "a.nii.gz")
    assert first["metrics"]["1"] == {
        **{"Dice": pytest.approx(2 / 3), "IoU": 0.5, "TP": 1, "FP": 0, "FN": 1, "TN": 6},
        **{"n_pred": 1, "n_ref": 2},
    }
    write_json(tmp_path / "summary.json", summary)
    assert read_json(tmp_path / "summary.json")["metric_per_case"][1]["metrics"]["2"]["Dice"] is None
    assert math.isnan(second["metrics"]["2"]["Dice"])


def test_means_leave_out_cases_without_a_score(folders):
    summary = evaluate_folder(*folders, LABELS, reader_for(".nii.gz"))
    assert summary["mean"]["1"]["Dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert summary["mean"]["2"]["Dice"] == 1  # of case a only
    assert summary["mean"]["2"]["n_ref"] == 1  # counts exist for both cases: 2 and 0
    assert summary["foreground_mean"]["Dice"] == pytest.approx((5 / 6 + 1) / 2)


def test_foreground_mean_skips_a_class_that_never_occurs():
    summary = summarize([case(Counts(1, 0, 1, 6), NOTHING), case(Counts(2, 0, 0, 6), NOTHING)])
    assert math.isnan(summary["mean"]["2"]["Dice"])
    assert summary["foreground_mean"]["Dice"] == pytest.approx(5 / 6)
    assert summary["foreground_mean"]["TN"] == 6
    nothing_at_all = summarize([case(NOTHING, NOTHING)])
    assert math.isnan(nothing_at_all["foreground_mean"]["Dice"])


def test_class_that_is_only_predicted_counts_as_zero():
    summary = summarize([case(Counts(2, 0, 0, 6), Counts(0, 1, 0, 7))])
    assert summary["foreground_mean"]["Dice"] == 0.5


def test_no_case_is_an_error():
    with pytest.raises(SamunetError, match="no case"):
        summarize([])


def test_stale_predictions_are_ignored_when_cases_are_named(folders):
    predictions, references = folders
    summary = evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"), cases=["b"])
    assert [Path(entry["prediction_file"]).name for entry in summary["metric_per_case"]] == ["b.nii.gz"]
    with pytest.raises(SamunetError, match=r"no reference in .* for c"):
        evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"), cases=["b", "c"])


@pytest.mark.parametrize("ending", [".nrrd", ".NII.GZ"])
def test_masks_may_have_another_ending_than_the_dataset(folders, ending):
    predictions, references = folders
    expected = evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"))
    for folder in folders:
        image = sitk.ReadImage(str(folder / "b.nii.gz"))
        (folder / "b.nii.gz").unlink()
        lower = folder / f"b{ending.lower()}"
        sitk.WriteImage(image, str(lower))
        lower.rename(folder / f"b{ending}")
        summary = evaluate_folder(
            predictions, references, LABELS, reader_for(".nii.gz")
        )  # b: of the predictions, then of both
        assert summary["mean"] == expected["mean"]
        assert Path(summary["metric_per_case"][1]["prediction_file"]).name == f"b{ending}"
    write(predictions / "b.mha", [0] * 8)
    with pytest.raises(SamunetError, match=r"b\.mha and b\.|b\.NII\.GZ and b\.mha"):
        evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"))


def test_leftovers_of_interrupted_writes_are_no_cases(folders):
    for folder in folders:
        (folder / ".tmp-1-c.nii.gz").write_bytes(b"")
    assert len(evaluate_folder(*folders, LABELS, reader_for(".nii.gz"))["metric_per_case"]) == 2


def test_missing_prediction_is_an_error_unless_allowed(folders):
    predictions, references = folders
    (predictions / "b.nii.gz").unlink()
    with pytest.raises(SamunetError, match="1 of 2 references: b"):
        evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"))
    summary = evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"), allow_missing=True)
    assert len(summary["metric_per_case"]) == 1


def test_empty_and_missing_folders(folders, tmp_path):
    predictions, references = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(SamunetError, match="no reference"):
        evaluate_folder(predictions, tmp_path / "empty", LABELS, reader_for(".nii.gz"))
    with pytest.raises(SamunetError, match="no prediction for any of the 2"):
        evaluate_folder(tmp_path / "empty", references, LABELS, reader_for(".nii.gz"), allow_missing=True)
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        evaluate_folder(tmp_path / "nowhere", references, LABELS, reader_for(".nii.gz"))


def test_mismatches_name_the_case(folders):
    predictions, references = folders
    write(predictions / "b.nii.gz", [1] * 12)
    with pytest.raises(SamunetError, match=r"case b: .*\(2, 2, 3\).*\(2, 2, 2\)"):
        evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"))
    write(predictions / "b.nii.gz", [1] * 8, spacing=1.5)
    with pytest.raises(SamunetError, match=r"case b: .*\(1.5, 1, 1\) mm.*\(1, 1, 1\) mm"):
        evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"))


def test_unknown_values_are_an_error_only_where_the_labels_are_known(folders):
    predictions, references = folders
    write(predictions / "a.nii.gz", [1, 0, 0, 0, 0, 7, 2, 2])
    with pytest.raises(SamunetError, match=r"case a: .*7"):
        evaluate_folder(predictions, references, LABELS, reader_for(".nii.gz"))
    summary = evaluate_folder(predictions, references, [2], reader_for(".nii.gz"))
    assert summary["mean"]["2"]["Dice"] == 1
    assert list(summary["mean"]) == ["2"]


def test_table_has_names_means_and_the_worst_three():
    quarter, half = Counts(1, 3, 3, 1), Counts(1, 1, 1, 5)  # Dice 0.25 and 0.5
    cases = [case(quarter, half, "low"), case(half, half, "middle"), case(Counts(1, 0, 0, 7), NOTHING, "best")]
    cases.append(case(NOTHING, NOTHING, "unscored"))
    summary = summarize([*cases, case(half, Counts(1, 0, 0, 7), "good")])
    for version in (summary, json.loads(json.dumps(summary).replace("NaN", "null"))):
        lines = format_table(version, LABELS).splitlines()
        # Class 1: 0.25, 0.5, 1, 0.5; its standard deviation is the root of (0.3125² + 2 · 0.0625² + 0.4375²) / 4.
        assert lines[1].split()[:4] == ["1", "liver", "0.5625", "0.2724"]
        assert lines[1].split()[-1] == "4"
        assert lines[2].split()[:3] == ["2", "kidney", "0.6667"]
        assert lines[3].split()[:2] == ["mean", f"{(0.5625 + 2 / 3) / 2:.4f}"]
        assert [line.split()[1] for line in lines[6:]] == ["low.nii.gz", "middle.nii.gz", "good.nii.gz"]
        assert "class 1 liver: 0.2500" in lines[6]
    assert format_table(summary).splitlines()[1].split()[:2] == ["1", "0.5625"]


def test_masks_without_a_partner_are_named(tmp_path, caplog):
    for folder, names in (("truth", ("a", "b")), ("preds", ("a", "c"))):
        (tmp_path / folder).mkdir()
        for name in names:
            mask = np.zeros((1, 4, 4), np.uint8)
            mask[0, 1] = 1
            reader_for(".png").write_label(mask, tmp_path / folder / f"{name}.png", PICTURE_GEOMETRY)
    evaluate_folder(tmp_path / "preds", tmp_path / "truth", [1], reader_for(".png"), allow_missing=True)
    assert "truth has no reference for them: c" in caplog.text
    assert "preds has no prediction for them: b" in caplog.text
    (tmp_path / "preds" / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(SamunetError, match=r"links that lead nowhere: .*b\.png -> .*gone\.png"):
        evaluate_folder(tmp_path / "preds", tmp_path / "truth", [1], reader_for(".png"), allow_missing=True)
