"""One fold from plans to a validated model: chooses the network, prepares the fold's folder, trains, validates."""

from __future__ import annotations

import logging
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from samunet import __version__, paths
from samunet.dataset.cases import Dataset
from samunet.dataset.description import Description, read_description
from samunet.dataset.layout import load_dataset, raw_dataset
from samunet.dataset.splits import fold_cases, load_or_make_splits, patients, subsample_cases
from samunet.devices import resolve_device
from samunet.encoders import encoder_facts
from samunet.errors import Blank, SamunetError, UsageError, argument, call
from samunet.evaluation.quality import write_calibration
from samunet.evaluation.summary import evaluate_files
from samunet.files import read_json, write_json
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.models.folder import Fold, ModelFolder, model_folder_name, read_run
from samunet.models.pretrained import PretrainedWeights, automatic_encoder, pretrained_weights
from samunet.planning import agreement
from samunet.planning.fingerprint import FILE_NAME as FINGERPRINT_FILE
from samunet.planning.fingerprint import Fingerprint, read_fingerprint
from samunet.plans import ConfigurationPlan, NetworkPlan, Plans, fingerprint_of, plans_called
from samunet.preprocessing.normalize import statistics_used
from samunet.preprocessing.run import check_cases, check_channels, content_hash, stored_cases, stored_files
from samunet.preprocessing.store import StoredCase
from samunet.training.feature_cache import check_frozen
from samunet.training.lock import training_lock
from samunet.training.options import TrainingOptions
from samunet.training.recipes import load_recipe
from samunet.training.start import check_start
from samunet.training.trainer import Trainer
from samunet.training.unlabelled import stored_test_images

log = logging.getLogger(__name__)

_ENOUGH_OF_A_TRAINING = 0.1  # of the planned images


@dataclass(frozen=True)
class _Choice:
    network: NetworkPlan
    why: str


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
    source = paths.preprocessed_folder() / dataset_name
    plans, description = plans_called(plans_name, source), read_description(source)
    configuration = plans.configuration(configuration_name)
    fingerprint = read_fingerprint(source / FINGERPRINT_FILE)
    raw = raw_dataset(dataset_name)
    if raw is not None:
        check_cases(raw, fingerprint.cases)
    train, rest, validation = _cases_of(fold, source, fingerprint, description, raw, options)
    model = ModelFolder(paths.results_folder() / dataset_name / model_folder_name(plans_name, configuration_name))
    folder = model.fold(fold)
    run = read_run(folder / "run.json") if (folder / "run.json").is_file() and not options.overwrite else {}
    choice = _choose_network(plans, configuration, options, run)
    if options.feature_cache:
        check_frozen(choice.network)
    _check_agreement(dataset_name, source, fingerprint, configuration, choice.network, description)
    with training_lock(folder):
        trained = _is_trained(folder, validation, options)
        _check_other_folds(model, fold, plans, description, source, choice, options)
        if options.pretrained and not trained:
            check_start(options.pretrained, choice.network, folder, overwrite=options.overwrite)
        dataset = _dataset_to_validate(dataset_name, validation) if validation else None
        base, stored, unlabelled = None, (), {}
        if not trained:  # before anything is written or, with --overwrite, removed
            resolve_device(options.device)
            recipe = load_recipe(choice.network.recipe)
            stored = [
                stored_cases(source, plans, configuration, description, names, raw) for names in (train, validation)
            ]
            data = content_hash(stored_files(source / configuration.data_identifier, train))
            _check_same_data(folder, run, data)
            if recipe.unlabelled:
                unlabelled = _unlabelled(source, plans, configuration, description, rest, raw, progress)
            base = _starting_weights(model, fold, choice, options, run, progress)
        _prepare_folder(model, fold, plans, description, source, options.overwrite)
        log.info("%s, configuration %s, fold %s", dataset_name, configuration_name, fold)
        log.info("network: %s", choice.why)
        if options.num_cases:
            log.info("%d training cases: %s", len(train), ", ".join(train))
        if not trained:
            decisions = _decisions(plans, configuration_name, choice.network.encoder)
            facts = _run_facts(choice, fold, dataset_name, configuration_name)
            trainer = Trainer(
                folder=folder,
                plans=plans,
                configuration=configuration,
                network=choice.network,
                description=description,
                train=stored[0],
                validation=stored[1],
                options=options,
                identity=fingerprint_of(decisions, description.labels, train),
                run=run | facts | {"training_cases": train, "training_data": data},
                unlabelled=unlabelled,
                base=base,
                progress=progress,
            )
            del base  # the model holds its own copy: up to 2.5 GB less during the training
            trainer.train()
            del trainer  # the validation loads the model anew: a GPU need not hold both
        if validation and not (options.validate_best and _is_validated(folder) and not options.validation_only):
            _validate(model, fold, dataset, validation, options, progress)
        if validation and options.validate_best:
            _validate(model, fold, dataset, validation, options, progress, checkpoint="best")
    return folder


