"""The pipeline's steps as functions: what the commands call, and what a Python program may call.

    from samunet import api
    api.plan_and_preprocess("027")
    api.train("027", "2d", 0, api.TrainingOptions(seconds=600))
    api.predict("imagesTs", "preds", dataset="027")

With worker processes (the default on more than two cores) a script's own steps must stand under
``if __name__ == "__main__":``, as for any spawned process.

Datasets are named as on the command line: ``27``, ``"027"`` or ``"Dataset027_ACDC"``. Every function raises
:class:`samunet.errors.SamunetError` with a sentence for the user.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samunet import paths
from samunet.dataset.layout import Dataset, find_dataset, list_cases, load_dataset
from samunet.dataset.splits import load_or_make_splits
from samunet.errors import SamunetError, UsageError
from samunet.files import read_json, write_json
from samunet.plans import DEFAULT_PLANS_NAME, Plans, read_plans
from samunet.training.options import TrainingOptions
from samunet.workers import default_workers

if TYPE_CHECKING:
    from samunet.inference.predictor import PredictionOptions, Predictor
    from samunet.planning.fingerprint import Fingerprint
    from samunet.planning.planner import PlannerOptions

__all__ = [
    "PlannerOptions",
    "PredictionOptions",
    "Predictor",
    "TrainingOptions",
    "evaluate",
    "extract_fingerprint",
    "import_samed",
    "merge_adapter",
    "plan_and_preprocess",
    "plan_experiment",
    "predict",
    "preprocess",
    "train",
]  # fmt: skip

log = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    """Classes that need heavy imports, on first use."""
    if name in ("Predictor", "PredictionOptions"):
        from samunet.inference import predictor

        return getattr(predictor, name)
    if name == "PlannerOptions":
        from samunet.planning.planner import PlannerOptions

        return PlannerOptions
    raise AttributeError(f"module 'samunet.api' has no attribute {name!r}")


def extract_fingerprint(
    dataset: str | int, *, clean: bool = False, num_workers: int | None = None, progress: bool = True
) -> Fingerprint:
    """Measure a raw dataset and write ``dataset_fingerprint.json``; also copies dataset.json and makes the splits.

    A fingerprint of the same files is kept.

    Args:
        dataset: Its id or name.
        clean: Measure again in any case.
        num_workers: Processes; None for a number that suits this machine.
        progress: Whether to show progress bars.
    """
    return _extract(load_dataset(find_dataset(dataset)), clean, num_workers, progress)


def plan_experiment(dataset: str | int, options: PlannerOptions | None = None) -> Plans:
    """Plan from an existing fingerprint and write ``<plans name>.json``.

    Configurations that a user added to an existing plans file by hand are kept.
    """
    from samunet.dataset.description import read_description
    from samunet.planning.fingerprint import FILE_NAME, read_fingerprint
    from samunet.planning.planner import PlannerOptions, plan

    name = find_dataset(dataset)
    options = options or PlannerOptions()
    folder = paths.preprocessed_folder() / name
    if not (folder / FILE_NAME).is_file():
        raise SamunetError(f"{name} has no fingerprint in {folder}", f"samunet_extract_fingerprint -d {_number(name)}")
    plans = plan(name, read_description(folder), read_fingerprint(folder / FILE_NAME), options)
    path = folder / f"{options.plans_name}.json"
    _keep_own_configurations(path, plans)
    plans.write(path)
    log.info("plans written to %s", path)
    for network in plans.configuration("2d").networks.values():
        height, width = network.input_shape
        log.info(
            "%s: input %d x %d px, batch %d x %d, %.1f GB, %.0f GFLOP for each training image",
            network.encoder, height, width, network.batch_size, network.accumulation,
            network.memory_bytes / 1e9, network.training_gflops,
        )  # fmt: skip
    return plans


def preprocess(
    dataset: str | int,
    configurations: Sequence[str] = ("2d",),
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    num_workers: int | None = None,
    progress: bool = True,
) -> None:
    """Store the slices of a planned dataset; finished cases are kept where plans and files are unchanged."""
    name = find_dataset(dataset)
    path = paths.preprocessed_folder() / name / f"{plans_name}.json"
    if not path.is_file():
        raise SamunetError(f"{name} has no plans called {plans_name}", f"samunet_plan_experiment -d {_number(name)}")
    _preprocess(load_dataset(name), read_plans(path), configurations, num_workers, progress)


def plan_and_preprocess(
    dataset: str | int,
    options: PlannerOptions | None = None,
    configurations: Sequence[str] = ("2d",),
    *,
    clean: bool = False,
    store: bool = True,
    num_workers: int | None = None,
    progress: bool = True,
) -> Plans:
    """Fingerprint, plans and stored slices in one go.

    Args:
        dataset: Its id or name.
        options: See :class:`samunet.planning.planner.PlannerOptions`.
        configurations: Which to preprocess.
        clean: Measure the fingerprint again.
        store: False stops after planning.
        num_workers: Processes; None for a number that suits this machine.
        progress: Whether to show progress bars.
    """
    loaded = load_dataset(find_dataset(dataset))
    _extract(loaded, clean, num_workers, progress)
    plans = plan_experiment(loaded.name, options)
    for configuration in configurations:
        plans.configuration(configuration)
    if store:
        _preprocess(loaded, plans, configurations, num_workers, progress)
    return plans


def train(
    dataset: str | int,
    configuration: str = "2d",
    fold: int | str = 0,
    options: TrainingOptions | None = None,
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    progress: bool = True,
) -> Path:
    """Train one fold (or ``"all"`` cases), resuming where an earlier run stopped; returns the fold's folder."""
    from samunet.training.run import train_fold

    return train_fold(
        find_dataset(dataset), configuration, fold, options or TrainingOptions(), plans_name, progress=progress
    )


