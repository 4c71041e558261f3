"""Installation of an exported model: every file is checked, and then all of it appears at once."""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from samunet import paths
from samunet.dataset.outputs import check_place
from samunet.errors import SamunetError, printable
from samunet.files import atomic_folder, atomic_path, file_hash, make_folder
from samunet.models.archive import ModelArchive, open_archive
from samunet.models.choose import INSTRUCTIONS
from samunet.models.folder import ModelFolder
from samunet.models.manifest import Manifest, ModelEntry
from samunet.models.pretrained import recorded_file

log = logging.getLogger(__name__)

_OTHER_SIZE = 1 << 20  # of what is written beside the listed files


def install_model(archive: str | Path, folder: str | Path | None = None, *, overwrite: bool = False) -> list[Path]:
    """Install what :func:`samunet.sharing.export.export_model` wrote. Nothing in the archive is run.

    Args:
        archive: The zip.
        folder: Where to; None for ``samunet_results``.
        overwrite: Whether models of the same names that are there are replaced. What the choice of a configuration has
            written to the dataset's folder there is always kept: it may speak of other models.

    Returns:
        The models' folders.

    Raises:
        UsageError: If there is no such file, or ``folder`` lies in a raw dataset.
        SamunetError: If the archive is damaged or holds what no model has, if other models of these names are there,
            or if the disk is full. Then nothing has been installed, and what was there before is as it was.
    """
    root = check_place(folder) if folder is not None else paths.results_folder()
    with open_archive(Path(archive)) as opened:
        manifest = opened.manifest
        dataset = root / manifest.dataset
        targets = {model.folder: dataset / model.folder for model in manifest.models}
        new = [model for model in manifest.models if not _is_installed(opened, model, targets[model.folder])]
        # Instructions are a stranger's commands: nobody should run them from a folder of one's own.
        beside = [name for name in opened.files_of_dataset() if name != INSTRUCTIONS]
        others = [name for name in beside if not _is_same(opened, name, dataset / name)]
        # Files of one folder belong together.
        own = {Path(name).parent for name in others if (dataset / name).exists()}
        if not overwrite:
            _refuse_to_overwrite(new, dataset)
        _check_space(opened, root)
        _install(opened, new, [name for name in others if Path(name).parent not in own], dataset)
    _report(manifest, new, targets)
    _report_kept([dataset / name for name in others if Path(name).parent in own], archive)
    return list(targets.values())


def _install(archive: ModelArchive, models: list[ModelEntry], others: list[str], dataset: Path) -> None:
    """Write all into hidden folders, check it there, and only then give it its names."""
    made = not dataset.exists()
    try:
        with ExitStack() as stack:
            make_folder(dataset)
            for model in models:
                archive.extract(model, stack.enter_context(atomic_folder(dataset / model.folder)))
            for name in others:
                archive.extract_file(archive.files_of_dataset()[name], stack.enter_context(atomic_path(dataset / name)))
    except BaseException:
        if made:
            shutil.rmtree(dataset, ignore_errors=True)
        for folder in [(dataset / name).parent for name in others if "/" in name]:  # of ensembles, if they stayed empty
            with suppress(OSError):
                folder.rmdir()
                folder.parent.rmdir()
        raise


def _is_installed(archive: ModelArchive, model: ModelEntry, folder: Path) -> bool:
    """Whether a folder holds just these files already."""
    return folder.is_dir() and all(
        _is_content(folder / target, archive.hash_of(name)) for target, name in archive.files_of(model).items()
    )


def _is_same(archive: ModelArchive, name: str, file: Path) -> bool:
    return _is_content(file, archive.hash_of(archive.files_of_dataset()[name]))


def _is_content(file: Path, sha256: str) -> bool:
    return file.is_file() and file_hash(file) == sha256


def _refuse_to_overwrite(models: list[ModelEntry], dataset: Path) -> None:
    for model in models:
        folder = dataset / model.folder
        if folder.exists():
            folds = ", ".join(path.name for path in sorted(folder.glob("fold_*"))) or "no fold"
            raise SamunetError(
                f"{folder} exists, with other files ({folds}); nothing was installed",
                "add `overwrite=True` to replace that whole folder, or install elsewhere: `folder=FOLDER`",
            )


def _check_space(archive: ModelArchive, root: Path) -> None:
    make_folder(root)
    needed = sum(entry.bytes for entry in archive.manifest.files) + _OTHER_SIZE
    free = shutil.disk_usage(root).free
    if needed > free:
        raise SamunetError(
            f"{archive.path} needs {needed / 1e9:.2f} GB, and {root} has {free / 1e9:.2f} GB left",
            "free some space, or install elsewhere: `folder=FOLDER`",
        )


def _report_kept(files: list[Path], archive: str | Path) -> None:
    if files:
        log.warning(
            "%s: kept as they are, and those of %s not installed: they may speak of your own models\n"
            "  -> to see what came with the model, install it elsewhere: `folder=FOLDER`",
            ", ".join(map(str, files)),
            archive,
        )


def _report(manifest: Manifest, new: list[ModelEntry], targets: dict[str, Path]) -> None:
    log.info(
        "licence: %s", printable(manifest.licence or "") or "not stated: ask whoever made the model before you use it"
    )
    if manifest.dataset_licence:
        log.info("licence of the data it was trained on: %s", printable(manifest.dataset_licence))
    for model in manifest.models:
        folds = ", ".join(map(str, model.folds))
        there = "" if model in new else " (was there already)"
        log.info("%s: encoder %s, folds %s%s", targets[model.folder], printable(model.encoder), printable(folds), there)
        base = ModelFolder(targets[model.folder]).run(model.folds[0]).get("base")
        if base:
            try:
                log.info("base weights: %s", recorded_file(base, targets[model.folder]))
            except SamunetError as error:
                log.warning("%s\n  -> %s", error.message, error.hint)
