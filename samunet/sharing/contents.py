"""Files of trained models that are handed on."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from samunet.dataset.cases import mask_files, with_sidecar
from samunet.errors import SamunetError
from samunet.files import read_as, read_json, to_json
from samunet.models.choose import INFORMATION, INSTRUCTIONS, Information
from samunet.models.folder import TRAINER_NAME, Fold, ModelFolder, model_folder_name
from samunet.sharing.private import public, public_instructions

log = logging.getLogger(__name__)

# Of a model's folder, where they exist. What a model needs to predict comes first.
_OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json", "postprocessing.json")
_OF_FOLD = ("run.json", "calibration.json", "validation/summary.json")
_ADAPTERS = ("adapter_{}", "adapter_{}_decoder")
_OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_OF_ENSEMBLE = _OF_CROSSVAL = ("postprocessing.json", "summary.json", "plans.json", "dataset.json")
_LOGS = ("training_log.json", "training_log.csv", "training_log.txt", "progress.png")
# Of the dataset's folder: what the choice of a configuration wrote.
_OF_DATASET = (INFORMATION, INSTRUCTIONS)


@dataclass(frozen=True)
class Selection:
    """What of a model is handed on.

    Attributes:
        model: Its folder.
        folds: Which folds.
        checkpoints: ``final``, ``best`` or both.
        case_ids: Whether names of cases, paths and logs stay.
        masks: Whether the masks that the folds predicted for their validation cases go with it.
    """

    model: ModelFolder
    folds: list[Fold]
    checkpoints: list[str]
    case_ids: bool = False
    masks: bool = False

    def files(self) -> Iterator[tuple[str, Path | bytes]]:
        """Paths within the model's folder, each with the file, or with what it holds in place of the file.

        Raises:
            SamunetError: If a file that a model needs is missing or damaged.
        """
        folder = self.model.path
        for path in self._paths():
            name = path.relative_to(folder).as_posix()
            if name.endswith(".json") and not self.case_ids:
                yield name, to_json(public(path.name, read_json(path), folder.parents[1])).encode()
            else:
                yield name, path

    def _paths(self) -> Iterator[Path]:
        folder = self.model.path
        for name in ("plans.json", "dataset.json"):
            if not (folder / name).is_file():
                raise SamunetError(f"{folder} has no {name}, without which a model cannot predict", "restore the file")
        yield from _existing(folder, _OF_MODEL)
        for fold in self.folds:
            yield from self._of_fold(self.model.fold(fold))
        for crossval in sorted(folder.glob("crossval_results_folds_*")):
            if set(re.findall(r"\d+|all", crossval.name)) <= set(map(str, self.folds)):
                yield from _existing(crossval, _OF_CROSSVAL)

    def _of_fold(self, folder: Path) -> Iterator[Path]:
        yield from _existing(folder, _OF_FOLD + (_LOGS if self.case_ids else ()))
        for checkpoint in self.checkpoints:
            yield folder / f"checkpoint_{checkpoint}.safetensors"
            for adapter in _ADAPTERS:
                yield from _existing(folder / adapter.format(checkpoint), _OF_ADAPTER)
        if self.masks and (folder / "validation").is_dir():
            for mask in mask_files(folder / "validation").values():
                yield from with_sidecar(mask)


def dataset_files(folder: Path, models: Mapping[str, Collection[Fold]], case_ids: bool) -> Iterator[tuple[str, bytes]]:
    """What belongs to several models of a dataset: paths within its results folder, and what the files hold.

    Args:
        folder: ``samunet_results/DatasetXXX_Name``.
        models: Names and folds of the model folders that are handed on; what needs others is left out.
        case_ids: Whether names of cases and paths stay.
    """
    files = list(_existing(folder, _OF_DATASET))
    lacking = _lacking(folder / INFORMATION, models)
    if lacking:
        log.warning("left out: %s, which predict with what is not handed on: %s", " and ".join(_OF_DATASET), lacking)
        files = []
    for ensemble in sorted((folder / "ensembles").glob("ensemble___*___*___*")):
        *members, folds = ensemble.name.split("___")[1:]
        names = [f"{TRAINER_NAME}__{member}" for member in members]
        if all(set(re.findall(r"\d+|all", folds)) <= set(map(str, models.get(name, ()))) for name in names):
            files += _existing(ensemble, _OF_ENSEMBLE)
    for path in files:
        name = path.relative_to(folder).as_posix()
        if case_ids:
            yield name, path.read_bytes()
        elif path.suffix == ".json":
            yield name, to_json(public(path.name, read_json(path), folder.parent)).encode()
        else:
            yield name, public_instructions(path.read_text(encoding="utf-8"), folder.parent).encode()


def _lacking(information: Path, models: Mapping[str, Collection[Fold]]) -> str:
    """What of the models and folds that were found to be best is not among ``models``; empty if nothing."""
    try:
        content = read_as(Information, information)
    except SamunetError:  # missing, or of another making
        return ""
    chosen = content["best_model_or_ensemble"]["selected_model_or_models"]
    names = [model_folder_name(model["plans_identifier"], model["configuration"]) for model in chosen]
    folds = [str(fold) for fold in content.get("folds", [])]
    missing = {name: [fold for fold in folds if fold not in map(str, models.get(name, ()))] for name in names}
    return "; ".join(
        f"fold{'s' * (len(lost) > 1)} {', '.join(lost)} of {name}" for name, lost in missing.items() if lost
    )


def _existing(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    return (folder / name for name in names if (folder / name).is_file())
