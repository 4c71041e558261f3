import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samunet import api
from samunet.commands import run_command
from samunet.commands.table import VERBOSE
from samunet.commands.table import run as run_parser
from samunet.errors import SamunetError, UsageError

DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "liver": 1, "kidney": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def folders(tmp_path):
    """Two cases; class 1 has Dice 1 and 0.5, class 2 has 1 and none."""
    values = {"a": ([1, 1, 2, 0], [1, 1, 2, 0]), "b": ([1, 1, 0, 0], [0, 1, 1, 0])}
    predictions, references = tmp_path / "predictions", tmp_path / "labelsTs"
    predictions.mkdir()
    references.mkdir()
    for case, arrays in values.items():
        for folder, array in zip((predictions, references), arrays):
            image = sitk.GetImageFromArray(np.array(array, np.uint8).reshape(1, 2, 2))
            sitk.WriteImage(image, str(folder / f"{case}.nii.gz"))
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    return str(references), str(predictions)


def test_folder_prints_a_table_and_writes_the_summary(folders, capsys):
    assert run_command("samunet_evaluate_folder", [*folders]) == 0
    out, err = capsys.readouterr()
    assert "1 liver" in out
    assert "0.7500" in out
    assert "summary.json" in err
    with open(os.path.join(folders[1], "summary.json")) as stream:
        summary = json.load(stream)
    assert summary["mean"]["1"]["Dice"] == 0.75
    assert summary["foreground_mean"]["Dice"] == 0.875


