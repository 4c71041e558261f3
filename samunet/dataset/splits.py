"""Cross-validation: nnU-Net's five folds, with all cases of a patient on one side.

Patients are those of dataset.json's ``groups``; without it they are inferred from the cases' names: sessions, visits,
times, sides and frames.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator
from typing_extensions import TypedDict

from samunet.dataset.labels import Labels
from samunet.dataset.names import one_spelling
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError, UsageError, argument, call, quoted
from samunet.files import read_as, read_json, write_json
from samunet.paths import number_in

log = logging.getLogger(__name__)

FILE_NAME = "splits_final.json"
NUM_FOLDS = 5
_SEED = 12345  # nnU-Net's: the same cases give the same folds there and here

MIN_PLAIN_GROUPS = 5  # fewer are more likely a name's first part, such as train_ and test_, unless they are numbered
_NUMBERED = re.compile(r"(?:.*\D)?(\d{1,3})[a-z]?", re.IGNORECASE)  # P1, case003

_END = r"(?=[_\-. ]|$)"
_NUMBER = r"[_\-. ]?\d+[a-z]?"
_WORDS = (
    r"(?:ses|sess|session|visit|timepoint|time[_\-. ]?point|tp|time|day|week|month|year|frame|phase|"
    r"follow[_\-. ]?up|fu)"
)
_SIDES = r"(?:left|right)"
# Words for one of several images of a patient. Stripped from any place but the first.
_CLEAR = re.compile(
    rf"(?:[_\-. ]|(?<=\d)(?=[a-z])){_WORDS}{_NUMBER}{_END}"
    rf"|[_\-. ](?:baseline|follow[_\-. ]?up|pre[_\-]?op|post[_\-]?op|{_SIDES}){_END}"
    rf"|(?<=\d){_SIDES}{_END}",
    re.IGNORECASE,
)
_FIRST_SIDE = re.compile(rf"^{_SIDES}[_\-. ](?=.)", re.IGNORECASE)
# The same, but short enough to mean something else: only after a name with a number in it, the patient's.
_SHORT = re.compile(
    rf"[_\-. ](?:[tvdwmy]\d+|(?:scan|run)[_\-]?\d+|\d+(?:d|w|m|mo|y)|l|r|od|os|ed|es|bl|fu|pre|post){_END}"
    rf"|[_\-. ](?:19|20)\d\d([_\-.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01]){_END}"
    rf"|(?<=\d)[lr]$|(?<=\d)T\d+$",
    re.IGNORECASE,
)
_BIDS = re.compile(r"^(sub-[A-Za-z0-9]+)")

Splits = list[dict[str, list[str]]]
_Cases = list[Annotated[str, AfterValidator(one_spelling)]]
_Groups = Mapping[str, str] | None


class _Split(TypedDict):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012
    train: _Cases
    val: _Cases


def patients(case_names: Sequence[str], groups: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Case to patient: as given, else inferred from the names; None where every case stands for itself.

    Args:
        groups: Of dataset.json. None leaves it to the names; empty says that cases have nothing to do with each other.
    """
    return infer_groups(case_names) if groups is None else groups or None


def infer_groups(case_names: Sequence[str]) -> dict[str, str] | None:
    """Infer patients from names.

    A name's session, visit, time point, date, side or frame is taken off: ``sub-07_ses-2`` is of ``sub-07``,
    ``P12_T0`` of ``P12``, ``case07_left`` of ``case07``. Where no two names become one by this, and all are of the form
    ``<patient>_<frame>``, the frame is what follows the last underscore.

    Returns:
        Case to patient; None unless some have more than one case, and there are two patients or more. (Of the form
        ``<patient>_<frame>`` five or more, unless patients are numbered as ``P1_2`` is: ``hippocampus_001`` gives one
        patient, which no dataset means.)
    """
    marked = {name: _patient(name) for name in case_names}
    sizes = Counter(marked.values())
    if len(sizes) > 1 and max(sizes.values()) > 1:
        return marked
    if not all("_" in name for name in case_names):
        return None
    groups = {name: name.rsplit("_", 1)[0] for name in case_names}
    sizes = Counter(groups.values())
    numbered = [match for match in map(_NUMBERED.fullmatch, sizes) if match]
    # Numbers that all are higher may be years, as in BraTS20 and BraTS21.
    few = len(sizes) > 1 and len(numbered) == len(sizes) and min(int(match[1]) for match in numbered) < 10
    enough = len(sizes) >= MIN_PLAIN_GROUPS or few
    return groups if enough and max(sizes.values()) > 1 else None


