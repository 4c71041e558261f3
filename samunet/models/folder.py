"""A trained model on disk: where its files are, which folds are finished, and how to load them.

results/DatasetXXX_Name/samunetTrainer__PLANS__CONFIGURATION/
    plans.json  dataset.json  dataset_fingerprint.json
    fold_0/  run.json  checkpoint_final.safetensors  checkpoint_best.safetensors  adapter_final/  validation/ ...
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Required,  # pydantic needs these before Python 3.12
)

from annotated_types import Len
from typing_extensions import TypedDict

from samunet import paths
from samunet.dataset.description import Description, description_from_json
from samunet.encoders import encoder_facts
from samunet.errors import SamunetError, UsageError, argument, call
from samunet.files import read_as, read_json, restore_folders
from samunet.plans import DEFAULT_PLANS_NAME, ConfigurationPlan, NetworkPlan, Plans, read_plans
from samunet.preprocessing.normalize import UNIT_RANGE_SCHEMES
from samunet.preprocessing.run import check_channels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from samunet.models.pretrained import PretrainedWeights
    from samunet.network.model import SamunetModel

TRAINER_NAME = "samunetTrainer"
_AGAIN = "restore the file, or train this fold anew: `api.train(..., overwrite=True)`"


class _File(TypedDict, total=False):
    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    file: Required[str]
    bytes: int
    sha256: Required[str]


class _Base(_File, total=False):
    path: str | None
    copy: _File | None
    pixel_mean: Annotated[list[float], Len(3, 3)]
    pixel_std: Annotated[list[float], Len(3, 3)]


class _Setup(TypedDict, total=False):
    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    batch_size: int


class _Run(TypedDict, total=False):
    """What is read of a ``run.json``, which may be anybody's."""

    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    encoder: str
    configuration: str
    device: str
    dtype: Literal["float32", "float16", "bfloat16"]
    base: _Base | None
    started_from: _Base | None
    setup: _Setup | None
    versions: dict[str, str] | None
    iterations: int
    training_seconds: float
    peak_memory_bytes: int | None
    training_cases: list[str]
    validation_cases: list[str]
    monitored: list[str]
    training_data: str | None


def read_run(path: Path) -> dict[str, Any]:
    """A fold's ``run.json``.

    Raises:
        SamunetError: If it is missing or damaged; names the key.
    """
    return read_as(_Run, path, _AGAIN)


Fold = int | str  # a number, or "all"


def model_folder_name(plans_name: str, configuration: str) -> str:
    """Name of a trained model's folder inside its dataset's results folder."""
    return f"{TRAINER_NAME}__{plans_name}__{configuration}"


def model_folders(results: Path, pattern: str = f"{TRAINER_NAME}__*") -> list[ModelFolder]:
    """Trained and begun models in a folder, by name; not those that somebody renamed (``…__2d__old``)."""
    found = sorted(file.parent for file in results.glob(f"{pattern}/plans.json"))
    return [ModelFolder(path) for path in found if len(path.name.split("__")) == 3]