def _cases_of(
    fold: Fold,
    source: Path,
    fingerprint: Fingerprint,
    description: Description,
    raw: Dataset | None,
    options: TrainingOptions,
) -> tuple[list[str], list[str], list[str]]:
    """Names of the cases to train on, of those left out where fewer are asked for, and of those to validate."""
    names = sorted(fingerprint.cases)
    groups = raw.description.groups if raw and raw.description.groups is not None else description.groups
    splits = load_or_make_splits(source, names, groups, raw.folder if raw else None)
    every, validation = fold_cases(splits, fold, names)
    train = every
    if options.num_cases:
        train = subsample_cases(every, options.num_cases, options.seed, patients(names, groups))
    return train, [name for name in every if name not in train], validation


def _unlabelled(
    source: Path,
    plans: Plans,
    configuration: ConfigurationPlan,
    description: Description,
    rest: list[str],
    raw: Dataset | None,
    progress: bool,
) -> dict[str, StoredCase]:
    """Images whose labels are not read: of imagesTs, and the fold's training cases that ``--num_cases`` leaves out."""
    found = stored_cases(source, plans, configuration, description, rest, raw, images_only=True) if rest else {}
    found |= stored_test_images(source, plans, configuration, description, progress=progress)
    if not found:
        raise UsageError(
            f"the recipe learns from images without labels as well, and {source.name} has none",
            f"put some into {paths.raw_folder() / source.name / 'imagesTs'}, or train on fewer cases: `num_cases=N`",
        )
    log.info("%d images without labels", len(found))
    return found


def _check_same_data(folder: Path, run: dict, data: str) -> None:
    """Refuse to go on with a fold that began with other files of its training cases."""
    if run.get("training_data") not in (None, data):
        raise SamunetError(
            f"{folder} began with other images or labels: files of its training cases changed since",
            "train it anew with `overwrite=True`",
        )


def _is_trained(folder: Path, validation: list[str], options: TrainingOptions) -> bool:
    """Whether only the validation is left to do; refuses a fold that is finished, or has nothing to validate yet."""
    trained = (folder / "checkpoint_final.safetensors").is_file() and not options.overwrite
    if options.validation_only and not trained:
        raise UsageError(
            f"{folder} has no finished training to validate", "leave out `validation_only` (and `overwrite`)"
        )
    if options.validate_best and not validation:
        raise UsageError("`validate_best` has no cases to validate: fold all trains on every case", "leave it out")
    validated = trained and (not validation or _is_validated(folder))
    if validated and not (options.validation_only or options.validate_best):
        raise SamunetError(
            f"{folder} is finished",
            "use `overwrite=True` to train it anew, or `validation_only=True` to validate it again",
        )
    return trained


def _is_validated(folder: Path) -> bool:
    return (folder / "validation" / "summary.json").is_file()


