"""Cross-validation splits: nnU-Net's folds, but never with one patient on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from samunet.errors import SamunetError, UsageError
from samunet.files import read_json, write_json

Splits = list[dict[str, list[str]]]
FILE_NAME = "splits_final.json"
_FOLDS = 5
_SEED = 12345


def infer_groups(case_names: Sequence[str]) -> dict[str, str] | None:
    """Patients from ids of the form ``<patient>_<frame>``.

    Returns:
        Case to patient, if all ids have that form, there are at least five patients, and some have several cases;
        else None.
    """
    groups = {name: name.rpartition("_")[0] for name in case_names}
    number = len(set(groups.values()))
    if not all(groups.values()) or number < _FOLDS or number == len(groups):
        return None
    return groups


def make_splits(case_names: Sequence[str], groups: Mapping[str, str] | None = None) -> tuple[Splits, str]:
    """Five folds over cases, or over groups of cases that belong together.

    The folds are those of sklearn's ``KFold(5, shuffle=True, random_state=12345)`` over sorted names, as nnU-Net's are.
    With fewer than five groups each is left out once; with one there are no folds.

    Args:
        case_names: All training cases.
        groups: Case to group; None to look for patients in the names.

    Returns:
        Splits, and the reason for the grouping.

    Raises:
        SamunetError: If ``groups`` lacks a case.
    """
    names = sorted(case_names)
    why = "groups in dataset.json"
    if groups is None:
        groups = infer_groups(names)
        why = "ids look like <patient>_<frame>: cases of a patient stay together"
    if groups is None:
        groups, why = {name: name for name in names}, "every case on its own"
    missing = [name for name in names if name not in groups]
    if missing:
        raise SamunetError(f"dataset.json: groups lacks {len(missing)} cases, for example {missing[0]}")
    units = sorted({groups[name] for name in names})
    if len(units) < 2:
        return [], f"{why}; one group alone allows no folds"
    if len(units) < _FOLDS:
        held_out = [[unit] for unit in units]
        why += f"; only {len(units)} groups: each is left out once"
    else:
        from sklearn.model_selection import KFold

        folds = KFold(_FOLDS, shuffle=True, random_state=_SEED).split(units)
        held_out = [[units[index] for index in validation] for _, validation in folds]
    return [
        {
            "train": [name for name in names if groups[name] not in held],
            "val": [name for name in names if groups[name] in held],
        }
        for held in map(set, held_out)
    ], why


def load_or_make_splits(folder: Path, case_names: Sequence[str], groups: Mapping[str, str] | None = None) -> Splits:
    """Splits of a dataset: those in ``splits_final.json`` if it is there, else new ones, written there.

    Raises:
        SamunetError: If the file is malformed, names unknown cases, or puts a case on both sides.
    """
    path = Path(folder) / FILE_NAME
    if path.is_file():
        return _checked(read_json(path), set(case_names), path)
    splits, _ = make_splits(case_names, groups)
    write_json(path, splits)
    return splits


def fold_cases(splits: Splits, fold: int | str, case_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold; ``all`` trains on everything and validates on nothing.

    Raises:
        UsageError: If there is no such fold.
    """
    if fold == "all":
        return sorted(case_names), []
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        there = f"folds 0 to {len(splits) - 1}, or all" if splits else "all (there are too few cases for folds)"
        raise UsageError(f"there is no fold {fold}", f"use {there}")
    return splits[fold]["train"], splits[fold]["val"]


def _checked(data: object, known: set[str], path: Path) -> Splits:
    remedy = "correct it, or delete it to have new splits made"
    if not isinstance(data, list) or not all(
        isinstance(fold, dict) and {"train", "val"} <= fold.keys() for fold in data
    ):
        raise SamunetError(f'{path} must be a list of {{"train": [...], "val": [...]}}', remedy)
    for index, fold in enumerate(data):
        train, validation = set(fold["train"]), set(fold["val"])
        if train & validation:
            raise SamunetError(f"{path}: fold {index} has {min(train & validation)} in train and in val", remedy)
        if (train | validation) - known:
            unknown = min((train | validation) - known)
            raise SamunetError(f"{path}: fold {index} names {unknown}, which is no training case", remedy)
        if not train:
            raise SamunetError(f"{path}: fold {index} has no training case", remedy)
    return data
