"""Folders of masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samunet.dataset.cases import mask_files
from samunet.dataset.description import Description, description_from_json
from samunet.dataset.labels import Labels
from samunet.errors import SamunetError
from samunet.evaluation.summary import evaluate_files
from samunet.files import atomic_folder, atomic_path, read_json, write_json
from samunet.imageio.registry import MASK_ENDINGS
from samunet.models.folder import ModelFolder

Pairs = dict[str, tuple[Path, Path]]  # case to its mask and its reference
BESIDE = ("dataset.json", "plans.json")


def masks_in(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by case.

    Raises:
        UsageError: If it is no folder.
        SamunetError: If there is none, or two for the same case.
    """
    found = mask_files(folder)
    if not found:
        raise SamunetError(
            f"{folder} holds no masks ({', '.join(MASK_ENDINGS)})", "give the folder that `api.predict` made"
        )
    return found


def description_beside(folder: Path, dataset_json: Path | None = None) -> Description:
    """The dataset.json that belongs to a folder of masks: given, or in it.

    Raises:
        SamunetError: If it is missing or wrong.
    """
    path = Path(dataset_json) if dataset_json is not None else Path(folder) / "dataset.json"
    if not path.is_file():
        raise SamunetError(
            f"{path} does not exist", "give the dataset's: `dataset_json='/path/to/DatasetXXX_Name/dataset.json'`"
        )
    return description_from_json(read_json(path), str(path))


def copy_beside(source: Path, target: Path) -> None:
    """Copy dataset.json and plans.json, where they are, from one folder of masks to another."""
    for name in BESIDE:
        if (source / name).is_file():
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)


def write_model_facts(folder: Path, model: ModelFolder) -> None:
    """Put plans.json and dataset.json beside masks."""
    model.plans.write(folder / "plans.json")
    write_json(folder / "dataset.json", model.description.raw)


def write_scored(
    target: Path,
    pairs: Pairs,
    write_masks: Callable[[dict[str, Path]], None],
    write_facts: Callable[[Path], None],
    labels: Labels,
    description: Description,
    num_workers: int,
    *,
    tolerate_geometry: bool = True,
    noted: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Make a folder of masks with their ``summary.json``, which appears when it is whole.

    Args:
        target: The folder; one that is there is replaced.
        pairs: A mask whose name the new one gets, and the reference, by case.
        write_masks: Writes the masks to the files that it is given, by case.
        write_facts: Writes plans.json and dataset.json into the folder.
        labels: By which masks are scored.
        description: How to read the references.
        tolerate_geometry: Preprocessing has accepted a dataset's own labels.
        noted: What to note in the summary, by case.

    Returns:
        The content of ``summary.json``.
    """
    with atomic_folder(target) as folder:
        files = {case: folder / mask.name for case, (mask, _) in pairs.items()}
        write_masks(files)
        summary = evaluate_files(
            {case: (file, pairs[case][1]) for case, file in files.items()},
            labels,
            description.reader,
            num_workers,
            tolerate_geometry=tolerate_geometry,
        )
        for (case, file), entry in zip(files.items(), summary["metric_per_case"], strict=True):
            entry |= {"prediction_file": str(target / file.name), **(noted or {}).get(case, {})}
        write_json(folder / "summary.json", summary)
        write_facts(folder)
    return summary
