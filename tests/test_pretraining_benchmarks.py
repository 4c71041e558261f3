"""benchmarks/transfer.py computes each training once and sorts the results; the factory's speed.py counts images."""

import importlib.util
import json
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from bundled_weights import speed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Stands for ablation.py: a Dice that its words alone decide, and a file that tells that it ran.
STAND_IN = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
value = {name: words[words.index(name) + 1] for name in ("--iterations", "--seed", "--weights")}
cases = int(words[words.index("--num_cases") + 1]) if "--num_cases" in words else 0
weights = {"random": 0.1, "bundled": 0.2}.get(value["--weights"], 0.3)
with Path(__file__).with_name("calls").open("a") as stream:
    print(*words, file=stream)
print("a line of the log")
print(json.dumps({"averaged_dice": weights + int(value["--seed"]) / 100 + cases / 1000, "iterations": 1}))
"""


def _load(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def transfer(tmp_path, monkeypatch):
    module = _load("transfer")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(module, "ABLATION", tmp_path / "stand_in.py")
    return module


def test_every_training_runs_once_and_stands_in_its_cell(transfer, tmp_path, capsys):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    weights.with_suffix(".json").write_text(json.dumps({"images_seen": 12000, "base": {"card": {"images_seen": 345}}}))
    flags = ["--tasks", "027:400:8", "004:900", "--work", str(tmp_path / "work"), "--jobs", "2"]
    transfer.main([*flags, "--weights", "random", str(weights)])
    transfer.main([*flags, "--weights", "random", "bundled", str(weights), "--seeds", "12345", "1"])
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(set(calls)) == 2 * 3 * 2
    assert "027 --iterations 400 --num_cases 8 --seed 12345 --weights random" in calls
    header, _, first, second = capsys.readouterr().out.splitlines()[-4:]
    assert "random, 0 images" in header
    assert f"{weights}, 12,345 images" in header
    assert first.startswith("| 027 | 8 | 400 |")
    cells = [cell.strip() for cell in second.split("|")[4:7]]
    seed = 12345 / 100
    assert cells[0] == f"{0.1 + (seed + 0.01) / 2:.4f} ({0.1 + seed:.4f}, {0.1 + 0.01:.4f})"
    assert cells[2] == f"{0.3 + (seed + 0.01) / 2:.4f} ({0.3 + seed:.4f}, {0.3 + 0.01:.4f})"


def test_other_weights_under_the_same_name_are_computed_anew(transfer, tmp_path):
    weights = tmp_path / "w.safetensors"
    flags = ["--tasks", "004:900", "--work", str(tmp_path / "work"), "--weights", str(weights)]
    for content in (b"first", b"second"):
        weights.write_bytes(content)
        transfer.main(flags)
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_a_training_that_fails_ends_it_and_leaves_nothing(transfer, tmp_path):
    (tmp_path / "stand_in.py").write_text(STAND_IN + "\nsys.exit(3)\n")
    tasks = [f"{number:03}:9" for number in range(20)]
    with pytest.raises(SystemExit, match="--iterations 9"):
        transfer.main(["--tasks", *tasks, "--work", str(tmp_path / "work"), "--weights", "random"])
    assert len((tmp_path / "calls").read_text().splitlines()) < 20
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.parametrize("text", ["027", "027:0", "027:400:8:1", "027:many"])
def test_a_task_that_is_none(transfer, text):
    with pytest.raises(ArgumentTypeError, match="027:400:8"):
        transfer.Task.parse(text)


def test_a_file_that_is_not_there(transfer, tmp_path):
    with pytest.raises(ArgumentTypeError, match="random, bundled"):
        transfer.Weights.find(str(tmp_path / "none.safetensors"))


def test_speed_of_the_pretraining():
    result = speed.main(["--updates", "1", "--batch_size", "1", "--device", "cpu"])
    dense = result["objectives"]["dense"]
    assert dense["updates"] == 8
    assert dense["images"] == 4 * 4 + 4 * 1  # of a quarter of the pixels, four to one
    assert dense["images_per_second"] > 0
    assert 0 < dense["share_of_making_images"] < 1
