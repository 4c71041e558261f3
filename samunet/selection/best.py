"""Compares all trained configurations, and pairs of them, by their cross-validation, and records the best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from samunet import paths
from samunet.dataset.cases import visible
from samunet.dataset.layout import Dataset, find_dataset, load_dataset
from samunet.errors import SamunetError, UsageError, quoted
from samunet.evaluation.bootstrap import (
    Interval,
    class_intervals,
    class_means,
    dice_table,
    difference_interval,
    mean_dice,
    mean_interval,
)
from samunet.evaluation.summary import read_summary
from samunet.files import atomic_folder, write_json, write_text
from samunet.inference.decoding import DICE
from samunet.inference.postprocessing import FILE_NAME as POSTPROCESSING_FILE
from samunet.models.choose import INFORMATION, INSTRUCTIONS
from samunet.models.folder import TRAINER_NAME, Fold, ModelFolder
from samunet.selection.crossval import (
    OutOfFold,
    accumulate,
    chosen_folds,
    crossval_folder,
    dataset_splits,
    out_of_fold,
    patients_of,
    score,
    trained_models,
    training_command,
    unfinished,
    write_model_facts,
)
from samunet.selection.decoding import try_dice_decoding
from samunet.selection.determine import Chosen, Pairs, choose, write_chosen
from samunet.selection.ensemble import ensemble_files
from samunet.selection.instructions import as_text, prediction_commands

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model, or a pair of models, and how it did.

    Attributes:
        name: Of its folder.
        models: One or two.
        folder: With its masks of all folds, and their ``summary.json``.
        home: Where its postprocessing belongs: the model's folder; of a pair the folder itself.
        cases: Names, in the order of ``dice``.
        dice: ``(cases, classes)``.
    """

    name: str
    models: tuple[ModelFolder, ...]
    folder: Path
    home: Path
    cases: tuple[str, ...]
    dice: np.ndarray


def find_best_configuration(
    dataset: str | int,
    configurations: Sequence[str] | None = None,
    plans_names: Sequence[str] | None = None,
    folds: Sequence[Fold] | None = None,
    *,
    ensembling: bool = True,
    dice_decoding: bool = True,
    overwrite: bool = True,
    num_workers: int = 0,
) -> dict[str, Any]:
    """Find the configuration, or pair of configurations, with the highest mean Dice over the cross-validation.

    Postprocessing is chosen for the best. What was found is written to the dataset's results:
    ``inference_information.json``, ``inference_instructions.txt``, and ``postprocessing.json`` where
    ``samunet_predict`` finds it.

    Args:
        dataset: Its id or name.
        configurations, plans_names: Which; None for all that are trained. One that is named must be finished.
        folds: Which; None for all of the dataset.
        ensembling: Whether pairs are looked at; they need ``--npz`` in training.
        dice_decoding: Whether masks of the highest expected Dice are tried for the best; also needs ``--npz``.
        overwrite: False keeps cross-validation results that are there already.
        num_workers: Worker processes; 0 means this one.

    Returns:
        The content of ``inference_information.json``.

    Raises:
        UsageError: If there is no such configuration or fold.
        SamunetError: If nothing is finished, or a file is missing or damaged.
    """
    name = find_dataset(dataset)
    results = paths.results_folder() / name
    loaded = load_dataset(name)
    splits = dataset_splits(loaded)
    numbers = chosen_folds(splits, folds)
    models = _finished_models(name, numbers, configurations, plans_names)
    cases = {model.path: out_of_fold(model, numbers, loaded, splits) for model in models}
    found = [_single(model, numbers, cases[model.path], loaded, overwrite, num_workers) for model in models]
    if ensembling:
        for pair in combinations(models, 2):
            if _can_average(pair, numbers, cases):
                found.append(_pair(pair, numbers, cases, loaded, overwrite, num_workers))
    best = max(found, key=lambda candidate: mean_dice(candidate.dice))  # the first of equals, so a single model
    log.info("best: %s; choosing its postprocessing", best.name)
    patients = patients_of(best.cases, loaded)
    own = [cases[model.path] for model in best.models]
    chosen = _choose_postprocessing(best, own, patients, loaded, dice_decoding, num_workers)
    for candidate in found:
        if candidate is not best and len(candidate.models) == 1:
            (candidate.home / POSTPROCESSING_FILE).unlink(missing_ok=True)
    chosen.postprocessing.write(best.home / POSTPROCESSING_FILE, chosen.decisions)
    images = loaded.folder / "imagesTs"
    source = images if visible(images) else "imagesTs"
    commands = prediction_commands(best.models, numbers, source, chosen.postprocessing, best.home / POSTPROCESSING_FILE)
    report = format_report(found, best, chosen, patients)
    information = _information(name, results, numbers, found, best, chosen, patients, ensembling, commands)
    information["report"] = report.splitlines()
    write_text(results / INSTRUCTIONS, as_text(name, report, commands, chosen.postprocessing))
    write_json(results / INFORMATION, information)
    return information


