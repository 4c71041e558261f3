"""How long a training takes, from what its parts took; and its curve on disk."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from estimate import compare

from samunet.training.estimate import Costs, StepClock, announce, passes_to_predict
from samunet.training.log import write_logs
from samunet.training.monitoring import is_check, is_point, number_of_checks, windows_per_check
from samunet.training.schedule import Budget


def test_steps_checks_and_checkpoints_add_up():
    costs = Costs(step=0.5, check=10.0, save=3.0, save_interval=120.0)
    # Checks after 0, 10, 30, 100, 200, ... 1000 iterations: 13. 500 + 130 s, and a checkpoint every 120 s: 5.
    assert costs.training(1000, 100) == 500 + 130 + 15
    assert Costs(step=0.5).training(10, 100) == 5.0
    assert costs.iterations(645.0, 100) == 1000
    assert Costs(step=2.0).iterations(1.0, 100) == 1  # a step that is begun is finished


def test_the_first_steps_and_those_prepared_ahead_do_not_count():
    clock = StepClock(ahead=2)
    for seconds in [9.0, 9.0, 0.1, 0.1, *[1.0] * 7]:
        clock.add(seconds)
        assert not clock.is_enough
    clock.add(1.0)
    assert clock.is_enough
    assert clock.mean == 1.0
    quick = StepClock()
    for count in range(52):
        assert not quick.is_enough
        quick.add(5.0 if count < 2 else 0.01)
    assert quick.is_enough
    assert quick.mean == pytest.approx(0.01)


def test_a_time_budget_is_announced_with_what_follows_it(caplog):
    caplog.set_level("INFO")
    said = announce(Costs(step=1.0, check=2.0), Budget(seconds=600.0), 100, [30.0, 60.0, 90.0])
    # Checks after 0, 10, 30, 100, ..., 500 and the end: 9 or, from 501 iterations on, 9: 600 - 18 = 582 steps.
    assert said["iterations"] == 582
    assert said["training"] == 600.0
    assert said["validation"] == 180.0
    assert "10 min for 582 iterations (1.00 s a step, 2.0 s a check)" in caplog.text
    assert "about 3 min to predict and score the 3 validation cases (60 s a case" in caplog.text


@pytest.mark.parametrize(
    ("mirror", "recipe", "planes", "expected"),
    [
        ([0, 1], "samunet", 1, 10 * 4),
        ([], "samunet", 1, 10 * 5),  # shifted along both diagonals
        ([0], "samunet", 3, (10 + 8 + 8) * 2),
        ([], "samunet", 3, 10 + 8 + 8),  # planes are views enough
        ([0, 1], "samed", 3, 10),
    ],
)
def test_passes_of_a_prediction(mirror, recipe, planes, expected):
    def along(plane):
        return case if tuple(plane.axes) == (0, 1, 2) else other

    case = SimpleNamespace(shape=(10, 8, 8), spacing=[1.0, 1.0], along=along)
    other = SimpleNamespace(shape=(8, 8, 8), spacing=[1.0, 1.0])
    axes = [[0, 1, 2], [1, 0, 2], [2, 0, 1]][:planes]
    configuration = SimpleNamespace(mirror_axes=mirror, planes=axes)
    network = SimpleNamespace(stretch=False, spacing=1.0, input_shape=[8, 8], recipe=recipe)
    assert passes_to_predict(case, configuration, network) == expected


def test_checks_and_points_begin_early():
    assert [i for i in range(301) if is_check(i, 100)] == [0, 10, 30, 100, 200, 300]
    points = [i for i in range(201) if is_point(i, 100)]
    assert points == [*range(11), *range(20, 100, 10), 100, 120, 140, 160, 180, 200]
    for iterations in (1, 10, 11, 31, 100, 101, 1000):
        checks = {i for i in range(iterations) if is_check(i, 100)} | {iterations}
        assert number_of_checks(iterations, 100) == len(checks)


def test_checks_take_their_share_of_the_images():
    # 2000 updates of 8 images in epochs of 100: 23 checks, so 0.15 * 16000 / 23.
    assert windows_per_check(2000, 100, 8) == 104


def entry(iteration, loss, dice):
    trained = iteration > 0
    return {
        "epoch": -(-iteration // 100), "iteration": iteration, "elapsed": iteration / 2, "loss": loss, "dice": dice,
        "learning_rate": 1e-4 if trained else None, "images_per_second": 4.0 if trained else None,
        "data_share": 0.1 if trained else None,
    }  # fmt: skip


def test_the_curve_is_written_alike_in_every_form(tmp_path):
    log = [entry(0, None, 0.1), entry(1, 2.0, None), entry(10, 1.5, 0.4), entry(100, 1.0, 0.3)]
    write_logs(log, tmp_path, "Dataset001_$x_$, 2d, fold 0, small", "5 of 9 validation cases")
    assert json.loads((tmp_path / "training_log.json").read_text()) == log
    with open(tmp_path / "training_log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["iteration"] for row in rows] == ["0", "1", "10", "100"]
    assert [row["dice"] for row in rows] == ["0.1", "", "0.4", "0.3"]
    text = (tmp_path / "training_log.txt").read_text().splitlines()
    assert len(text) == 2 + len(log)
    assert "5 of 9 validation cases" in text[1]
    assert text[2].endswith("iteration      0, Dice 0.1000")
    assert "loss 1.5000, Dice 0.4000" in text[4]
    assert Image.open(tmp_path / "progress.png").size == (1000, 900)
    (tmp_path / "progress.png").unlink()
    log = [entry(0, None, None), entry(1, 2.0, None)]  # without foreground
    write_logs(log, tmp_path, "x", "no cases", picture=False)
    assert not (tmp_path / "progress.png").exists()
    write_logs(log, tmp_path, "x", "no cases")
    assert (tmp_path / "progress.png").exists()


def test_the_benchmark_compares_what_was_said_with_what_came():
    points = [entry(0, None, 0.1), *(entry(i, 1.0, None) for i in (1, 2, 5, 10))]
    run = {
        "estimate": {"step": 2.2, "training": 90.0, "iterations": 10, "validation": 33.0},
        "setup": {"batch_size": 8, "time_budget": None},
        "iterations": 10, "training_seconds": 100.0, "validation_seconds": 30.0,
    }  # fmt: skip
    found = compare(run, points)
    assert found["seconds of a step"] == {"announced": 2.2, "measured": 2.0, "off": 0.1}  # 8 images at 4 a second
    assert found["seconds of the training"]["off"] == -0.1
    assert found["seconds of the validation"]["off"] == 0.1
    run["setup"]["time_budget"] = 100.0
    assert compare(run, points)["iterations"] == {"announced": 10, "measured": 10, "off": 0.0}
