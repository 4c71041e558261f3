"""Reports: the commands from training to page, nothing from elsewhere, and names that would be HTML."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from markupsafe import Markup

from samunet.commands import run_command
from samunet.report.page import BLOCKS, Column, page, strip_chart, training_curves
from samunet.report.sections import CaseScore, curves, dice_chart
from samunet.report.write import order_of_cases

EVIL = '<script>alert("1")</script>&\'"'


class Page(HTMLParser):
    """Tags in order, attributes by tag, and text; complains where tags are not closed in order."""

    VOID = ("meta", "img")

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def check_self_contained(content):
    """Only data: images and links within the page; no script; styles fetch nothing."""
    found = Page(content)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(found.tags)
    assert all(address.startswith(("data:image/", "#")) for address in found.addresses)
    ids = set(re.findall(r'id="([^"]+)"', content))
    assert {address[1:] for address in found.addresses if address.startswith("#")} <= ids
    style = re.search(r"<style>(.*?)</style>", content, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in content
    assert 'name="viewport"' in content
    return found


def test_everything_is_escaped_once():
    content = page(
        EVIL,
        [EVIL],
        [(EVIL, [EVIL, BLOCKS.table([Column(EVIL, [EVIL])]), BLOCKS.table([Column(EVIL, [EVIL] * 3)], first=1)])],
    )
    found = check_self_contained(content)
    assert found.text.count(EVIL) == 13  # the title twice, and the section's among the links, too
    assert BLOCKS.blocks([Markup("<b>")]).strip() == "<b>"
    assert BLOCKS.blocks(["a < b"]).strip() == "<p>a &lt; b</p>"


def test_rows_are_marked_and_folded():
    content = BLOCKS.table([Column("case", [f"c{i}" for i in range(20)])], [True] + [False] * 19, first=15)
    assert content.count('class="marked"') == 1
    assert "5 more" in content
    assert [int(number) for number in re.findall(r"c(\d+)</td>", content)] == list(range(20))


def test_charts_are_equal_bytes_and_survive_any_name():
    logs = {"fold 0": [{"iteration": 1, "loss": 1.0}, {"iteration": 2, "loss": None}], "fold 1": []}
    assert training_curves(logs, "loss", "loss") == training_curves(logs, "loss", "loss")
    assert strip_chart({"$x_$": [0.5], "_hidden": [], "a" * 99: [1.0]}, "Dice").startswith("data:image/svg+xml")


def test_no_chart_is_empty(tmp_path):
    model = SimpleNamespace(fold=lambda fold: tmp_path)
    entries = [{"iteration": 0, "loss": None, "dice": None}, {"iteration": 1, "loss": 2.0, "dice": None}]
    (tmp_path / "training_log.json").write_text(json.dumps(entries))
    assert Page(BLOCKS.blocks(curves(model, [0]))).tags.count("img") == 1  # the loss
    labels = SimpleNamespace(foreground=[("organ", (1,))])
    case = CaseScore("a", "0", {"1": {"Dice": None}}, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert Page(BLOCKS.blocks([dice_chart([case], labels)])).tags == ["p"]


def test_the_worst_by_truth_come_first_then_those_with_a_predicted_dice(tmp_path):
    scored = [
        CaseScore(name, "", {"1": {"Dice": dice}}, tmp_path / f"{name}.nii.gz", tmp_path)
        for name, dice in (("a", 0.9), ("b", 0.2), ("c", None))
    ]
    quality = {"cases": [{"case": name} for name in ("d", "c", "a", "b")]}
    assert order_of_cases(dict.fromkeys("abcde"), scored, quality) == ["b", "a", "d", "c", "e"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two short folds, a prediction with uncertainty, and its scores; the organ has a name that would be HTML."""
    root = tmp_path_factory.mktemp("report")
    patch = pytest.MonkeyPatch()
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        patch.setenv(f"samunet_{name}", str(root / name))
    raw = root / "raw" / "Dataset998_Tiny"
    rng = np.random.default_rng(0)
    for part, number in (("Tr", 15), ("Ts", 3)):
        for index in range(number):
            label = np.zeros((3, 24, 20), np.uint8)
            y, x = np.mgrid[:24, :20]
            label[:, np.hypot(y - rng.uniform(9, 15), x - rng.uniform(8, 12)) < 6] = 1
            image = 100.0 * label + rng.normal(200, 20, label.shape)
            for kind, array in (("images", image.astype(np.float32)), ("labels", label)):
                name = f"case_{index}" + ("_0000" if kind == "images" else "")
                path = raw / f"{kind}{part}" / f"{name}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                volume = sitk.GetImageFromArray(array)
                volume.SetSpacing((1.0, 1.0, 3.0))
                volume.SetOrigin((-12.5, 7.0, 31.25))
                sitk.WriteImage(volume, str(path))
    labels = {"background": 0, EVIL: 1}
    description = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 15, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    for fold in ("0", "1"):
        assert run_command("samunet_train", ["998", "2d", fold, "--iterations", "24", "--batch_size", "2"]) == 0
    preds = root / "preds"
    arguments = ["-i", str(raw / "imagesTs"), "-o", str(preds), "--save_uncertainty"]
    assert run_command("samunet_predict", arguments) == 0
    yield root, raw, preds
    patch.undo()