def _choose_postprocessing(
    best: Candidate,
    own: Sequence[dict[str, OutOfFold]],
    patients: Sequence[str],
    dataset: Dataset,
    dice_decoding: bool,
    num_workers: int,
) -> Chosen:
    """How the best one's masks are decoded and postprocessed; the masks that come of it are written.

    Args:
        best: The best.
        own: The validation cases of each of its models.
        patients: Of every case.
        dataset: With the references.
        dice_decoding: Whether masks of the highest expected Dice are tried.
        num_workers: Worker processes; 0 means this one.
    """
    model = best.models[0]
    labels = model.description.labels
    decoded = None
    if dice_decoding:
        decoded = try_dice_decoding(best.folder, model, own, best.dice, patients, dataset, num_workers)
    masks = decoded.folder if decoded and decoded.chosen else best.folder
    pairs: Pairs = {case: (masks / own[0][case].mask.name, dataset.cases[case].label) for case in best.cases}
    chosen = choose(pairs, labels, dataset.description, num_workers)
    if decoded:
        chosen = replace(chosen, decisions=[decoded.decision, *chosen.decisions])
        if decoded.chosen:
            chosen = replace(chosen, postprocessing=replace(chosen.postprocessing, decoding=DICE))
    write_chosen(pairs, chosen, labels, dataset.description, best.folder, num_workers)
    return chosen


def format_report(found: Sequence[Candidate], best: Candidate, chosen: Chosen, patients: Sequence[str]) -> str:
    """A table for people: every candidate with its interval, then the best one's classes and postprocessing."""
    width = max(len(candidate.name) for candidate in found)
    lines = [f"{'configuration':<{width}}  mean Dice  95 % interval     best minus this"]
    for candidate in sorted(found, key=lambda one: -mean_dice(one.dice)):
        line = f"{candidate.name:<{width}}  {_number(mean_dice(candidate.dice))}     "
        line += f"{mean_interval(candidate.dice, patients)!s:<16}"
        if candidate is not best:
            line += f"  {difference_interval(best.dice, candidate.dice, patients)}"
        lines.append(line.rstrip())
    names = [name for name, _ in best.models[0].description.labels.foreground]
    wide = max(len(name) for name in (*names, "mean"))
    grouped = len(set(patients)) < len(best.cases)
    lines += ["", f"{best.name}, {len(best.cases)} cases{f' of {len(set(patients))} patients' if grouped else ''}:"]
    lines.append(f"{'':<{wide}}  Dice    95 % interval     postprocessed")
    rows = zip(
        [*names, "mean"],
        [*class_means(best.dice), mean_dice(best.dice)],
        [*class_intervals(best.dice, patients), mean_interval(best.dice, patients)],
        [*class_means(chosen.after), mean_dice(chosen.after)],
    )
    lines += [
        f"{name:<{wide}}  {_number(value)}  {interval!s:<16}  {_number(new)}" for name, value, interval, new in rows
    ]
    return "\n".join(lines)


def _finished_models(
    dataset_name: str, folds: Sequence[int], configurations: Sequence[str] | None, plans_names: Sequence[str] | None
) -> list[ModelFolder]:
    """The models to compare, in the order of their names."""
    trained = [ModelFolder(path) for path in trained_models(dataset_name)]
    parts = {model.path: model.path.name.split("__")[1:] for model in trained}
    for flag, wanted, place in (("-p", plans_names, 0), ("-c", configurations, 1)):
        unknown = [one for one in wanted or () if one not in {part[place] for part in parts.values()}]
        if unknown:
            there = ", ".join(model.path.name for model in trained) or "nothing"
            raise UsageError(f"{flag} {unknown[0]}: no such model of {dataset_name} is trained (trained: {there})")
    asked = [
        model
        for model in trained
        if (plans_names is None or parts[model.path][0] in plans_names)
        and (configurations is None or parts[model.path][1] in configurations)
    ]
    finished, commands = [], []
    for model in asked:
        missing = unfinished(model, folds)
        if not missing:
            finished.append(model)
            continue
        command = training_command(model, missing)
        commands.append(command)
        lacking = f"{model.path.name}: fold {', '.join(map(str, missing))} is not trained and validated"
        if configurations is not None:
            raise SamunetError(lacking, f"{command}, or leave these folds out: -f")
        log.warning("left out: %s (%s)", lacking, command)
    if not finished:
        begun = f"none of {len(asked)} begun models has" if asked else "no model has"
        raise SamunetError(
            f"{dataset_name}: {begun} all of the folds {', '.join(map(str, folds))} trained and validated",
            commands[0] if commands else f"samunet_train {quoted(dataset_name)} 2d {' '.join(map(str, folds))}",
        )
    return finished


def _single(
    model: ModelFolder,
    folds: Sequence[int],
    cases: dict[str, OutOfFold],
    dataset: Dataset,
    overwrite: bool,
    num_workers: int,
) -> Candidate:
    folder = crossval_folder(model, folds)
    kept = _kept(folder, cases, overwrite)
    summary = kept or accumulate(model, folds, cases, dataset, num_workers=num_workers)
    return Candidate(model.path.name, (model,), folder, model.path, tuple(cases), dice_table(summary))


