"""benchmarks/predict.py makes models of its own to time."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from predict import main

pytestmark = [pytest.mark.full_network, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


def test_growth_with_slices_and_the_cost_of_folds(tmp_path, capsys):
    assert main(["--classes", "3", "--slices", "2", "4", "--plane", "32", "--disable_tta"]) == 0
    printed = capsys.readouterr().out
    assert "test-time augmentation off" in printed
    assert "3 classes: " in printed
    assert main(["--folds", "2", "--slices", "2", "--plane", "32"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("     2")]
    assert [row[1] for row in rows] == ["off", "on"]
    assert all(float(value) > 0 for row in rows for value in row[2:])
