"""The installed commands, as README and the demo show them, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from samunet.commands import run_command

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent


def run(command, folder, **environment):
    result = subprocess.run(
        [SCRIPTS / command[0], *command[1:]], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.slow
def test_readmes_three_commands(samunet_folders, tiny_dataset, tmp_path):
    """Verbatim but for the dataset's number and a short training."""
    tiny_dataset()
    readme = (ROOT / "README.md").read_text()
    pattern = r"^\s*(samunet_(?:plan_and_preprocess -d 027|train 027 2d 0|predict -i imagesTs -o preds))\s*$"
    commands = list(dict.fromkeys(re.findall(pattern, readme, re.MULTILINE)))
    assert len(commands) == 3
    work = tmp_path / "work"
    work.mkdir()
    (work / "imagesTs").symlink_to(next((samunet_folders / "raw").iterdir()) / "imagesTs")
    for command in commands:
        words = command.replace("027", "998").split()
        run([*words, *(["--time_budget", "5s"] if words[0] == "samunet_train" else [])], work)
    assert len(list((work / "preds").glob("*.nii.gz"))) == len(list((work / "imagesTs").iterdir()))


@pytest.mark.slow
def test_demo(samunet_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command("samunet_demo", ["--time_budget", "5s"]) == 0
    check_demo(tmp_path, capsys.readouterr().out)


@pytest.mark.long
def test_demo_as_installed(tmp_path):
    check_demo(tmp_path, run(["samunet_demo", "--time_budget", "20s"], tmp_path))


def check_demo(tmp_path, output):
    folder = tmp_path / "demo_samunet"
    assert "Dice" in output
    for label, path in re.findall(r"^(masks|plot|overlays):\s+(\S+)$", output, re.MULTILINE):
        assert Path(path).exists(), label
    assert len(list((folder / "predictions").glob("*.nii.gz"))) == 4
    assert len(list((folder / "overlays").glob("*.png"))) == 4
    assert len(re.findall(r"^\$ samunet_", output, re.MULTILINE)) == 5
