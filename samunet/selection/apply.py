"""Postprocessing of a folder of masks."""

from __future__ import annotations

import logging
from pathlib import Path

from samunet.dataset.outputs import begin, check_folder, claim_folder, finish
from samunet.errors import SamunetError, UsageError, raise_failures
from samunet.files import make_folder
from samunet.imageio.base import Reader
from samunet.imageio.registry import image_reader_for, mask_ending, reader_for
from samunet.inference.postprocessing import FILE_NAME, Postprocessing, read_postprocessing
from samunet.selection.masks import copy_beside, description_beside, masks_in
from samunet.workers import map_cases

log = logging.getLogger(__name__)


def apply_postprocessing(
    source: str | Path,
    output: str | Path,
    postprocessing: str | Path | None = None,
    *,
    dataset_json: str | Path | None = None,
    overwrite: bool = False,
    num_workers: int = 0,
) -> list[str]:
    """Write every mask of a folder to another, with postprocessing applied.

    Args:
        source: Folder of masks.
        output: Where to; made if missing.
        postprocessing: The JSON file; None for ``postprocessing.json`` in ``source``.
        dataset_json: Says which reader opens the masks; None for the one in ``source``, if there is one. Without it
            the endings decide.
        overwrite: Replace masks of these names that this program did not write, or that a person has edited since.

    Returns:
        Names of the cases.

    Raises:
        UsageError: If a folder or file does not exist, or ``output`` is no place for masks.
        SamunetError: If there is no mask; or, after all others were written, if masks could not be read: of several a
            :class:`samunet.errors.CasesFailed` that lists them.
    """
    source = Path(source)
    output = check_folder(output, [source], overwrite=overwrite)
    file = Path(postprocessing) if postprocessing is not None else source / FILE_NAME
    if not file.is_file():
        raise UsageError(
            f"{file} does not exist",
            f"give the {FILE_NAME} that was chosen: `postprocessing` (see inference_instructions.txt)",
        )
    steps, masks = read_postprocessing(file), masks_in(source)
    check_folder(output, [source], [path.name for path in masks.values()], overwrite=overwrite)
    reader = None
    if dataset_json is not None or (source / "dataset.json").is_file():
        description = description_beside(source, Path(dataset_json) if dataset_json is not None else None)
        reader = description.reader
    claim_folder(output)
    failures: dict[str, SamunetError] = {}
    files = {name: (path, output / path.name) for name, path in masks.items()}
    write_postprocessed(files, steps, reader, num_workers, failures)
    copy_beside(source, output)
    raise_failures(failures, len(files), "make these masks again, then run the same command again")
    log.info("postprocessing: %s", Postprocessing(steps.steps).describe())  # masks are decoded already
    return list(masks)


def write_postprocessed(
    files: dict[str, tuple[Path, Path]],
    postprocessing: Postprocessing,
    reader: Reader | None,
    num_workers: int,
    failures: dict[str, SamunetError] | None = None,
) -> None:
    """Postprocess masks from files into files.

    Args:
        files: Case to its mask and where the result goes.
    """
    for _, target in files.values():
        make_folder(target.parent)
    arguments = [(*pair, postprocessing, reader) for pair in files.values()]
    for _ in map_cases(
        _postprocess_file,
        list(files),
        arguments,
        num_workers=num_workers,
        description="Postprocessing",
        failures=failures,
    ):
        pass


def _postprocess_file(file: Path, target: Path, postprocessing: Postprocessing, reader: Reader | None) -> None:
    reader = image_reader_for(file, reader or reader_for(mask_ending(file)))
    mask, geometry = reader.read_label(file)
    begin(target)
    reader.write_label(postprocessing.apply(mask), target, geometry)
    finish(target)