def _starting_weights(
    model: ModelFolder, fold: Fold, choice: _Choice, options: TrainingOptions, run: dict, progress: bool
) -> PretrainedWeights | None:
    """What the network starts from: as the fold or the other folds began, else as asked; None for random weights."""
    recorded = run.get("base") or run.get("started_from")
    if options.random_weights or (run and not recorded):
        return None
    recorded = recorded or _base_of_other_folds(model, fold, choice.network.encoder)
    return pretrained_weights(
        choice.network.encoder,
        recorded,
        options.checkpoint,
        pixel_statistics=options.pixel_statistics,
        decoder_from=options.decoder_from,
        may_download=True,
        progress=progress,
    )


def _choose_network(plans: Plans, configuration: ConfigurationPlan, options: TrainingOptions, run: dict) -> _Choice:
    """Which of the configuration's networks to train: as asked; as before; or by what this machine has."""
    wanted = options.encoder or run.get("encoder")
    wanted = wanted or (configuration.default_sam if options.checkpoint else plans.encoder)
    if wanted == "auto":
        wanted, why = automatic_encoder(configuration.networks, gpu=resolve_device(options.device).type != "cpu")
    else:
        encoder_facts(wanted)
        given = "for the given checkpoint" if options.checkpoint else "as planned"
        why = "as asked" if options.encoder else "as this fold began" if run else given
    network = plans.network(configuration, wanted)
    if options.random_weights:
        if encoder_facts(wanted).is_sam or not network.adaptation.encoder_trains:
            raise UsageError(
                f"{wanted} with adaptation {network.adaptation.method} cannot start from random weights: what is "
                "frozen would stay random",
                "leave out `random_weights`, or train the small encoder in full: `encoder='small'`",
            )
        why += ". It starts from random weights"
    elif not encoder_facts(wanted).is_sam and not (run or options.checkpoint):
        why += ". It starts from the weights in the package"
    if options.batch_size:
        network = network.changed(batch_size=options.batch_size, accumulation=1)
    if options.learning_rate:
        network = network.changed(learning_rate=options.learning_rate)
    return _Choice(network, f"{wanted} ({why})")


def _check_agreement(
    dataset_name: str,
    source: Path,
    fingerprint: Fingerprint,
    configuration: ConfigurationPlan,
    network: NetworkPlan,
    description: Description,
) -> None:
    """Refuse a dataset.json that was edited after planning, its copy beside the plans or the one in the raw folder."""
    file = source / "dataset.json"
    check_channels(configuration, description, file)
    agreement.check_fingerprint(fingerprint, description, file)
    agreement.check_network(network, description, file)
    for folder in paths.known_folders():  # a raw folder need not be there
        other = folder / dataset_name / "dataset.json"
        if other.is_file():
            agreement.check_unchanged(description, file, read_description(other.parent), other)


def _check_other_folds(
    model: ModelFolder,
    fold: Fold,
    plans: Plans,
    description: Description,
    source: Path,
    choice: _Choice,
    options: TrainingOptions,
) -> None:
    """Refuse to mix plans, labels or encoders within a model."""
    folder = model.fold(fold)
    others = _runs_of_other_folds(model, fold)
    begun = others or ((folder / "run.json").is_file() and not options.overwrite)
    this = model.configuration_name, choice.network.encoder
    if begun and _decisions(model.plans, *this) != _decisions(plans, *this):
        raise SamunetError(
            f"{model.path} was trained with other plans than {source / plans.plans_name}.json holds now",
            f"plan under another name ({call('plan_experiment', source.name, plans_name=Blank('NAME'))}) and train "
            "with `plans_name=NAME`, or remove the model's other folds and use `overwrite=True`",
        )
    if begun:
        agreement.check_same_outputs(description, source / "dataset.json", model.description, model.path)
    for other, run in others.items():
        encoder = run.get("encoder")
        if encoder != choice.network.encoder:
            raise SamunetError(
                f"{other} of this model uses the encoder {encoder}, this one {choice.network.encoder}",
                f"all folds of a model use one encoder: add {argument('encoder', encoder)}",
            )


