"""benchmarks/accuracy.py from end to end, with stand-ins for nnU-Net's commands; its trainer on a made clock."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import accuracy  # noqa: E402
from timed import BenchmarkError  # noqa: E402

NAME = "Dataset998_Tiny"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

COMMON = """
import json, os, shutil, sys
from pathlib import Path
script, words = Path(sys.argv[0]).name, sys.argv[1:]
def folder(kind):
    return Path(os.environ["PREFIX_" + kind]) / "Dataset998_Tiny"
def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
with open(os.environ["order_of_commands"], "a") as order:
    print(script, *[word for word in words if not word.startswith("/")], file=order)
"""
# Masks of both are the labels themselves.
SAMUNET = """
if script == "samunet_plan_and_preprocess":
    write(folder("preprocessed") / "splits_final.json", [{"train": ["case_1", "case_2", "case_3"], "val": ["case_0"]}])
elif script == "samunet_train":
    fold = folder("results") / "samunetTrainer__samunetPlans__2d" / f"fold_{words[2]}"
    run = {"training_cases": ["case_1", "case_3"], "iterations": 7, "training_seconds": 36.3}
    run |= {"encoder": "small", "setup": {"batch_size": 4}, "peak_memory_bytes": 10**9}
    write(fold / "run.json", run)
    write(fold.parent / "plans.json", {"configurations": {"2d": {"networks": {"small": {"input_shape": [112, 80]}}}}})
    summary = {"foreground_mean": {"Dice": 0.5}, "mean": {}, "metric_per_case": [{}]}
    if words[2] != "all":
        write(fold / "validation" / "summary.json", summary)
elif script == "samunet_predict":
    shutil.copytree(folder("raw") / "labelsTs", words[words.index("-o") + 1])
"""
NNUNET = """
if script == "nnUNetv2_plan_and_preprocess":
    write(folder("preprocessed") / "nnUNetPlans.json", {"configurations": {"2d": {"batch_size": 12}}})
elif script == "nnUNetv2_train":
    split = json.loads((folder("preprocessed") / "splits_final.json").read_text())[0]
    configurations = json.loads((folder("preprocessed") / "nnUNetPlans.json").read_text())["configurations"]
    batch = configurations[words[1]]["batch_size"]
    assert (Path(os.environ["nnUNet_extTrainer"]) / "by_the_clock.py").is_file()
    assert "OMP_NUM_THREADS" not in os.environ
    fold = folder("results") / f"{words[words.index('-tr') + 1]}__nnUNetPlans__{words[1]}" / f"fold_{words[2]}"
    seconds = float(os.environ["samunet_benchmark_seconds"])
    result = {"iterations": 5, "training_seconds": seconds + 1, "batch": batch, "input": [32, 24]}
    write(fold / "by_the_clock.json", result | {"cases": split["train"]})
    (fold / "validation").mkdir()
    for case in split["val"]:
        shutil.copy(folder("raw") / "labelsTr" / f"{case}.nii.gz", fold / "validation")
else:
    shutil.copytree(folder("raw") / "labelsTs", words[words.index("-o") + 1])
"""


def program(folder, prefix, scripts):
    """A folder of commands: ``scripts`` are Python by name. Its Python is this one; nnU-Net's knows nnU-Net."""
    folder.mkdir()
    scripts = {name: f"#!{sys.executable}\n{text}" for name, text in scripts.items()}
    scripts["python"] = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    if prefix == "nnUNet":
        scripts["python"] = '#!/bin/sh\necho \'{"nnunetv2": "9.9"}\'\n'
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def real(name):
    return (
        f"import sys\nfrom samunet.commands import run_command\nsys.exit(run_command('samunet_{name}', sys.argv[1:]))\n"
    )


