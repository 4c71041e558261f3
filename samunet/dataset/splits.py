"""Cross-validation: nnU-Net's five folds, with all cases of a patient on one side."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator
from typing_extensions import TypedDict

from samunet.dataset.labels import Labels
from samunet.dataset.names import one_spelling
from samunet.dataset.patients import patients
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError, UsageError, quoted
from samunet.files import read_as, write_json
from samunet.paths import number_in

log = logging.getLogger(__name__)

FILE_NAME = "splits_final.json"
NUM_FOLDS = 5
_SEED = 12345  # nnU-Net's: the same cases give the same folds there and here

Splits = list[dict[str, list[str]]]
_Cases = list[Annotated[str, AfterValidator(one_spelling)]]


class _Split(TypedDict):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012
    train: _Cases
    val: _Cases


def make_splits(case_names: Sequence[str], groups: Mapping[str, str] | None) -> tuple[Splits, str]:
    """Divide cases into training and validation.

    Without groups these are exactly nnU-Net's folds: scikit-learn's ``KFold(5, shuffle=True, random_state=12345)`` over
    the sorted names. With groups (given, or told from the names) the same division is made over
    the sorted groups, and cases follow their group. Fewer than five groups: one fold per group, which is its validation
    set. One group: no folds.

    Args:
        case_names: All cases.
        groups: See :func:`samunet.dataset.patients.patients`.

    Returns:
        ``[{"train": [...], "val": [...]}, ...]``, names sorted, and the reason.

    Raises:
        SamunetError: If ``groups`` does not name a group for every case.
    """
    names = sorted(case_names)
    membership, unit = _membership(names, groups)
    units = sorted(set(membership.values()))
    if len(units) < 2:
        return [], f"there is only one {unit}, so nothing can be held out: train with fold all"
    if len(units) < NUM_FOLDS:
        parts = [{one} for one in units]
        why = f"leave one {unit} out: there are only {len(units)}"
    else:
        # What sklearn's KFold does; importing sklearn for it would take longer than all other planning.
        order = np.arange(len(units))
        np.random.RandomState(_SEED).shuffle(order)
        parts = [{units[index] for index in part} for part in np.array_split(order, NUM_FOLDS)]
        why = f"{NUM_FOLDS} folds over {len(units)} {unit}s" + (f" ({len(names)} cases)" if unit == "group" else "")
    splits = [
        {
            "train": [name for name in names if membership[name] not in part],
            "val": [name for name in names if membership[name] in part],
        }
        for part in parts
    ]
    return splits, why


def load_or_make_splits(
    folder: Path, case_names: Sequence[str], groups: Mapping[str, str] | None, raw_folder: Path | None
) -> Splits:
    """The splits in ``folder``/splits_final.json; if there are none yet, make and write them.

    Where patients are told from names alone, that is said, with how to switch it off.

    Args:
        folder: The dataset's preprocessed folder.
        case_names: All training cases.
        groups: Case to patient, for :func:`make_splits`.
        raw_folder: Where a splits_final.json that came with the dataset would lie; as in nnU-Net, it is taken over.
            None where the raw dataset is not there.

    Raises:
        SamunetError: If a file is malformed, has cases that the dataset does not have, has cases that are trained on
            and validated in the same fold, or divides a patient of ``groups``; or if both folders have one and they
            differ.
    """
    path = Path(folder) / FILE_NAME
    given = _given(raw_folder)
    if path.is_file():
        splits = _read_splits(path, case_names)
        if given is not None and _as_sets(_read_splits(given, case_names)) != _as_sets(splits):
            raise SamunetError(
                f"{path} and {given} differ: which of them holds?",
                f"to take over the dataset's: rm {quoted(path)} (folds trained before then need --overwrite); to "
                f"keep the other: rm {quoted(given)}",
            )
        # No folds at all were made when there was one case; by now there may be more. And --no_groups undoes a guess.
        guess = groups == {} and splits == make_splits(case_names, None)[0] != make_splits(case_names, groups)[0]
        if not guess and (splits or given is not None or not make_splits(case_names, groups)[0]):
            _check_patients(splits, case_names, groups, path)
            return splits
    if given is not None:
        splits, why = _read_splits(given, case_names), f"{given} came with the dataset"
        _check_patients(splits, case_names, groups, given)
    else:
        splits, why = make_splits(case_names, groups)
        if groups is None:
            _tell_guess(patients(case_names, None), folder.name)
    write_json(path, splits)
    log.info("splits: %s; written to %s", why, path)
    return splits


def read_splits(path: Path) -> Splits:
    """The splits in a file, whichever cases they name.

    Raises:
        SamunetError: If it is missing or malformed.
    """
    return read_as(list[_Split], path, _hint(path))


def join_folds(
    folder: Path, case_names: Sequence[str], groups: Mapping[str, str] | None, raw_folder: Path | None
) -> dict[str, str]:
    """Put new cases into the folds of ``folder``/splits_final.json, and take out those that the dataset lost.

    All others stay where they are. A new case of a known patient goes where the patient is; others go, patient by
    patient, into the validation set that has the fewest cases, and are trained on in all other folds. Where there is
    one fold only, they are trained on. A splits_final.json in the raw folder is taken over as it is.

    Args:
        folder: The dataset's preprocessed folder.
        case_names: All training cases.
        groups: See :func:`samunet.dataset.patients.patients`.
        raw_folder: The raw dataset's.

    Returns:
        Each new case, and where it is now, in words.

    Raises:
        SamunetError: If a fold would have no case to train on or to validate, a file is malformed, or the raw folder's
            moves cases that were there before.
    """
    path, names = folder / FILE_NAME, sorted(case_names)
    given = _given(raw_folder)
    splits = read_splits(path) if path.is_file() else []
    if not splits:
        load_or_make_splits(folder, names, groups, raw_folder)
        return {}
    known = {name for split in splits for part in split.values() for name in part}
    kept = [{part: [name for name in split[part] if name in set(names)] for part in split} for split in splits]
    new = [name for name in names if name not in known]
    if given is not None:
        joined = _read_splits(given, names)
        if _as_sets(kept) != _as_sets([{part: [*known & set(split[part])] for part in split} for split in joined]):
            load_or_make_splits(folder, names, groups, raw_folder)  # says that they differ
    else:
        joined = _joined(kept, new, patients(names, groups) or {})
    _check_splits(joined, set(names), path)
    if joined != splits:
        write_json(path, joined)
    held_out = {name: fold for fold, split in enumerate(joined) for name in split["val"]}
    trained = {name for split in joined for name in split["train"]}
    return {
        name: f"validated by fold {held_out[name]}" if name in held_out
        else "trained on only" if name in trained else "in no fold"
        for name in new
    }  # fmt: skip


def _joined(splits: Splits, new: Sequence[str], groups: Mapping[str, str]) -> Splits:
    """Splits with new cases; see :func:`join_folds`."""
    units: dict[str, list[str]] = {}
    for name in new:
        units.setdefault(groups.get(name, name), []).append(name)
    for unit, names in sorted(units.items()):
        fewest = min(range(len(splits)), key=lambda fold: len(splits[fold]["val"]))
        beside = [
            {part for part in split if any(groups.get(name, name) == unit for name in split[part])} for split in splits
        ]
        for fold, split in enumerate(splits):
            alone = {"val" if fold == fewest and len(splits) > 1 else "train"}
            parts = beside[fold] if any(beside) else alone
            for part in parts:
                split[part] = sorted([*split[part], *names])
    return splits


def _given(raw_folder: Path | None) -> Path | None:
    """The splits_final.json that came with a dataset."""
    given = raw_folder / FILE_NAME if raw_folder is not None else None
    return given if given is not None and given.is_file() else None


def _check_patients(splits: Splits, names: Sequence[str], groups: Mapping[str, str] | None, path: Path) -> None:
    """Refuse splits that divide a patient; where patients are only told from names, warn."""
    membership = patients(names, groups) or {}
    for fold, split in enumerate(splits):
        sides = [{membership[name] for name in split[part] if name in membership} for part in ("train", "val")]
        divided = sorted(sides[0] & sides[1])
        if divided:
            cases = [name for name in sorted(names) if membership.get(name) == divided[0]]
            what = (
                f"{path}: fold {fold} both trains on and validates {len(divided)} patient{'s' * (len(divided) > 1)}, "
                f"such as {divided[0]} ({shortened(cases)})"
            )
            if groups is not None:
                raise SamunetError(
                    f"{what}, by groups in dataset.json",
                    f"correct groups; or have new folds made: rm {quoted(path)}, then "
                    "samunet_plan_and_preprocess again (folds trained before then need --overwrite)",
                )
            log.warning(
                "%s, as far as names tell: scores will be too good. For folds by patient: rm %s, then "
                "samunet_plan_and_preprocess again; %s",
                what, quoted(path), _how_to_tell(membership, path.parent.name),
            )  # fmt: skip
            return


def _tell_guess(guess: Mapping[str, str] | None, dataset: str) -> None:
    """Say which cases were taken for one patient."""
    if guess:
        log.warning(
            "patients were told from the names of the cases (%d patients, %d cases); %s",
            len(set(guess.values())), len(guess), _how_to_tell(guess, dataset),
        )  # fmt: skip


def _how_to_tell(guess: Mapping[str, str], dataset: str) -> str:
    """An example of a guess, and what to type or to write where it is wrong."""
    most = Counter(guess.values()).most_common(1)[0][0]
    cases = sorted(name for name, patient in guess.items() if patient == most)[:2]
    line = json.dumps({"groups": dict.fromkeys(cases, most)}, ensure_ascii=False)[1:-2]
    return (
        f"{' and '.join(cases)} count as one patient, {most}. If that is wrong: samunet_plan_and_preprocess -d "
        f"{number_in(dataset)} --no_groups, or name each case's patient in dataset.json: {line}, ...}}"
    )


def lopsided_folds(splits: Splits, class_voxels: Mapping[str, Mapping[str, int]], labels: Labels) -> list[str]:
    """Folds in which a class cannot be learnt or cannot be scored; one sentence each.

    Args:
        splits: Folds.
        class_voxels: Case to label value (as text) to number of voxels, as the fingerprint has them.
        labels: The classes or regions.
    """
    warnings = []
    for fold, split in enumerate(splits):
        for part, consequence in (("train", "is not learnt"), ("val", "is not scored")):
            known = [class_voxels[case] for case in split[part] if case in class_voxels]
            present = {int(value) for case in known for value, voxels in case.items() if voxels}
            absent = [name for name, region in labels.foreground if not present & set(region)]
            where = "to train on" if part == "train" else "to validate"
            if known and len(absent) == len(labels.foreground):
                warnings.append(f"fold {fold}: no case {where} has any structure")
            elif known and absent:
                listed = ", ".join(f'"{name}"' for name in absent)
                warnings.append(f"fold {fold}: no case {where} has {listed}, which {consequence} there")
    return warnings


def fold_cases(splits: Splits, fold: int | str, case_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold; fold ``"all"`` trains on every case and validates on none.

    Raises:
        UsageError: If there is no such fold.
    """
    if fold == "all":
        return sorted(case_names), []
    if not splits:
        count = f"only one case ({next(iter(case_names))})" if len(case_names) == 1 else "cases of one group only"
        raise UsageError(
            f"there is no fold {fold}: the dataset has {count}, so nothing can be held out for validation",
            "train with fold all, on every case",
        )
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        allowed = ", ".join([*map(str, range(len(splits))), "all"])
        raise UsageError(f"there is no fold {fold}", f"fold must be one of {allowed}")
    return list(splits[fold]["train"]), list(splits[fold]["val"])


