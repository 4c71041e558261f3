"""The commands from raw data to masks, on a tiny dataset, as a user types them."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samunet import api
from samunet.commands import run_command
from samunet.cores import FreeCores
from samunet.errors import UsageError
from samunet.models.folder import open_model_folder
from samunet.training.run import too_short_to_judge
from samunet.training.state import LATEST

SHORT = ["--iterations", "6", "--batch_size", "2"]


@pytest.fixture
def planned(samunet_folders, tiny_dataset, capsys):
    """A tiny dataset, planned and preprocessed."""
    folder = tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    capsys.readouterr()
    return folder


def model_folder(root):
    return next((root / "results").glob("Dataset998_*/samunetTrainer__*"))


def read_masks(folder):
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}


def test_three_commands(planned, samunet_folders, tmp_path, capsys):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    errors = capsys.readouterr().err
    assert "weights in the package" in errors
    assert "-encoder vit_b" in errors
    assert "estimate" in errors
    fold = model_folder(samunet_folders) / "fold_0"
    for name in ("run.json", "progress.png", "training_log.txt", "checkpoint_final.safetensors"):
        assert (fold / name).is_file()
    log = json.loads((fold / "training_log.json").read_text())
    assert (log[0]["iteration"], log[0]["loss"]) == (0, None)
    assert log[0]["dice"] is not None
    assert [entry["iteration"] for entry in log] == list(range(len(log)))  # every one of the first ten
    assert json.loads((fold / "run.json").read_text())["estimate"]["validation"] > 0
    assert not (fold / LATEST).exists()
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    split = json.loads(next((samunet_folders / "preprocessed").glob("*/splits_final.json")).read_text())[0]
    assert len(summary["metric_per_case"]) == len(split["val"])
    assert set(summary) == {"foreground_mean", "mean", "metric_per_case"}

    output = tmp_path / "preds"
    assert run_command("samunet_predict", ["-i", str(planned / "imagesTs"), "-o", str(output)]) == 0
    assert "the only trained model" in capsys.readouterr().err
    for path in (planned / "imagesTs").glob("*.nii.gz"):
        image = sitk.ReadImage(str(path))
        mask = sitk.ReadImage(str(output / path.name.replace("_0000", "")))
        assert mask.GetSize() == image.GetSize()
        assert mask.GetOrigin() == image.GetOrigin()
        assert mask.GetDirection() == image.GetDirection()
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}
    assert {"plans.json", "dataset.json", "predict_from_raw_data_args.json"} <= {p.name for p in output.iterdir()}
    table = [line.split() for line in (output / "labels.ctbl").read_text().splitlines() if not line.startswith("#")]
    # As Slicer reads it: value, name, red, green, blue, opacity. The colours are Okabe and Ito's first two.
    assert table == [
        ["0", "background", "0", "0", "0", "0"],
        ["1", "organ", "230", "159", "0", "255"],
        ["2", "core", "86", "180", "233", "255"],
    ]
    assert run_command("samunet_evaluate_folder", [str(planned / "labelsTs"), str(output)]) == 0
    assert "Dice" in capsys.readouterr().out


def test_a_short_training_is_called_too_short_to_judge(planned, samunet_folders, capsys):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    errors = capsys.readouterr().err
    folder = open_model_folder(model_folder(samunet_folders))
    run = folder.run(0)
    planned_images = folder.configuration.networks[run["encoder"]].training_images["cpu"]
    seen = run["iterations"] * run["setup"]["batch_size"]
    assert f"too short to judge: {seen:,} images seen, where the plans train on {planned_images:,}" in errors
    enough = run | {"iterations": -(-planned_images // (10 * run["setup"]["batch_size"]))}
    (model_folder(samunet_folders) / "fold_0" / "run.json").write_text(json.dumps(enough))
    assert too_short_to_judge(folder, 0) is None


def test_planning_without_writing(planned, samunet_folders, capsys):
    folder = next((samunet_folders / "preprocessed").iterdir())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    for command in ("samunet_plan_experiment", "samunet_plan_and_preprocess"):
        assert (
            run_command(
                command, ["-d", "998", "-image_size", "64", "-overwrite_plans_name", "other", "--dry_run", "--json"]
            )
            == 0
        )
        captured = capsys.readouterr()
        plans = json.loads(captured.out)
        assert plans["plans_name"] == "other"
        assert max(plans["configurations"]["2d"]["networks"]["small"]["input_shape"]) == 64
        assert "nothing was written" in captured.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_ct_is_trained_with_its_statistics(samunet_folders, tiny_dataset):
    """Only CT and its kin keep intensity statistics in what a fold is identified by."""
    tiny_dataset(channel_names={"0": "CT"})
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    assert run_command("samunet_train", ["998", "2d", "0", "--iterations", "1", "--batch_size", "2"]) == 0
    assert run_command("samunet_train", ["998", "2d", "1", "--iterations", "1", "--batch_size", "2"]) == 0
    plans_file = next((samunet_folders / "preprocessed").glob("*/samunetPlans.json"))
    plans = json.loads(plans_file.read_text())
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 1.0
    plans_file.write_text(json.dumps(plans))
    assert run_command("samunet_train", ["998", "2d", "2", "--iterations", "1", "--batch_size", "2"]) == 1


def test_next_lines_run_as_they_are(samunet_folders, tiny_dataset, tmp_path, monkeypatch, capsys):
    def next_line():
        command = re.search(r"^next: (samunet_.*)$", capsys.readouterr().out, re.MULTILINE)[1]
        name, *words = shlex.split(command)
        return name, words

    tiny_dataset()
    monkeypatch.chdir(tmp_path)
    assert run_command("samunet_plan_and_preprocess", ["-d", "Tiny", "-overwrite_plans_name", "my plans"]) == 0
    command, words = next_line()
    assert run_command(command, [*words, *SHORT]) == 0
    command, words = next_line()
    assert run_command(command, words) == 0
    assert sorted(path.name for path in Path("preds").glob("*.nii.gz")) == ["test_0.nii.gz", "test_1.nii.gz"]


def test_separate_commands_do_the_same_as_one(samunet_folders, tiny_dataset):
    tiny_dataset()
    for command in ("samunet_extract_fingerprint", "samunet_plan_experiment", "samunet_preprocess"):
        assert run_command(command, ["-d", "998"]) == 0
    folder = next((samunet_folders / "preprocessed").iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "samunetPlans_2d").iterdir()}
    assert run_command("samunet_plan_and_preprocess", ["-d", "Dataset998_Tiny"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "samunetPlans_2d").iterdir()} == before


def test_finished_fold_and_changed_plans_are_protected(planned, samunet_folders, capsys):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run_command("samunet_plan_experiment", ["-d", "998", "-image_size", "64"]) == 0
    assert run_command("samunet_train", ["998", "2d", "1", *SHORT]) == 1
    assert "other plans" in capsys.readouterr().err
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--overwrite"]) == 0


def test_validation_only_scores_just_this_folds_cases(planned, samunet_folders):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    validation = model_folder(samunet_folders) / "fold_0" / "validation"
    count = len(json.loads((validation / "summary.json").read_text())["metric_per_case"])
    stale = next(validation.glob("*.nii.gz"))
    (validation / "case_99.nii.gz").write_bytes(stale.read_bytes())
    (validation / "summary.json").unlink()
    assert run_command("samunet_train", ["998", "2d", "0", "--val", "--npz"]) == 0
    assert len(json.loads((validation / "summary.json").read_text())["metric_per_case"]) == count
    assert len(list(validation.glob("*.npz"))) == count


def test_the_best_model_is_validated_beside_the_final_one(planned, samunet_folders, capsys):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--val_best"]) == 0
    fold = model_folder(samunet_folders) / "fold_0"
    final, best = fold / "validation", fold / "validation_best"
    assert {path.name for path in best.glob("*.nii.gz")} == {path.name for path in final.glob("*.nii.gz")} != set()
    # With the final model's weights as the best, the masks are the final model's.
    shutil.copy(fold / "checkpoint_final.safetensors", fold / "checkpoint_best.safetensors")
    kept = [(path, path.read_bytes()) for path in (fold / "calibration.json", final / "summary.json")]
    assert run_command("samunet_train", ["998", "2d", "0", "--val_best"]) == 0
    for name, mask in read_masks(final).items():
        assert np.array_equal(read_masks(best)[name], mask)
    assert all(path.read_bytes() == content for path, content in kept)
    assert run_command("samunet_train", ["998", "2d", "all", *SHORT, "--val_best"]) == 2
    assert "--val_best has no cases to validate" in capsys.readouterr().err


def test_fold_all_trains_without_validation(planned, samunet_folders, capsys):
    assert run_command("samunet_train", ["998", "2d", "all", *SHORT]) == 0
    assert not (model_folder(samunet_folders) / "fold_all" / "validation").exists()
    assert run_command("samunet_train", ["998", "2d", "all", *SHORT]) == 1
    assert "is finished" in capsys.readouterr().err


def test_threads_follow_other_programs_unless_updates_are_counted(planned, monkeypatch):
    watched = []

    class Watched(FreeCores):
        def __init__(self, watch):
            super().__init__(watch)
            watched.append(watch)

    monkeypatch.setattr("samunet.training.loop.FreeCores", Watched)
    assert run_command("samunet_train", ["998", "2d", "all", "--time_budget", "0.1s", "-device", "cpu"]) == 0
    assert run_command("samunet_train", ["998", "2d", "all", "--iterations", "1", "--overwrite", "-device", "cpu"]) == 0
    assert watched == [True, False]


def test_resuming_after_an_interruption_changes_nothing(planned, samunet_folders, monkeypatch):
    options = {"iterations": 8, "batch_size": 2}
    whole = api.train(998, "2d", 0, api.TrainingOptions(**options), progress=False)
    expected = (whole / "checkpoint_final.safetensors").read_bytes()
    curve = curve_of(whole)

    from samunet.training import trainer

    step, calls = trainer.Trainer._step, []

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) in (3, 6):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(trainer.Trainer, "_step", interrupted)
    monkeypatch.setattr(trainer.StepClock, "is_enough", True)  # before the first check, where a training goes on
    options["overwrite"] = True
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            api.train(998, "2d", 0, api.TrainingOptions(**options), progress=False)
        options["overwrite"] = False
        assert (whole / LATEST).is_file()
    api.train(998, "2d", 0, api.TrainingOptions(**options), progress=False)
    assert len(calls) == 8
    assert (whole / "checkpoint_final.safetensors").read_bytes() == expected
    assert curve_of(whole) == curve
    assert len((whole / "training_log.csv").read_text().splitlines()) == 1 + len(curve) == 10


def curve_of(fold):
    log = json.loads((fold / "training_log.json").read_text())
    return [(entry["iteration"], entry["loss"], entry["dice"]) for entry in log]


def test_an_interrupted_training_says_that_it_goes_on(planned, samunet_folders, monkeypatch, capsys):
    from samunet.training import trainer

    step = trainer.Trainer._step

    def interrupted(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(trainer.Trainer, "_step", interrupted)
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 130
    assert "goes on from here" in capsys.readouterr().err
    monkeypatch.undo()


def test_a_training_goes_on_with_the_augmentation_that_it_began_with(planned, monkeypatch, capsys):
    from samunet.training import trainer

    strong = [*SHORT, "--augmentation", "strong"]
    with monkeypatch.context() as patch:
        step = trainer.Trainer._step

        def interrupted(self, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch)

        patch.setattr(trainer.Trainer, "_step", interrupted)
        assert run_command("samunet_train", ["998", "2d", "0", *strong]) == 130
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 1
    assert "augmentation 'strong' (now None)" in capsys.readouterr().err
    assert run_command("samunet_train", ["998", "2d", "0", *strong]) == 0
    assert "going on from iteration 1" in capsys.readouterr().err


def test_training_on_named_cases(planned, samunet_folders, capsys):
    file = samunet_folders / "labelled.txt"
    splits = json.loads(next((samunet_folders / "preprocessed").glob("*/splits_final.json")).read_text())
    named = splits[0]["train"][1:3]
    file.write_text("\n".join([*named, *splits[0]["val"]]))
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--cases", str(file)]) == 0
    assert "2 training cases" in capsys.readouterr().err
    run = json.loads((model_folder(samunet_folders) / "fold_0" / "run.json").read_text())
    assert run["training_cases"] == named
    summary = json.loads((model_folder(samunet_folders) / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(splits[0]["val"])
    assert run_command("samunet_train", ["998", "2d", "0", "--cases", str(file), "--num_cases", "1"]) == 2
    with pytest.raises(UsageError, match="give one of them"):
        api.TrainingOptions(cases=named, num_cases=1)


def test_prediction_options(planned, samunet_folders, tmp_path, capsys):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    source, output = str(planned / "imagesTs"), tmp_path / "out"
    assert (
        run_command(
            "samunet_predict", ["-i", source, "-o", str(output), "-num_parts", "2", "-part_id", "0", "--disable_tta"]
        )
        == 0
    )
    first = set(read_masks(output))
    assert (
        run_command("samunet_predict", ["-i", source, "-o", str(output), "--continue_prediction", "--disable_tta"]) == 0
    )
    assert "were there already" in capsys.readouterr().err
    assert first < set(read_masks(output))
    probable = tmp_path / "probable"
    arguments = ["-i", source, "-o", str(probable), "--save_probabilities", "--disable_tta", "-chk", "best"]
    assert run_command("samunet_predict", arguments) == 0
    for name, mask in read_masks(probable).items():
        probabilities = np.load(probable / name.replace(".nii.gz", ".npz"))["probabilities"].astype(np.float32)
        assert probabilities.shape == (3, *mask.shape)
        assert np.allclose(probabilities.sum(0), 1, atol=5e-3)
        assert (probabilities.argmax(0) == mask).mean() > 0.999


def test_predictor_takes_paths_and_arrays(planned, samunet_folders):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    predictor = api.Predictor.from_folder(model_folder(samunet_folders))
    file = sorted((planned / "imagesTs").glob("*.nii.gz"))[0]
    from_file, geometry = predictor.predict_files([file])
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[None]
    assert np.array_equal(predictor.predict_array(array, geometry.spacing), from_file)


@pytest.mark.parametrize("orientation", ["RAS", "SLP"])
def test_images_that_lie_otherwise_than_the_training_images(planned, samunet_folders, tmp_path, orientation):
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    other, folders = tmp_path / "other", [tmp_path / "straight", tmp_path / "turned"]
    other.mkdir()
    for file in (planned / "imagesTs").glob("*.nii.gz"):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), orientation), str(other / file.name))
    for source, output in zip((planned / "imagesTs", other), folders):
        arguments = ["-i", str(source), "-o", str(output), "--save_probabilities", "--save_uncertainty"]
        assert run_command("samunet_predict", arguments) == 0
    for file in folders[0].glob("**/*.nii.gz"):  # masks and maps of entropy
        straight = sitk.ReadImage(str(file))
        got = sitk.ReadImage(str(folders[1] / file.relative_to(folders[0])))
        assert got.GetSize() != straight.GetSize() or orientation == "RAS"
        back = sitk.DICOMOrient(got, "LPS")
        assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(straight)), file
        assert np.allclose(back.GetOrigin(), straight.GetOrigin(), atol=1e-3)
    straight, got = (np.load(folder / "test_0.npz")["probabilities"] for folder in folders)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folders[1] / "test_0.nii.gz")))
    assert np.array_equal(np.sort(straight, axis=None), np.sort(got, axis=None))
    assert (got.astype(np.float32).argmax(0) == mask).mean() > 0.999


def test_model_choice(planned, samunet_folders, tiny_dataset, tmp_path, capsys):
    source, output = planned / "imagesTs", tmp_path / "preds"
    assert run_command("samunet_predict", ["-i", str(source), "-o", str(output)]) == 2
    assert "nothing is trained yet" in capsys.readouterr().err
    other = tiny_dataset(name="Dataset997_Other")
    assert run_command("samunet_plan_and_preprocess", ["-d", "997"]) == 0
    for number in ("998", "997"):
        assert run_command("samunet_train", [number, "2d", "0", *SHORT]) == 0
    capsys.readouterr()
    link = tmp_path / "imagesTs"
    link.symlink_to(other / "imagesTs")
    assert (
        run_command("samunet_predict", ["-i", str(link), "-o", str(output)]) == 0
    )  # the link's real path names the dataset
    assert "the input lies in Dataset997_Other" in capsys.readouterr().err
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in source.iterdir():
        (plain / path.name).write_bytes(path.read_bytes())
    assert run_command("samunet_predict", ["-i", str(plain), "-o", str(output)]) == 2
    message = capsys.readouterr().err
    commands = [line.strip() for line in message.splitlines() if line.strip().startswith("samunet_predict")]
    assert len(commands) == 2
    chosen = next(command for command in commands if "-d Dataset998_Tiny" in command)
    assert run_command("samunet_predict", [*shlex.split(chosen)[1:], "-o", str(output)]) == 0
    assert run_command("samunet_predict", ["-i", str(source), "-o", str(output), "-d", "998", "-f", "3"]) == 2
    assert "samunet_train Dataset998_Tiny 2d 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("samunet_train", ["998", "3d_fullres", "0"], "has no 3D configurations"),
        ("samunet_train", ["998", "2d", "7"], "no fold 7"),
        ("samunet_train", ["998", "2d", "first"], "no fold"),
        ("samunet_train", ["998", "2d", "0", "--time_budget", "soon"], "20m"),
        ("samunet_train", ["998", "2d", "0", "-encoder", "vit_x"], "vit_b, vit_l, vit_h, vit_t, small"),
        ("samunet_train", ["998", "2d", "0", "-encoder", "vit_l"], "samunet_plan_experiment"),
        ("samunet_train", ["998", "2d", "0", "-p", "otherPlans"], "no plans called otherPlans"),
        ("samunet_plan_and_preprocess", ["-d", "5"], "no dataset"),
        ("samunet_plan_and_preprocess", ["-d", "998", "-c", "3d_lowres"], "has no 3D configurations"),
        ("samunet_plan_experiment", ["-d", "998", "-image_size", "33"], "multiple of"),
        ("samunet_predict", ["-i", "nowhere", "-o", "out"], "nowhere does not exist"),
    ],
)
def test_wrong_usage_is_explained(planned, capsys, command, arguments, expected):
    status = run_command(command, arguments)
    errors = capsys.readouterr().err
    assert status in (1, 2)
    assert expected in errors
    assert "Traceback" not in errors


def test_sam_without_its_weights_says_where_to_put_them(planned, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("samunet_checkpoints", str(tmp_path / "weights"))
    assert run_command("samunet_train", ["998", "2d", "0", "-encoder", "vit_b"]) == 1
    errors = capsys.readouterr().err
    assert "https://" in errors
    assert str(tmp_path / "weights" / "sam_vit_b_01ec64.pth") in errors


@pytest.mark.long
def test_killed_three_times_gives_the_same_masks(planned, samunet_folders):
    """kill -9 at any moment: the fold, run again at fixed iterations and seed, ends with the same masks."""
    script = (
        "from samunet import api; api.train(998, '2d', 0, api.TrainingOptions(iterations=150, batch_size=2,"
        "checkpoint_seconds=0.5, overwrite={}), progress=False)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(overwrite=False):
        return subprocess.Popen([sys.executable, "-c", script.format(overwrite)], env=environment)

    assert run().wait() == 0
    fold = model_folder(samunet_folders) / "fold_0"
    expected = read_masks(fold / "validation")
    overwrite, kills, reached = True, 0, []
    while kills < 3:
        process = run(overwrite)
        begin = time.monotonic()
        before = (fold / LATEST).stat().st_mtime_ns if not overwrite and (fold / LATEST).is_file() else 0
        while process.poll() is None and time.monotonic() - begin < 120:
            if (
                (fold / LATEST).is_file()
                and (fold / LATEST).stat().st_mtime_ns > before
                and not (overwrite and (fold / "checkpoint_final.safetensors").is_file())
            ):
                time.sleep(0.3)
                break
            time.sleep(0.02)
        assert process.poll() is None, "the training ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        overwrite, kills = False, kills + 1
        reached.append((fold / LATEST).stat().st_mtime_ns)
    assert len(set(reached)) == 3
    assert run().wait() == 0
    masks = read_masks(fold / "validation")
    assert masks.keys() == expected.keys()
    assert all(np.array_equal(masks[name], expected[name]) for name in masks)