@dataclass(frozen=True)
class ModelFolder:
    """A trained model's folder.

    Args:
        path: The folder with ``plans.json``.
        name: What it will be called, while it is being written under another name.
    """

    path: Path
    name: str | None = None

    @cached_property
    def plans(self) -> Plans:
        """The plans it was trained with."""
        return read_plans(self.path / "plans.json")

    @cached_property
    def description(self) -> Description:
        """The dataset.json it was trained with."""
        path = self.path / "dataset.json"
        return description_from_json(read_json(path), str(path))

    @cached_property
    def configuration_name(self) -> str:
        """Name of the configuration: from the folder's name or, where somebody changed that, from what its folds say.

        Raises:
            SamunetError: If neither says it.
        """
        parts = (self.name or self.path.name).split("__")
        if parts[0].endswith(TRAINER_NAME) and len(parts) == 3:
            return parts[-1]
        runs = [read_run(path) for path in sorted(self.path.glob("fold_*/run.json"))]
        names = [run["configuration"] for run in runs if run.get("configuration")]
        if names:
            return names[0]
        raise SamunetError(
            f"the name of the folder {self.path} does not say which configuration its model has",
            f"rename it, for example to {model_folder_name('samunetPlans', '2d')}: plans' name and configuration",
        )

    @property
    def plans_name(self) -> str:
        """Name of the plans."""
        parts = (self.name or self.path.name).split("__")
        return parts[1] if len(parts) == 3 else self.plans.plans_name

    @property
    def dataset_name(self) -> str:
        """Name of the dataset; a model's folder may lie anywhere."""
        name = self.path.parent.name
        return name if paths.DATASET_NAME.match(name) else self.plans.dataset_name

    def training_call(self, folds: Sequence[Fold], **settings: Any) -> str:
        """The call that trains these folds, for messages."""
        settings |= {"plans_name": self.plans_name} if self.plans_name != DEFAULT_PLANS_NAME else {}
        which = ("train", folds[0]) if len(folds) == 1 else ("train_folds", list(folds))
        return call(which[0], self.dataset_name, self.configuration_name, which[1], **settings)

    @cached_property
    def configuration(self) -> ConfigurationPlan:
        """The configuration's plan."""
        return self.plans.configuration(self.configuration_name)

    def fold(self, fold: Fold) -> Path:
        """Folder of a fold, which may not exist."""
        return self.path / f"fold_{fold}"

    def run(self, fold: Fold) -> dict:
        """A fold's ``run.json``.

        Raises:
            SamunetError: If it is missing, damaged, or names a network that the plans do not have.
        """
        path = self.fold(fold) / "run.json"
        run = read_run(path)
        if run.get("encoder") not in self.configuration.networks:
            raise SamunetError(f"{path} does not say which of the plans' networks was trained (encoder)", _AGAIN)
        return run

    def network(self, fold: Fold) -> NetworkPlan:
        """The plan of the network that a fold trained; errors as :meth:`run`."""
        return self.configuration.networks[self.run(fold)["encoder"]]

    def finished_folds(self, checkpoint: str = "final") -> list[Fold]:
        """Folds that have the checkpoint; a final one exists only when training went to its end."""
        found = [path.parent.name for path in self.path.glob(f"fold_*/checkpoint_{checkpoint}.safetensors")]
        names = sorted(name.removeprefix("fold_") for name in found)
        numbered: list[Fold] = [int(name) for name in names if name.isdigit()]
        return numbered or [name for name in names if name == "all"]

    def base(self, fold: Fold) -> PretrainedWeights | None:
        """The frozen base weights that a fold needs; None if it has them all.

        Raises:
            SamunetError: If they are missing, or others than in training.
        """
        from samunet.models.pretrained import pretrained_weights

        run = self.run(fold)
        if not encoder_facts(run["encoder"]).is_sam:  # its folds are whole
            return None
        return pretrained_weights(run["encoder"], run.get("base"), beside=self.path)

    def load(
        self, folds: Sequence[Fold], checkpoint: str = "final", dtype: torch.dtype | None = None
    ) -> Sequence[SamunetModel]:
        """Load folds for prediction, LoRA merged into the frozen weights.

        Several folds share one network, which is read once; see :class:`samunet.models.shared_folds.SharedFolds`.

        Args:
            folds: Which.
            checkpoint: ``final`` or ``best``.
            dtype: Number format in which autocast will compute: the encoder is held in it, which takes half the memory
                and gives the same. None keeps float32.

        Raises:
            SamunetError: If a fold has no such checkpoint, or the base weights are missing or others than in training,
                or differ between the folds.
        """
        from samunet.adaptations.lora import merge_adapters
        from samunet.models.shared_folds import SharedFolds
        from samunet.network.encoders import hold_frozen

        for fold in folds:
            restore_folders(self.fold(fold))  # adapters
        files = [self._checkpoint_file(fold, checkpoint) for fold in folds]
        model = self._network(folds)
        states = [self._trained_state(model, file) for file in files]
        if len(states) > 1:
            return SharedFolds(model, states, dtype)
        model.load_trained_state(states[0])
        merge_adapters(model)
        if dtype is not None:
            hold_frozen(model.requires_grad_(False).image_encoder, dtype)
        return [model.eval()]

    def _checkpoint_file(self, fold: Fold, checkpoint: str) -> Path:
        file = self.fold(fold) / f"checkpoint_{checkpoint}.safetensors"
        if not file.is_file():
            finished = ", ".join(map(str, self.finished_folds(checkpoint))) or "none"
            raise SamunetError(
                f"fold {fold} of {self.path} has no {file.name} (folds that have one: {finished})",
                f"finish its training: {self.training_call([fold])}",
            )
        return file

    def _network(self, folds: Sequence[Fold]) -> SamunetModel:
        """The network that the folds share, with its base weights."""
        runs = {fold: self.run(fold) for fold in folds}
        first = next(iter(runs.values()))
        for fold, run in runs.items():
            if _origin(run) != _origin(first):
                raise SamunetError(
                    f"fold {fold} of {self.path} was trained from other weights than fold {folds[0]}",
                    f"predict with one of them ({argument('folds', [fold])}), or train one anew: "
                    "`api.train(..., overwrite=True)`",
                )
        network = self.configuration.networks[first["encoder"]]
        check_channels(self.configuration, self.description, self.path / "dataset.json")
        return build_network(self.configuration, network, self.description, self.base(folds[0]))

    @staticmethod
    def _trained_state(model: SamunetModel, file: Path) -> dict[str, Tensor]:
        """What a fold trained, checked to fit the network."""
        from samunet.adaptations.lora import load_adapters
        from samunet.tensors import read_tensors

        kind = file.stem.removeprefix("checkpoint_")
        state = read_tensors(file) | load_adapters(model, file.parent, kind)
        try:
            model.check_trained_state(state)
        except SamunetError as error:
            raise SamunetError(f"{file}: {error.message}", error.hint) from error
        return state


