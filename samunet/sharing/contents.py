"""Which files of trained models an archive gets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from samunet.dataset.mask_files import mask_files, with_sidecar
from samunet.errors import SamunetError
from samunet.files import read_json, to_json
from samunet.inference.model_folder import TRAINER_NAME, Fold, ModelFolder
from samunet.sharing.private import case_names, without_cases, without_paths

# Of a model's folder, where they exist. What a model needs to predict comes first.
_OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json", "postprocessing.json")
_OF_FOLD = ("run.json", "calibration.json", "validation/summary.json")
_ADAPTERS = ("adapter_{}", "adapter_{}_decoder")
_OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_OF_ENSEMBLE = _OF_CROSSVAL = ("postprocessing.json", "summary.json", "plans.json", "dataset.json")
_LOGS = ("training_log.json", "progress.png")
# Of the dataset's folder: what the choice of a configuration wrote.
_OF_DATASET = ("inference_information.json", "inference_instructions.txt")


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
        cases = set() if self.case_ids else case_names(folder)
        for path in self._paths():
            name = path.relative_to(folder).as_posix()
            if name.endswith(".json") and not self.case_ids:
                yield name, to_json(without_cases(path.name, read_json(path), cases, folder.parents[1])).encode()
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


def dataset_files(
    folder: Path, models: Collection[str], case_ids: bool, cases: set[str]
) -> Iterator[tuple[str, bytes]]:
    """What belongs to several models of a dataset: paths within its results folder, and what the files hold.

    Args:
        folder: ``samunet_results/DatasetXXX_Name``.
        models: Names of the model folders that are handed on; ensembles of others are left out.
        case_ids: Whether names of cases and paths stay.
        cases: Names of cases that may be in these files.
    """
    files = list(_existing(folder, _OF_DATASET))
    for ensemble in sorted((folder / "ensembles").glob("ensemble___*___*___*")):
        members = ensemble.name.split("___")[1:-1]
        if all(f"{TRAINER_NAME}__{member}" in models for member in members):
            files += _existing(ensemble, _OF_ENSEMBLE)
    for path in files:
        name = path.relative_to(folder).as_posix()
        if case_ids:
            yield name, path.read_bytes()
        elif path.suffix == ".json":
            yield name, to_json(without_cases(path.name, read_json(path), cases, folder.parent)).encode()
        else:
            yield name, without_paths(path.read_text(encoding="utf-8"), folder.parent).encode()


def _existing(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    return (folder / name for name in names if (folder / name).is_file())
