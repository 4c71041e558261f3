"""From trained folds to the model that is handed on, by the commands that a user types."""

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import write_tiny_dataset

from samunet import api
from samunet.commands import run_command
from samunet.dataset.labels import Labels
from samunet.encoders import ENCODERS
from samunet.errors import SamunetError
from samunet.files import write_json
from samunet.imageio.base import Geometry
from samunet.imageio.registry import reader_for
from samunet.inference.decoding import decode_for_dice
from samunet.inference.postprocessing import Postprocessing, foreground_step
from samunet.models.folder import ModelFolder
from samunet.selection import best, crossval
from samunet.selection.findings import prediction_commands
from samunet.training import task as training_task

pytestmark = pytest.mark.full_network

SHORT = ["--iterations", "4", "--batch_size", "2", "--npz", "--random_weights"]
FOLDS = ["0", "1", "2"]
LABELS = Labels(("background", "organ", "core"), ((0,), (1,), (2,)))


def set_folders(patch, root):
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(exist_ok=True)
        patch.setenv(f"samunet_{name}", str(root / name))


@pytest.fixture(scope="module", autouse=True)
def tiny_encoder():
    """Few and narrow blocks: what is tested here does not depend on the network."""
    with pytest.MonkeyPatch.context() as patch:
        small = ENCODERS["small"]
        patch.setitem(ENCODERS, "small", replace(small, width=64, depth=2, heads=2, global_blocks=(1,)))
        yield small


@pytest.fixture(scope="module")
def trained_once(tiny_encoder, tmp_path_factory):
    """A dataset of three patients with two configurations, each with its three folds trained."""
    root = tmp_path_factory.mktemp("selection")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, root)
        write_tiny_dataset(root, groups={f"case_{i}": f"patient_{i // 2}" for i in range(6)})
        assert run_command("samunet_plan_and_preprocess", ["-d", "998", "-image_size", "32"]) == 0
        plans = root / "preprocessed" / "Dataset998_Tiny" / "samunetPlans.json"
        content = json.loads(plans.read_text())
        content["configurations"]["2d_unmirrored"] = {"inherits_from": "2d", "mirror_axes": []}
        plans.write_text(json.dumps(content))
        for configuration in ("2d", "2d_unmirrored"):
            assert run_command("samunet_train", ["998", configuration, *FOLDS, *SHORT]) == 0
    return root


def link_models(source, target):
    """Model files are large, and always written anew."""
    os.link(source, target) if source.endswith(".safetensors") else shutil.copy2(source, target)


