"""``samunet``: dispatch, version, info and clean; and the package beside a folder of its name."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from samunet import __version__
from samunet.commands import run_command

ROOT = Path(__file__).parents[1]


def test_dispatch(capsys):
    for words in (["train", "-h"], ["samunet_train", "-h"]):
        assert run_command("samunet", words) == 0
        assert capsys.readouterr().out.startswith("usage: samunet_train ")
    assert run_command("samunet", ["--version"]) == 0
    assert capsys.readouterr().out == f"samunet {__version__}\n"
    assert run_command("samunet", []) == 0
    assert "evaluate_folder" in capsys.readouterr().out
    assert run_command("samunet", ["trian"]) == 2
    assert "did you mean samunet train?" in capsys.readouterr().err
    assert run_command("samunet", ["train", "--tim", "5"]) == 2
    assert "samunet_train has no flag --tim" in capsys.readouterr().err


def test_module():
    result = subprocess.run([sys.executable, "-m", "samunet", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == f"samunet {__version__}\n"


def touch(path, size=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@pytest.fixture
def model(samunet_folders):
    """Two datasets; of one a model with a finished fold and one that was begun."""
    touch(samunet_folders / "raw" / "Dataset001_A" / "dataset.json")
    touch(samunet_folders / "raw" / "Dataset002_B" / "dataset.json", 10)
    preprocessed = samunet_folders / "preprocessed" / "Dataset002_B"
    for name in ("dataset.json", "dataset_fingerprint.json", "splits_final.json", "own.json", "own_2d/case.b2nd"):
        touch(preprocessed / name, 100)
    model = samunet_folders / "results" / "Dataset002_B" / "samunetTrainer__own__2d"
    for name in ("checkpoint_final.safetensors", "checkpoint_best.safetensors", "run.json", "validation/summary.json"):
        touch(model / "fold_0" / name, 1000)
    touch(model / "fold_0" / "checkpoint_latest.safetensors", 3000)
    touch(model / "fold_0" / "features" / "ab" / "x.npy", 7000)
    touch(model / "fold_0" / "validation" / "case.nii.gz", 500)
    touch(model / "fold_1" / "checkpoint_latest.safetensors", 3000)
    touch(model / "fold_1" / "features" / "ab" / "x.npy", 7000)
    return model


def test_info(model, samunet_folders, monkeypatch, capsys):
    monkeypatch.setenv("samunet_checkpoints", str(samunet_folders / "nowhere"))
    assert run_command("samunet_info", ["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samunet"] == __version__
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["number_formats"]["cpu"] in ("float32", "bfloat16")
    assert found["folders"]["samunet_raw"] | {"bytes_free": 0} == {
        "path": str(samunet_folders / "raw"), "exists": True, "bytes": 11, "bytes_free": 0,
    }  # fmt: skip
    assert not found["folders"]["samunet_checkpoints"]["exists"]
    assert found["datasets"]["Dataset001_A"] == {"stage": "raw", "plans": [], "stored": [], "models": {}, "bytes": 1}
    folds = {"trained": ["0"], "begun": ["1"], "bytes": 4000 + 3000 + 7000 + 500 + 10000}
    assert found["datasets"]["Dataset002_B"] == {
        "stage": "trained", "plans": ["own"], "stored": ["own_2d"], "models": {model.name: folds},
        "bytes": 10 + 500 + 24500,
    }  # fmt: skip
    assert run_command("samunet_info", []) == 0
    assert "samunetTrainer__own__2d: fold 0 trained; fold 1 begun, 24.5 kB" in capsys.readouterr().out


def test_info_without_any_folder(monkeypatch, capsys):
    for name in ("samunet_raw", "nnUNet_raw", "samunet_preprocessed", "samunet_results"):
        monkeypatch.delenv(name, raising=False)
    assert run_command("samunet_info", []) == 0
    assert "the environment variable samunet_results is not set" in capsys.readouterr().out


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_clean(model, samunet_folders, capsys):
    old = touch(model / ".tmp-1-abc", 20)
    os.utime(old, (0, 0))
    touch(model / ".tmp-2-abc")  # of a process that may be running
    raw = touch(samunet_folders / "raw" / "Dataset001_A" / ".tmp-3-abc")
    os.utime(raw, (0, 0))
    before = files(samunet_folders)
    assert run_command("samunet_clean", []) == 0
    told = capsys.readouterr().out
    assert files(samunet_folders) == before
    assert "10 kB can be freed, and nothing was removed\nnext: samunet_clean --yes\n" in told
    assert run_command("samunet_clean", ["--yes"]) == 0
    gone = {"fold_0/checkpoint_latest.safetensors", "fold_0/features/ab/x.npy", ".tmp-1-abc"}
    assert before - files(samunet_folders) == {f"results/Dataset002_B/{model.name}/{name}" for name in gone}
    assert run_command("samunet_clean", ["--yes", "--validation_masks"]) == 0
    assert files(samunet_folders) == before - {
        f"results/Dataset002_B/{model.name}/{name}" for name in (*gone, "fold_0/validation/case.nii.gz")
    }
    capsys.readouterr()
    assert run_command("samunet_clean", []) == 0
    assert capsys.readouterr().out == "there is nothing to remove\n"


def test_clean_leaves_a_fold_in_work_alone(model, capsys):
    from samunet.training.lock import training_lock

    with training_lock(model / "fold_0"):
        assert run_command("samunet_clean", ["--yes"]) == 0
    assert (model / "fold_0" / "checkpoint_latest.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-e"], []], ids=["editable", "plain"])
def test_the_package_is_found_beside_its_clone(tmp_path, how):
    """A clone is a folder called samunet, which Python takes for a package where it is started beside it."""
    clone = tmp_path / "work" / "samunet"
    for name in ("setup.py", "README.md", "pyproject.toml"):
        clone.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone)
    shutil.copytree(ROOT / "samunet", clone / "samunet", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    # What samunet needs, and pip; the editable install that may be among it has a .pth, which is not read from here.
    Path(site, "zz_others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words, folder):
        result = subprocess.run([python, *words], cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.strip()

    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    run(*install, *how, ".", folder=clone)
    for folder in (clone.parent, clone, tmp_path):
        told = run("-c", "from samunet import api; import samunet; print(samunet.__version__)", folder=folder)
        assert told == __version__
    assert run("-m", "samunet", "--version", folder=clone.parent) == f"samunet {__version__}"