def _patient(name: str) -> str:
    bids = _BIDS.match(name)
    if bids:
        return _CLEAR.sub("", bids[1]) or bids[1]
    rest = _FIRST_SIDE.sub("", name)
    rest = _CLEAR.sub("", rest) or rest
    while (match := _SHORT.search(rest)) and re.search(r"\d", rest[: match.start()]):
        rest = rest[: match.start()] + rest[match.end() :]
    return rest


def make_splits(case_names: Sequence[str], groups: _Groups) -> tuple[Splits, str]:
    """Divide cases into training and validation.

    Without groups these are exactly nnU-Net's folds: scikit-learn's ``KFold(5, shuffle=True, random_state=12345)`` over
    the sorted names. With groups (given, or inferred from the names) the same division is made over
    the sorted groups, and cases follow their group. Fewer than five groups: one fold per group, which is its validation
    set. One group: no folds.

    Returns:
        ``[{"train": [...], "val": [...]}, ...]``, names sorted, and the reason.

    Raises:
        SamunetError: If ``groups`` does not name a group for every case.
    """
    names = sorted(case_names)
    if lacking := [name for name in names if groups and name not in groups]:
        raise SamunetError(
            f"groups in dataset.json lacks {len(lacking)} of {len(names)} cases: {', '.join(lacking[:5])}",
            "name a group for every training case, or remove groups",
        )
    grouped = patients(names, groups)
    unit, membership = ("group", grouped) if grouped else ("case", {name: name for name in names})
    units = sorted({membership[name] for name in names})
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
    validated = [[name for name in names if membership[name] in part] for part in parts]
    return [{"train": [name for name in names if name not in val], "val": val} for val in validated], why


def load_or_make_splits(folder: Path, case_names: Sequence[str], groups: _Groups, raw_folder: Path | None) -> Splits:
    """The splits in ``folder``/splits_final.json; if there are none yet, make and write them.

    A warning says where patients were inferred from names, and how to switch that off.

    Args:
        folder: The dataset's preprocessed folder.
        groups: See :func:`patients`.
        raw_folder: Where a splits_final.json that came with the dataset would lie; as in nnU-Net, it is taken over.
            None where the raw dataset is not there.

    Raises:
        SamunetError: If a file is malformed, has cases that the dataset does not have, has cases that are trained on
            and validated in the same fold, or divides a patient of ``groups``; or if both folders have one and they
            differ.
    """
    path = Path(folder) / FILE_NAME
    given = _given(raw_folder)
    came = None if given is None else _read_splits(given, case_names)
    if path.is_file():
        splits = _read_splits(path, case_names)
        if came is not None and _as_sets(came) != _as_sets(splits):
            raise SamunetError(
                f"{path} and {given} differ: which of them holds?",
                f"to take over the dataset's: rm {quoted(path)} (folds trained before then need `overwrite=True`); to "
                f"keep the other: rm {quoted(given)}",
            )
        # No folds at all were made when there was one case; by now there may be more. And ``no_groups`` undoes a guess.
        guess = groups == {} and splits == make_splits(case_names, None)[0] != make_splits(case_names, groups)[0]
        if not guess and (splits or came is not None or not make_splits(case_names, groups)[0]):
            _check_patients(splits, case_names, groups, path)
            return splits
    if came is not None:
        splits, why = came, f"{given} came with the dataset"
        _check_patients(splits, case_names, groups, given)
    else:
        splits, why = make_splits(case_names, groups)
        if groups is None and (guessed := patients(case_names, None)):
            log.warning(
                "patients were told from the names of the cases (%d patients, %d cases); %s",
                len(set(guessed.values())), len(guessed), _how_to_tell(guessed, folder.name),
            )  # fmt: skip
    write_json(path, splits)
    log.info("splits: %s; written to %s", why, path)
    return splits


