"""The pipeline's steps as functions: what the commands call, and what a Python program may call.

    from samunet import api
    api.plan_and_preprocess("027")
    api.train("027", "2d", 0, seconds=600)
    api.predict("imagesTs", "preds", dataset="027")

With worker processes (the default on more than two cores) a script's own steps must stand under
``if __name__ == "__main__":``, as for any spawned process.

Datasets are named as on the command line: ``27``, ``"027"`` or ``"Dataset027_ACDC"``. Every function raises
:class:`samunet.errors.SamunetError` with a sentence for the user.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samunet import paths
from samunet.dataset.layout import Dataset, find_dataset, list_cases, load_dataset
from samunet.dataset.prediction_input import as_paths
from samunet.errors import SamunetError, call, raise_failures
from samunet.files import write_json
from samunet.plans import DEFAULT_PLANS_NAME, Plans, plans_called, read_plans
from samunet.selection.apply import apply_postprocessing
from samunet.selection.best import find_best_configuration
from samunet.selection.crossval import accumulate_crossval_results
from samunet.selection.determine import determine_postprocessing
from samunet.selection.ensemble import ensemble
from samunet.training.folds import train_folds
from samunet.training.options import TrainingOptions
from samunet.workers import default_workers

if TYPE_CHECKING:
    from samunet.conversion.datasets import (
        convert_ACDC_dataset,
        convert_finetune_SAM_dataset,
        convert_MSD_dataset,
        convert_old_nnUNet_dataset,
        convert_SAMed_dataset,
        make_dataset,
    )
    from samunet.conversion.phantoms import make_phantoms
    from samunet.inference.options import PredictionOptions
    from samunet.inference.predictor import Predictor
    from samunet.models.downloads import download_checkpoint, published_checkpoints
    from samunet.planning.fingerprint import Fingerprint
    from samunet.planning.move_plans import move_plans_between_datasets
    from samunet.planning.planner import PlannerOptions
    from samunet.report.overlays import plot_overlays
    from samunet.report.write import report
    from samunet.selection.label_next import label_next
    from samunet.sharing.export import ExportOptions, export_model
    from samunet.sharing.install import install_model
    from samunet.sharing.onnx_export import export_onnx
    from samunet.sharing.sam_export import merge_adapter
    from samunet.sharing.samed_import import import_samed
    from samunet.training.inventory import clean, info
    from samunet.training.pretraining.options import PretrainingOptions
    from samunet.training.pretraining.own_images import pretrain

__all__ = [
    "ExportOptions", "PlannerOptions", "PredictionOptions", "Predictor", "PretrainingOptions", "TrainingOptions",
    "accumulate_crossval_results", "add_cases", "apply_postprocessing", "clean", "convert_ACDC_dataset",
    "convert_MSD_dataset", "convert_SAMed_dataset", "convert_finetune_SAM_dataset", "convert_old_nnUNet_dataset",
    "determine_postprocessing", "download_checkpoint", "ensemble", "evaluate", "export_model", "export_onnx",
    "extract_fingerprint", "find_best_configuration", "import_samed", "info", "install_model", "label_next",
    "make_dataset", "make_phantoms", "merge_adapter", "move_plans_between_datasets", "plan_and_preprocess",
    "plan_experiment", "plot_overlays", "predict", "preprocess", "pretrain", "published_checkpoints", "report", "train",
    "train_folds",
]  # fmt: skip

log = logging.getLogger(__name__)


_CONVERSIONS = (
    "make_dataset", "convert_ACDC_dataset", "convert_MSD_dataset", "convert_SAMed_dataset",
    "convert_finetune_SAM_dataset", "convert_old_nnUNet_dataset",
)  # fmt: skip
# Heavy imports, on first use.
_LAZY = {
    "ExportOptions": "sharing.export",
    "PlannerOptions": "planning.planner",
    "PredictionOptions": "inference.options",
    "Predictor": "inference.predictor",
    "PretrainingOptions": "training.pretraining.options",
    **dict.fromkeys(_CONVERSIONS, "conversion.datasets"),
    "download_checkpoint": "models.downloads",
    "export_model": "sharing.export",
    "export_onnx": "sharing.onnx_export",
    "clean": "training.inventory",
    "import_samed": "sharing.samed_import",
    "info": "training.inventory",
    "install_model": "sharing.install",
    "label_next": "selection.label_next",
    "make_phantoms": "conversion.phantoms",
    "merge_adapter": "sharing.sam_export",
    "move_plans_between_datasets": "planning.move_plans",
    "plot_overlays": "report.overlays",
    "pretrain": "training.pretraining.own_images",
    "published_checkpoints": "models.downloads",
    "report": "report.write",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"samunet.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'samunet.api' has no attribute {name!r}")


def extract_fingerprint(
    dataset: str | int,
    *,
    clean: bool = False,
    verify: bool = False,
    no_groups: bool = False,
    tolerate_geometry: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> Fingerprint:
    """Measure a raw dataset and write ``dataset_fingerprint.json``; also copies dataset.json and makes the splits.

    A fingerprint of the same files is kept.

    Args:
        dataset: Its id or name.
        clean: Measure again in any case.
        verify: Check every file of the dataset first, and write ``integrity_report.json`` and ``.txt``; errors raise.
        no_groups: Do not tell patients from the names of cases.
        tolerate_geometry: Only warn where channels, or image and label, differ in origin or direction.
        num_workers: Processes; None for a number that suits this machine.
        progress: Whether to show progress bars.
    """
    from samunet.planning.measure import load_checked, measure

    loaded = load_checked(dataset, verify, tolerate_geometry, num_workers, progress)
    return measure(loaded, clean, num_workers, progress, tolerate_geometry, verified=verify, no_groups=no_groups)


def plan_experiment(
    dataset: str | int, options: PlannerOptions | None = None, *, dry_run: bool = False, **settings: Any
) -> Plans:
    """Plan from an existing fingerprint and write ``<plans name>.json``, unless ``dry_run``.

    Configurations that a user added to an existing plans file by hand are kept.

    Args:
        dataset: Its id or name.
        options, settings: See :class:`samunet.planning.planner.PlannerOptions`; ``settings`` are fields of it.
        dry_run: Write nothing.
    """
    from samunet.dataset.description import read_description
    from samunet.planning.agreement import check_fingerprint
    from samunet.planning.fingerprint import FILE_NAME, read_fingerprint
    from samunet.planning.planner import PlannerOptions, keep_own_configurations, plan

    name = find_dataset(dataset)
    options = replace(options or PlannerOptions(), **settings)
    folder = paths.preprocessed_folder() / name
    if not (folder / FILE_NAME).is_file():
        raise SamunetError(f"{name} has no fingerprint in {folder}", call("extract_fingerprint", paths.number_in(name)))
    description, fingerprint = read_description(folder), read_fingerprint(folder / FILE_NAME)
    check_fingerprint(fingerprint, description, folder / "dataset.json")
    plans = plan(name, description, fingerprint, options)
    path = folder / f"{options.plans_name}.json"
    keep_own_configurations(path, plans)
    if not dry_run:
        plans.write(path)
        log.info("plans written to %s", path)
    configuration = plans.configuration("2d")
    if len(configuration.planes) > 1:
        log.info("volumes are sliced along %d axes", len(configuration.planes))
    for network in configuration.networks.values():
        height, width = network.input_shape
        log.info(
            "%s: input %d x %d px, batch %d x %d, %.1f GB%s, %.0f GFLOP for each training image",
            network.encoder, height, width, network.batch_size, network.accumulation,
            network.memory_bytes / 1e9, " with blocks computed twice" if network.checkpoint_blocks else "",
            network.training_gflops,
        )  # fmt: skip
    return plans


def preprocess(
    dataset: str | int,
    configurations: Sequence[str] = ("2d",),
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    tolerate_geometry: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> None:
    """Store the slices of a planned dataset; finished cases are kept where plans and files are unchanged."""
    name = find_dataset(dataset)
    plans = plans_called(plans_name, paths.preprocessed_folder() / name, "plan_experiment")
    _preprocess(load_dataset(name), plans, configurations, num_workers, progress, tolerate_geometry)


def plan_and_preprocess(
    dataset: str | int,
    options: PlannerOptions | None = None,
    configurations: Sequence[str] = ("2d",),
    *,
    clean: bool = False,
    verify: bool = False,
    no_groups: bool = False,
    tolerate_geometry: bool = False,
    store: bool = True,
    num_workers: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> Plans:
    """Fingerprint, plans and stored slices in one go.

    Args:
        dataset: Its id or name.
        options, settings: See :func:`plan_experiment`.
        configurations: Which to preprocess.
        clean: Measure the fingerprint again.
        verify, no_groups, tolerate_geometry: See :func:`extract_fingerprint`.
        store: False stops after planning.
        num_workers: Processes; None for a number that suits this machine.
        progress: Whether to show progress bars.
    """
    from samunet.planning.measure import load_checked, measure

    loaded = load_checked(dataset, verify, tolerate_geometry, num_workers, progress)
    measure(loaded, clean, num_workers, progress, tolerate_geometry, verified=verify, no_groups=no_groups)
    plans = plan_experiment(loaded.name, options, **settings)
    for configuration in configurations:
        plans.configuration(configuration)
    if store:
        _preprocess(loaded, plans, configurations, num_workers, progress, tolerate_geometry)
    return plans


def add_cases(
    dataset: str | int,
    *,
    tolerate_geometry: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Take over what changed in a raw dataset: new cases join the folds, all others stay where they are.

    Cases that the dataset lost leave the folds, and changed files are stored again. Plans stay as they are: measure and
    plan anew with :func:`plan_and_preprocess`.

    Args:
        dataset: Its id or name, preprocessed before.
        tolerate_geometry: See :func:`extract_fingerprint`.
        num_workers: Processes; None for a number that suits this machine.
        progress: Whether to show progress bars.

    Returns:
        Each new case, and where it is now, such as ``validated by fold 2``.
    """
    from samunet.dataset.splits import join_folds
    from samunet.planning.measure import known_groups, measure

    loaded = load_dataset(find_dataset(dataset))
    folder = paths.preprocessed_folder() / loaded.name
    plans_files = sorted(folder.glob("*Plans*.json"))
    if not plans_files:
        raise SamunetError(
            f"{loaded.name} has no plans in {folder}", call("plan_and_preprocess", paths.number_in(loaded.name))
        )
    joined = join_folds(folder, list(loaded.cases), known_groups(loaded, no_groups=False), loaded.folder)
    measure(loaded, False, num_workers, progress, tolerate_geometry, verified=False)
    for plans in map(read_plans, plans_files):
        stored = [
            name for name in plans.configurations if (folder / plans.configuration(name).data_identifier).is_dir()
        ]
        _preprocess(loaded, plans, stored, num_workers, progress, tolerate_geometry)
    return joined