def _prepare_folder(
    model: ModelFolder, fold: Fold, plans: Plans, description: Description, source: Path, overwrite: bool
) -> None:
    """Make the model's and the fold's folders, and put what the model was planned from beside them."""
    folder = model.fold(fold)
    if overwrite and folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plans.write(model.path / "plans.json")
    write_json(model.path / "dataset.json", description.raw)
    write_json(model.path / "dataset_fingerprint.json", read_json(source / FINGERPRINT_FILE))


def _base_of_other_folds(model: ModelFolder, fold: Fold, encoder: str) -> dict | None:
    """Base weights that the model's other folds began with: all folds share them."""
    others = _runs_of_other_folds(model, fold)
    return next((run["base"] for run in others.values() if run.get("encoder") == encoder and run.get("base")), None)


def _runs_of_other_folds(model: ModelFolder, fold: Fold) -> dict[str, dict]:
    """``run.json`` of the folds that were begun, by folder; another process may be removing one to train it anew."""
    runs = {}
    for path in sorted(model.path.glob("fold_*/run.json")):
        if path.parent == model.fold(fold):
            continue
        try:
            runs[path.parent.name] = read_run(path)
        except SamunetError:
            if path.exists():
                raise
    return runs


def _decisions(plans: Plans, configuration_name: str, encoder: str) -> dict:
    """All that a model depends on: not other configurations or networks, reasons, versions or memory."""
    configuration = plans.configuration(configuration_name)
    decisions = plans.model_dump() | configuration.model_dump()
    decisions["foreground_intensity_properties_per_channel"] = statistics_used(plans, configuration)
    for key in ("configurations", "why", "samunet_version", "encoder", "gpu_memory_target_gb"):
        del decisions[key]
    network = decisions.pop("networks").get(encoder, {})
    left_out = {"why", "training_images", "memory_bytes", "training_gflops", "checkpoint_blocks"}
    return decisions | {"network": {key: value for key, value in network.items() if key not in left_out}}


def _run_facts(choice: _Choice, fold: Fold, dataset_name: str, configuration_name: str) -> dict:
    import torch

    return {
        "dataset": dataset_name,
        "configuration": configuration_name,
        "fold": fold,
        "encoder": choice.network.encoder,
        "chosen_because": choice.why,
        "versions": {"samunet": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
    }


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


def _validate(
    model: ModelFolder,
    fold: Fold,
    dataset: Dataset,
    names: list[str],
    options: TrainingOptions,
    progress: bool,
    checkpoint: str = "final",
) -> None:
    """Predict the fold's own validation cases as a user would, and score just these.

    Only the final model's masks count later on (in ``validation``, with a calibration beside it).
    """
    begin = time.monotonic()
    folder = model.fold(fold) / ("validation" if checkpoint == "final" else f"validation_{checkpoint}")
    # What differs in origin or direction was accepted when the dataset was preprocessed.
    prediction = PredictionOptions(
        device=options.device,
        save_probabilities=options.save_probabilities,
        measure_uncertainty=checkpoint == "final",
        skip_existing=checkpoint == "final" and not options.validation_only,
        tolerate_geometry=True,
        postprocessing=False,  # it is chosen on these masks
    )
    predictor = Predictor.from_folder(model.path, [fold], checkpoint, options=prediction)
    cases = {name: dataset.cases[name] for name in names}
    predictor.predict_cases(cases, folder, progress=progress, own=True)
    description = dataset.description
    summary = evaluate_files(
        {name: (predictor.mask_file(case, folder), case.label) for name, case in cases.items()},
        description.labels,
        description.reader,
        tolerate_geometry=True,  # preprocessing has accepted these labels
    )
    if checkpoint == "final":
        write_calibration(model.fold(fold), names, summary)
        run = model.run(fold) | {"validation_seconds": round(time.monotonic() - begin, 1)}
        write_json(model.fold(fold) / "run.json", run)
    write_json(folder / "summary.json", summary)
    which = "" if checkpoint == "final" else f" with checkpoint_{checkpoint}"
    log.info("mean Dice of the %d validation cases%s: %.4f", len(names), which, summary["foreground_mean"]["Dice"])
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