def test_uncertainty_lies_in_the_geometry_of_the_case(trained):
    _, raw, preds = trained
    image = sitk.ReadImage(str(raw / "imagesTs" / "case_0_0000.nii.gz"))
    for kind in ("entropy", "fold_disagreement"):
        found = sitk.ReadImage(str(preds / "uncertainty" / f"case_0_{kind}.nii.gz"))
        assert found.GetSize() == image.GetSize()
        assert found.GetOrigin() == image.GetOrigin()
        assert found.GetSpacing() == image.GetSpacing()
        assert 0 <= sitk.GetArrayFromImage(found).max() <= 100
    entropy = sitk.GetArrayFromImage(sitk.ReadImage(str(preds / "uncertainty" / "case_0_entropy.nii.gz")))
    assert entropy.max() > 10


def test_prediction_goes_on_where_something_is_missing(trained, capsys):
    _, raw, preds = trained
    before = {path.name: path.stat().st_mtime_ns for path in preds.glob("*.nii.gz")}
    (preds / "uncertainty" / "case_1_fold_disagreement.nii.gz").unlink()
    (preds / "uncertainty" / "case_2.json").unlink()
    assert (
        run_command("samunet_predict", ["-i", str(raw / "imagesTs"), "-o", str(preds), "--save_uncertainty", "--c"])
        == 0
    )
    after = {path.name: path.stat().st_mtime_ns for path in preds.glob("*.nii.gz")}
    assert {name for name in after if after[name] != before[name]} == {"case_1.nii.gz", "case_2.nii.gz"}
    with open(preds / "quality.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3


def test_a_new_mask_takes_what_was_said_of_the_old_one_away(trained, tmp_path):
    _, raw, preds = trained
    shutil.copytree(preds, tmp_path / "preds")
    source = str(raw / "imagesTs" / "case_0_0000.nii.gz")
    assert run_command("samunet_predict", ["-i", source, "-o", str(tmp_path / "preds"), "--disable_tta"]) == 0
    left = {path.name for path in (tmp_path / "preds" / "uncertainty").iterdir()}
    assert {name for name in left if name.startswith("case_0")} == set()
    assert {"case_1.json", "case_1_entropy.nii.gz", "case_2_fold_disagreement.nii.gz"} <= left
    assert not list((tmp_path / "preds").glob("quality.*"))


def test_a_new_mask_takes_the_probabilities_of_the_old_one_away(trained, tmp_path):
    _, raw, _ = trained
    arguments = ["-i", str(raw / "imagesTs"), "-o", str(tmp_path / "preds"), "--disable_tta"]
    assert run_command("samunet_predict", [*arguments, "--save_probabilities"]) == 0
    assert len(list((tmp_path / "preds").glob("*.npz"))) == 3
    source = str(raw / "imagesTs" / "case_2_0000.nii.gz")
    assert run_command("samunet_predict", ["-i", source, "-o", str(tmp_path / "preds"), "--disable_tta"]) == 0
    assert sorted(path.name for path in (tmp_path / "preds").glob("*.npz")) == ["case_0.npz", "case_1.npz"]


def test_calibration_of_folds_is_used(trained):
    root, _, preds = trained
    folds = sorted((root / "results").glob("Dataset998_*/*/fold_*"))
    assert [len(json.loads((fold / "calibration.json").read_text())["cases"]) for fold in folds] == [3, 3]
    quality = json.loads((preds / "quality.json").read_text())
    assert quality["calibration"]["about"] == "calibrated on the 6 validation cases of 2 folds"
    assert all(0 < row["predicted_Dice"] <= 1 for row in quality["cases"])
    predicted = [row["predicted_Dice"] for row in quality["cases"]]
    assert predicted == sorted(predicted)
    assert len(set(predicted)) == 3
    assert all(0 <= row["classes"]["1"]["fold_disagreement"] <= 1 for row in quality["cases"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--disable_tta"], "calibrated with test-time augmentation"), (["-chk", "best"], "final checkpoint")],
)
def test_other_predictions_than_the_calibrated_one_have_no_predicted_dice(trained, tmp_path, flags, expected, capsys):
    _, raw, _ = trained
    assert (
        run_command("samunet_predict", ["-i", str(raw / "imagesTs"), "-o", str(tmp_path), "--save_uncertainty", *flags])
        == 0
    )
    assert expected in capsys.readouterr().err
    quality = json.loads((tmp_path / "quality.json").read_text())
    assert [row["predicted_Dice"] for row in quality["cases"]] == [None] * 3
    assert [bool(row["look"]) for row in quality["cases"]] == [True, False, False]


def test_single_file_with_uncertainty(trained, tmp_path):
    _, raw, _ = trained
    mask = tmp_path / "mask.nii.gz"
    source = str(raw / "imagesTs" / "case_0_0000.nii.gz")
    assert run_command("samunet_predict", ["-i", source, "-o", str(mask), "--save_uncertainty"]) == 0
    assert (tmp_path / "uncertainty" / "case_0_entropy.nii.gz").is_file()
    assert (tmp_path / "quality.csv").read_text().splitlines()[1].startswith("case_0,")


def test_report_of_a_cross_validation(trained, capsys):
    root, _, _ = trained
    assert run_command("samunet_report", ["998", "--json"]) == 0
    file = next((root / "results").glob("Dataset998_*/*/report.html"))
    printed = capsys.readouterr()
    assert str(file) in printed.err
    assert json.loads(printed.out) == {"report": str(file)}
    content = file.read_text()
    found = check_self_contained(content)
    assert EVIL in found.text
    cases = [name for fold in range(2) for name in validated(root, fold)]
    assert all(name in found.text for name in cases)
    assert found.tags.count("img") == 3 + 6  # curves, Dice, and every one of the six cases
    assert "small enough to train in full" in found.text  # a reason of the plan
    order = re.findall(r"case_\d+", found.text.split("Cases, worst first")[2])[:6]
    dice = {name: value for fold in range(2) for name, value in validated(root, fold).items()}
    assert [dice[name] for name in order] == sorted(dice.values())
    assert run_command("samunet_report", [str(file.parent), "-n", "0", "-o", str(root / "short.html")]) == 0
    assert check_self_contained((root / "short.html").read_text()).tags.count("img") == 3


def test_report_of_a_model_from_within_its_folder(trained, tmp_path, monkeypatch):
    root, _, _ = trained
    folder = next((root / "results").glob("Dataset998_*/samunetTrainer__*"))
    monkeypatch.chdir(folder)
    assert run_command("samunet_report", [".", "-n", "1", "-o", str(tmp_path / "inside.html")]) == 0
    shutil.copytree(folder, tmp_path / "acdc")
    assert run_command("samunet_report", [str(tmp_path / "acdc"), "-n", "1"]) == 0
    for file in (tmp_path / "inside.html", tmp_path / "acdc" / "report.html"):
        content = file.read_text()
        assert "Cross-validation of Dataset998_Tiny" in content
        assert check_self_contained(content).tags.count("img") == 3 + 1, "a picture needs the raw dataset"


def validated(root, fold):
    file = next((root / "results").glob(f"Dataset998_*/*/fold_{fold}/validation/summary.json"))
    cases = json.loads(file.read_text())["metric_per_case"]
    return {re.search(r"case_\d+", case["prediction_file"])[0]: case["metrics"]["1"]["Dice"] for case in cases}


def test_report_of_a_prediction(trained, tmp_path, capsys):
    _, raw, preds = trained
    assert run_command("samunet_evaluate_folder", [str(raw / "labelsTs"), str(preds)]) == 0
    assert run_command("samunet_report", [str(preds)]) == 0
    found = check_self_contained((preds / "report.html").read_text())
    assert EVIL in found.text
    assert "fold disagreement" in found.text
    assert "true Dice" in found.text
    assert found.tags.count("img") == 3 + 3
    rows = json.loads((preds / "quality.json").read_text())["cases"]
    order = re.findall(r"case_\d+", found.text.split("Cases, worst first")[2])[:3]
    assert order == [row["case"] for row in rows]
    for name in ("quality.json", "summary.json"):
        (preds / name).rename(tmp_path / name)
    (preds / "predict_from_raw_data_args.json").write_text(
        (preds / "predict_from_raw_data_args.json").read_text().replace(str(raw), "/elsewhere")
    )
    assert run_command("samunet_report", [str(preds)]) == 0
    found = check_self_contained((preds / "report.html").read_text())
    assert "predictions with uncertainty do so" in found.text
    assert "The images are not at /elsewhere" in found.text
    errors = capsys.readouterr().err
    assert "samunet_predict … --save_uncertainty" in errors
    assert "add -i FOLDER" in errors
    assert run_command("samunet_report", [str(preds), "-i", str(raw / "imagesTs")]) == 0
    assert check_self_contained((preds / "report.html").read_text()).tags.count("img") == 2 + 3


def test_report_of_a_prediction_by_a_renamed_model(trained, tmp_path):
    root, raw, _ = trained
    shutil.copytree(next((root / "results").glob("Dataset998_*/samunetTrainer__*")), tmp_path / "acdc")
    source = str(raw / "imagesTs" / "case_0_0000.nii.gz")
    arguments = ["-i", source, "-o", str(tmp_path / "preds"), "-m", str(tmp_path / "acdc"), "--disable_tta"]
    assert run_command("samunet_predict_from_modelfolder", arguments) == 0
    assert run_command("samunet_report", [str(tmp_path / "preds")]) == 0
    assert "small enough to train in full" in (tmp_path / "preds" / "report.html").read_text()


def test_a_case_that_cannot_be_read_does_not_end_the_report(trained):
    root, raw, _ = trained
    name = min(validated(root, 0), key=validated(root, 0).get)
    file = raw / "imagesTr" / f"{name}_0000.nii.gz"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    try:
        assert run_command("samunet_report", ["998", "-o", str(root / "broken.html")]) == 0
    finally:
        file.write_bytes(content)
    found = check_self_contained((root / "broken.html").read_text())
    assert f"{name}: no picture" in found.text


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["5"], 2, "no dataset"),
        (["998", "-c", "2d_448"], 2, "samunet_train Dataset998_Tiny 2d_448 0"),
        (["998", "-i", "images"], 2, "report of a prediction"),
        (["998", "-n", "-1"], 2, "must be 0 or more"),
    ],
)
def test_wrong_usage_is_explained(trained, arguments, status, expected, capsys):
    assert run_command("samunet_report", arguments) == status
    errors = capsys.readouterr().err
    assert expected in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["quality.json", "summary.json", "plans.json"])
def test_damaged_files_are_named(trained, name, tmp_path, capsys):
    _, _, preds = trained
    shutil.copytree(preds, tmp_path / "preds")
    (tmp_path / "preds" / name).write_text('{"a": 1}')
    assert run_command("samunet_report", [str(tmp_path / "preds")]) == 1
    errors = capsys.readouterr().err
    assert name in errors
    assert "Traceback" not in errors
    assert "unexpected" not in errors


def test_a_folder_that_is_neither(tmp_path, capsys):
    assert run_command("samunet_report", [str(tmp_path)]) == 2
    assert "samunet_report preds" in capsys.readouterr().err