def train(
    dataset: str | int,
    configuration: str = "2d",
    fold: int | str = 0,
    options: TrainingOptions | None = None,
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    progress: bool = True,
    **settings: Any,
) -> Path:
    """Train one fold (or ``"all"`` cases), resuming where an earlier run stopped; returns the fold's folder.

    ``settings`` are fields of ``options``: ``api.train(27, seconds=600)``.
    """
    return train_folds(dataset, configuration, [fold], options, plans_name, progress=progress, **settings)[0]


def predict(
    source: str | Path | Sequence[str | Path | Sequence[str | Path]],
    output: str | Path,
    *,
    dataset: str | int | None = None,
    configuration: str | None = None,
    plans_name: str | None = None,
    model_folder: str | Path | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "final",
    options: PredictionOptions | None = None,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
    **settings: Any,
) -> list[str]:
    """Predict every case of a folder, or single files.

    Args:
        source: A folder, a file, a list of files, or a list with the files of one case each; see
            :func:`samunet.dataset.layout.list_cases`.
        output: Folder for the masks; for a single case also a file, such as ``mask.nii.gz``.
        dataset, configuration, plans_name, folds: Which model; what is left out is found (see
            :func:`samunet.models.choose.choose_model`).
        model_folder: The model's folder, anywhere, in place of the first three; needs no environment variable.
        checkpoint: ``final`` or ``best``.
        options, settings: How to predict; ``settings`` are fields of
            :class:`samunet.inference.options.PredictionOptions`.
        part: ``(index, number)`` of a share of the cases, to divide work between processes.
        progress: Whether to show a progress bar.

    Returns:
        Names of the cases predicted now.

    Raises:
        UsageError: If ``output`` is no place for masks (a raw dataset, the input, a model, others' masks), or there is
            no such model.
        SamunetError: If the machine fails; or, after all other cases were predicted, if some failed: of several a
            :class:`samunet.errors.CasesFailed`, whose ``failures`` has the error of each.
    """
    from samunet.inference.options import PredictionOptions
    from samunet.inference.run import ModelSelection, check_request, predict_found
    from samunet.models.choose import choose_model, parse_folds
    from samunet.models.folder import open_model_folder

    sources, output, options = as_paths(source), Path(output), replace(options or PredictionOptions(), **settings)
    first = check_request(sources, output, options, part)
    if model_folder is None:
        model, why = choose_model(first, dataset, configuration, plans_name, checkpoint)
    else:
        model, why = open_model_folder(model_folder), "as asked"
    chosen = ModelSelection(model, parse_folds(model, folds, checkpoint), checkpoint)
    log.info("model: %s (%s)", model.path, why)
    log.info("folds: %s, checkpoint: %s", ", ".join(map(str, chosen.folds)), checkpoint)
    failures: dict[str, SamunetError] = {}
    found = list_cases(sources, model.description, failures)
    return predict_found(chosen, found, failures, output, options, part, str(source), progress)


