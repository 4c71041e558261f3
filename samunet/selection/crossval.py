"""Masks of a cross-validation: every case as predicted by the fold that had not seen it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from samunet import paths
from samunet.dataset.cases import with_sidecar
from samunet.dataset.description import read_description
from samunet.dataset.layout import Dataset, find_dataset, load_dataset
from samunet.dataset.names import case_stem
from samunet.dataset.outputs import check_place
from samunet.dataset.splits import Splits, fold_cases, load_or_make_splits, patients
from samunet.errors import SamunetError, UsageError, call
from samunet.imageio.registry import mask_ending
from samunet.models.choose import trained_model
from samunet.models.folder import Fold, ModelFolder
from samunet.plans import DEFAULT_PLANS_NAME
from samunet.preprocessing.run import changed_since, content_hash, stored_files
from samunet.selection.masks import write_model_facts, write_scored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutOfFold:
    """One case of a cross-validation.

    Attributes:
        fold: That had not seen it.
        mask: As this fold predicted it.
        reference: Its label.
    """

    fold: int
    mask: Path
    reference: Path

    @property
    def probabilities(self) -> Path:
        """Where ``--npz`` keeps what the mask was made from; may not exist."""
        return self.mask.parent / f"{case_stem(self.mask)}.npz"


def accumulate_crossval_results(
    dataset: str | int,
    configuration: str = "2d",
    folds: Sequence[Fold] | None = None,
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    output: str | Path | None = None,
    num_workers: int = 0,
) -> dict[str, Any]:
    """Gather the validation masks of a model's folds in one folder, and score them together.

    Args:
        configuration, plans_name: Which model.
        folds: Which; None for all folds of the dataset.
        output: Where to; None for ``crossval_results_folds_0_1_2_3_4`` in the model's folder, which is replaced.

    Returns:
        The content of ``summary.json`` there.

    Raises:
        UsageError: If there is no such model or fold, or ``output`` is not empty, or the current folder.
        SamunetError: If a fold is not finished, or was trained on a case that it validates.
    """
    output = None if output is None else _new_folder(Path(os.path.abspath(output)))
    name = find_dataset(dataset)
    model = trained_model(name, configuration, plans_name)
    loaded = load_dataset(name)
    splits = dataset_splits(loaded)
    folds = chosen_folds(splits, folds)
    cases = out_of_fold(model, folds, loaded, splits)
    return accumulate(model, folds, cases, loaded, output, num_workers)


def _new_folder(output: Path) -> Path:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not empty", "give a new folder, or leave out `output`")
    check_place(output)
    if output == Path.cwd():
        raise UsageError(
            f"{output} is the current folder, which cannot be replaced", "give a new folder: `output='results'`"
        )
    return output


def accumulate(
    model: ModelFolder,
    folds: Sequence[int],
    cases: dict[str, OutOfFold],
    dataset: Dataset,
    output: Path | None = None,
    num_workers: int = 0,
) -> dict[str, Any]:
    """What :func:`accumulate_crossval_results` does once everything is found; an existing folder is replaced."""
    target = output or crossval_folder(model, folds)

    def copy(files: dict[str, Path]) -> None:
        for name, target in files.items():
            for file in with_sidecar(cases[name].mask):
                shutil.copyfile(file, target.parent / file.name)

    return write_scored(
        target,
        {name: (case.mask, case.reference) for name, case in cases.items()},
        copy,
        partial(write_model_facts, model=model),
        model.description.labels,
        dataset.description,
        num_workers,
        noted={name: {"fold": case.fold} for name, case in cases.items()},
    )


def crossval_folder(model: ModelFolder, folds: Sequence[int]) -> Path:
    """Where the masks of a model's cross-validation are gathered."""
    return model.path / f"crossval_results_folds_{'_'.join(map(str, folds))}"


def dataset_splits(dataset: Dataset) -> Splits:
    """The dataset's folds."""
    folder = paths.preprocessed_folder() / dataset.name
    return load_or_make_splits(folder, sorted(dataset.cases), _groups(dataset), dataset.folder)


def chosen_folds(splits: Splits, folds: Sequence[Fold] | None) -> list[int]:
    """The folds asked for, or all.

    Raises:
        UsageError: If one of them does not exist, or is ``all``, which has no case that it was not trained on.
    """
    if folds is None:
        folds = range(len(splits))
        if not folds:
            raise UsageError("the dataset has no folds, so there is nothing to cross-validate", "it has too few cases")
    numbers = [int(fold) if str(fold).isdecimal() else fold for fold in folds]
    if "all" in numbers:
        raise UsageError(
            "fold all is one model that was trained on every case: it has no case that it had not seen",
            "give numbered folds, or leave out `folds` for all of them",
        )
    for fold in numbers:
        fold_cases(splits, fold, [])
    return sorted(set(numbers))