@pytest.fixture
def trained(trained_once, tmp_path, monkeypatch):
    """A copy of the results of :func:`trained_once`, to do with as a test likes."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True, copy_function=link_models)
    set_folders(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model_of(root, configuration="2d"):
    return root / "results" / "Dataset998_Tiny" / f"samunetTrainer__samunetPlans__{configuration}"


def read_masks(folder):
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}


def run(words):
    assert run_command(words[0], words[1:]) == 0, words


def dice_of(summary):
    return {Path(entry["reference_file"]).name: entry["metrics"] for entry in summary["metric_per_case"]}


def test_folds_in_turn_are_resumed_and_tabled(trained, capsys):
    model = model_of(trained)
    before = {path: path.read_bytes() for path in model.glob("fold_*/checkpoint_final.safetensors")}
    assert len(before) == 3
    (model / "fold_1" / "validation" / "summary.json").unlink()
    assert run_command("samunet_train", ["998", "2d", *FOLDS, *SHORT]) == 0
    captured = capsys.readouterr()
    assert "finished already: fold 0, 2" in captured.err
    assert {path: path.read_bytes() for path in before} == before
    table = captured.out.splitlines()
    assert table[0].split() == ["fold", "cases", "organ", "core", "mean", "Dice", "iterations", "time"]
    for row, fold in zip(table[1:4], FOLDS, strict=True):
        summary = json.loads((model / f"fold_{fold}" / "validation" / "summary.json").read_text())
        scores = [summary["mean"][key]["Dice"] for key in ("1", "2")] + [summary["foreground_mean"]["Dice"]]
        assert row.split()[:2] == [fold, "2"]
        assert row.split()[2:5] == [f"{score:.4f}" for score in scores]
        assert row.split()[5] == "4"


def test_the_next_step_names_the_folds_that_are_missing(trained, capsys):
    assert run_command("samunet_train", ["998", "2d", *FOLDS, *SHORT]) == 0
    assert capsys.readouterr().out.endswith("next: samunet_find_best_configuration 998\n")
    (model_of(trained) / "fold_2" / "checkpoint_final.safetensors").unlink()
    assert run_command("samunet_train", ["998", "2d", "0", "1", *SHORT]) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0] == "next: samunet_train Dataset998_Tiny 2d 2"
    assert lines[2] == "next: samunet_find_best_configuration 998"


def test_a_fold_does_not_depend_on_the_folds_before_it(trained):
    fold = model_of(trained) / "fold_2" / "checkpoint_final.safetensors"
    together = fold.read_bytes()
    assert run_command("samunet_train", ["998", "2d", "2", *SHORT, "--overwrite"]) == 0
    assert fold.read_bytes() == together


def test_wrong_folds_are_refused_before_anything_is_trained(trained, capsys):
    for folds, expected in (
        (["0", "0"], "named twice"),
        (["0", "first"], "'first' is no fold"),
        (["0", "9"], "no fold 9"),
    ):
        assert run_command("samunet_train", ["998", "2d", *folds, *SHORT, "--overwrite"]) == 2
        assert expected in capsys.readouterr().err
        assert (model_of(trained) / "fold_0" / "checkpoint_final.safetensors").is_file()


@pytest.mark.slow
def test_folds_side_by_side(trained, tiny_encoder, monkeypatch, capfd):
    monkeypatch.setitem(ENCODERS, "small", tiny_encoder)  # new processes know no other
    model = model_of(trained)
    assert run_command("samunet_train", ["998", "2d", "0", "1", *SHORT, "--overwrite"]) == 0
    before = [(model / f"fold_{fold}" / "checkpoint_final.safetensors").read_bytes() for fold in (0, 1)]
    assert run_command("samunet_train", ["998", "2d", "0", "1", *SHORT, "--overwrite", "--folds_at_once", "2"]) == 0
    after = [(model / f"fold_{fold}" / "checkpoint_final.safetensors").read_bytes() for fold in (0, 1)]
    assert after == before
    errors = capfd.readouterr().err
    assert "fold 0: trained 4 iterations" in errors
    assert "fold 1: trained 4 iterations" in errors
    (trained / "preprocessed" / "Dataset998_Tiny" / "samunetPlans_2d" / "labels" / "case_0.b2nd").write_bytes(
        b"damaged"
    )
    assert run_command("samunet_train", ["998", "2d", *FOLDS, *SHORT, "--overwrite", "-device", "cpu,cpu"]) == 1
    assert "case_0.b2nd are missing or damaged" in capfd.readouterr().err


def test_accumulated_folds(trained, capsys):
    model = model_of(trained)
    stale = model / "fold_0" / "validation" / "case_99.nii.gz"
    stale.write_bytes(next(stale.parent.glob("*.nii.gz")).read_bytes())
    assert run_command("samunet_accumulate_crossval_results", ["998"]) == 0
    assert "Dice" in capsys.readouterr().out
    folder = model / "crossval_results_folds_0_1_2"
    assert sorted(read_masks(folder)) == [f"case_{i}.nii.gz" for i in range(6)]
    summary = json.loads((folder / "summary.json").read_text())
    assert run_command("samunet_accumulate_crossval_results", ["998", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == summary
    expected = {}
    for fold in FOLDS:
        expected |= dice_of(json.loads((model / f"fold_{fold}" / "validation" / "summary.json").read_text()))
    assert dice_of(summary) == expected
    assert {"dataset.json", "plans.json"} <= {path.name for path in folder.iterdir()}
    assert run_command("samunet_accumulate_crossval_results", ["998", "-o", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_accumulated_tiff_volumes_keep_their_spacing(tmp_path, monkeypatch):
    monkeypatch.setattr(crossval, "write_model_facts", lambda folder, model: None)
    reader = reader_for(".tif")
    geometry = Geometry((3.0, 1.0, 1.0), True, (0.0,) * 3, tuple(np.eye(3).ravel().tolist()), 3)
    reader.write_label(np.zeros((2, 4, 5), np.uint8), tmp_path / "a.tif", geometry)
    cases = {"a": crossval.OutOfFold(0, tmp_path / "a.tif", tmp_path / "reference.tif")}
    reader.write_label(np.zeros((2, 4, 5), np.uint8), tmp_path / "reference.tif", geometry)
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1},
        "numTraining": 1,
        "file_ending": ".tif",
    }
    write_json(tmp_path / "dataset.json", content)
    model = ModelFolder(tmp_path)
    dataset = SimpleNamespace(description=model.description)
    crossval.accumulate(model, [0], cases, dataset, tmp_path / "out")
    assert reader.read_label(tmp_path / "out" / "a.tif")[1].spacing == (3.0, 1.0, 1.0)


def test_what_cannot_be_accumulated(trained, capsys):
    model = model_of(trained)
    assert run_command("samunet_accumulate_crossval_results", ["998", "-f", "all"]) == 2
    assert "trained on every case" in capsys.readouterr().err
    assert run_command("samunet_accumulate_crossval_results", ["998", "-c", "2d_other"]) == 2
    assert "samunetTrainer__samunetPlans__2d_unmirrored" in capsys.readouterr().err
    split = json.loads((trained / "preprocessed" / "Dataset998_Tiny" / "splits_final.json").read_text())
    (model / "fold_1" / "validation" / f"{split[1]['val'][0]}.nii.gz").unlink()
    assert run_command("samunet_accumulate_crossval_results", ["998"]) == 1
    assert "samunet_train Dataset998_Tiny 2d 1 --val" in capsys.readouterr().err
    (model / "fold_2" / "checkpoint_final.safetensors").unlink()
    assert run_command("samunet_accumulate_crossval_results", ["998"]) == 1
    assert "samunet_train Dataset998_Tiny 2d 2" in capsys.readouterr().err


def test_folds_are_not_accumulated_into_the_current_folder(trained, monkeypatch, capsys):
    (trained / "here").mkdir()
    monkeypatch.chdir(trained / "here")
    assert run_command("samunet_accumulate_crossval_results", ["998", "-o", "."]) == 2
    assert "is the current folder" in capsys.readouterr().err
    assert run_command("samunet_accumulate_crossval_results", ["998", "-o", "new"]) == 0
    assert len(read_masks(trained / "here" / "new")) == 6


def test_a_fold_that_saw_its_validation_cases_does_not_count(trained, capsys):
    path = trained / "preprocessed" / "Dataset998_Tiny" / "splits_final.json"
    splits = json.loads(path.read_text())
    path.write_text(json.dumps([splits[1], splits[0], splits[2]]))
    assert run_command("samunet_find_best_configuration", ["998"]) == 1
    assert "was trained on 2 cases that splits_final.json has it validate" in capsys.readouterr().err


def test_best_configuration(trained, capsys):
    assert run_command("samunet_find_best_configuration", ["998"]) == 0
    results = trained / "results" / "Dataset998_Tiny"
    information = json.loads((results / "inference_information.json").read_text())
    names = {"samunetTrainer__samunetPlans__2d", "samunetTrainer__samunetPlans__2d_unmirrored"}
    pair = "ensemble___samunetPlans__2d___samunetPlans__2d_unmirrored___0_1_2"
    assert set(information["all_results"]) == names | {pair}
    best = information["best_model_or_ensemble"]
    assert information["all_results"][best["name"]] == max(information["all_results"].values())
    assert best["result_on_crossval_post_pp"] >= best["result_on_crossval_pre_pp"]
    for name, (low, high) in information["all_intervals"].items():
        assert low <= information["all_results"][name] <= high
    assert (results / best["postprocessing_file"]).is_file()
    assert (results / best["some_plans_file"]).is_file()
    # The pair is what samunet_ensemble makes of the same probabilities.
    case = sorted(read_masks(results / "ensembles" / pair))[0]
    probable = [
        np.load(next(path.glob(f"fold_*/validation/{case.removesuffix('.nii.gz')}.npz")))["probabilities"].astype(float)
        for path in sorted(results.glob("samunetTrainer__*"))
    ]
    assert np.array_equal(np.mean(probable, 0).argmax(0), read_masks(results / "ensembles" / pair)[case])
    assert best["name"] in capsys.readouterr().out
    capsys.readouterr()
    assert run_command("samunet_find_best_configuration", ["998", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == information


@pytest.mark.parametrize("flags", [["--disable_ensembling"], []])
def test_the_instructions_run_as_printed(trained, flags, capsys):
    assert run_command("samunet_find_best_configuration", ["998", *flags]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  samunet_")]
    text = (trained / "results" / "Dataset998_Tiny" / "inference_instructions.txt").read_text()
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert commands == printed
    for command in commands:
        run(shlex.split(command))
    assert sorted(read_masks(trained / "predictions")) == ["test_0.nii.gz", "test_1.nii.gz"]


def test_an_ensemble_that_is_best(trained, monkeypatch, capsys):
    candidate = best._candidate

    def worse_alone(*given):
        found = candidate(*given)
        return replace(found, dice=found.dice / 2) if len(found.models) == 1 else found

    monkeypatch.setattr(best, "_candidate", worse_alone)
    Postprocessing().write(model_of(trained) / "postprocessing.json")  # of an earlier choice
    assert run_command("samunet_find_best_configuration", ["998"]) == 0
    results = trained / "results" / "Dataset998_Tiny"
    information = json.loads((results / "inference_information.json").read_text())
    chosen = information["best_model_or_ensemble"]
    assert chosen["name"].startswith("ensemble___")
    assert len(chosen["selected_model_or_models"]) == 2
    assert (results / chosen["postprocessing_file"]).parent == results / "ensembles" / chosen["name"]
    assert (results / "ensembles" / chosen["name"] / "postprocessed" / "summary.json").is_file()
    assert list(results.glob("samunetTrainer__*/postprocessing.json")) == []
    for command in information["commands"]:
        run(command)
    assert sorted(read_masks(trained / "predictions")) == ["test_0.nii.gz", "test_1.nii.gz"]
    capsys.readouterr()
    assert (
        run_command("samunet_predict", ["-i", str(trained / "raw" / "Dataset998_Tiny" / "imagesTs"), "-o", "preds"])
        == 2
    )
    assert "inference_instructions.txt" in capsys.readouterr().err


def test_the_instructions_for_an_ensemble_run(trained):
    models = [ModelFolder(model_of(trained, name)) for name in ("2d", "2d_unmirrored")]
    steps, file = Postprocessing((foreground_step(LABELS),)), trained / "steps" / "postprocessing.json"
    steps.write(file)
    source = trained / "raw" / "Dataset998_Tiny" / "imagesTs"
    for command in prediction_commands(models, [0, 1], source, steps, file):
        run(command)
    raw, final = read_masks(trained / "predictions_raw"), read_masks(trained / "predictions")
    assert sorted(final) == ["test_0.nii.gz", "test_1.nii.gz"]
    for name, mask in final.items():
        assert np.array_equal(mask, steps.apply(raw[name]))


def test_prediction_applies_what_was_chosen(trained, capsys):
    model, images = model_of(trained), trained / "raw" / "Dataset998_Tiny" / "imagesTs"
    two_organs = sitk.GetArrayFromImage(sitk.ReadImage(str(images / "test_0_0000.nii.gz")))
    sitk.WriteImage(sitk.GetImageFromArray(np.tile(two_organs, (1, 1, 2))), str(trained / "two_0000.nii.gz"))
    flags = ["-i", str(trained / "two_0000.nii.gz"), "-d", "998", "-c", "2d", "--disable_tta", "--save_uncertainty"]
    assert run_command("samunet_predict", [*flags, "-o", "before"]) == 0
    steps = Postprocessing((foreground_step(LABELS),))
    steps.write(model / "postprocessing.json")
    assert run_command("samunet_predict", [*flags, "-o", "with"]) == 0
    assert "postprocessing: only the largest component of foreground" in capsys.readouterr().err
    assert run_command("samunet_predict", [*flags, "-o", "without", "--disable_postprocessing"]) == 0
    before, processed, without = (read_masks(trained / name) for name in ("before", "with", "without"))
    (mask,) = before.values()
    assert np.array_equal(without["two.nii.gz"], mask)
    assert np.array_equal(processed["two.nii.gz"], steps.apply(mask))
    assert 0 < np.count_nonzero(processed["two.nii.gz"]) < np.count_nonzero(mask)
    # What speaks against a class is what the network says; its volume is that of the mask.
    doubts = [json.loads((trained / name / "uncertainty" / "two.json").read_text()) for name in ("with", "without")]
    for value in ("1", "2"):
        own, other = (doubt["classes"][value] for doubt in doubts)
        assert own.pop("voxels") == np.count_nonzero(processed["two.nii.gz"] == int(value))
        assert other.pop("voxels") == np.count_nonzero(mask == int(value))
        assert {**own, "millilitres": 0} == {**other, "millilitres": 0}
    # A fold's validation stays as the network left it: the choice is made on it.
    masks = read_masks(model / "fold_0" / "validation")
    assert run_command("samunet_train", ["998", "2d", "0", "--val"]) == 0
    again = read_masks(model / "fold_0" / "validation")
    assert all(np.array_equal(again[name], masks[name]) for name in masks)
    (model / "postprocessing.json").write_text('{"steps": [{"rule": "erode"}]}')
    assert run_command("samunet_predict", [*flags, "-o", "with"]) == 1
    assert "should be 'keep_largest_component'" in capsys.readouterr().err


def test_prediction_takes_the_model_that_was_found_to_be_best(trained, capsys):
    source = str(trained / "raw" / "Dataset998_Tiny" / "imagesTs")
    assert run_command("samunet_predict", ["-i", source, "-o", "preds"]) == 2
    assert run_command("samunet_find_best_configuration", ["998", "-c", "2d_unmirrored"]) == 0
    capsys.readouterr()
    assert run_command("samunet_predict", ["-i", source, "-o", "preds"]) == 0
    errors = capsys.readouterr().err
    assert "2d_unmirrored (samunet_find_best_configuration chose it)" in errors


def test_folds_from_different_weights_are_not_averaged(trained, capsys):
    path = model_of(trained) / "fold_1" / "run.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"base": {"file": "a.pth", "bytes": 1, "sha256": "0123"}})
    )
    source = str(trained / "raw" / "Dataset998_Tiny" / "imagesTs")
    assert run_command("samunet_predict", ["-i", source, "-o", "preds", "-d", "998", "-c", "2d"]) == 1
    assert "fold 1" in capsys.readouterr().err
    assert run_command("samunet_predict", ["-i", source, "-o", "preds", "-d", "998", "-c", "2d", "-f", "0", "2"]) == 0


def test_only_what_is_finished_is_compared(trained, capsys):
    (model_of(trained, "2d_unmirrored") / "fold_2" / "checkpoint_final.safetensors").unlink()
    assert run_command("samunet_find_best_configuration", ["998"]) == 0
    captured = capsys.readouterr()
    assert "left out: samunetTrainer__samunetPlans__2d_unmirrored: fold 2" in captured.err
    assert "samunet_train Dataset998_Tiny 2d_unmirrored 2" in captured.err
    assert run_command("samunet_find_best_configuration", ["998", "-c", "2d_unmirrored"]) == 1
    assert run_command("samunet_find_best_configuration", ["998", "-c", "3d_fullres"]) == 2
    assert run_command("samunet_find_best_configuration", ["998", "-c", "2d_unmirrored", "-f", "0", "1"]) == 0
    for path in model_of(trained).glob("fold_*/validation/*.npz"):
        path.unlink()
    capsys.readouterr()
    assert run_command("samunet_find_best_configuration", ["998", "-f", "0", "1"]) == 0
    assert "samunet_train Dataset998_Tiny 2d 0 1 --val --npz" in capsys.readouterr().err


def test_earlier_results_can_be_kept(trained):
    assert run_command("samunet_find_best_configuration", ["998", "--disable_ensembling"]) == 0
    summary = model_of(trained) / "crossval_results_folds_0_1_2" / "summary.json"
    before = summary.stat().st_mtime_ns
    assert run_command("samunet_find_best_configuration", ["998", "--disable_ensembling", "--no_overwrite"]) == 0
    assert summary.stat().st_mtime_ns == before
    assert run_command("samunet_find_best_configuration", ["998", "--disable_ensembling"]) == 0
    assert summary.stat().st_mtime_ns != before


def test_postprocessing_by_hand_is_what_find_best_chooses(trained):
    assert run_command("samunet_find_best_configuration", ["998", "-c", "2d", "--disable_dice_decoding"]) == 0
    folder = model_of(trained) / "crossval_results_folds_0_1_2"
    labels = trained / "raw" / "Dataset998_Tiny" / "labelsTr"
    assert run_command("samunet_determine_postprocessing", ["-i", str(folder), "-ref", str(labels)]) == 0
    by_hand = json.loads((folder / "postprocessing.json").read_text())
    assert by_hand == json.loads((model_of(trained) / "postprocessing.json").read_text())


def test_ensemble_of_two_predictions(trained, capsys):
    source = str(trained / "raw" / "Dataset998_Tiny" / "imagesTs")
    for name in ("2d", "2d_unmirrored"):
        flags = ["-i", source, "-o", name, "-d", "998", "-c", name, "--save_probabilities", "-f", "0"]
        assert run_command("samunet_predict", flags) == 0
    assert run_command("samunet_ensemble", ["-i", "2d", "2d_unmirrored", "-o", "both", "--save_npz"]) == 0
    for case, mask in read_masks(trained / "both").items():
        name = case.replace(".nii.gz", ".npz")
        parts = [np.load(trained / folder / name)["probabilities"].astype(float) for folder in ("2d", "2d_unmirrored")]
        assert np.array_equal(np.mean(parts, 0).argmax(0), mask)
        assert np.allclose(np.load(trained / "both" / name)["probabilities"], np.mean(parts, 0), atol=1e-3)
    (trained / "2d_unmirrored" / "test_1.npz").unlink()
    assert run_command("samunet_ensemble", ["-i", "2d", "2d_unmirrored", "-o", "other"]) == 1
    assert "test_1 lacks its mask or its probabilities" in capsys.readouterr().err
    assert run_command("samunet_ensemble", ["-i", "2d", "2d_unmirrored", "-o", "2d"]) == 2
    assert run_command("samunet_ensemble", ["-i", "2d", "-o", "other"]) == 2


def test_decoding_for_dice_is_applied_where_it_was_chosen(trained):
    images, model = trained / "raw" / "Dataset998_Tiny" / "imagesTs", model_of(trained)
    flags = ["-i", str(images), "-d", "998", "-c", "2d"]
    assert run_command("samunet_predict", [*flags, "-o", "plain", "--save_probabilities"]) == 0
    Postprocessing((), "dice").write(model / "postprocessing.json")
    for extra in ([], ["--save_probabilities"]):
        assert run_command("samunet_predict", [*flags, "-o", "dice", *extra]) == 0
        changed = 0
        for name, mask in read_masks(trained / "dice").items():
            probable = np.load(trained / "plain" / name.replace(".nii.gz", ".npz"))["probabilities"]
            assert np.array_equal(mask, decode_for_dice(probable, LABELS))
            changed += np.count_nonzero(mask != probable.argmax(0))
        assert changed > 0


def test_decoding_for_dice_is_chosen_only_where_it_is_better(trained):
    """The cross-validation's own probabilities are replaced by ones of which it is known."""
    splits = json.loads((trained / "preprocessed" / "Dataset998_Tiny" / "splits_final.json").read_text())
    labels = trained / "raw" / "Dataset998_Tiny" / "labelsTr"
    for certainty, expected in ((0.45, "dice"), (0.9, "argmax")):
        for fold, split in enumerate(splits):
            for name in split["val"]:
                file = model_of(trained) / f"fold_{fold}" / "validation" / f"{name}.nii.gz"
                image = sitk.ReadImage(str(labels / file.name))
                truth = sitk.GetArrayFromImage(image)
                # Of every class one slice is clear; in the others its voxels are less likely than background.
                probable = np.stack([(truth == value) * certainty for value in range(3)])
                probable[:, 0] = np.stack([truth[0] == value for value in range(3)])
                probable[0] = 1 - probable[1:].sum(0)
                np.savez(file.with_name(f"{name}.npz"), probabilities=probable.astype(np.float16))
                mask = sitk.GetImageFromArray(probable.argmax(0).astype(np.uint8))
                mask.CopyInformation(image)
                sitk.WriteImage(mask, str(file))
        assert run_command("samunet_find_best_configuration", ["998", "-c", "2d"]) == 0
        content = json.loads((model_of(trained) / "postprocessing.json").read_text())
        assert content["decoding"] == expected
        assert content["decisions"][0]["chosen"] == (expected == "dice")
        summary = json.loads(next(model_of(trained).glob("crossval*/postprocessed/summary.json")).read_text())
        assert summary["foreground_mean"]["Dice"] == 1
    assert run_command("samunet_find_best_configuration", ["998", "-c", "2d", "--disable_dice_decoding"]) == 0
    content = json.loads((model_of(trained) / "postprocessing.json").read_text())
    assert "decoding" not in content["decisions"][0]["step"]


