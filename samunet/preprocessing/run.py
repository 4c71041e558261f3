"""Preprocesses a whole dataset into stored slices; resumable, case by case: what is stored of unchanged files is kept.

Whether files changed is asked by name, size and time first, then by content.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from samunet.dataset.cases import Case, Dataset
from samunet.dataset.description import Description
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError, call, raise_failures
from samunet.files import file_hash, make_folder
from samunet.imageio.registry import companions
from samunet.paths import number_in
from samunet.plans import ConfigurationPlan, Plans, fingerprint_of
from samunet.preprocessing.case import prepare_case, read_case
from samunet.preprocessing.normalize import statistics_used
from samunet.preprocessing.store import FileFacts, StoredCase, read_record, stored_key, write_case, write_record
from samunet.workers import map_cases

_LAYOUT = 2  # of the records; another number has all cases stored again


def store_cases(
    cases: dict[str, Case],
    description: Description,
    plans: Plans,
    configuration: ConfigurationPlan,
    target: Path,
    *,
    num_workers: int = 0,
    progress: bool = True,
    tolerate_geometry: bool = False,
) -> int:
    """Store every case, with its label if it has one, that is not stored already with the same plans and source files.

    Args:
        target: Folder for the slices: of a dataset, ``configuration.data_identifier`` in its preprocessed folder.
        tolerate_geometry: See :func:`samunet.preprocessing.case.read_case`.

    Returns:
        Number of cases stored now; the others were finished before.

    Raises:
        SamunetError: If, after all others were stored, cases failed: of several a :class:`samunet.errors.CasesFailed`
            that lists them.
    """
    make_folder(target)
    _remove_old_layout(target)
    decisions = _plans_key(plans, configuration, description)

    def is_stored(case: Case) -> bool:
        key = stored_key(target, case.name, labelled=case.label is not None)
        return key.get("plans") == decisions and not changed_files(case, key["files"])

    todo = [name for name, case in cases.items() if not is_stored(case)]
    short = description.without_lists()
    jobs = [(cases[name], short, plans, configuration, target, decisions, tolerate_geometry) for name in todo]
    failures: dict[str, SamunetError] = {}
    for _ in map_cases(
        _store, todo, jobs,
        num_workers=num_workers, description="Preprocessing", progress=progress, failures=failures,
    ):  # fmt: skip
        pass
    raise_failures(failures, len(todo), "mend or remove these cases, then run the same command again")
    return len(todo)


def check_channels(
    configuration: ConfigurationPlan, description: Description, source: Path | str, hint: str | None = None
) -> None:
    """Raise a SamunetError unless the plans prepare as many channels as dataset.json lists.

    Args:
        source: The dataset.json, for the message.
        hint: What to do if they do not; None where one of the two was edited.
    """
    given, planned = len(description.channel_names), len(configuration.normalization)
    if given != planned:
        names = ", ".join(description.channel_names)
        raise SamunetError(
            f"{source}: channel_names lists {given} channel{'s' if given > 1 else ''} ({names}), but the plans were "
            f"made for {planned} (normalization)",
            hint or "undo the edit of channel_names, or plan again: `api.plan_and_preprocess(ID)`",
        )


def stored_cases(
    folder: Path,
    plans: Plans,
    configuration: ConfigurationPlan,
    description: Description,
    names: list[str],
    raw: Dataset | None,
    *,
    images_only: bool = False,
) -> dict[str, StoredCase]:
    """Open the stored cases of a configuration.

    Args:
        folder: The dataset's preprocessed folder.
        plans, configuration, description: What the cases must have been stored with.
        names: Which cases.
        raw: The raw dataset, if it is there: its files must be those that were stored.
        images_only: Labels are not going to be read, and may have changed.

    Raises:
        SamunetError: If some were never preprocessed, or with other plans, or their files changed since.
    """
    target = folder / configuration.data_identifier
    wanted = _plans_key(plans, configuration, description)
    keys = {name: stored_key(target, name) for name in names}
    outdated = [name for name, key in keys.items() if key.get("plans") != wanted]
    called = configuration.data_identifier.removeprefix(f"{plans.plans_name}_")
    again = call("preprocess", folder.name, [called], plans.plans_name)
    if outdated:
        old = " They were stored by an earlier version of samunet." if _of_old_layout(target) else ""
        raise SamunetError(
            f"{len(outdated)} of {len(names)} cases are not preprocessed with these plans in {target} "
            f"(for example {outdated[0]}).{old}",
            again,
        )
    if raw is not None:
        changed = changed_since(raw, {name: key["files"] for name, key in keys.items()}, images_only=images_only)
        if changed:
            raise SamunetError(changed, f"{call('add_cases', number_in(raw.name))} stores and measures them again")
        if not images_only:
            _remember_times(target, raw, keys)
    return {name: StoredCase(target, name, made_again=again) for name in names}


def changed_since(raw: Dataset, facts: dict[str, list[FileFacts]], *, images_only: bool = False) -> str:
    """Files of a raw dataset that changed after their cases were stored, as a sentence; empty if none.

    Args:
        raw: The dataset as it is now; cases that it lacks are not looked at.
        facts: Of each case; see :func:`file_facts`.
    """
    changed = {
        name: files
        for name, known in facts.items()
        if name in raw.cases and (files := changed_files(raw.cases[name], known, images_only=images_only))
    }
    if not changed:
        return ""
    listed = shortened([file for files in changed.values() for file in files])
    return f"{raw.folder}: the files of {len(changed)} cases changed after preprocessing: {listed}"


def _remember_times(target: Path, raw: Dataset, keys: dict[str, dict[str, Any]]) -> None:
    # After a copy to another machine all files have new times: their content need not be read at each start.
    for name, key in keys.items():
        if name not in raw.cases:
            continue
        times = [file.stat().st_mtime_ns for file, _ in _files(raw.cases[name])]
        files = [fact | {"time": time} for fact, time in zip(key["files"], times, strict=True)]
        if files != key["files"]:
            with suppress(SamunetError):  # the folder may belong to somebody else
                write_record(target, name, read_record(target, name) | {"key": key | {"files": files}})


def stored_files(folder: Path, names: Iterable[str]) -> dict[str, list[FileFacts]]:
    """Facts about the source files of the cases that are stored in ``folder``."""
    return {name: key["files"] for name in names if (key := stored_key(folder, name))}


def content_hash(files: dict[str, list[FileFacts]]) -> str:
    """A short hash of the content of cases' files, whatever their times."""
    return fingerprint_of({name: [fact["sha256"] for fact in facts] for name, facts in files.items()})


