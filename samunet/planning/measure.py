"""From a raw dataset to its fingerprint: checked where that is asked for, split into folds, measured."""

from __future__ import annotations

import logging

from samunet import paths
from samunet.dataset.check import complete_check
from samunet.dataset.description import read_description
from samunet.dataset.layout import Dataset, find_dataset, load_dataset, read_dataset
from samunet.dataset.splits import folds_missing_classes, load_or_make_splits
from samunet.errors import SamunetError, UsageError, call
from samunet.files import write_json
from samunet.planning.fingerprint import FILE_NAME, Fingerprint, extract_fingerprint, read_fingerprint, source_hash
from samunet.planning.intensities import unusual_cases, warning
from samunet.workers import default_workers

log = logging.getLogger(__name__)


def load_checked(
    dataset: str | int, verify: bool, tolerate_geometry: bool, num_workers: int | None, progress: bool
) -> Dataset:
    """Load a raw dataset; with ``verify``, check every file of it first."""
    name = find_dataset(dataset)
    if verify:
        workers = default_workers() if num_workers is None else num_workers
        report = complete_check(
            read_dataset(name), num_workers=workers, progress=progress, tolerate_geometry=tolerate_geometry
        )
        path = report.write(paths.preprocessed_folder() / name)
        log.info("%s", report.to_text())
        if report.errors:
            raise SamunetError(
                f"{report.summary}; the table is above and in {path}",
                "correct the errors, then run the same command again",
            )
        log.info("written to %s", path)
    return load_dataset(name)


def measure(
    dataset: Dataset,
    clean: bool,
    num_workers: int | None,
    progress: bool,
    tolerate_geometry: bool,
    verified: bool,
    no_groups: bool = False,
) -> Fingerprint:
    """Make the folds of a dataset and measure it, unless its fingerprint is up to date.

    What is written to its preprocessed folder: ``dataset.json``, ``splits_final.json``, ``dataset_fingerprint.json``.

    Args:
        dataset: Its raw files.
        clean: Measure again in any case.
        num_workers: Processes; None for a number that suits this machine.
        progress: Whether to show a progress bar.
        tolerate_geometry: Only warn where channels, or image and label, differ in origin or direction.
        verified: Whether every file has been checked; if not, an error says how to have them checked.
        no_groups: Do not tell patients from names, now and later: every case stands for itself.

    Raises:
        UsageError: If dataset.json has groups, and ``no_groups`` is asked for.
        SamunetError: If a file cannot be used.
    """
    folder = paths.preprocessed_folder() / dataset.name
    path = folder / FILE_NAME
    log.info("%s: %d training cases", dataset.name, len(dataset.cases))
    groups = known_groups(dataset, no_groups)
    content = dataset.description.raw
    write_json(folder / "dataset.json", content if groups is None else content | {"groups": groups})
    splits = load_or_make_splits(folder, list(dataset.cases), groups, dataset.folder)
    if path.is_file() and not clean:
        fingerprint = read_fingerprint(path)
        if fingerprint.source == source_hash(dataset):
            log.info("the fingerprint is up to date")
            _report(splits, fingerprint, dataset)
            return fingerprint
    workers = default_workers() if num_workers is None else num_workers
    try:
        fingerprint = extract_fingerprint(
            dataset, num_workers=workers, progress=progress, tolerate_geometry=tolerate_geometry
        )
    except SamunetError as error:
        if verified:
            raise
        check = call("extract_fingerprint", paths.number_in(dataset.name), verify=True)
        hints = [error.hint] if error.hint else []
        raise type(error)(
            error.message, "\n  -> ".join([*hints, f"all problems of all cases at once: {check}"])
        ) from error
    fingerprint.write(path)
    if fingerprint.empty_cases:
        log.warning(
            "%d cases have no foreground: %s", len(fingerprint.empty_cases), ", ".join(fingerprint.empty_cases[:5])
        )
    _report(splits, fingerprint, dataset)
    return fingerprint


def known_groups(dataset: Dataset, no_groups: bool) -> dict[str, str] | None:
    """The patients that dataset.json names; empty if names must not be taken for patients, by now or once before."""
    given, copy = dataset.description.groups, paths.preprocessed_folder() / dataset.name
    if given and no_groups:
        raise UsageError(
            f"{dataset.folder / 'dataset.json'} names groups, so none are told from names", "leave out `no_groups`"
        )
    before = read_description(copy).groups if given is None and (copy / "dataset.json").is_file() else None
    return {} if no_groups or before == {} else given


def _report(splits: list[dict[str, list[str]]], fingerprint: Fingerprint, dataset: Dataset) -> None:
    for fold, split in enumerate(splits):
        log.info("fold %d: %d cases to train on, %d to validate", fold, len(split["train"]), len(split["val"]))
    if not splits:
        log.info("too few cases for folds: train with fold all")
    unusual = unusual_cases(fingerprint, list(dataset.description.channel_names))
    if unusual:
        log.warning("%s", warning(unusual))
    class_voxels = {name: case.class_voxels for name, case in fingerprint.cases.items()}
    for lopsided in folds_missing_classes(splits, class_voxels, dataset.description.labels):
        log.warning("%s", lopsided)