def test_folder_prints_json_and_writes_elsewhere(folders, tmp_path, capsys):
    target = tmp_path / "out" / "scores.json"
    flags = ["--json", "-o", str(target), "-pfile", "plans.json", "-np", "1", "-djfile", str(tmp_path / "dataset.json")]
    assert run_command("samunet_evaluate_folder", [*folders, *flags]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(target.read_text())
    assert not os.path.exists(os.path.join(folders[1], "summary.json"))


def test_folder_prefers_the_dataset_json_of_the_predictions(folders, capsys):
    with open(os.path.join(folders[1], "dataset.json"), "w") as stream:
        json.dump({**DATASET, "labels": {"background": 0, "spleen": 1, "ureter": 2}}, stream)
    assert run_command("samunet_evaluate_folder", [*folders]) == 0
    assert "2 ureter" in capsys.readouterr().out


def test_folder_without_dataset_json_names_the_remedy(folders, tmp_path, capsys):
    (tmp_path / "dataset.json").unlink()
    assert run_command("samunet_evaluate_folder", [*folders]) == 1
    assert "samunet_evaluate_simple" in capsys.readouterr().err


def test_the_function_writes_what_the_command_writes(folders, tmp_path):
    references, predictions = folders
    os.remove(os.path.join(predictions, "a.nii.gz"))
    flags = ["--surface_metrics", "-tolerance", "1", "--chill", "-o", str(tmp_path / "typed" / "summary.json")]
    assert run_command("samunet_evaluate_folder", [references, predictions, *flags]) == 0
    content = api.evaluate(
        predictions=predictions,
        references=references,
        output=tmp_path / "called" / "summary.json",
        surface_metrics=True,
        tolerance=1.0,
        allow_missing=True,
    )
    for name in ("summary.json", "metrics.json", "metrics.csv"):
        assert (tmp_path / "called" / name).read_bytes() == (tmp_path / "typed" / name).read_bytes()
    # One voxel of the liver is right, the other lies beside the true one: distances are 0 and 1 both ways.
    assert content["mean"]["1"]["Dice"] == 0.5
    measured = content["surface_metrics"]["mean"]["1"]
    assert measured["HD95"] == pytest.approx(0.95)
    assert (measured["SurfaceDice"], measured["VolumeDifference_ml"]) == (1.0, 0.0)
    assert sorted(os.listdir(predictions)) == ["b.nii.gz"]


def test_the_function_finds_dataset_json_and_refuses_what_it_cannot_use(folders, tmp_path):
    references, predictions = folders
    assert list(api.evaluate(predictions=predictions, references=references)) == [
        "foreground_mean",
        "mean",
        "metric_per_case",
    ]
    os.remove(os.path.join(predictions, "summary.json"))
    with pytest.raises(UsageError, match="tolerance of the surface Dice must be 0 or more"):
        api.evaluate(predictions=predictions, references=references, surface_metrics=True, tolerance=-1)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(SamunetError, match=r"found no dataset\.json"):
        api.evaluate(predictions=predictions, references=references)
    assert sorted(os.listdir(predictions)) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize("command", ["samunet_evaluate_folder", "samunet_evaluate_simple"])
def test_missing_prediction_fails_unless_chilled(command, folders, capsys):
    os.remove(os.path.join(folders[1], "a.nii.gz"))
    labels = ["-l", "1"] if command == "samunet_evaluate_simple" else []
    assert run_command(command, [*folders, *labels]) == 1
    assert "1 of 2 references: a" in capsys.readouterr().err
    assert run_command(command, [*folders, *labels, "--chill"]) == 0
    assert "0.5000" in capsys.readouterr().out


def test_simple_deduces_the_ending_and_scores_only_the_named_values(folders, capsys):
    assert run_command("samunet_evaluate_simple", [*folders, "-l", "2", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["mean"]) == ["2"]
    assert run_command("samunet_evaluate_simple", [*folders, "-l", "2", "1"]) == 0
    assert "0.7500" in capsys.readouterr().out


def test_simple_scores_endings_in_upper_case_too(folders, capsys):
    for folder in folders:
        os.rename(os.path.join(folder, "b.nii.gz"), os.path.join(folder, "b.NII.GZ"))
    assert run_command("samunet_evaluate_simple", [*folders, "-l", "1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["metric_per_case"]) == 2
    assert summary["mean"]["1"]["Dice"] == 0.75


def test_simple_refuses_mixed_and_unknown_endings(folders, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run_command("samunet_evaluate_simple", [str(tmp_path / "empty"), folders[1], "-l", "1"]) == 1
    assert "no file with a known ending" in capsys.readouterr().err
    with open(os.path.join(folders[0], "b.nrrd"), "w"):
        assert run_command("samunet_evaluate_simple", [*folders, "-l", "1"]) == 1
    assert ".nii.gz and in .nrrd" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--unknown"], ["nowhere", "nowhere_either", "-l", "1"]])
def test_wrong_usage_has_status_two(arguments, capsys):
    assert run_command("samunet_evaluate_simple", arguments) == 2
    assert capsys.readouterr().err


def test_background_is_no_label_to_score(folders, capsys):
    assert run_command("samunet_evaluate_simple", [*folders, "-l", "0"]) == 2
    assert "1 or more, got 0" in capsys.readouterr().err


def test_help_has_status_zero(capsys):
    assert run_command("samunet_evaluate_folder", ["-h"]) == 0
    assert "--chill" in capsys.readouterr().out


def test_wrong_plain_error_is_one_line(capsys):
    def fail(arguments: argparse.Namespace) -> None:
        raise arguments.error

    parser = argparse.ArgumentParser()
    VERBOSE.add_to(parser)
    expected = [
        (SamunetError("too small", "enlarge it"), 1, "error: too small\n  -> enlarge it\n"),
        (UsageError("no such fold"), 2, "error: no such fold\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here\n"),
        (KeyError("spacing"), 1, "error: KeyError: 'spacing' (run again with --verbose for the traceback)\n"),
        (MemoryError(), 1, "error: memory ran out\n  -> close other programs, or use fewer processes\n"),
    ]
    for error, status, message in expected:
        parser.set_defaults(error=error)
        assert run_parser(parser, fail, []) == status
        assert capsys.readouterr().err == message
        assert run_parser(parser, fail, ["--verbose"]) == status
        assert "Traceback" in capsys.readouterr().err


def test_sigterm_stops_cleanly(capsys):
    cleaned = []

    def work(arguments: argparse.Namespace) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert run_parser(argparse.ArgumentParser(), work, []) == 130
    assert cleaned
    assert capsys.readouterr().err.startswith("terminated")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
def test_a_reader_that_leaves_causes_no_traceback():
    program = (
        "import argparse, sys; from samunet.commands.table import run as run_parser;"
        "sys.exit(run_parser(argparse.ArgumentParser(), lambda _: print('x' * 10**6), []))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=30) == 1


def test_commands_start_without_torch():
    program = (
        "import sys; from samunet.commands import build_parser; build_parser('samunet_evaluate_folder');"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_references_and_predictions_cannot_be_exchanged_unnoticed(folders):
    references, predictions = folders
    for function in (api.evaluate, api.determine_postprocessing):
        with pytest.raises(TypeError, match="positional"):
            function(predictions, references)


def test_remedies_are_in_the_terms_of_the_caller(capsys, samunet_folders, tiny_dataset):
    tiny_dataset()
    assert run_command("samunet_plan_and_preprocess", ["-d", "998"]) == 0
    capsys.readouterr()
    assert run_command("samunet_train", ["998", "2d", "0", "-device", "mps"]) == 2
    assert "-> use -device cpu\n" in capsys.readouterr().err
    with pytest.raises(UsageError) as caught:
        api.train("998", options=api.TrainingOptions(device="mps"))
    assert caught.value.hint == "use `device='cpu'`"


def test_files_are_text_or_paths():
    options = api.TrainingOptions(checkpoint="sam.pth", pretrained="a/model.safetensors")
    assert (options.checkpoint, options.pretrained) == (Path("sam.pth"), Path("a/model.safetensors"))
