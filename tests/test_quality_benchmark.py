"""The figures that benchmarks/quality.py prints, on pairs of predicted and true Dice made by hand."""

import importlib.util
import math
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "quality.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("quality_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_order_and_the_reverse(benchmark):
    true = [index / 10 for index in range(10)]
    same = benchmark.compare([(0.1 + value / 2, value) for value in true])
    assert same["rank_correlation"] == pytest.approx(1)
    assert same["worst_fifth_found"] == 1
    assert same["mean_error"] == pytest.approx(sum(abs(0.1 - value / 2) for value in true) / 10)
    reverse = benchmark.compare([(1 - value, value) for value in true])
    assert reverse["rank_correlation"] == pytest.approx(-1)
    assert reverse["worst_fifth_found"] == 0


def test_half_of_the_worst_fifth(benchmark):
    """Of ten cases two are worst: true 0 and 1, predicted 0 and 9."""
    pairs = [(index, index) for index in range(10)]
    pairs[1], pairs[9] = (9, 1), (1, 9)
    assert benchmark.compare(pairs)["worst_fifth_found"] == 0.5


def test_cases_without_a_number_are_left_out(benchmark):
    pairs = [(index / 10, index / 10) for index in range(6)] + [(None, 0.5), (0.5, None), (math.nan, 0.1)]
    assert benchmark.compare(pairs)["cases"] == 6
    assert benchmark.compare(pairs[:4]) == {"cases": 4}


def test_marks(benchmark):
    true = {f"c{index}": {"1": {"Dice": index / 10}} for index in range(10)}
    rows = {name: {"look": ["why"] if name in ("c1", "c5") else []} for name in true}
    assert benchmark.found_by_marks(rows, true, {"1": "organ"}) == 0.5
