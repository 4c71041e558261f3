"""One fold from plans to a validated model."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from samunet.dataset.cases import Dataset
from samunet.dataset.layout import load_dataset
from samunet.errors import SamunetError
from samunet.evaluation.quality import write_calibration
from samunet.evaluation.summary import annotated_in_part, evaluate_files
from samunet.files import write_json
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.models.folder import Fold, ModelFolder
from samunet.training.lock import training_lock
from samunet.training.options import TrainingOptions
from samunet.training.source import Source
from samunet.training.start import check_start
from samunet.training.task import Task
from samunet.training.trainer import Trainer

log = logging.getLogger(__name__)

_ENOUGH_OF_A_TRAINING = 0.1  # of the planned images


def train_fold(
    dataset_name: str, configuration_name: str, fold: Fold, options: TrainingOptions, plans_name: str, *, progress=True
) -> Path:
    """Train one fold and predict its validation cases; resumes by itself.

    Args:
        dataset_name: Full name of a preprocessed dataset.
        configuration_name: For example ``2d``.
        fold: Number, or ``all`` to train on every case.
        options: The user's choices.
        plans_name: Which plans.
        progress: Whether to show a progress bar.

    Returns:
        The fold's folder.

    Raises:
        SamunetError: If something is missing, was made with other plans, or the fold is finished already.
    """
    task = Task.of(Source(dataset_name, configuration_name, plans_name), fold, options)
    with training_lock(task.folder):
        trained = task.is_trained()
        task.check_other_folds()
        if options.pretrained and not trained:
            check_start(options.pretrained, task.network, task.folder, overwrite=options.overwrite)
        dataset = _dataset_to_validate(dataset_name, task.validation) if task.validation else None
        # What may be wrong with it is known before anything is written or, with ``overwrite``, removed.
        material = None if trained else task.material(progress)
        task.prepare_folder()
        log.info("%s, configuration %s, fold %s", dataset_name, configuration_name, fold)
        log.info("network: %s", task.why)
        if options.num_cases or options.cases:
            log.info("%d training cases: %s", len(task.train), ", ".join(task.train))
        if material:
            trainer = Trainer(task, material, progress=progress)
            del material  # the model holds its own copy of the weights: up to 2.5 GB less during the training
            trainer.train()
            del trainer  # the validation loads the model anew: a GPU need not hold both
        if dataset and (options.validation_only or not (options.validate_best and task.is_validated())):
            _validate(task, dataset, "final", progress)
        if dataset and options.validate_best:
            _validate(task, dataset, "best", progress)
    return task.folder


def _dataset_to_validate(dataset_name: str, names: list[str]) -> Dataset:
    """The raw dataset, which the validation needs: whether it is there is better known before the training."""
    dataset = load_dataset(dataset_name)
    missing = [name for name in names if name not in dataset.cases]
    if missing:
        raise SamunetError(
            f"{dataset.folder} lacks {len(missing)} of the fold's {len(names)} validation cases, such as {missing[0]}",
            "restore them, or set samunet_raw to where they are; or run `api.plan_and_preprocess` again",
        )
    return dataset


def _validate(task: Task, dataset: Dataset, checkpoint: str, progress: bool) -> None:
    """Predict the fold's own validation cases as a user would, and score just these.

    Only the final model's masks count later on (in ``validation``, with a calibration beside it).
    """
    begin = time.monotonic()
    model, fold, options, final = task.model, task.fold, task.options, checkpoint == "final"
    folder = task.folder / ("validation" if final else f"validation_{checkpoint}")
    # What differs in origin or direction was accepted when the dataset was preprocessed.
    prediction = PredictionOptions(
        device=options.device,
        save_probabilities=options.save_probabilities,
        measure_uncertainty=final,
        skip_existing=final and not options.validation_only,
        tolerate_geometry=True,
        postprocessing=False,  # it is chosen on these masks
    )
    predictor = Predictor.from_folder(model.path, [fold], checkpoint, options=prediction)
    cases = {name: dataset.cases[name] for name in task.validation}
    predictor.predict_cases(cases, folder, progress=progress, own=True)
    summary = evaluate_files(
        {name: (predictor.mask_file(case, folder), case.label) for name, case in cases.items()},
        dataset.description.labels,
        dataset.description.reader,
        tolerate_geometry=True,  # preprocessing has accepted these labels
    )
    if final:
        write_calibration(task.folder, task.validation, summary)
        run = model.run(fold) | {"validation_seconds": round(time.monotonic() - begin, 1)}
        write_json(task.folder / "run.json", run)
    write_json(folder / "summary.json", summary)
    which = "" if final else f" with checkpoint_{checkpoint}"
    log.info("mean Dice of the %d validation cases%s: %.4f", len(cases), which, summary["foreground_mean"]["Dice"])
    partly = annotated_in_part([case.get("n_ignored", 0) for case in summary["metric_per_case"]])
    if partly:
        log.info("%s", partly)
    doubt = too_short_to_judge(model, fold)
    if doubt:
        log.warning("%s", doubt)


def too_short_to_judge(model: ModelFolder, fold: Fold) -> str | None:
    """A sentence if a fold's training saw less than a tenth of the images that its plans train on; else None."""
    run = model.run(fold)
    network = model.network(fold)
    seen = run.get("iterations", 0) * (run.get("setup") or {}).get("batch_size", 0)
    planned = network.training_images["cpu" if run.get("device") == "cpu" else "gpu"]
    if not seen or seen >= _ENOUGH_OF_A_TRAINING * planned:
        return None
    return (
        f"too short to judge: {seen:,} images seen, where the plans train on {planned:,}; a training whose "
        "length is not given has that length"
    )