def read_splits(path: Path) -> Splits:
    """The splits in a file, whichever cases they name.

    Raises:
        SamunetError: If it is missing or malformed.
    """
    return read_as(list[_Split], path, _hint(path))


def join_folds(folder: Path, case_names: Sequence[str], groups: _Groups, raw_folder: Path | None) -> dict[str, str]:
    """Put new cases into the folds of ``folder``/splits_final.json, and take out those that the dataset lost.

    All others stay where they are. A new case of a known patient goes where the patient is; others go, patient by
    patient, into the validation set that has the fewest cases, and are trained on in all other folds. Where there is
    one fold only, they are trained on. A splits_final.json in the raw folder is taken over as it is.

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
    units: dict[str, list[str]] = {}
    for name in new:
        units.setdefault(groups.get(name, name), []).append(name)
    for unit, names in sorted(units.items()):
        fewest = min(range(len(splits)), key=lambda fold: len(splits[fold]["val"]))
        alone = [["val" if fold == fewest and len(splits) > 1 else "train"] for fold in range(len(splits))]
        beside = [
            [part for part in split if unit in {groups.get(name, name) for name in split[part]}] for split in splits
        ]
        for split, parts in zip(splits, beside if any(beside) else alone):
            for part in parts:
                split[part] = sorted([*split[part], *names])
    return splits


def _given(raw_folder: Path | None) -> Path | None:
    given = None if raw_folder is None else raw_folder / FILE_NAME
    return given if given is not None and given.is_file() else None


def _check_patients(splits: Splits, names: Sequence[str], groups: _Groups, path: Path) -> None:
    """Refuse splits that divide a patient; only warn where patients were inferred from names."""
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
                    "`api.plan_and_preprocess` again (folds trained before then need `overwrite=True`)",
                )
            log.warning(
                "%s, as far as names tell: scores will be too good. For folds by patient: rm %s, then "
                "`api.plan_and_preprocess` again; %s",
                what, quoted(path), _how_to_tell(membership, path.parent.name),
            )  # fmt: skip
            return


def _how_to_tell(guess: Mapping[str, str], dataset: str) -> str:
    """An example of a guess, and what to type or to write where it is wrong."""
    most = Counter(guess.values()).most_common(1)[0][0]
    cases = sorted(name for name, patient in guess.items() if patient == most)[:2]
    line = json.dumps({"groups": dict.fromkeys(cases, most)}, ensure_ascii=False)[1:-2]
    without = call("plan_and_preprocess", number_in(dataset), no_groups=True)
    return (
        f"{' and '.join(cases)} count as one patient, {most}. If that is wrong: {without}, or name each case's patient "
        f"in dataset.json: {line}, ...}}"
    )


def folds_missing_classes(splits: Splits, class_voxels: Mapping[str, Mapping[str, int]], labels: Labels) -> list[str]:
    """Folds in which a class cannot be learnt or cannot be scored; one sentence each.

    Args:
        class_voxels: Case to label value (as text) to number of voxels, as the fingerprint has them.
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


