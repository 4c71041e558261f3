"""What to train: one fold of a model, checked against its plans, its data and the model's other folds."""

from __future__ import annotations

import logging
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet import __version__, paths
from samunet.dataset.description import read_description
from samunet.dataset.splits import fold_cases, load_or_make_splits, named_cases, patients, subsample_cases
from samunet.devices import resolve_device
from samunet.encoders import encoder_facts
from samunet.errors import Blank, SamunetError, UsageError, argument, call
from samunet.files import read_json, write_json
from samunet.models.folder import Fold, ModelFolder, model_folder_name, read_run
from samunet.models.pretrained import PretrainedWeights, pretrained_weights
from samunet.planning import agreement
from samunet.planning.fingerprint import FILE_NAME as FINGERPRINT_FILE
from samunet.plans import NetworkPlan, Plans, SynthesisPlan, fingerprint_of
from samunet.preprocessing.normalize import statistics_used
from samunet.preprocessing.run import check_channels, content_hash, stored_files
from samunet.preprocessing.store import StoredCase
from samunet.training.feature_cache import check_frozen
from samunet.training.options import TrainingOptions
from samunet.training.recipes import load_recipe
from samunet.training.source import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """What a training learns from; opened once everything else is in order.

    Attributes:
        train, validation: Stored cases by name.
        unlabelled: Stored images without labels, for a recipe that wants some.
        base: What the network starts from; None for random weights.
        run: Content of ``run.json`` at the start.
        identity: Hash of plans, labels and training cases: a checkpoint of another identity is refused.
    """

    train: dict[str, StoredCase]
    validation: dict[str, StoredCase]
    unlabelled: dict[str, StoredCase]
    base: PretrainedWeights | None
    run: dict[str, Any]
    identity: str


