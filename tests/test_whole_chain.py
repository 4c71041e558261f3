"""From a raw dataset over five folds to a model that predicts the same elsewhere, by the commands that users type."""

import json
import os
import shlex
from pathlib import Path

import pytest
from handed import NAME, small_encoder, small_sam
from test_sharing import assert_same, masks

from samunet.commands import run_command

FOLDS = ["0", "1", "2", "3", "4"]
IDS = tuple(f"case_{index}" for index in range(10))
SHORT = ["--iterations", "40", "--batch_size", "4", "--npz"]
HIPPOCAMPUS = Path(__file__).parents[2] / "shared" / "data" / "Dataset004_Hippocampus"
# For each fold, for example 3m, on all cases of the Hippocampus; without it some seconds on a few of them.
BUDGET = os.environ.get("SAMUNET_TEST_BUDGET")


def run(command):
    """A command line as a shell runs it."""
    name, *words = shlex.split(command)
    assert run_command(name, words) == 0, command


def run_instructions(results, name):
    """What ``inference_instructions.txt`` says, in the current folder."""
    lines = (results / name / "inference_instructions.txt").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands
    for command in commands:
        run(command.replace("$samunet_results", str(results)))
    return commands


def looked_at(folder):
    """Predicted Dice and the figures that it rests on, of every case."""
    quality = json.loads((folder / "quality.json").read_text())
    assert "predicted" in json.dumps(quality["cases"])
    return quality


@pytest.fixture(params=["small", "vit_b"])
def planned(request, samunet_folders, tiny_dataset, monkeypatch):
    """A preprocessed dataset of ten cases, and the flags that its training needs."""
    if request.param == "small":
        small_encoder(monkeypatch)
        start = ["--random_weights"]
    else:
        small_sam(samunet_folders, monkeypatch)
        start = []
    tiny_dataset(ids=IDS)
    run(f"samunet_plan_and_preprocess -d 998 -encoder {request.param} -image_size 64")
    return samunet_folders, start


@pytest.mark.long
def test_the_same_masks_before_and_after_the_transfer(planned, tmp_path, monkeypatch, capsys):
    root, start = planned
    go_through(root, NAME, [*SHORT, *start], tmp_path, monkeypatch, capsys)


@pytest.mark.long
@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason=f"the Hippocampus is not at {HIPPOCAMPUS}")
def test_the_same_masks_of_real_images(samunet_folders, tmp_path, monkeypatch, capsys):
    link_hippocampus(samunet_folders / "raw" / HIPPOCAMPUS.name, *((None, None) if BUDGET else (30, 4)))
    run("samunet_plan_and_preprocess -d 004")
    length = ["--time_budget", BUDGET] if BUDGET else ["--iterations", "60"]
    flags = [*length, "--npz", "-device", "cpu"]
    go_through(samunet_folders, HIPPOCAMPUS.name, flags, tmp_path, monkeypatch, capsys)


def link_hippocampus(folder, training, test):
    """The dataset, or its first cases, as links."""
    for part, number in (("imagesTr", training), ("labelsTr", training), ("imagesTs", test)):
        (folder / part).mkdir(parents=True)
        for file in sorted((HIPPOCAMPUS / part).iterdir())[:number]:
            (folder / part / file.name).symlink_to(file)
    content = json.loads((HIPPOCAMPUS / "dataset.json").read_text())
    content["numTraining"] = len(list((folder / "labelsTr").iterdir()))
    (folder / "dataset.json").write_text(json.dumps(content))


def go_through(root, name, flags, tmp_path, monkeypatch, capsys):
    """Train five folds, choose, predict as printed, export, install elsewhere, and predict the same again."""
    number = name[7:10]
    images = root / "raw" / name / "imagesTs"
    run(shlex.join(["samunet_train", number, "2d", *FOLDS, *flags]))
    assert capsys.readouterr().out.splitlines()[-1] == f"next: samunet_find_best_configuration {number}"
    run(f"samunet_find_best_configuration {number}")
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  samunet_")]
    model = root / "results" / name / "samunetTrainer__samunetPlans__2d"
    chosen = json.loads((model / "postprocessing.json").read_text())

    monkeypatch.chdir(tmp_path)
    assert run_instructions(root / "results", name) == printed
    before = masks(tmp_path / "predictions")
    run(f"samunet_predict -i {images} -o sure --save_uncertainty")
    assert_same(before, masks(tmp_path / "sure"))
    run(f"samunet_export_model_to_zip -d {number} -o model.zip --with_base")

    for folder in ("results", "preprocessed", "checkpoints"):
        if (root / folder).is_dir():
            (root / folder).rename(root / f"former {folder}")
    (root / "results").mkdir()
    run("samunet_install_pretrained_model_from_zip model.zip")
    installed = json.loads((model / "postprocessing.json").read_text())
    assert (installed["steps"], installed["decoding"]) == (chosen["steps"], chosen["decoding"])
    assert not (root / "results" / name / "inference_instructions.txt").exists()  # a stranger's commands stay outside
    run(f"samunet_predict -i {images} -o {tmp_path / 'installed'} -d {number}")
    assert_same(before, masks(tmp_path / "installed"))
    run(f"samunet_predict -i {images} -o {tmp_path / 'sure_again'} --save_uncertainty")
    assert_same(before, masks(tmp_path / "sure_again"))
    assert looked_at(tmp_path / "sure_again") == looked_at(tmp_path / "sure")
    run(f"samunet_predict_from_modelfolder -m {model} -i {images} -o {tmp_path / 'by_folder'}")
    assert_same(before, masks(tmp_path / "by_folder"))
