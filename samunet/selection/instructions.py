"""The commands that predict as was found to be best, for people (a text that is also a shell script) and programs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from samunet.inference.decoding import ARGMAX
from samunet.inference.postprocessing import Postprocessing
from samunet.models.folder import ModelFolder

OUTPUT = "predictions"


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


def as_text(dataset_name: str, report: str, commands: Sequence[Sequence[str]], postprocessing: Postprocessing) -> str:
    """The content of ``inference_instructions.txt``: comments, and commands that a shell runs as they stand."""
    by_itself = len(commands) == 1 and postprocessing != Postprocessing()
    applied = ", which samunet_predict applies by itself" if by_itself else ""
    lines = [
        f"How to predict with the best model of {dataset_name}.",
        "Give your folder of images after -i, and another one for the masks after the last -o.",
        "",
        *report.splitlines(),
        "",
        f"Postprocessing: {postprocessing.describe()}{applied}.",
    ]
    comments = [f"# {line}".rstrip() for line in lines]
    return "\n".join([*comments, "", *(shlex.join(command) for command in commands)]) + "\n"


def _predict(model: ModelFolder, folds: Sequence[int], source: Path | str, output: str) -> list[str]:
    _, plans_name, configuration = model.path.name.split("__")
    words = ["samunet_predict", "-i", str(source), "-o", output, "-d", model.path.parent.name]
    return [*words, "-c", configuration, "-p", plans_name, "-f", *map(str, folds)]