def unfinished(model: ModelFolder, folds: Sequence[int]) -> list[int]:
    """Those of the folds that are not trained and validated to the end."""
    return [
        fold
        for fold in folds
        if not (model.fold(fold) / "checkpoint_final.safetensors").is_file()
        or not (model.fold(fold) / "validation" / "summary.json").is_file()
    ]


def not_validated(folds: Sequence[Fold]) -> str:
    """In words, such as ``folds 1, 2 are not trained and validated``."""
    several = len(folds) > 1
    return f"fold{'s' * several} {', '.join(map(str, folds))} {'are' if several else 'is'} not trained and validated"


def out_of_fold(model: ModelFolder, folds: Sequence[int], dataset: Dataset, splits: Splits) -> dict[str, OutOfFold]:
    """Every case that the folds validate, by name.

    Only cases that the splits name count: masks that an earlier division left behind are not looked at.

    Raises:
        SamunetError: If a fold is not finished, lacks a mask, or trained on what it validates; or if two folds validate
            the same case.
    """
    missing = unfinished(model, folds)
    if missing:
        raise SamunetError(f"{model.path}: {not_validated(missing)}", model.training_call(missing))
    cases: dict[str, OutOfFold] = {}
    _warn_of_changes(model, folds, dataset)
    for fold in folds:
        _, validation = fold_cases(splits, fold, sorted(dataset.cases))
        seen = sorted(set(validation) & set(model.run(fold).get("training_cases", [])))
        if seen:
            raise SamunetError(
                f"fold {fold} of {model.path} was trained on {len(seen)} cases that splits_final.json has it validate, "
                f"such as {seen[0]}",
                f"the splits changed since: {model.training_call([fold], overwrite=True)}",
            )
        folder = model.fold(fold) / "validation"
        own = {
            name: OutOfFold(fold, folder / f"{name}{mask_ending(dataset.cases[name].images[0])}", label)
            for name in validation
            if (label := dataset.cases[name].label) is not None
        }
        lacking = [name for name, case in own.items() if not case.mask.is_file()]
        if lacking:
            raise SamunetError(
                f"{folder} lacks {len(lacking)} of {len(own)} masks, such as that of {lacking[0]}",
                model.training_call([fold], validation_only=True),
            )
        twice = sorted(own.keys() & cases.keys())
        if twice:
            raise SamunetError(
                f"case {twice[0]} is validated by fold {cases[twice[0]].fold} and by fold {fold}",
                "give folds that have no case in common: `folds`",
            )
        cases |= own
    return dict(sorted(cases.items()))


def _warn_of_changes(model: ModelFolder, folds: Sequence[int], dataset: Dataset) -> None:
    """Say so where images or labels are not those that the folds were trained on."""
    source = paths.preprocessed_folder() / dataset.name / model.configuration.data_identifier
    stored = stored_files(source, dataset.cases)
    changed = changed_since(dataset, stored)
    if changed:
        log.warning("%s (to train on them: %s, then %s)", changed,
            call("add_cases", paths.number_in(dataset.name)), model.training_call(folds, overwrite=True))  # fmt: skip
    for fold in folds:
        run = model.run(fold)
        trained = {name: stored[name] for name in run.get("training_cases", []) if name in stored}
        same = run.get("training_data") in (None, content_hash(trained))
        if len(trained) == len(run.get("training_cases", [])) and not same:
            log.warning(
                "fold %s was trained on other images or labels than are stored now: %s",
                fold, model.training_call([fold], overwrite=True),
            )  # fmt: skip


def patients_of(names: Sequence[str], dataset: Dataset) -> list[str]:
    """The patient of every case; each case its own where nothing tells patients apart."""
    groups = patients(sorted(dataset.cases), _groups(dataset)) or {}
    return [groups.get(name, name) for name in names]


def _groups(dataset: Dataset) -> dict[str, str] | None:
    """As dataset.json has them; else as its copy beside the plans, where ``--no_groups`` is written down."""
    copy = paths.preprocessed_folder() / dataset.name
    if dataset.description.groups is None and (copy / "dataset.json").is_file():
        return read_description(copy).groups
    return dataset.description.groups