def evaluate(
    *,
    predictions: str | Path,
    references: str | Path,
    dataset_json: str | Path | None = None,
    labels: Sequence[int] | None = None,
    output: str | Path | None = None,
    surface_metrics: bool = False,
    tolerance: float = 2.0,
    allow_missing: bool = False,
    tolerate_geometry: bool = False,
    num_workers: int = 0,
    failures: dict[str, SamunetError] | None = None,
) -> dict[str, Any]:
    """Score a folder of masks against references and write ``summary.json``; all arguments are named.

    Args:
        predictions: Folder with the masks, named like the references.
        references: Folder with the true labels.
        dataset_json: Names and values of the labels; None for the file among the predictions, else that beside the
            references' folder.
        labels: Values to score, in place of a ``dataset.json``; voxels with others count as background.
        output: File to write; None for ``summary.json`` among the predictions.
        surface_metrics: Also measure HD95, surface Dice and volume differences, written to ``metrics.json`` and
            ``metrics.csv`` beside ``output``.
        tolerance: Of the surface Dice, in millimetres (pixels where there are none).
        allow_missing: Leave out references that have no prediction instead of stopping.
        tolerate_geometry: Only warn where a mask and its reference differ in origin or direction.
        num_workers: Worker processes; 0 means this one.
        failures: Where given, cases that could not be scored are put there, and nothing is raised for them.

    Returns:
        The content of ``summary.json``; with ``surface_metrics`` that of ``metrics.json`` as well, as the item of this
        name.

    Raises:
        UsageError: If a folder does not exist, or ``output`` is no place for scores.
        SamunetError: If references have no prediction; or, once the others' scores were written, if cases could not be
            scored: of several a :class:`samunet.errors.CasesFailed` that lists them.
    """
    from samunet.evaluation.summary import (
        FAILED,
        check_targets,
        evaluate_folder,
        labels_to_score,
        write_surface_metrics,
    )

    predictions, references = Path(predictions), Path(references)
    target = check_targets(predictions, None if output is None else Path(output), surface_metrics)
    known, reader = labels_to_score(predictions, references, dataset_json, labels)
    failed: dict[str, SamunetError] = {} if failures is None else failures
    summary = evaluate_folder(
        predictions, references, known, reader,
        num_workers=num_workers, allow_missing=allow_missing, tolerate_geometry=tolerate_geometry, failures=failed,
        tolerance=tolerance if surface_metrics else None,
    )  # fmt: skip
    metrics = summary.pop("surface_metrics", None)
    write_json(target, summary)
    if metrics is not None:
        write_surface_metrics(metrics, target.parent, None if labels is not None else known)
    if failures is None:
        raise_failures(failed, len(failed) + len(summary["metric_per_case"]), FAILED)
    return summary if metrics is None else summary | {"surface_metrics": metrics}


def _preprocess(
    dataset: Dataset,
    plans: Plans,
    configurations: Sequence[str],
    num_workers: int | None,
    progress: bool,
    tolerate_geometry: bool,
) -> None:
    from samunet.preprocessing.run import check_channels, store_cases

    workers = default_workers() if num_workers is None else num_workers
    folder = paths.preprocessed_folder() / dataset.name
    for name in configurations:
        configuration = plans.configuration(name)
        check_channels(configuration, dataset.description, dataset.folder / "dataset.json")
        made = store_cases(
            dataset.cases, dataset.description, plans, configuration, folder / configuration.data_identifier,
            num_workers=workers, progress=progress, tolerate_geometry=tolerate_geometry,
        )  # fmt: skip
        kept = len(dataset.cases) - made
        where = folder / configuration.data_identifier
        log.info("%s: %d cases stored in %s%s", name, made, where, f", {kept} were up to date" if kept else "")