def _of_old_layout(target: Path) -> list[Path]:
    """Files of a case of version 0.1.0, which had no checksums, and labels with a suffix."""
    return sorted(target.glob("*_locations.npz"))


def _remove_old_layout(target: Path) -> None:
    """Labels of version 0.1.0 are not read any more: without this they would take their place for ever."""
    for places in _of_old_layout(target):
        name = places.name.removesuffix("_locations.npz")
        for file in (target / f"{name}.json", target / f"{name}_seg.b2nd", places):
            file.unlink(missing_ok=True)


def _store(
    case: Case,
    description: Description,
    plans: Plans,
    configuration: ConfigurationPlan,
    target: Path,
    decisions: str,
    tolerate_geometry: bool,
) -> None:
    key = {"plans": decisions, "files": file_facts(case)}  # before they are read: an edit meanwhile is noticed later
    image, label = read_case(case, description, tolerate_geometry=tolerate_geometry)
    prepared = prepare_case(image, label, plans, configuration, description.labels.ignore)
    del image, label  # their memory is needed for compression
    isotropic = len(configuration.planes) > 1
    write_case(target, case.name, prepared, key, description.labels.ignore, isotropic_chunks=isotropic)


def _plans_key(plans: Plans, configuration: ConfigurationPlan, description: Description) -> str:
    """Hash of the decisions about preprocessing alone, and of the ignore label, which stored places depend on."""
    return fingerprint_of(
        _LAYOUT,
        plans.orientation,
        plans.transpose_forward,
        configuration.spacing,
        configuration.normalization,
        configuration.use_mask_for_norm,
        {channel: values.model_dump() for channel, values in statistics_used(plans, configuration).items()},
        description.labels.ignore,
    )


def file_facts(case: Case) -> list[FileFacts]:
    """Name, size, time of change and SHA-256 of each of a case's files, and whose it is: image or label."""
    return [
        {
            "name": file.name,
            "bytes": (status := file.stat()).st_size,
            "time": status.st_mtime_ns,
            "sha256": file_hash(file),
            "of": of,
        }
        for file, of in _files(case)
    ]


def changed_files(case: Case, facts: list[FileFacts], *, images_only: bool = False) -> list[str]:
    """Those of a case's files, with their folders, that are not what they were when ``facts`` was written.

    Times differ after a copy to another machine: such files are read, and are unchanged if their content is.
    """
    wanted = ("image",) if images_only else ("image", "label")
    before = {(fact["name"], index): fact for index, fact in enumerate(fact for fact in facts if fact["of"] in wanted)}
    now = {(file.name, index): file for index, (file, of) in enumerate(_files(case)) if of in wanted}
    changed = {name for name, _ in before.keys() ^ now.keys()}
    for key in before.keys() & now.keys():
        file, status, fact = now[key], now[key].stat(), before[key]
        same_time = status.st_mtime_ns == fact["time"]
        if status.st_size != fact["bytes"] or not (same_time or file_hash(file) == fact["sha256"]):
            changed.add(f"{file.parent.name}/{file.name}")
    return sorted(changed)


def _files(case: Case) -> list[tuple[Path, str]]:
    """A case's files with what is read along with them (of a DICOM folder, its files), and whose: images first."""
    paths = [(path, "image") for path in case.images] + [(case.label, "label")] * (case.label is not None)
    return [
        (file, of)
        for path, of in paths
        for file in (sorted(path.iterdir()) if path.is_dir() else [path, *companions(path)])
        if file.is_file()
    ]


def check_cases(dataset: Dataset, known: Collection[str]) -> None:
    """Check that a raw dataset has the cases that were measured and stored.

    Raises:
        SamunetError: Naming those that were added or removed since.
    """
    added, removed = sorted(set(dataset.cases) - set(known)), sorted(set(known) - set(dataset.cases))
    parts = [
        f"{len(names)} training case{'s were' if len(names) > 1 else ' was'} {what} ({shortened(names)})"
        for names, what in ((added, "added"), (removed, "removed"))
        if names
    ]
    if parts:
        number = len(dataset.cases)
        first = "" if dataset.description.num_training in (None, number) else (
            f'write "numTraining": {number} in {dataset.folder / "dataset.json"}, then: '
        )  # fmt: skip
        raise SamunetError(
            f"{dataset.folder} changed after preprocessing: {' and '.join(parts)}",
            f"{first}{call('add_cases', number_in(dataset.name))} takes the change over, and leaves all other cases "
            "in their folds",
        )