def few_cases(names: Sequence[str], count: int, seed: int, groups: Mapping[str, str] | None) -> list[str]:
    """A fixed part of the training cases, for training with few annotations.

    Groups (patients) take turns in an order drawn by ``seed``, so that as many of them as possible take part, evenly.
    A smaller ``count`` gives a part of what a larger one gives.

    Args:
        names: Training cases of a fold.
        count: How many to keep.
        seed: Of the draw; the same cases and seed give the same part.
        groups: Case to patient; None where every case stands for itself.

    Returns:
        ``count`` names, sorted.

    Raises:
        UsageError: If there are fewer cases, or ``count`` is not positive.
    """
    if not 1 <= count <= len(names):
        raise UsageError(f"--num_cases must be 1 to {len(names)}, the training cases of this fold, got {count}")
    random = np.random.RandomState(seed)
    units = {name: (groups or {}).get(name, name) for name in names}
    order = {unit: place for place, unit in enumerate(random.permutation(sorted(set(units.values()))).tolist())}
    taken: Counter[str] = Counter()
    turns = []
    for name in random.permutation(sorted(names)).tolist():
        turns.append((taken[units[name]], order[units[name]], name))
        taken[units[name]] += 1
    return sorted(name for _, _, name in sorted(turns)[:count])


def _membership(names: list[str], groups: Mapping[str, str] | None) -> tuple[dict[str, str], str]:
    """Which unit each case belongs to, and what to call such a unit."""
    if not groups:
        inferred = patients(names, groups)
        return (dict(inferred), "group") if inferred else ({name: name for name in names}, "case")
    lacking = [name for name in names if name not in groups]
    if lacking:
        raise SamunetError(
            f"groups in dataset.json lacks {len(lacking)} of {len(names)} cases: {', '.join(lacking[:5])}",
            "name a group for every training case, or remove groups",
        )
    return {name: groups[name] for name in names}, "group"