@dataclass(frozen=True)
class Task:
    """One fold that is to be trained or validated.

    Attributes:
        source: The preprocessed dataset.
        fold: Number, or ``all`` to train on every case.
        options: The user's choices.
        begun: ``run.json`` of a fold that goes on; empty where it begins.
        network: Its plan, with the user's changes.
        why: Why this network.
        train, left_out, validation: Names of the cases to train on, of those left out where fewer are asked for, and of
            those to validate.
    """

    source: Source
    fold: Fold
    options: TrainingOptions
    begun: dict[str, Any]
    network: NetworkPlan
    why: str
    train: list[str]
    left_out: list[str]
    validation: list[str]

    @classmethod
    def of(cls, source: Source, fold: Fold, options: TrainingOptions) -> Task:
        """Decide what to train.

        Raises:
            SamunetError: If something is missing, or plans and data do not agree.
        """
        cases = _cases(source, fold, options)
        file = _model(source).fold(fold) / "run.json"
        begun = read_run(file) if file.is_file() and not options.overwrite else {}
        task = cls(source, fold, options, begun, *choose_network(source, options, begun), *cases)
        if options.feature_cache:
            check_frozen(task.network)
        task._check_description()
        return task

    @property
    def model(self) -> ModelFolder:
        """The model, whose folder need not be there yet."""
        return _model(self.source)

    @property
    def folder(self) -> Path:
        """The fold's folder, which need not be there yet."""
        return self.model.fold(self.fold)

    def is_trained(self) -> bool:
        """Whether only the validation is left to do.

        Raises:
            SamunetError: If the fold is finished, or has nothing to validate yet.
        """
        options, folder = self.options, self.folder
        trained = (folder / "checkpoint_final.safetensors").is_file() and not options.overwrite
        if options.validation_only and not trained:
            raise UsageError(
                f"{folder} has no finished training to validate", "leave out `validation_only` (and `overwrite`)"
            )
        if options.validate_best and not self.validation:
            raise UsageError("`validate_best` has no cases to validate: fold all trains on every case", "leave it out")
        validated = trained and (not self.validation or self.is_validated())
        if validated and not (options.validation_only or options.validate_best):
            raise SamunetError(
                f"{folder} is finished",
                "use `overwrite=True` to train it anew, or `validation_only=True` to validate it again",
            )
        return trained

    def is_validated(self) -> bool:
        """Whether the final validation is done."""
        return (self.folder / "validation" / "summary.json").is_file()

    def check_other_folds(self) -> None:
        """Refuse to mix plans, labels or encoders within a model."""
        model, source, encoder = self.model, self.source, self.network.encoder
        others = self._other_runs()
        if others or ((self.folder / "run.json").is_file() and not self.options.overwrite):
            this = source.configuration_name, encoder
            if decisions(model.plans, *this) != decisions(source.plans, *this):
                plan = call("plan_experiment", source.dataset_name, plans_name=Blank("NAME"))
                raise SamunetError(
                    f"{model.path} was trained with other plans than {source.folder / source.plans_name}.json holds "
                    "now",
                    f"plan under another name ({plan}) and train with `plans_name=NAME`, or remove the model's other "
                    "folds and use `overwrite=True`",
                )
            file = source.folder / "dataset.json"
            agreement.check_same_outputs(source.description, file, model.description, model.path)
        for other, run in others.items():
            theirs = run.get("encoder")
            if theirs != encoder:
                raise SamunetError(
                    f"{other} of this model uses the encoder {theirs}, this one {encoder}",
                    f"all folds of a model use one encoder: add {argument('encoder', theirs)}",
                )

    def material(self, progress: bool) -> Material:
        """Open the cases and read the weights at the start.

        Raises:
            SamunetError: If any are missing, damaged, or others than those that the fold began with.
        """
        source = self.source
        resolve_device(self.options.device)
        recipe = load_recipe(self.network.recipe)
        train, validation = source.stored(self.train), source.stored(self.validation)
        data = content_hash(stored_files(source.folder / source.configuration.data_identifier, self.train))
        if self.begun.get("training_data") not in (None, data):
            raise SamunetError(
                f"{self.folder} began with other images or labels: files of its training cases changed since",
                "train it anew with `overwrite=True`",
            )
        unlabelled = self._unlabelled(progress) if recipe.unlabelled else {}
        decided = decisions(source.plans, source.configuration_name, self.network.encoder)
        identity = fingerprint_of(decided, source.description.labels, self.train)
        return Material(train, validation, unlabelled, self._base(progress), self._run(data), identity)

    def prepare_folder(self) -> None:
        """Make the model's and the fold's folders, and put what the model was planned from beside them."""
        if self.options.overwrite and self.folder.is_dir():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.source.plans.write(self.model.path / "plans.json")
        write_json(self.model.path / "dataset.json", self.source.description.raw)
        write_json(self.model.path / "dataset_fingerprint.json", read_json(self.source.folder / FINGERPRINT_FILE))

    def _check_description(self) -> None:
        """Refuse a dataset.json, raw or beside the plans, that was edited after planning."""
        source, file = self.source, self.source.folder / "dataset.json"
        check_channels(source.configuration, source.description, file)
        agreement.check_fingerprint(source.fingerprint, source.description, file)
        agreement.check_network(self.network, source.description, file)
        for folder in paths.known_folders():  # a raw folder need not be there
            other = folder / source.dataset_name / "dataset.json"
            if other.is_file():
                agreement.check_unchanged(source.description, file, read_description(other.parent), other)

    def _other_runs(self) -> dict[str, dict]:
        """``run.json`` of the other folds that were begun, by folder; another process may be removing one."""
        runs = {}
        for path in sorted(self.model.path.glob("fold_*/run.json")):
            if path.parent == self.folder:
                continue
            try:
                runs[path.parent.name] = read_run(path)
            except SamunetError:
                if path.exists():
                    raise
        return runs

    def _unlabelled(self, progress: bool) -> dict[str, StoredCase]:
        """Images whose labels are not read: of imagesTs, and the training cases that were left out."""
        found = self.source.stored(self.left_out, images_only=True) if self.left_out else {}
        found |= self.source.test_images(progress=progress)
        if not found:
            name = self.source.dataset_name
            raise UsageError(
                f"the recipe learns from images without labels as well, and {name} has none",
                f"put some into {paths.raw_folder() / name / 'imagesTs'}, or train on fewer cases: `num_cases=N`",
            )
        log.info("%d images without labels", len(found))
        return found

    def _base(self, progress: bool) -> PretrainedWeights | None:
        """What the network starts from: as this or the other folds began, else as asked; None for random weights."""
        options, encoder = self.options, self.network.encoder
        recorded = self.begun.get("base") or self.begun.get("started_from")
        if options.random_weights or (self.begun and not recorded):
            return None
        others = [run.get("base") for run in self._other_runs().values() if run.get("encoder") == encoder]
        return pretrained_weights(
            encoder,
            recorded or next(filter(None, others), None),
            options.checkpoint,
            pixel_statistics=options.pixel_statistics,
            decoder_from=options.decoder_from,
            may_download=True,
            progress=progress,
        )

    def _run(self, data: str) -> dict[str, Any]:
        import torch

        return self.begun | {
            "dataset": self.source.dataset_name,
            "configuration": self.source.configuration_name,
            "fold": self.fold,
            "encoder": self.network.encoder,
            "chosen_because": self.why,
            "versions": {"samunet": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "machine": platform.machine(),
            "training_cases": self.train,
            "training_data": data,
        }


def _model(source: Source) -> ModelFolder:
    name = model_folder_name(source.plans_name, source.configuration_name)
    return ModelFolder(paths.results_folder() / source.dataset_name / name)


def _cases(source: Source, fold: Fold, options: TrainingOptions) -> tuple[list[str], list[str], list[str]]:
    """Names of the cases to train on, of those left out where fewer are asked for, and of those to validate."""
    description, raw = source.description, source.raw
    names = sorted(source.fingerprint.cases)
    groups = raw.description.groups if raw and raw.description.groups is not None else description.groups
    splits = load_or_make_splits(source.folder, names, groups, raw.folder if raw else None)
    train, validation = fold_cases(splits, fold, names)
    if options.cases is not None:
        chosen = named_cases(train, names, options.cases)
    elif not options.num_cases:
        return train, [], validation
    else:
        chosen = subsample_cases(train, options.num_cases, options.seed, patients(names, groups))
    return chosen, [name for name in train if name not in chosen], validation


def choose_network(source: Source, options: TrainingOptions, begun: dict[str, Any]) -> tuple[NetworkPlan, str]:
    """Which of the configuration's networks to train, and why: as asked; as before; or by what this machine has.

    Args:
        source: The preprocessed dataset.
        options: The user's choices.
        begun: ``run.json`` of a fold that goes on, or empty.
    """
    asked = options.encoder or begun.get("encoder")
    network, why = source.network(asked, options.checkpoint, options.device)
    given = "for `checkpoint`" if options.checkpoint else "as planned"
    why = why or ("as asked" if options.encoder else "as this fold began" if begun else given)
    is_sam = encoder_facts(network.encoder).is_sam
    if options.random_weights:
        if is_sam or not network.adaptation.encoder_trains:
            raise UsageError(
                f"{network.encoder} with adaptation {network.adaptation.method} cannot start from random weights: what "
                "is frozen would stay random",
                "leave out `random_weights`, or train the small encoder in full: `encoder='small'`",
            )
        why += ". It starts from random weights"
    elif not is_sam and not (begun or options.checkpoint):
        why += ". It starts from the weights in the package"
    if options.batch_size:
        network = network.changed(batch_size=options.batch_size, accumulation=1)
    if options.learning_rate:
        network = network.changed(learning_rate=options.learning_rate)
    if options.augmentation:
        network = network.changed(augmentation=options.augmentation)
    if options.synthesis is not None:
        network = network.changed(synthesis=_synthesis(network, options.synthesis))
    return network, f"{network.encoder} ({why})"


def _synthesis(network: NetworkPlan, share: float | str) -> SynthesisPlan | None:
    """The plan's, with the share that is asked for: a number, or ``auto`` for the rule."""
    planned = network.synthesis or SynthesisPlan()
    return None if share == 0 else planned.changed(share=None if share == "auto" else share)


def decisions(plans: Plans, configuration_name: str, encoder: str) -> dict[str, Any]:
    """All that a model depends on: not other configurations or networks, reasons, versions or memory."""
    configuration = plans.configuration(configuration_name)
    found = plans.model_dump() | configuration.model_dump()
    found["foreground_intensity_properties_per_channel"] = statistics_used(plans, configuration)
    for key in ("configurations", "why", "samunet_version", "encoder", "gpu_memory_target_gb"):
        del found[key]
    network = found.pop("networks").get(encoder, {})
    left_out = {"why", "training_images", "memory_bytes", "training_gflops", "checkpoint_blocks"}
    # As in plans of before there was any.
    left_out |= {"synthesis"} if network.get("synthesis") is None else set()
    left_out |= {"augmentation"} if network.get("augmentation") == "standard" else set()
    return found | {"network": {key: value for key, value in network.items() if key not in left_out}}
