"""Comparison of all trained configurations, and pairs of them, by cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from samunet import paths
from samunet.dataset.cases import visible
from samunet.dataset.layout import Dataset, find_dataset, load_dataset
from samunet.errors import SamunetError, argument, call
from samunet.evaluation.bootstrap import dice_table
from samunet.evaluation.summary import read_summary
from samunet.files import write_json, write_text
from samunet.inference.decoding import DICE
from samunet.inference.postprocessing import FILE_NAME as POSTPROCESSING_FILE
from samunet.models.choose import INFORMATION, INSTRUCTIONS, not_trained
from samunet.models.folder import Fold, ModelFolder, model_folders
from samunet.selection.crossval import (
    OutOfFold,
    accumulate,
    chosen_folds,
    crossval_folder,
    dataset_splits,
    not_validated,
    out_of_fold,
    patients_of,
    unfinished,
)
from samunet.selection.decoding import try_dice_decoding
from samunet.selection.determine import PostprocessingChoice, choose, write_chosen
from samunet.selection.ensemble import ensemble_files
from samunet.selection.findings import Candidate, Findings
from samunet.selection.masks import Pairs, write_model_facts, write_scored

log = logging.getLogger(__name__)


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
        configurations, plans_names: Which; None for all that are trained. One that is named must be finished.
        folds: Which; None for all of the dataset.
        ensembling: Whether pairs are looked at; they need ``--npz`` in training.
        dice_decoding: Whether masks of the highest expected Dice are tried for the best; also needs ``--npz``.
        overwrite: False keeps cross-validation results that are there already.

    Returns:
        The content of ``inference_information.json``.

    Raises:
        UsageError: If there is no such configuration or fold.
        SamunetError: If nothing is finished, or a file is missing or damaged.
    """
    name = find_dataset(dataset)
    results, loaded = paths.results_folder() / name, load_dataset(name)
    splits = dataset_splits(loaded)
    numbers = chosen_folds(splits, folds)
    models = _finished_models(name, numbers, configurations, plans_names)
    cases = {model.path: out_of_fold(model, numbers, loaded, splits) for model in models}
    members: list[tuple[ModelFolder, ...]] = [(model,) for model in models]
    if ensembling:
        members += [pair for pair in combinations(models, 2) if _can_average(pair, numbers, cases)]
    found = [_candidate(of, numbers, cases, loaded, overwrite, num_workers) for of in members]
    best = max(found, key=lambda candidate: candidate.mean)  # the first of equals, so a single model
    log.info("best: %s; choosing its postprocessing", best.name)
    choice = _choose_postprocessing(
        best, [cases[model.path] for model in best.models], loaded, dice_decoding, num_workers
    )
    for candidate in found:
        if candidate is not best and len(candidate.models) == 1:
            (candidate.home / POSTPROCESSING_FILE).unlink(missing_ok=True)
    choice.postprocessing.write(best.home / POSTPROCESSING_FILE, choice.decisions)
    images = loaded.folder / "imagesTs"
    findings = Findings(name, numbers, found, best, choice, ensembling, images if visible(images) else "imagesTs")
    write_text(results / INSTRUCTIONS, findings.instructions())
    information = findings.information(results)
    write_json(results / INFORMATION, information)
    return information


def _choose_postprocessing(
    best: Candidate, own: Sequence[dict[str, OutOfFold]], dataset: Dataset, dice_decoding: bool, num_workers: int
) -> PostprocessingChoice:
    """How the best one's masks are decoded and postprocessed; the masks that come of it are written.

    Args:
        best: The best.
        own: The validation cases of each of its models.
        dice_decoding: Whether masks of the highest expected Dice are tried.
    """
    model = best.models[0]
    labels, decoded = model.description.labels, None
    if dice_decoding:
        decoded = try_dice_decoding(best.folder, model, own, best.dice, best.patients, dataset, num_workers)
    masks = decoded.folder if decoded and decoded.chosen else best.folder
    pairs: Pairs = {case: (masks / own[0][case].mask.name, dataset.cases[case].label) for case in best.cases}
    choice = choose(pairs, labels, dataset.description, num_workers)
    if decoded:
        choice = replace(choice, decisions=[decoded.decision, *choice.decisions])
        if decoded.chosen:
            choice = replace(choice, postprocessing=replace(choice.postprocessing, decoding=DICE))
    write_chosen(pairs, choice, labels, dataset.description, best.folder, num_workers)
    return choice