def _pair(
    pair: tuple[ModelFolder, ModelFolder],
    folds: Sequence[int],
    cases: dict[Path, dict[str, OutOfFold]],
    dataset: Dataset,
    overwrite: bool,
    num_workers: int,
) -> Candidate:
    """Average two models' probabilities of all folds and score the masks."""
    names = ["__".join(model.path.name.split("__")[1:]) for model in pair]
    name = f"ensemble___{'___'.join(names)}___{'_'.join(map(str, folds))}"
    folder = pair[0].path.parent / "ensembles" / name
    first, second = (cases[model.path] for model in pair)
    summary = _kept(folder, first, overwrite)
    if summary is None:
        labels, description = pair[0].description.labels, dataset.description
        reader = description.reader
        with atomic_folder(folder) as temporary:
            files = {
                case: ([one.probabilities, second[case].probabilities], one.mask, temporary / one.mask.name)
                for case, one in first.items()
            }
            ensemble_files(files, labels, reader, False, num_workers)
            scored = {case: (target, first[case].reference) for case, (_, _, target) in files.items()}
            summary = score(scored, pair[0], dataset, num_workers)
            for entry, (_, _, target) in zip(summary["metric_per_case"], files.values(), strict=True):
                entry["prediction_file"] = str(folder / target.name)
            write_json(temporary / "summary.json", summary)
            write_model_facts(temporary, pair[0])
    return Candidate(name, pair, folder, folder, tuple(first), dice_table(summary))


def _kept(folder: Path, cases: dict[str, OutOfFold], overwrite: bool) -> dict[str, Any] | None:
    """The summary of an earlier run, where it is to be kept and holds these cases."""
    if overwrite or not (folder / "summary.json").is_file():
        return None
    summary = read_summary(folder / "summary.json")
    masks = [Path(entry.get("prediction_file", "")).name for entry in summary["metric_per_case"]]
    return summary if masks == [case.mask.name for case in cases.values()] else None


def _can_average(
    pair: tuple[ModelFolder, ModelFolder], folds: Sequence[int], cases: dict[Path, dict[str, OutOfFold]]
) -> bool:
    """Whether both models have probabilities of every case, for the same labels; says what is lacking."""
    first, second = pair
    if first.description.labels != second.description.labels:
        log.warning("no ensemble of %s and %s: their labels differ", first.path.name, second.path.name)
        return False
    for model in pair:
        without = [name for name, case in cases[model.path].items() if not case.probabilities.is_file()]
        if without:
            log.warning(
                "no ensembles with %s: %d of its validation cases have no probabilities (%s)",
                model.path.name, len(without), training_command(model, folds, "--val", "--npz"),
            )  # fmt: skip
            return False
    return True


def _information(
    name: str,
    results: Path,
    folds: Sequence[int],
    found: Sequence[Candidate],
    best: Candidate,
    chosen: Chosen,
    patients: Sequence[str],
    ensembling: bool,
    commands: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """nnU-Net's keys, with intervals; paths are relative to the dataset's results."""
    singles = [candidate for candidate in found if len(candidate.models) == 1]
    classes = zip(
        (label for label, _ in best.models[0].description.labels.foreground),
        class_means(best.dice),
        class_intervals(best.dice, patients),
        class_means(chosen.after),
    )
    return {
        "dataset_name_or_id": name,
        "folds": list(folds),
        "considered_models": [_facts(candidate.models[0]) for candidate in singles],
        "ensembling_allowed": ensembling,
        "all_results": {candidate.name: mean_dice(candidate.dice) for candidate in found},
        "all_intervals": {candidate.name: _pair_of(mean_interval(candidate.dice, patients)) for candidate in found},
        "best_model_or_ensemble": {
            "name": best.name,
            "selected_model_or_models": [_facts(model) for model in best.models],
            "result_on_crossval_pre_pp": mean_dice(best.dice),
            "interval_pre_pp": _pair_of(mean_interval(best.dice, patients)),
            "result_on_crossval_post_pp": mean_dice(chosen.after),
            "interval_post_pp": _pair_of(mean_interval(chosen.after, patients)),
            "classes": {
                label: {"Dice_pre_pp": value, "interval_pre_pp": _pair_of(interval), "Dice_post_pp": after}
                for label, value, interval, after in classes
            },
            "postprocessing": chosen.postprocessing.describe(),
            "postprocessing_file": (best.home / POSTPROCESSING_FILE).relative_to(results).as_posix(),
            "some_plans_file": (best.folder / "plans.json").relative_to(results).as_posix(),
        },
        "commands": [list(command) for command in commands],
    }


def _facts(model: ModelFolder) -> dict[str, str]:
    _, plans_name, configuration = model.path.name.split("__")
    return {"configuration": configuration, "trainer": TRAINER_NAME, "plans_identifier": plans_name}


def _pair_of(interval: Interval) -> list[float] | None:
    return None if interval.low is None else list(interval)


def _number(value: float) -> str:
    return "-     " if np.isnan(value) else f"{value:.4f}"
