"""Several folds of one model: one after the other, or side by side on devices or cores; and a table of the results."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samunet import paths
from samunet.dataset.layout import find_dataset
from samunet.dataset.splits import FILE_NAME as SPLITS_FILE
from samunet.dataset.splits import fold_cases, read_splits
from samunet.devices import resolve_device
from samunet.errors import SamunetError, UsageError, argument, check_number
from samunet.evaluation.summary import annotated_in_part, class_key, read_summary
from samunet.models.choose import fold_names
from samunet.models.folder import Fold, ModelFolder, model_folder_name, read_run
from samunet.plans import DEFAULT_PLANS_NAME
from samunet.signals import interrupts_held, prepare_worker
from samunet.tables import number, text_table
from samunet.training.options import TrainingOptions
from samunet.training.schedule import format_duration

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_PROGRAM_BYTES = 10**9  # of a training, beside its plan's memory
_MEMORY_SHARE = 0.8  # of what is free


def train_folds(
    dataset: str | int,
    configuration: str = "2d",
    folds: Sequence[Fold] = (0, 1, 2, 3, 4),
    options: TrainingOptions | None = None,
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    devices: Sequence[str] = (),
    folds_at_once: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Path]:
    """Train folds. Where there are several, those that are finished are left alone, unless asked for anew.

    Args:
        dataset: Its id or name.
        configuration, options, plans_name, progress: See :func:`samunet.training.run.train_fold`.
        folds: Which, in this order.
        settings: Fields of ``options``.
        devices: Several devices train as many folds at a time, each in a process of its own; one or none:
            ``options.device`` trains them.
        folds_at_once: How many folds a CPU trains at a time, each in a process of its own with its share of the
            threads; None for as many as there are threads, and memory for. A GPU trains one.

    Returns:
        The folds' folders, in the order of ``folds``.

    Raises:
        UsageError: If a fold is named twice, or several devices are given beside ``folds_at_once``.
        SamunetError: Of the first fold that fails. Folds that others train at that moment go on to their end; no
            further one is begun. The same call goes on from there.
    """
    options, dataset_name = replace(options or TrainingOptions(), **settings), find_dataset(dataset)
    fold_names(folds)
    _check_folds(dataset_name, folds)
    _check_places(devices, folds_at_once)
    model = ModelFolder(paths.results_folder() / dataset_name / model_folder_name(plans_name, configuration))
    todo = [fold for fold in folds if len(folds) == 1 or not _is_finished(model, fold, options)]
    done = [str(fold) for fold in folds if fold not in todo]
    if done:
        log.info(
            "finished already: fold %s (`overwrite=True` trains anew, `validation_only=True` validates again)",
            ", ".join(done),
        )
    jobs = [(dataset_name, configuration, fold, options, plans_name) for fold in todo]
    places = [_Place(device) for device in devices] if len(devices) > 1 else []
    if len(devices) < 2 and len(jobs) > 1:
        places = _places_on_cpu(jobs, folds_at_once)
    if len(places) > 1 and len(jobs) > 1:
        _side_by_side(jobs, places)
    else:
        from samunet.training.run import train_fold

        for job in jobs:
            train_fold(*job, progress=progress)
    return [model.fold(fold) for fold in folds]


@dataclass(frozen=True)
class _Place:
    """Where one fold trains at a time; ``threads`` on a CPU that several share."""

    device: str
    threads: int | None = None

    def __str__(self) -> str:
        if self.threads is None:
            return f"on {self.device}"
        return f"with {self.threads} thread{'s' if self.threads > 1 else ''}"


def _check_places(devices: Sequence[str], folds_at_once: int | None) -> None:
    if folds_at_once is None:
        return
    check_number("folds_at_once", folds_at_once, least=1, most=1000)
    if len(devices) > 1:
        raise UsageError("several devices train a fold each, so `folds_at_once` says nothing", "leave it out")


def _places_on_cpu(jobs: list[tuple], asked: int | None) -> list[_Place]:
    """Places for folds that a CPU trains side by side: two with a thread each do more than one with two.

    The memory of a training is that of its plan and of the program, about a gigabyte.
    """
    import psutil
    import torch

    from samunet.training.source import Source

    dataset_name, configuration, _, options, plans_name = jobs[0]
    if resolve_device(options.device).type != "cpu":
        return []
    threads = torch.get_num_threads()
    count = min(len(jobs), asked or threads)
    if asked is None:
        network, _ = Source(dataset_name, configuration, plans_name).network(options.encoder, options.checkpoint, "cpu")
        needed = network.memory_bytes + _PROGRAM_BYTES
        fitting = int(psutil.virtual_memory().available * _MEMORY_SHARE // needed)
        count = max(1, min(count, fitting))
    return [_Place("cpu", max(1, threads // count))] * count


def format_results(folders: Sequence[Path]) -> str:
    """A table for people: per fold its cases, Dice of every class and their mean, iterations and time."""
    names: dict[str, str] = {}
    if folders:
        labels = ModelFolder(folders[0].parent).description.labels
        names = {class_key(region): name for name, region in labels.foreground}
    rows, note, ignored = [], [], []
    for folder in folders:
        run, file = read_run(folder / "run.json"), folder / "validation" / "summary.json"
        scores = ["-"] * (2 + len(names))
        if file.is_file():
            summary = read_summary(file)
            means = [*(summary["mean"][key] for key in names), summary["foreground_mean"]]
            ignored += [case.get("n_ignored", 0) for case in summary["metric_per_case"]]
            scores = [str(len(summary["metric_per_case"])), *(number(mean["Dice"]) for mean in means)]
        else:
            note = ["fold all trains on every case: there is none left to score it on"]
        length = [str(run.get("iterations", "-")), format_duration(run.get("training_seconds", 0))]
        rows.append([folder.name.removeprefix("fold_"), *scores, *length])
    head = ["fold", "cases", *names.values(), "mean Dice", "iterations", "time"]
    partly = annotated_in_part(ignored)
    return "\n".join(text_table(head, rows, left=0) + note + ([partly] if partly else []))


def _check_folds(dataset_name: str, folds: Sequence[Fold]) -> None:
    """Refuse a fold that does not exist now, and not after hours of training others."""
    path = paths.preprocessed_folder() / dataset_name / SPLITS_FILE
    splits = read_splits(path) if path.is_file() else []
    for fold in folds if splits else ():
        fold_cases(splits, fold, [])


def _is_finished(model: ModelFolder, fold: Fold, options: TrainingOptions) -> bool:
    folder = model.fold(fold)
    again = options.overwrite or options.validation_only or options.validate_best
    if again or not (folder / "checkpoint_final.safetensors").is_file():
        return False
    return fold == "all" or (folder / "validation" / "summary.json").is_file()


def _side_by_side(jobs: list[tuple], places: Sequence[_Place]) -> None:
    """Train each job in a process of its own, as many at a time as there are places."""
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    waiting, free, running, failure = list(jobs), list(places), {}, None
    try:
        while running or (waiting and failure is None):
            while waiting and free and failure is None:
                job, place = waiting.pop(0), free.pop(0)
                process = context.Process(target=_train_in_process, args=(job, place, log.getEffectiveLevel(), reports))
                with interrupts_held():
                    process.start()
                running[job[2]] = (process, place)
                log.info("fold %s: %s", job[2], place)
            ended = _wait(running, reports)
            for fold, error in ended.items():
                process, place = running.pop(fold)
                process.join()
                free.append(place)
                failure = failure or error
    finally:
        # After an interruption the folds write their checkpoints before they end.
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()
    if failure is not None:
        raise failure


def _wait(running: dict, reports: Any) -> dict[Fold, SamunetError | None]:
    """Folds that ended, each with its error or None."""
    while True:
        try:
            fold, error = reports.get(timeout=_POLL_SECONDS)
            return {fold: error}
        except queue.Empty:
            pass
        dead = {fold: process.exitcode for fold, (process, _) in running.items() if not process.is_alive()}
        if dead and reports.empty():
            return {
                fold: SamunetError(
                    f"fold {fold}: its process ended with status {status}, most likely because memory ran out",
                    "the same command goes on from its last checkpoint; train fewer at a time, on fewer devices or, on "
                    f"a CPU, with {argument('folds_at_once', 1)}",
                )
                for fold, status in dead.items()
            }


def _train_in_process(job: tuple, place: _Place, level: int, reports: Any) -> None:
    """What a process of :func:`_side_by_side` does; every line that it writes names its fold."""
    prepare_worker()
    if place.threads is not None:
        import torch

        torch.set_num_threads(place.threads)
    fold = job[2]
    logger = logging.getLogger("samunet")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"fold {fold}: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    job = (*job[:3], replace(job[3], device=place.device), job[4])
    reports.put((fold, _error_of(job)))


def _error_of(job: tuple) -> SamunetError | None:
    from samunet.training.run import train_fold

    try:
        train_fold(*job, progress=False)
    except SamunetError as error:
        return error
    except Exception as error:  # whatever it is, it must not end as a silent exit status
        return SamunetError(f"fold {job[2]}: {type(error).__name__}: {error}")
    return None
