"""samunet and nnU-Net as benchmarks/accuracy.py runs them: planning, training by the clock, predicting, and scores.

Every step is a command of its own, as users type it, with its output in a log of its own. Both are scored by
``samunet_evaluate_folder``.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess import Contender
from timed import THREAD_VARIABLES, BenchmarkError, Timed, last_lines, timed

TRAINER = "nnUNetTrainerByTheClock"
TRAINER_FOLDER = Path(__file__).absolute().parent / "nnunet_trainer"
SAMPLE_SECONDS = 1.0  # of memory: minutes are compared here, and reading it costs a little of them
SAMUNET_COMMANDS = ("plan_and_preprocess", "train", "predict", "evaluate_folder")
NNUNET_COMMANDS = ("plan_and_preprocess", "train", "predict")
FIND_TRAINER = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
    f"find({TRAINER!r})"
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is asked of both.

    Attributes:
        dataset: Folder of the raw dataset.
        work: Folder for everything that is written.
        seconds: In the training loop.
        device: ``cpu``, ``cuda`` or ``mps``.
        num_cases: Train on so many of the fold's cases; None for all.
        seed: samunet's; nnU-Net takes none.
        tta: Whether the masks of imagesTs are averaged over mirrored, by samunet else over shifted, images.
        fold: ``0``, or ``all``, which trains on every case and leaves none to validate.
    """

    dataset: Path
    work: Path
    seconds: float
    device: str = "cpu"
    num_cases: int | None = None
    seed: int = 12345
    tta: bool = True
    fold: str = "0"

    @property
    def number(self) -> str:
        """The dataset's number, as both programs take it."""
        return str(int(self.dataset.name.removeprefix("Dataset").partition("_")[0]))


class Contestant(ABC):
    """One program on its way through the task, in a folder of its own; ``masks`` are those of imagesTs."""

    def __init__(self, task: Task, contender: Contender) -> None:
        self.task = task
        self.contender = contender
        self.folder = task.work / contender.name
        self.folder.mkdir()
        (task.work / "logs").mkdir(exist_ok=True)
        environment = contender.environment(task.dataset.parent, self.folder)
        self.environment = {name: value for name, value in environment.items() if name not in THREAD_VARIABLES}
        self.preprocessed = self.folder / "preprocessed" / task.dataset.name
        self.masks = self.folder / "imagesTs"
        self.commands: list[str] = []
        self.took: dict[str, Timed] = {}

    def run(self, step: str, script: str, *arguments: str | Path) -> None:
        """Run a command of this program.

        Raises:
            BenchmarkError: It failed; the message has the end of its output and where all of it is.
        """
        command = [str(self.contender.bin / script), *map(str, arguments)]
        self.commands.append(shlex.join([script, *command[1:]]))
        print(f"{self.contender.name}: {self.commands[-1]}", flush=True)
        log = self.task.work / "logs" / f"{self.contender.name}_{step}.log"
        took = timed(command, self.environment, log, cwd=self.folder, sample_seconds=SAMPLE_SECONDS)
        if took.status:
            killed = " (killed, most likely because memory ran out)" if took.status == -9 else ""
            raise BenchmarkError(
                f"{script} ended with status {took.status}{killed}. The end of its output in {log}:\n{last_lines(log)}"
            )
        self.took[step] = took
        print(f"    {took.wall_seconds:.1f} s", flush=True)

    @abstractmethod
    def plan(self) -> None:
        """Plan and preprocess."""

    @abstractmethod
    def train(self) -> None:
        """Train the fold until the time is up, and predict its validation cases."""

    @abstractmethod
    def predict(self) -> None:
        """Predict imagesTs into ``masks``."""

    @abstractmethod
    def validation(self) -> dict:
        """Scores of the fold's validation cases, as in ``summary.json``; not asked of fold ``all``."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Iterations, training_seconds, batch and input of the training, and what else its files say."""

    def result(self, names: dict[str, str], test: dict) -> dict[str, Any]:
        """Everything about this program's run.

        Args:
            names: Key of a class in ``summary.json`` to its name.
            test: Content of ``summary.json`` of imagesTs.
        """
        training = self.took["train"]
        validation = self.validation() if self.task.fold != "all" else None
        return {
            "dice": {name: test["mean"][key]["Dice"] for key, name in names.items()},
            "mean": test["foreground_mean"]["Dice"],
            "validation": validation and validation["foreground_mean"]["Dice"],
            "test_cases": len(test["metric_per_case"]),
            "validation_cases": len(validation["metric_per_case"]) if validation else 0,
            **self.facts(),
            # Of the training command with its validation, all processes; PSS where the kernel tells it.
            "peak_memory_mib": training.peak_pss_mib or training.peak_rss_mib,
            "wall_seconds": {step: round(took.wall_seconds, 1) for step, took in self.took.items()},
            "commands": list(self.commands),
        }


