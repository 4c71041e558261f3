"""Findings of a comparison of models: for programs, for people, and as commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from samunet.evaluation.bootstrap import (
    Interval,
    class_intervals,
    class_means,
    difference_interval,
    mean_dice,
    mean_interval,
)
from samunet.inference.decoding import ARGMAX
from samunet.inference.postprocessing import FILE_NAME as POSTPROCESSING_FILE
from samunet.inference.postprocessing import Postprocessing
from samunet.models.folder import TRAINER_NAME, ModelFolder
from samunet.selection.determine import PostprocessingChoice
from samunet.tables import number, text_table

OUTPUT = "predictions"


@dataclass(frozen=True)
class Candidate:
    """A model, or a pair of models, and its scores.

    Attributes:
        name: Of its folder.
        models: One or two.
        folder: With its masks of all folds, and their ``summary.json``.
        home: Where its postprocessing belongs: the model's folder; of a pair the folder itself.
        cases, patients: Name and patient of every case, in the order of ``dice``.
        dice: ``(cases, classes)``.
    """

    name: str
    models: tuple[ModelFolder, ...]
    folder: Path
    home: Path
    cases: tuple[str, ...]
    patients: Sequence[str]
    dice: np.ndarray

    @cached_property
    def mean(self) -> float:
        """Mean Dice."""
        return mean_dice(self.dice)

    @cached_property
    def interval(self) -> Interval:
        """95 % interval of the mean."""
        return mean_interval(self.dice, self.patients)


@dataclass(frozen=True)
class Findings:
    """The best of several candidates, and how to predict with it.

    Attributes:
        dataset_name, folds: What was cross-validated.
        found: All candidates.
        best: One of them.
        choice: Its postprocessing.
        ensembling: Whether pairs were looked at.
        source: Images to predict, in the commands.
    """

    dataset_name: str
    folds: Sequence[int]
    found: Sequence[Candidate]
    best: Candidate
    choice: PostprocessingChoice
    ensembling: bool
    source: Path | str

    @cached_property
    def classes(self) -> list[tuple[str, float, Interval, float]]:
        """Name of every class, its Dice with interval, and its Dice after postprocessing."""
        names = [name for name, _ in self.best.models[0].description.labels.foreground]
        intervals = class_intervals(self.best.dice, self.best.patients)
        return list(zip(names, class_means(self.best.dice), intervals, class_means(self.choice.after), strict=True))

    @cached_property
    def commands(self) -> list[list[str]]:
        """See :func:`prediction_commands`."""
        postprocessing, file = self.choice.postprocessing, self.best.home / POSTPROCESSING_FILE
        return prediction_commands(self.best.models, self.folds, self.source, postprocessing, file)

    @cached_property
    def report(self) -> list[str]:
        """Tables of every candidate, and of the best one's classes."""
        rows = []
        for one in sorted(self.found, key=lambda candidate: -candidate.mean):
            difference = ""
            if one is not self.best:
                difference = str(difference_interval(self.best.dice, one.dice, self.best.patients))
            rows.append([one.name, number(one.mean), str(one.interval), difference])
        best, cases, patients = self.best, len(self.best.cases), len(set(self.best.patients))
        mean = ("mean", best.mean, best.interval, mean_dice(self.choice.after))
        of_classes = [
            [name, number(value), str(interval), number(after)]
            for name, value, interval, after in [*self.classes, mean]
        ]
        return [
            *text_table(["configuration", "mean Dice", "95 % interval", "best minus this"], rows, left=4),
            "",
            f"{best.name}, {cases} cases{f' of {patients} patients' if patients < cases else ''}:",
            *text_table(["", "Dice", "95 % interval", "postprocessed"], of_classes, left=4),
        ]

    def information(self, results: Path) -> dict[str, Any]:
        """The content of ``inference_information.json``: nnU-Net's keys, with intervals.

        Args:
            results: The dataset's results, to which paths are relative.
        """
        best, after = self.best, self.choice.after
        return {
            "dataset_name_or_id": self.dataset_name,
            "folds": list(self.folds),
            "considered_models": [_identity(one.models[0]) for one in self.found if len(one.models) == 1],
            "ensembling_allowed": self.ensembling,
            "all_results": {one.name: one.mean for one in self.found},
            "all_intervals": {one.name: one.interval.as_list() for one in self.found},
            "best_model_or_ensemble": {
                "name": best.name,
                "selected_model_or_models": [_identity(model) for model in best.models],
                "result_on_crossval_pre_pp": best.mean,
                "interval_pre_pp": best.interval.as_list(),
                "result_on_crossval_post_pp": mean_dice(after),
                "interval_post_pp": mean_interval(after, best.patients).as_list(),
                "classes": {
                    name: {"Dice_pre_pp": value, "interval_pre_pp": interval.as_list(), "Dice_post_pp": post}
                    for name, value, interval, post in self.classes
                },
                "postprocessing": self.choice.postprocessing.describe(),
                "postprocessing_file": (best.home / POSTPROCESSING_FILE).relative_to(results).as_posix(),
                "some_plans_file": (best.folder / "plans.json").relative_to(results).as_posix(),
            },
            "commands": self.commands,
            "report": self.report,
        }

    def instructions(self) -> str:
        """The content of ``inference_instructions.txt``: comments, and commands that a shell runs as they stand."""
        postprocessing = self.choice.postprocessing
        by_itself = len(self.commands) == 1 and postprocessing != Postprocessing()
        lines = [
            f"How to predict with the best model of {self.dataset_name}.",
            "Give your folder of images after -i, and another one for the masks after the last -o.",
            "",
            *self.report,
            "",
            f"Postprocessing: {postprocessing.describe()}{', which samunet_predict applies by itself' * by_itself}.",
        ]
        comments = [f"# {line}".rstrip() for line in lines]
        return "\n".join([*comments, "", *map(shlex.join, self.commands)]) + "\n"


def prediction_commands(
    models: Sequence[ModelFolder],
    folds: Sequence[int],
    source: Path | str,
    postprocessing: Postprocessing,
    postprocessing_file: Path,
) -> list[list[str]]:
    """The commands, as lists of words, that predict ``source`` into :data:`OUTPUT`.

    ``samunet_predict`` applies a single model's postprocessing by itself; that of an ensemble is a command of its own.
    """
    if len(models) == 1:
        return [_predict(models[0], folds, source, OUTPUT)]
    parts = [f"{OUTPUT}_{number}" for number in range(1, len(models) + 1)]
    commands = [[*_predict(model, folds, source, part), "--save_probabilities"] for model, part in zip(models, parts)]
    averaged = f"{OUTPUT}_raw" if postprocessing.steps else OUTPUT
    decoding = ["-decoding", postprocessing.decoding] if postprocessing.decoding != ARGMAX else []
    commands.append(["samunet_ensemble", "-i", *parts, "-o", averaged, *decoding])
    if postprocessing.steps:
        file = str(postprocessing_file)
        commands.append(["samunet_apply_postprocessing", "-i", averaged, "-o", OUTPUT, "-pp_json", file])
    return commands


def _predict(model: ModelFolder, folds: Sequence[int], source: Path | str, output: str) -> list[str]:
    words = ["samunet_predict", "-i", str(source), "-o", output, "-d", model.dataset_name]
    words += ["-c", model.configuration_name, "-p", model.plans_name]
    return [*words, "-f", *map(str, folds)]


def _identity(model: ModelFolder) -> dict[str, str]:
    return {"configuration": model.configuration_name, "trainer": TRAINER_NAME, "plans_identifier": model.plans_name}