def test_regions_and_an_ignore_label_all_the_way(samunet_folders, monkeypatch):
    """Two regions, the inner one painted last; some voxels without annotation."""
    monkeypatch.chdir(samunet_folders)
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    groups = {f"case_{i}": f"patient_{i % 2}" for i in range(4)}
    folder = write_tiny_dataset(
        samunet_folders, ids=tuple(groups), groups=groups, labels=labels, regions_class_order=[1, 2]
    )
    for file in (folder / "labelsTr").iterdir():
        image = sitk.ReadImage(str(file))
        label = sitk.GetArrayFromImage(image)
        label[:, :3] = 3
        unknown = sitk.GetImageFromArray(label)
        unknown.CopyInformation(image)
        sitk.WriteImage(unknown, str(file))
    assert run_command("samunet_plan_and_preprocess", ["-d", "998", "-image_size", "32"]) == 0
    assert run_command("samunet_train", ["998", "2d", "0", "1", *SHORT]) == 0
    assert run_command("samunet_find_best_configuration", ["998"]) == 0
    results = samunet_folders / "results" / "Dataset998_Tiny"
    information = json.loads((results / "inference_information.json").read_text())
    assert set(information["best_model_or_ensemble"]["classes"]) == {"whole", "core"}
    summary = json.loads((model_of(samunet_folders) / "crossval_results_folds_0_1" / "summary.json").read_text())
    assert set(summary["mean"]) == {"(1, 2)", "2"}
    annotated = sum(summary["metric_per_case"][0]["metrics"]["2"][key] for key in ("TP", "FP", "FN", "TN"))
    first = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / "case_0.nii.gz")))
    assert annotated == np.count_nonzero(first != 3)
    for command in information["commands"]:
        run(command)
    for mask in read_masks(samunet_folders / "predictions").values():
        assert set(np.unique(mask)) <= {0, 1, 2}
    assert (
        json.loads((samunet_folders / "predictions" / "predict_from_raw_data_args.json").read_text())["postprocessing"]
        == information["best_model_or_ensemble"]["postprocessing"]
    )


def test_the_api_does_the_same(trained):
    summary = api.accumulate_crossval_results(998)
    information = api.find_best_configuration(998, ["2d"])
    assert information["all_results"]["samunetTrainer__samunetPlans__2d"] == summary["foreground_mean"]["Dice"]


def test_a_fold_that_disappears_meanwhile_is_no_other_fold(tmp_path, monkeypatch):
    """Two processes with --overwrite: one removes its fold while the other looks for those there are."""
    model = ModelFolder(tmp_path)
    for fold in (0, 1, 2):
        write_json(model.fold(fold) / "run.json", {"encoder": "small"})
    real = training_task.read_run

    def removed_before(path):
        if path.parent.name == "fold_1":
            path.unlink()
        return real(path)

    monkeypatch.setattr(training_task, "read_run", removed_before)
    task = SimpleNamespace(model=model, folder=model.fold(0))
    assert list(training_task.Task._other_runs(task)) == ["fold_2"]
    (model.fold(2) / "run.json").write_text("{")
    with pytest.raises(SamunetError, match="fold_2"):
        training_task.Task._other_runs(task)