def _finished_models(
    dataset_name: str, folds: Sequence[int], configurations: Sequence[str] | None, plans_names: Sequence[str] | None
) -> list[ModelFolder]:
    """The models to compare, in the order of their names."""
    trained = model_folders(paths.results_folder() / dataset_name)
    asked = trained
    for given, wanted, name in (
        ("plans_names", plans_names, "plans_name"),
        ("configurations", configurations, "configuration_name"),
    ):
        unknown = [one for one in wanted or () if one not in {getattr(model, name) for model in trained}]
        if unknown:
            raise not_trained(
                f"with {argument(given, unknown[0])} of {dataset_name}", [model.path.name for model in trained]
            )
        asked = [model for model in asked if wanted is None or getattr(model, name) in wanted]
    finished, calls = [], []
    for model in asked:
        missing = unfinished(model, folds)
        if not missing:
            finished.append(model)
            continue
        training = model.training_call(missing)
        calls.append(training)
        lacking = f"{model.path.name}: {not_validated(missing)}"
        if configurations is not None:
            raise SamunetError(lacking, f"{training}, or leave these folds out: `folds`")
        log.warning("left out: %s (%s)", lacking, training)
    if not finished:
        begun = f"none of {len(asked)} begun models has" if asked else "no model has"
        raise SamunetError(
            f"{dataset_name}: {begun} all of the folds {', '.join(map(str, folds))} trained and validated",
            calls[0] if calls else call("train_folds", dataset_name, "2d", list(folds)),
        )
    return finished


def _candidate(
    models: tuple[ModelFolder, ...],
    folds: Sequence[int],
    cases: dict[Path, dict[str, OutOfFold]],
    dataset: Dataset,
    overwrite: bool,
    num_workers: int,
) -> Candidate:
    """Gather the masks of a model, or average the probabilities of two, of all folds; and score them."""
    first, own = models[0], cases[models[0].path]
    name, home, folder = first.path.name, first.path, crossval_folder(first, folds)
    if len(models) > 1:
        names = [f"{model.plans_name}__{model.configuration_name}" for model in models]
        name = f"ensemble___{'___'.join(names)}___{'_'.join(map(str, folds))}"
        home = folder = first.path.parent / "ensembles" / name
    summary = _kept(folder, own, overwrite)
    if summary is None and len(models) == 1:
        summary = accumulate(first, folds, own, dataset, num_workers=num_workers)
    elif summary is None:
        labels, description = first.description.labels, dataset.description
        reader = description.reader

        def average(files: dict[str, Path]) -> None:
            parts = {
                case: ([cases[model.path][case].probabilities for model in models], own[case].mask, file)
                for case, file in files.items()
            }
            ensemble_files(parts, labels, reader, False, num_workers)

        pairs = {case: (one.mask, one.reference) for case, one in own.items()}
        facts = partial(write_model_facts, model=first)
        summary = write_scored(folder, pairs, average, facts, labels, description, num_workers)
    return Candidate(name, models, folder, home, tuple(own), patients_of(tuple(own), dataset), dice_table(summary))


def _kept(folder: Path, cases: dict[str, OutOfFold], overwrite: bool) -> dict[str, Any] | None:
    """The summary of an earlier run, where it is to be kept and holds these cases."""
    if overwrite or not (folder / "summary.json").is_file():
        return None
    summary = read_summary(folder / "summary.json")
    masks = [Path(entry.get("prediction_file", "")).name for entry in summary["metric_per_case"]]
    return summary if masks == [case.mask.name for case in cases.values()] else None


def _can_average(pair: Sequence[ModelFolder], folds: Sequence[int], cases: dict[Path, dict[str, OutOfFold]]) -> bool:
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
                model.path.name, len(without),
                model.training_call(folds, validation_only=True, save_probabilities=True),
            )  # fmt: skip
            return False
    return True