def predict(
    source: str | Path,
    output: str | Path,
    *,
    dataset: str | int | None = None,
    configuration: str | None = None,
    plans_name: str | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "final",
    options: PredictionOptions | None = None,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> list[str]:
    """Predict every case of a folder.

    Args:
        source: Folder with images named like training images (``case_0000.nii.gz``).
        output: Folder for the masks.
        dataset, configuration, plans_name, folds: Which model; what is left out is found (see
            :func:`samunet.inference.choose.choose_model`).
        checkpoint: ``final`` or ``best``.
        options: How to predict.
        part: ``(index, number)`` of a share of the cases, to divide work between processes.
        progress: Whether to show a progress bar.

    Returns:
        Names of the cases predicted now.
    """
    from samunet.inference.choose import choose_model, parse_folds
    from samunet.inference.predictor import PredictionOptions, Predictor, write_provenance

    source, output = Path(source), Path(output)
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder", "give the folder that holds the images: -i imagesTs")
    model, why = choose_model(source, dataset, configuration, plans_name, checkpoint)
    chosen = parse_folds(model, folds, checkpoint)
    log.info("model: %s (%s)", model.path, why)
    log.info("folds: %s, checkpoint: %s", ", ".join(map(str, chosen)), checkpoint)
    index, number = part
    if not 0 <= index < number:
        raise UsageError(f"-part_id must be 0 to {number - 1} with -num_parts {number}, got {index}")
    cases = dict(list(list_cases(source, model.description).items())[index::number])
    options = options or PredictionOptions()
    predictor = Predictor.from_folder(model.path, chosen, checkpoint, options)
    arguments = {"input": str(source), "model": model.path.name, "dataset": model.path.parent.name}
    write_provenance(output, model, arguments | {"folds": chosen, "checkpoint": checkpoint, **vars(options)})
    done = predictor.predict_cases(cases, output, progress=progress)
    skipped = len(cases) - len(done)
    log.info("%d masks written to %s%s", len(done), output, f", {skipped} were there already" if skipped else "")
    return done


def evaluate(predictions: str | Path, references: str | Path, dataset_json: str | Path) -> dict[str, Any]:
    """Score a folder of masks against references; returns the content of ``summary.json``, which is written as well."""
    from samunet.dataset.description import description_from_json
    from samunet.evaluation.summary import evaluate_folder

    description = description_from_json(read_json(Path(dataset_json)), str(dataset_json))
    summary = evaluate_folder(
        Path(predictions), Path(references), description.labels, description.file_ending, description.reader_override
    )
    write_json(Path(predictions) / "summary.json", summary)
    return summary


def merge_adapter(
    dataset: str | int,
    configuration: str,
    fold: int | str,
    output: str | Path,
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    checkpoint: str = "final",
) -> Path:
    """Write a trained fold as a plain SAM checkpoint, LoRA folded in; see :mod:`samunet.inference.sam_export`."""
    from samunet.inference.model_folder import ModelFolder, model_folder_name
    from samunet.inference.sam_export import export_sam

    folder = paths.results_folder() / find_dataset(dataset) / model_folder_name(plans_name, configuration)
    if not (folder / "plans.json").is_file():
        there = ", ".join(path.parent.name for path in folder.parent.glob("samunetTrainer__*/plans.json")) or "none"
        raise UsageError(f"there is no trained model {folder.name} in {folder.parent} (models there: {there})")
    return export_sam(ModelFolder(folder), fold, checkpoint, Path(output))


def import_samed(file: str | Path, **options: Any) -> Path:
    """Make a model folder of a checkpoint that SAMed published; returns it.

    Args:
        file: The ``.pth`` file.
        options: Fields of :class:`samunet.training.samed_import.SamedImport`.
    """
    from samunet.training.samed_import import SamedImport, import_checkpoint

    return import_checkpoint(Path(file), SamedImport(**options))


def _extract(dataset: Dataset, clean: bool, num_workers: int | None, progress: bool) -> Fingerprint:
    from samunet.planning.fingerprint import FILE_NAME, extract_fingerprint, read_fingerprint, source_hash

    folder = paths.preprocessed_folder() / dataset.name
    path = folder / FILE_NAME
    log.info("%s: %d training cases", dataset.name, len(dataset.cases))
    write_json(folder / "dataset.json", dataset.description.raw)
    _report_splits(load_or_make_splits(folder, list(dataset.cases), dataset.description.groups))
    if path.is_file() and not clean:
        fingerprint = read_fingerprint(path)
        if fingerprint.source == source_hash(dataset):
            log.info("the fingerprint is up to date")
            return fingerprint
    workers = default_workers() if num_workers is None else num_workers
    fingerprint = extract_fingerprint(dataset, num_workers=workers, progress=progress)
    fingerprint.write(path)
    if fingerprint.empty_cases:
        log.warning(
            "%d cases have no foreground: %s", len(fingerprint.empty_cases), ", ".join(fingerprint.empty_cases[:5])
        )
    return fingerprint


def _preprocess(
    dataset: Dataset, plans: Plans, configurations: Sequence[str], num_workers: int | None, progress: bool
) -> None:
    from samunet.preprocessing.run import preprocess_dataset

    workers = default_workers() if num_workers is None else num_workers
    folder = paths.preprocessed_folder() / dataset.name
    for name in configurations:
        configuration = plans.configuration(name)
        made = preprocess_dataset(dataset, plans, configuration, folder, num_workers=workers, progress=progress)
        kept = len(dataset.cases) - made
        where = folder / configuration.data_identifier
        log.info("%s: %d cases stored in %s%s", name, made, where, f", {kept} were up to date" if kept else "")


def _keep_own_configurations(path: Path, plans: Plans) -> None:
    """Carry over configurations that are in an older plans file and that the planner never makes itself."""
    from samunet.planning.rules import SAM_INPUT_SIZES

    if not path.is_file():
        return
    planned = {"2d", *(f"2d_{size}" for size in SAM_INPUT_SIZES)}
    for name, configuration in read_json(path).get("configurations", {}).items():
        if name not in planned:
            plans.configurations[name] = configuration


def _report_splits(splits: list[dict[str, list[str]]]) -> None:
    for fold, split in enumerate(splits):
        log.info("fold %d: %d cases to train on, %d to validate", fold, len(split["train"]), len(split["val"]))
    if not splits:
        log.info("too few cases for folds: train with fold all")


def _number(name: str) -> str:
    return name.split("_")[0].removeprefix("Dataset")
