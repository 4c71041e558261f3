"""Ensembles of models: the mean of the probabilities that they saved."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samunet.dataset.cases import visible
from samunet.dataset.labels import Labels
from samunet.dataset.outputs import begin, check_folder, claim_folder, finish
from samunet.errors import SamunetError, UsageError, raise_failures
from samunet.files import atomic_path, make_folder
from samunet.imageio.base import Reader
from samunet.imageio.registry import image_reader_for
from samunet.imageio.same_grid import Grid, on_grid
from samunet.inference.decoding import ARGMAX, average
from samunet.selection.masks import copy_beside, description_beside, masks_in
from samunet.workers import map_cases

log = logging.getLogger(__name__)

_SAVE = "predict each folder with `api.predict(..., save_probabilities=True)`, from the same images"


def ensemble(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    save_probabilities: bool = False,
    decoding: str = ARGMAX,
    overwrite: bool = False,
    num_workers: int = 0,
) -> list[str]:
    """Average the probabilities of folders of predictions, and write the masks.

    Args:
        folders: Each made by ``samunet_predict --save_probabilities`` from the same images, by models of the same
            labels.
        output: Where the masks go; made if missing.
        save_probabilities: Also write the mean as ``CASE.npz``.
        decoding: ``argmax``, or ``dice`` (:func:`samunet.inference.decoding.decode_for_dice`).
        overwrite: Replace masks of these names that this program did not write, or that a person has edited since.

    Returns:
        Names of the cases.

    Raises:
        UsageError: If there are fewer than two folders, or ``output`` is no place for masks.
        SamunetError: If they hold different cases or labels; or, after all others were written, if files of cases are
            damaged: of several a :class:`samunet.errors.CasesFailed` that lists them.
    """
    folders = [Path(folder) for folder in folders]
    if len(folders) < 2:
        raise UsageError("an ensemble needs at least two folders", "`api.ensemble([FIRST, SECOND], OUT)`")
    output = check_folder(output, folders, overwrite=overwrite)
    description = description_beside(folders[0])
    for folder in folders[1:]:
        if description_beside(folder).labels != description.labels:
            raise SamunetError(
                f"{folder} was predicted for other labels than {folders[0]}", "give predictions of the same labels"
            )
    masks = masks_in(folders[0])
    probable = [_probabilities_in(folder) for folder in folders]
    for folder, own in zip(folders, probable):
        different = sorted(own.keys() ^ masks.keys())
        if different:
            raise SamunetError(
                f"{folder} and {folders[0]} do not hold the same cases: {different[0]} lacks its mask or its "
                f"probabilities ({len(different)} in all)",
                _SAVE,
            )
    reader = description.reader
    files = {name: ([own[name] for own in probable], mask, output / mask.name) for name, mask in masks.items()}
    check_folder(output, folders, [mask.name for mask in masks.values()], overwrite=overwrite)
    claim_folder(output)
    failures: dict[str, SamunetError] = {}
    ensemble_files(files, description.labels, reader, save_probabilities, num_workers, decoding, failures)
    copy_beside(folders[0], output)
    raise_failures(failures, len(files), "predict these cases again, then run the same command again")
    return list(files)


def ensemble_files(
    files: dict[str, tuple[list[Path], Path, Path]],
    labels: Labels,
    reader: Reader,
    save_probabilities: bool,
    num_workers: int,
    decoding: str = ARGMAX,
    failures: dict[str, SamunetError] | None = None,
) -> None:
    """Average saved probabilities wherever they lie; of one file, decode them.

    Args:
        files: Case to its files with probabilities, a mask whose geometry holds, and where the new mask goes.
        save_probabilities: Also write the mean beside the mask.
        decoding: One of :data:`samunet.inference.decoding.DECODINGS`.
    """
    for _, _, target in files.values():
        make_folder(target.parent)
    arguments = [(*entry, name, labels, reader, save_probabilities, decoding) for name, entry in files.items()]
    for _ in map_cases(
        _average_case, list(files), arguments, num_workers=num_workers, description="Averaging", failures=failures
    ):
        pass


def read_probabilities(path: Path) -> np.ndarray:
    """What ``--save_probabilities`` and ``--npz`` keep: ``(outputs, z, y, x)`` in half precision.

    Raises:
        SamunetError: If the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["probabilities"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise SamunetError(f"{path} is missing, damaged, or holds no probabilities", _SAVE) from error


def _average_case(
    probable: list[Path],
    mask_file: Path,
    target: Path,
    name: str,
    labels: Labels,
    reader: Reader,
    save_probabilities: bool,
    decoding: str,
) -> None:
    reader = image_reader_for(mask_file, reader)
    first, geometry = reader.read_label(mask_file)
    place = Grid(mask_file, first.shape, geometry)
    mask, mean = average([_on_grid(path, place, reader) for path in probable], labels, decoding)
    begin(target)
    if save_probabilities:
        with atomic_path(target.parent / f"{name}.npz") as temporary:
            np.savez_compressed(temporary, probabilities=mean)
    reader.write_label(mask, target, geometry)
    finish(target)


def _on_grid(path: Path, place: Grid, reader: Reader) -> np.ndarray:
    """Saved probabilities; where the mask beside them lies in another orientation than the first, turned as it is."""
    probabilities, beside = read_probabilities(path), path.with_name(place.file.name)
    if beside == place.file or not beside.is_file():
        return probabilities
    own, geometry = reader.read_label(beside)
    return on_grid(probabilities, Grid(beside, own.shape, geometry), place)


def _probabilities_in(folder: Path) -> dict[str, Path]:
    return {file.name.removesuffix(".npz"): file for file in visible(folder) if file.name.endswith(".npz")}