def subsample_cases(names: Sequence[str], count: int, seed: int, groups: _Groups) -> list[str]:
    """A fixed part of the training cases, for training with few annotations.

    Groups (patients) take turns in an order drawn by ``seed``, so that as many of them as possible take part, evenly.
    A smaller ``count`` gives a part of what a larger one gives.

    Returns:
        ``count`` of the names, sorted; the same for the same cases and seed.

    Raises:
        UsageError: If there are fewer cases, or ``count`` is not positive.
    """
    if not 1 <= count <= len(names):
        raise UsageError(
            f"{argument('num_cases')} must be 1 to {len(names)}, the training cases of this fold, got {count}"
        )
    random = np.random.RandomState(seed)
    units = {name: (groups or {}).get(name, name) for name in names}
    order = {unit: place for place, unit in enumerate(random.permutation(sorted(set(units.values()))).tolist())}
    taken: Counter[str] = Counter()
    turns = []
    for name in random.permutation(sorted(names)).tolist():
        turns.append((taken[units[name]], order[units[name]], name))
        taken[units[name]] += 1
    return sorted(name for _, _, name in sorted(turns)[:count])


def named_cases(train: Sequence[str], names: Sequence[str], given: Sequence[str] | str | Path) -> list[str]:
    """Those of a fold's training cases that are named; some that it validates are left out, and said so.

    Args:
        train: The fold's training cases.
        names: All cases of the dataset.
        given: Names; or a file with them: JSON, a list or an object with one under ``cases``; else text, a name a line,
            in which what follows # does not count.

    Returns:
        Sorted, each once.

    Raises:
        SamunetError: If the file cannot be read.
        UsageError: If it names no case, one that the dataset lacks, or none of this fold's training cases.
    """
    where, wanted = ("`cases`", given) if not isinstance(given, (str, Path)) else (str(given), _names_in(Path(given)))
    if not wanted:
        raise UsageError(f"{where} names no case", f"name some of the fold's {len(train)}, such as {train[0]}")
    unknown = [name for name in dict.fromkeys(wanted) if name not in set(names)]
    if unknown:
        close = difflib.get_close_matches(str(unknown[0]), names, 1, 0.5) or [names[0]]
        raise UsageError(
            f"{where} names cases that the dataset lacks: {shortened([str(name) for name in unknown])}",
            f"names are those of the files without channel and ending, such as {close[0]}",
        )
    held_out = sorted(set(wanted) - set(train))
    chosen = sorted(set(wanted) & set(train))
    if not chosen:
        raise UsageError(
            f"this fold trains on none of the cases that {where} names: it validates them",
            "train another fold, or fold all, which trains on every case that is named",
        )
    if held_out:
        log.warning(
            "%d of the cases that %s names are validated by this fold, so it does not train on them: %s (all does)",
            len(held_out), where, shortened(held_out),
        )  # fmt: skip
    return chosen


def _names_in(file: Path) -> list[str]:
    if file.suffix.lower() == ".json":
        content = read_json(file, "give a list of names, or a text file with a name a line")
        content = content.get("cases") if isinstance(content, dict) else content
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise UsageError(f"{file} holds no list of names", 'write ["case_1", "case_2"], or {"cases": [...]}')
        return content
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise UsageError(f"{file} is no file", "give a JSON or text file that names cases")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        fix = "give a JSON or text file that names cases"
        raise UsageError(f"{file} cannot be read: {error.strerror}", fix) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no text", "save it as plain text in UTF-8, a name a line") from error
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def _read_splits(path: Path, case_names: Sequence[str]) -> Splits:
    splits = read_splits(path)
    _check_splits(splits, set(case_names), path)
    used = {name for split in splits for part in split.values() for name in part}
    unused = sorted(set(case_names) - used)
    if splits and unused:
        log.warning(
            "%d cases are in no fold of %s, such as %s (`api.add_cases` puts new cases into the folds)",
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
        overlap, unknown = sorted(train & validation), sorted((train | validation) - known)
        if not train or not validation:
            raise SamunetError(f"{path}: fold {fold} has no cases to {'validate' if train else 'train'} on", hint)
        if overlap:
            raise SamunetError(
                f"{path}: fold {fold} both trains and validates on {len(overlap)} cases: {', '.join(overlap[:5])}", hint
            )
        if unknown:
            raise SamunetError(
                f"{path}: fold {fold} has {len(unknown)} cases that the dataset lacks: {', '.join(unknown[:5])}",
                "if they were removed on purpose, `api.add_cases` leaves all others in their folds; or " + hint,
            )