class Samunet(Contestant):
    """samunet, with the plans that it makes by itself."""

    @property
    def fold(self) -> Path:
        """Folder of the trained fold."""
        model = self.folder / "results" / self.task.dataset.name / "samunetTrainer__samunetPlans__2d"
        return model / f"fold_{self.task.fold}"

    def plan(self) -> None:
        self.run("plan", "samunet_plan_and_preprocess", "-d", self.task.number)

    def train(self) -> None:
        task = self.task
        few = ["--num_cases", str(task.num_cases)] if task.num_cases else []
        length = ["--time_budget", f"{task.seconds:.1f}s", "--seed", str(task.seed)]
        self.run("train", "samunet_train", task.number, "2d", task.fold, *length, *few, "-device", task.device)

    def predict(self) -> None:
        images = self.task.dataset / "imagesTs"
        flags = ["-d", self.task.number, "-c", "2d", "-f", self.task.fold, "-device", self.task.device]
        flags += [] if self.task.tta else ["--disable_tta"]
        self.run("predict", "samunet_predict", "-i", images, "-o", self.masks, *flags)

    def split(self) -> dict[str, list[str]]:
        """The cases that were trained on, and the fold's validation cases."""
        train = read(self.fold / "run.json")["training_cases"]
        if self.task.fold == "all":
            return {"train": train, "val": []}
        return {"train": train, "val": read(self.preprocessed / "splits_final.json")[0]["val"]}

    def validation(self) -> dict:
        return read(self.fold / "validation" / "summary.json")

    def evaluate(self, step: str, references: Path, masks: Path) -> dict:
        """Scores of a folder of masks, anyone's; references without a mask are left out in the validation."""
        output = self.task.work / f"{step}.json"
        flags = ["-djfile", self.task.dataset / "dataset.json", "-o", output]
        flags += ["--chill"] if references.name == "labelsTr" else []
        self.run(step, "samunet_evaluate_folder", references, masks, *flags)
        return read(output)

    def facts(self) -> dict[str, Any]:
        run, plans = read(self.fold / "run.json"), read(self.fold.parent / "plans.json")
        network = plans["configurations"]["2d"]["networks"][run["encoder"]]
        return {
            "iterations": run["iterations"],
            "training_seconds": run["training_seconds"],
            "batch": run["setup"]["batch_size"],
            "input": network["input_shape"],
            "encoder": run["encoder"],
            "own_peak_memory_bytes": run["peak_memory_bytes"],
        }


class NNUNet(Contestant):
    """nnU-Net's 2d configuration, on the cases that samunet trained on."""

    def __init__(self, task: Task, contender: Contender, samunet: Samunet, batch: int | None = None) -> None:
        super().__init__(task, contender)
        self.samunet = samunet
        self.batch = batch
        self.configuration = f"2d_batch{batch}" if batch else "2d"
        processes = str(len(os.sched_getaffinity(0)))
        self.environment |= {
            "nnUNet_extTrainer": str(TRAINER_FOLDER),
            "samunet_benchmark_seconds": str(task.seconds),
            "nnUNet_def_n_proc": self.environment.get("nnUNet_def_n_proc", processes),
        }

    @property
    def fold(self) -> Path:
        """Folder of the trained fold."""
        model = f"{TRAINER}__nnUNetPlans__{self.configuration}"
        return self.folder / "results" / self.task.dataset.name / model / f"fold_{self.task.fold}"

    def plan(self) -> None:
        """Plan and preprocess; with another batch, add a configuration that inherits all else from 2d."""
        processes = self.environment["nnUNet_def_n_proc"]
        flags = ["-d", self.task.number, "-c", "2d", "-np", processes, "-npfp", processes]
        self.run("plan", "nnUNetv2_plan_and_preprocess", *flags)
        if self.batch:
            file = self.preprocessed / "nnUNetPlans.json"
            plans = read(file)
            plans["configurations"][self.configuration] = {"inherits_from": "2d", "batch_size": self.batch}
            file.write_text(json.dumps(plans, indent=4), encoding="utf-8")

    def train(self) -> None:
        """Train on samunet's cases."""
        splits = json.dumps([self.samunet.split()], indent=4)
        (self.preprocessed / "splits_final.json").write_text(splits, encoding="utf-8")
        flags = ["-tr", TRAINER, "-device", self.task.device]
        self.run("train", "nnUNetv2_train", self.task.number, self.configuration, self.task.fold, *flags)

    def predict(self) -> None:
        images = self.task.dataset / "imagesTs"
        flags = ["-d", self.task.number, "-c", self.configuration, "-f", self.task.fold, "-tr", TRAINER]
        flags += ["-npp", "1", "-nps", "1", "-device", self.task.device, *([] if self.task.tta else ["--disable_tta"])]
        self.run("predict", "nnUNetv2_predict", "-i", images, "-o", self.masks, *flags)

    def validation(self) -> dict:
        masks = self.fold / "validation"
        return self.samunet.evaluate("nnU-Net_validation", self.task.dataset / "labelsTr", masks)

    def facts(self) -> dict[str, Any]:
        variables = {name: value for name, value in self.environment.items() if name.startswith("nnUNet_")}
        return {**read(self.fold / "by_the_clock.json"), "variables": variables}


def find_trainer(nnunet: Contender) -> None:
    """Refuse an nnU-Net that does not find the trainer: better known before the minutes of the other are spent."""
    environment = nnunet.cleaned_environment() | {"nnUNet_extTrainer": str(TRAINER_FOLDER)}
    done = subprocess.run(
        [str(nnunet.bin / "python"), "-c", FIND_TRAINER],
        check=False, env=environment, cwd=nnunet.bin, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise BenchmarkError(
            f"nnU-Net in {nnunet.bin} does not find the trainer {TRAINER} in {TRAINER_FOLDER}; its version must know "
            f"the variable nnUNet_extTrainer, as 2.8.1 does. What it said:\n{tail}"
        )


def read(file: Path) -> Any:
    """Content of a JSON file that a command should have written.

    Raises:
        BenchmarkError: It is not there or is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{file}, which a command should have written, cannot be read: {error}") from None