def _origin(run: dict) -> tuple:
    """What the folds of a model must have in common: network and base weights."""
    return run["encoder"], (run.get("base") or {}).get("sha256")


def open_model_folder(path: str | Path) -> ModelFolder:
    """A trained model by its folder's path, wherever that is and whatever it is called.

    Raises:
        UsageError: If there is no model; says what the path is instead.
    """
    folder = Path(os.path.abspath(path))  # "." has no name; links keep theirs
    if (folder / "plans.json").is_file() and any(folder.glob("fold_*")):
        if folder.name.startswith("nnUNet"):
            raise UsageError(f"{folder} is a model of nnU-Net's", "predict with nnUNetv2_predict_from_modelfolder")
        return ModelFolder(folder)
    if not folder.is_dir():
        zipped = "install it first: `api.install_model`, or Predictor.from_zip in Python"
        example = f"give the folder with plans.json and fold_0, for example {model_folder_name('samunetPlans', '2d')}"
        raise UsageError(
            f"{folder} {'is a file' if folder.exists() else 'does not exist'}",
            zipped if folder.suffix == ".zip" and folder.exists() else example,
        )
    if (folder.parent / "plans.json").is_file():
        raise UsageError(f"{folder} is a part of a model", f"give the model's folder: {folder.parent}")
    inside = [found.parent for pattern in ("*", "*/*") for found in sorted(folder.glob(f"{pattern}/plans.json"))]
    models = [str(found) for found in inside if found.name.startswith(TRAINER_NAME)]
    raise UsageError(
        f"{folder} is no trained model: it has no plans.json, or no folds",
        "models in it:\n     " + "\n     ".join(models) if models else "give the folder with plans.json and fold_0",
    )


def build_network(
    configuration: ConfigurationPlan, network: NetworkPlan, description: Description, base: PretrainedWeights | None
) -> SamunetModel:
    """Build the network for a dataset, ready to train or to be filled from a checkpoint."""
    from samunet.network.model import build_model

    return build_model(
        network,
        num_outputs=description.labels.num_outputs,
        num_channels=len(description.channel_names),
        unit_range=[scheme in UNIT_RANGE_SCHEMES for scheme in configuration.normalization],
        base_state=base.state if base else None,
        pixel_statistics=(base.record["pixel_mean"], base.record["pixel_std"]) if base else None,
    )