def _read_splits(path: Path, case_names: Sequence[str]) -> Splits:
    splits = read_splits(path)
    _check_splits(splits, set(case_names), path)
    used = {name for split in splits for part in split.values() for name in part}
    unused = sorted(set(case_names) - used)
    if splits and unused:
        log.warning(
            "%d cases are in no fold of %s, such as %s (samunet_add_cases puts new cases into the folds)",
            len(unused), path, ", ".join(unused[:5]),
        )  # fmt: skip
    return splits


def _hint(path: Path) -> str:
    return (
        'it is a list of {"train": [case, ...], "val": [case, ...]}: correct the file, or delete it to have new folds '
        f"made: rm {quoted(path)}"
    )


def _as_sets(splits: Splits) -> list[tuple[set[str], set[str]]]:
    return [(set(split["train"]), set(split["val"])) for split in splits]


def _check_splits(splits: Splits, known: set[str], path: Path) -> None:
    hint = _hint(path)
    for fold, split in enumerate(splits):
        train, validation = set(split["train"]), set(split["val"])
        if not train or not validation:
            raise SamunetError(f"{path}: fold {fold} has no cases to {'validate' if train else 'train'} on", hint)
        overlap, unknown = sorted(train & validation), sorted((train | validation) - known)
        if overlap:
            raise SamunetError(
                f"{path}: fold {fold} both trains and validates on {len(overlap)} cases: {', '.join(overlap[:5])}", hint
            )
        if unknown:
            raise SamunetError(
                f"{path}: fold {fold} has {len(unknown)} cases that the dataset lacks: {', '.join(unknown[:5])}",
                "if they were removed on purpose, samunet_add_cases leaves all others in their folds; or " + hint,
            )
