"""Choice of a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NotRequired  # pydantic needs these before Python 3.12

from typing_extensions import TypedDict

from samunet import paths
from samunet.dataset.layout import find_dataset
from samunet.errors import UsageError, argument, call, printable
from samunet.files import read_as
from samunet.models.folder import TRAINER_NAME, Fold, ModelFolder, model_folder_name, model_folders

# What samunet_find_best_configuration writes into a dataset's results.
INFORMATION = "inference_information.json"
INSTRUCTIONS = "inference_instructions.txt"


class _Model(TypedDict):
    plans_identifier: str
    configuration: str


class _Best(TypedDict):
    selected_model_or_models: list[_Model]


class Information(TypedDict):
    """What is read of an ``inference_information.json``."""

    folds: NotRequired[list[int | str]]
    best_model_or_ensemble: _Best


def choose_model(
    source: Path,
    dataset: str | int | None,
    configuration: str | None,
    plans_name: str | None,
    checkpoint: str,
    function: str = "predict",
) -> tuple[ModelFolder, str]:
    """Choose a trained model: the only one that fits; else the one whose dataset the input's real path names.

    Where several models of one dataset are left, it is the one that ``samunet_find_best_configuration`` recorded.

    Args:
        source: The input of the prediction.
        dataset: ``-d`` in any form, or None.
        configuration: ``-c`` or None.
        plans_name: ``-p`` or None.
        checkpoint: Only models with a fold that has this checkpoint count.
        function: Of the API, that asks: calls of it are given where several models fit.

    Returns:
        The model and a sentence that says why it was chosen.

    Raises:
        UsageError: If none fits, or several do; lists the candidates with the command for each.
    """
    results = paths.results_folder()
    name = find_dataset(dataset) if dataset is not None else None
    trained = [
        model for model in model_folders(results, f"Dataset*/{TRAINER_NAME}__*") if model.finished_folds(checkpoint)
    ]
    fitting = [model for model in trained if _fits(model, name, configuration, plans_name)]
    if not fitting:
        wanted = ", ".join(text for text in (name, plans_name, configuration) if text)
        what = f"of {wanted} in {results}" if wanted else f"in {results}"
        raise not_trained(what, map(_title, trained), "train one first, for example: `api.train(27, '2d', 0)`")
    if len(fitting) == 1:
        return fitting[0], "the only trained model" if len(trained) == 1 else "the only one that fits"
    named = _dataset_in(source.resolve())
    in_path = [model for model in fitting if model.path.parent.name == named]
    if len(in_path) == 1:
        return in_path[0], f"the input lies in {named}"
    left = in_path or fitting
    folders = {model.path.parent for model in left}
    chosen = _recorded_choice(next(iter(folders))) if len(folders) == 1 else []
    best = [model for model in left if model.path.name in chosen]
    if len(chosen) == 1 and best:
        return best[0], "`api.find_best_configuration` chose it"
    several = "several trained models fit; say which"
    if len(chosen) > 1:
        told = next(iter(folders)) / INSTRUCTIONS
        how = (
            f"as {told} says"
            if told.is_file()
            else (
                f"{' and '.join(map(printable, chosen))}: each with `save_probabilities=True` and an `output` of its "
                "own, then `api.ensemble`"
            )
        )
        several += f", or predict with the ensemble that was found to be best, {how}"
    calls = "\n".join(f"  {_call(function, model, source)}" for model in left)
    raise UsageError(f"{several}:\n{calls}")


def trained_model(dataset: str, configuration: str, plans_name: str) -> ModelFolder:
    """A model that was at least begun.

    Raises:
        UsageError: If there is none; says which there are, and how to train it.
    """
    results = paths.results_folder() / dataset
    model = ModelFolder(results / model_folder_name(plans_name, configuration))
    if not (model.path / "plans.json").is_file():
        there = [found.path.name for found in model_folders(results)]
        raise not_trained(f"{model.path.name} of {dataset}", there, f"train it: {model.training_call([0])}")
    return model


def not_trained(what: str, trained: Iterable[str], remedy: str | None = None) -> UsageError:
    """The error for a model that is asked for and not there; ``trained`` are the ones that are."""
    there = ", ".join(trained)
    return UsageError(
        f"there is no trained model {what} ({f'trained: {there}' if there else 'nothing is trained yet'})", remedy
    )


def fold_names(folds: Sequence[Fold]) -> list[Fold]:
    """Folds as they are named everywhere: numbers, or ``all``.

    Raises:
        UsageError: If one is named twice: it would count twice in a mean.
    """
    names: list[Fold] = [int(fold) if str(fold).isdecimal() else fold for fold in folds]
    twice = next((fold for fold in names if names.count(fold) > 1), None)
    if twice is not None:
        raise UsageError(f"fold {twice} is named twice", "name every fold once")
    return names


def _recorded_choice(results: Path) -> list[str]:
    """Folder names of the model or models that were found to be best; empty if nothing was recorded."""
    if not (results / INFORMATION).is_file():
        return []
    again = f"make it again: {call('find_best_configuration', results.name)}"
    selected = read_as(Information, results / INFORMATION, again)["best_model_or_ensemble"]["selected_model_or_models"]
    return [model_folder_name(model["plans_identifier"], model["configuration"]) for model in selected]


def parse_folds(model: ModelFolder, folds: Sequence[Fold] | None, checkpoint: str) -> list[Fold]:
    """Folds to use: those asked for, or all that are finished.

    Raises:
        UsageError: If one asked for is not finished, or named twice.
    """
    finished = model.finished_folds(checkpoint)
    if not folds:
        return finished
    wanted = fold_names(folds)
    missing = [fold for fold in wanted if not (model.fold(fold) / f"checkpoint_{checkpoint}.safetensors").is_file()]
    if missing:
        raise UsageError(
            f"fold {missing[0]} of {_title(model)} has no {checkpoint} checkpoint (finished: {finished})",
            f"use {argument('folds', finished)}, or train it: {model.training_call(missing[:1])}",
        )
    return wanted


def _fits(model: ModelFolder, dataset: str | None, configuration: str | None, plans_name: str | None) -> bool:
    return (
        dataset in (None, model.path.parent.name)
        and configuration in (None, model.configuration_name)
        and plans_name in (None, model.plans_name)
    )


def _dataset_in(path: Path) -> str | None:
    """The last ``DatasetXXX_Name`` part of a path."""
    named = [part for part in path.parts if paths.DATASET_NAME.match(part)]
    return named[-1] if named else None


def _title(model: ModelFolder) -> str:
    return f"{model.path.parent.name}/{model.path.name}"


def _call(function: str, model: ModelFolder, source: Path) -> str:
    names = {"configuration": model.configuration_name, "plans_name": model.plans_name}
    if function == "label_next":
        return call(function, model.dataset_name, source, **names)
    return call(function, source, "preds", dataset=model.dataset_name, **names)