@pytest.fixture
def run(tmp_path, tiny_dataset, monkeypatch):
    """Calls the script's main on a tiny dataset, with stand-ins for both programs but for the evaluation."""
    tiny_dataset()
    monkeypatch.setenv("order_of_commands", str(tmp_path / "order"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stand_in = COMMON.replace("PREFIX", "samunet") + SAMUNET
    scripts = {f"samunet_{name}": stand_in for name in ("plan_and_preprocess", "train", "predict")}
    program(tmp_path / "samunet", "samunet", scripts | {"samunet_evaluate_folder": real("evaluate_folder")})
    stand_in = COMMON.replace("PREFIX", "nnUNet") + NNUNET
    scripts = {f"nnUNetv2_{name}": stand_in for name in ("plan_and_preprocess", "train", "predict")}
    program(tmp_path / "nnunet", "nnUNet", scripts)
    return lambda *more: accuracy.main(words(tmp_path, *more))


def words(folder, *more):
    given = ["--dataset", "998", "--minutes", "0.05", "--raw", str(folder / "raw"), "--work", str(folder / "work")]
    return [*given, "--samunet-bin", str(folder / "samunet"), *more]


def nnunet(folder):
    return ["--nnunet-bin", str(folder / "nnunet"), "--batch", "2"]


def test_both_train_on_the_same_cases_and_take_turns(run, tmp_path, capsys):
    assert run(*nnunet(tmp_path), "--num_cases", "2", "--disable_tta", "--seed", "3") == 0
    order = (tmp_path / "order").read_text().splitlines()
    assert [line.split()[0] for line in order] == [
        f"{prefix}_{step}" for step in ("plan_and_preprocess", "train", "predict") for prefix in ("samunet", "nnUNetv2")
    ]
    assert order[2] == "samunet_train 998 2d 0 --time_budget 3.0s --seed 3 --num_cases 2 -device cpu"
    assert order[3] == "nnUNetv2_train 998 2d_batch2 0 -tr nnUNetTrainerByTheClock -device cpu"
    assert "--disable_tta" in order[4]
    assert "--disable_tta" in order[5]
    result = json.loads((tmp_path / "work" / "result.json").read_text())
    assert result["split"] == {"train": ["case_1", "case_3"], "val": ["case_0"]}
    rival, own = result["results"]["nnU-Net"], result["results"]["samunet"]
    assert rival["cases"] == result["split"]["train"]
    assert (rival["batch"], rival["training_seconds"], rival["validation_cases"]) == (2, 4, 1)
    assert rival["dice"] == own["dice"] == {"organ": 1, "core": 1}
    assert (rival["validation"], own["validation"], own["test_cases"]) == (1, 0.5, 2)
    assert min(rival["peak_memory_mib"], own["peak_memory_mib"]) > 0
    assert result["versions"]["nnU-Net"] == {"nnunetv2": "9.9"}
    assert (result["left_out"], result["tta"], result["num_cases"]) == ([], False, 2)
    printed = capsys.readouterr().out
    assert accuracy.table(result["results"]) in printed
    assert "2 training cases, 0.05 minutes; Dice of 2 cases of imagesTs and of 1 validation cases" in printed


def test_fold_all_has_no_cases_to_validate(run, tmp_path, capsys):
    assert run(*nnunet(tmp_path), "--fold", "all") == 0
    order = (tmp_path / "order").read_text().splitlines()
    assert order[2].startswith("samunet_train 998 2d all ")
    assert order[3].startswith("nnUNetv2_train 998 2d_batch2 all ")
    assert all(" -f all " in line for line in order[4:])
    result = json.loads((tmp_path / "work" / "result.json").read_text())
    assert (result["fold"], result["split"]["val"]) == ("all", [])
    for row in result["results"].values():
        assert (row["validation"], row["validation_cases"], row["dice"]) == (None, 0, {"organ": 1, "core": 1})
    assert "of no validation cases" in capsys.readouterr().out


def test_without_nnunet(run, tmp_path, capsys):
    assert run("--json", str(tmp_path / "mine.json")) == 0
    assert "nnU-Net: left out" in capsys.readouterr().out
    result = json.loads((tmp_path / "mine.json").read_text())
    assert (result["left_out"], list(result["results"])) == (["nnU-Net"], ["samunet"])
    assert not (tmp_path / "work" / "result.json").exists()


def test_a_command_that_fails_is_named_with_its_log(run, tmp_path, capsys):
    (tmp_path / "samunet" / "samunet_train").write_text("#!/bin/sh\necho the disk is full\nexit 3\n")
    assert run() == 1
    error = capsys.readouterr().err
    log = tmp_path / "work" / "logs" / "samunet_train.log"
    assert error == f"error: samunet_train ended with status 3. The end of its output in {log}:\nthe disk is full\n"
    assert run() == 1
    assert "is not empty; give a new folder" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "samunet" / "samunet_train").write_text("#!/bin/sh\nexit 0\n")
    assert run() == 1  # it claims to have succeeded
    assert "summary.json, which a command should have written, cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "raw" / NAME / "labelsTs"), "labelsTs has no files"),
        (lambda folder: (folder / "raw" / NAME / "dataset.json").write_text("{"), "dataset.json"),
        (lambda folder: (folder / "nnunet" / "nnUNetv2_predict").unlink(), "say where with --nnunet-bin"),
        (lambda folder: (folder / "samunet" / "samunet_train").unlink(), "say where with --samunet-bin"),
        (
            lambda folder: (folder / "nnunet" / "python").write_text("#!/bin/sh\necho no find_objects\nexit 1\n"),
            "must know the variable nnUNet_extTrainer, as 2.8.1 does. What it said:\nno find_objects",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(run, tmp_path, capsys, change, message):
    change(tmp_path)
    assert run(*nnunet(tmp_path)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes", "0"], "at least 0.01"),
        (["--minutes", "nan"], "at least 0.01"),
        (["--num_cases", "0"], "at least 1"),
        (["--batch", "4"], "--batch is nnU-Net's"),
        (["--fold", "all", "--num_cases", "4"], "--num_cases draws from fold 0"),
        (["--json", "/nowhere/result.json"], "there is no folder /nowhere"),
    ],
)
def test_wrong_command_lines(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        accuracy.parse(words(tmp_path, *flags))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_when_it_is_stopped_nothing_runs_on(run, tmp_path):
    """The training starts a process of its own, which writes its id."""
    identifier = tmp_path / "identifier"
    text = f"#!/bin/sh\nsleep 60 &\necho $! > {identifier}.part\nmv {identifier}.part {identifier}\nwait\n"
    (tmp_path / "samunet" / "samunet_train").write_text(text)
    command = [sys.executable, str(BENCHMARKS / "accuracy.py"), *words(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    _wait_until(identifier.is_file)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    where = tmp_path / "work"
    assert error == f"interrupted; what was finished is in {where}, the commands' output in its folder logs\n"
    _wait_until(lambda: not _runs(int(identifier.read_text())))


def _wait_until(true):
    for _ in range(200):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("waited 20 seconds")


def _runs(process):
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_table():
    row = {"iterations": 1282, "training_seconds": 601.3, "batch": 4, "input": [448, 448], "peak_memory_mib": 1234.5}
    own = row | {"dice": {"RV": 0.81234, "LV": None}, "mean": 0.81234, "validation": 0.75}
    rival = row | {"dice": {"RV": 0.0, "LV": 0.5}, "mean": 0.25, "validation": None, "iterations": 50}
    assert accuracy.table({"samunet": own, "nnU-Net": rival}).splitlines() == [
        "|  | RV | LV | mean | validation cases | iterations | minutes | batch, input px | peak memory GB |",
        "|---|---|---|---|---|---|---|---|---|",
        "| samunet | 0.8123 | - | 0.8123 | 0.7500 | 1282 | 10.02 | 4, 448 x 448 | 1.3 |",
        "| nnU-Net | 0.0000 | 0.5000 | 0.2500 | - | 50 | 10.02 | 4, 448 x 448 | 1.3 |",
    ]
    one = {"samunet": own | {"dice": {"vessel": 0.7}}}
    assert accuracy.table(one).startswith("|  | vessel | validation cases | iterations |")


def test_classes_have_the_keys_of_the_summary(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "regions_class_order": [1, 2]}
    content |= {"numTraining": 1, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert accuracy.class_names(tmp_path) == {"(1, 2)": "whole", "2": "core"}
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(BenchmarkError, match=r"there is no dataset\.json"):
        accuracy.class_names(tmp_path)


class Clock:
    """Time that passes only in :meth:`take`."""

    now = 1000.0

    def take(self, seconds):
        self.now += seconds


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Builds the trainer on a base class that has what nnU-Net's has, with steps and checks that take so long."""
    clock, events = Clock(), []

    class Base:
        initial_lr, current_epoch, output_folder = 0.01, 0, str(tmp_path)
        configuration_manager = SimpleNamespace(batch_size=3, patch_size=(64, 48))
        dataloader_train, dataloader_val = iter(int, 1), iter(int, 1)

        def __init__(self, step, check):
            self.step, self.check = step, check
            self.optimizer = SimpleNamespace(param_groups=[{"lr": None}])

        def on_train_start(self):
            clock.take(50)  # loading is not training

        def on_train_epoch_start(self):
            self.lr_scheduler.step(self.current_epoch)

        def train_step(self, batch):
            events.append((clock.now - 1050, self.optimizer.param_groups[0]["lr"]))
            clock.take(self.step)
            return "loss"

        def on_train_epoch_end(self, outputs):
            assert outputs == ["loss"] * len(outputs) != []

        def validation_step(self, batch):
            clock.take(self.check)

        def on_validation_epoch_end(self, outputs):
            assert len(outputs) == 2

        def on_epoch_end(self):
            self.current_epoch += 1

        def on_epoch_start(self):
            pass

        def on_validation_epoch_start(self):
            pass

        def on_train_end(self):
            clock.take(5)

    names = ["nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"]
    for name in (*names, "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["nnunetv2.training.nnUNetTrainer.nnUNetTrainer"].nnUNetTrainer = Base
    spec = importlib.util.spec_from_file_location("by_the_clock", BENCHMARKS / "nnunet_trainer" / "by_the_clock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setenv("samunet_benchmark_seconds", "100")

    def train(step, check):
        built = module.nnUNetTrainerByTheClock(step, check)
        built.run_training()
        return json.loads((tmp_path / "by_the_clock.json").read_text()), built.current_epoch, events

    return train


def test_trainer_ends_after_the_iteration_in_which_the_time_is_up(trainer):
    """Epochs of 20 seconds; the fifth check falls after the end."""
    result, epochs, events = trainer(step=0.75, check=0.125)
    assert epochs == 5
    starts = [start for start, _ in events]
    assert starts[-1] < 100 <= starts[-1] + 0.75
    assert result == {
        "iterations": len(events),
        "training_seconds": round(starts[-1] + 0.75 + 0.25, 1),
        "batch": 3,
        "input": [64, 48],
    }
    assert len(events) == round((starts[-1] + 0.75 - 4 * 0.25) / 0.75)
    for start, rate in events:
        assert rate == pytest.approx(0.01 * (1 - start / 100) ** 0.9)


def test_slow_iterations_are_not_checked_one_by_one(trainer):
    """Eleven of 9.5 seconds fit: fewer than an epoch has at least, so there is one check, at the end."""
    result, epochs, events = trainer(step=9.5, check=4)
    assert (result["iterations"], epochs, result["training_seconds"]) == (11, 1, 112.5)
    assert [start for start, _ in events] == pytest.approx([9.5 * number for number in range(11)])


def test_one_iteration_longer_than_the_time(trainer):
    result, epochs, events = trainer(step=700, check=1)
    assert (result["iterations"], epochs) == (1, 1)
    assert events == [(0, 0.01)]


@pytest.mark.long
def test_samunet_itself(run, tmp_path, capsys):
    """Its real commands, from the raw dataset to the table, beside the stand-ins of nnU-Net."""
    for name in ("plan_and_preprocess", "train", "predict"):
        (tmp_path / "samunet" / f"samunet_{name}").write_text(f"#!{sys.executable}\n{real(name)}")
    assert run(*nnunet(tmp_path), "--num_cases", "3") == 0
    result = json.loads((tmp_path / "work" / "result.json").read_text())
    own, rival = result["results"]["samunet"], result["results"]["nnU-Net"]
    assert len(result["split"]["train"]) == 3
    assert rival["cases"] == result["split"]["train"]
    assert not set(result["split"]["train"]) & set(result["split"]["val"])
    assert own["iterations"] > 0
    assert 3 <= own["training_seconds"] < 30
    assert own["mean"] == pytest.approx(sum(own["dice"].values()) / 2)
    assert own["encoder"] == "small"
    assert 0 <= own["validation"] <= 1
    assert rival["mean"] == 1
    assert f"| {own['mean']:.4f} |" in capsys.readouterr().out
