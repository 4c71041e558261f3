"""Export of trained models into one zip with a manifest."""

from __future__ import annotations

import hashlib
import logging
import platform
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from samunet import __version__, paths
from samunet.dataset.layout import find_dataset
from samunet.dataset.outputs import check_place
from samunet.errors import SamunetError, UsageError, call
from samunet.files import atomic_path, file_hash, parse_json, to_json
from samunet.models.archive import open_archive
from samunet.models.choose import not_trained, parse_folds
from samunet.models.folder import Fold, ModelFolder, model_folder_name, model_folders
from samunet.models.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    BaseReference,
    FileEntry,
    Manifest,
    ModelEntry,
    parse_manifest,
)
from samunet.models.pretrained import BASE_FOLDER, published_as
from samunet.plans import DEFAULT_PLANS_NAME
from samunet.sharing.contents import Selection, dataset_files

log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)  # the same model makes the same archive, whenever


@dataclass(frozen=True)
class ExportOptions:
    """What is handed on.

    Attributes:
        configurations: Empty for all that are trained with these plans.
        folds: Empty for all that are finished.
        checkpoints: ``final``, ``best`` or both.
        strict: Whether a configuration or fold that was asked for and is not trained is an error, or left out.
        licence: Under which the model is handed on, for example ``CC-BY-4.0``.
        with_base: Whether frozen base weights go with the model; otherwise their name and hash do.
        with_case_ids: Whether names of cases, paths and logs go with it.
        with_masks: Whether the masks of the folds' validation cases go with it; they are named by their cases.
        overwrite: Whether an existing file is replaced.
    """

    configurations: Sequence[str] = ()
    plans_name: str = DEFAULT_PLANS_NAME
    folds: Sequence[Fold] = ()
    checkpoints: Sequence[str] = ("final",)
    strict: bool = True
    licence: str | None = None
    with_base: bool = False
    with_case_ids: bool = False
    with_masks: bool = False
    overwrite: bool = False


def export_model(
    dataset: str | int, output: str | Path, options: ExportOptions | None = None, **settings: Any
) -> Manifest:
    """Write trained models of a dataset into a zip that :func:`samunet.sharing.install.install_model` takes.

    Args:
        output: The file to write, ``.zip``.
        options, settings: What goes into it; ``settings`` are fields of :class:`ExportOptions`.

    Returns:
        What stands in the archive.

    Raises:
        UsageError: If there is no such model or fold, or ``output`` exists or has another ending.
        SamunetError: If a file of a model is missing or damaged, or base weights are asked for and not there.
    """
    output, options = Path(output), replace(options or ExportOptions(), **settings)
    _check(output, options)
    name = find_dataset(dataset)
    selections = _selections(paths.results_folder() / name, options)
    items: dict[str, Path | bytes] = {}
    models = []
    for selection in selections:
        folder = selection.model.path
        items |= {f"{name}/{folder.name}/{path}": content for path, content in selection.files()}
        models.append(_entry(selection))
    folds = {entry.folder: entry.folds for entry in models}
    shared = dataset_files(paths.results_folder() / name, folds, options.with_case_ids)
    items |= {f"{name}/{path}": content for path, content in shared}
    raw = selections[0].model.description.raw
    with atomic_path(output) as temporary, TemporaryDirectory(dir=output.parent, prefix=".tmp-") as scratch:
        if options.with_base:
            models = [_with_base(*pair, items, Path(scratch)) for pair in zip(selections, models)]
        manifest = Manifest(
            samunet_model=FORMAT_VERSION,
            dataset=name,
            licence=options.licence or _licence(selections),
            dataset_licence=next((str(raw[key]) for key in ("licence", "license") if raw.get(key)), None),
            case_ids=options.with_case_ids,
            versions=_versions(),
            models=models,
            files=[],
        )
        manifest = _write(temporary, manifest, items)
        with open_archive(temporary) as archive:  # what is written here must be what others can install
            archive.verify()
    _report(output, manifest)
    return manifest


def _check(output: Path, options: ExportOptions) -> None:
    if output.suffix != ".zip" or output.is_dir():
        raise UsageError(f"{output} must be a file that ends in .zip", "for example: `output='model.zip'`")
    check_place(output)
    if output.exists() and not options.overwrite:
        raise UsageError(f"{output} exists", "add `overwrite=True` to replace it, or choose another name")
    if options.with_masks and not options.with_case_ids:
        raise UsageError(
            "masks of validation cases are named by their cases", "add `with_case_ids=True` if these may be handed on"
        )


def _selections(results: Path, options: ExportOptions) -> list[Selection]:
    """The models and folds that are asked for.

    Raises:
        UsageError: If one of them is not trained.
    """
    trained = {
        model.path.name: model
        for model in model_folders(results)
        if all(model.finished_folds(checkpoint) for checkpoint in options.checkpoints)
    }
    there = ", ".join(trained) or "nothing is trained"
    of_plans = [name.split("__")[-1] for name in trained if name.split("__")[1] == options.plans_name]
    selections = []
    for configuration in options.configurations or of_plans:
        folder = model_folder_name(options.plans_name, configuration)
        if folder in trained:
            model, checkpoints = trained[folder], list(dict.fromkeys(options.checkpoints))
            if folds := _folds(model, options):
                selections.append(Selection(model, folds, checkpoints, options.with_case_ids, options.with_masks))
                continue
        elif options.strict:
            raise not_trained(
                f"{folder} in {results} with the checkpoints asked for",
                trained,
                f"train it: {call('train', results.name, configuration, 0)}, or leave it out with `strict=False`",
            )
        log.warning("%s is not trained and left out", folder)
    if not selections:
        raise UsageError(
            f"there is nothing to export in {results} with the plans {options.plans_name} (trained: {there})",
            f"train a fold first: {call('train', results.name, '2d', 0)}",
        )
    return selections


def _folds(model: ModelFolder, options: ExportOptions) -> list[Fold]:
    """Folds that have all checkpoints asked for."""
    if options.folds and options.strict:
        return [parse_folds(model, options.folds, checkpoint) for checkpoint in options.checkpoints][-1]
    folds = []
    for fold in options.folds or model.finished_folds(options.checkpoints[0]):
        files = [model.fold(fold) / f"checkpoint_{checkpoint}.safetensors" for checkpoint in options.checkpoints]
        if all(file.is_file() for file in files):
            folds.append(int(fold) if str(fold).isdigit() else fold)
        else:
            log.warning("fold %s of %s is not finished and left out", fold, model.path.name)
    return folds


def _entry(selection: Selection) -> ModelEntry:
    model = selection.model
    runs = [model.run(fold) for fold in selection.folds]
    base = None
    if recorded := runs[0].get("base"):
        published = published_as(recorded["sha256"])
        base = BaseReference(
            file=recorded["file"],
            bytes=recorded["bytes"],
            sha256=recorded["sha256"],
            licence=published.checkpoint_licence if published else None,
            url=published.checkpoint_url if published else None,
        )
    return ModelEntry(
        folder=model.path.name,
        encoder=runs[0]["encoder"],
        folds=selection.folds,
        checkpoints=selection.checkpoints,
        base=base,
        trained_with={key: str(value) for key, value in (runs[0].get("versions") or {}).items()},
    )


def _with_base(selection: Selection, entry: ModelEntry, items: dict[str, Path | bytes], scratch: Path) -> ModelEntry:
    """Add the base weights to an archive's items, as tensors in safetensors' format, and say so in every ``run.json``.

    The files that SAM is published in are pickles, which nobody should have to open.
    """
    from safetensors.torch import save_file

    if entry.base is None:
        log.info("%s began with no base weights: its folds' files hold everything", entry.folder)
        return entry
    name = f"{Path(entry.base.file).stem}-{entry.base.sha256[:12]}.safetensors"
    file = scratch / name
    if not file.exists():
        state = selection.model.base(selection.folds[0]).state
        save_file({key: value.contiguous().clone() for key, value in state.items()}, file)
    items[f"{BASE_FOLDER}/{name}"] = file
    copy = {"file": name, "bytes": file.stat().st_size, "sha256": file_hash(file)}
    for fold in selection.folds:
        run = f"{selection.model.path.parent.name}/{entry.folder}/fold_{fold}/run.json"
        content = parse_json(items[run] if isinstance(items[run], bytes) else items[run].read_bytes(), run)
        content["base"]["copy"] = copy
        items[run] = to_json(content).encode()
    return replace(entry, base=replace(entry.base, copy=name))


def _write(path: Path, manifest: Manifest, items: dict[str, Path | bytes]) -> Manifest:
    """Write the archive; returns the manifest with its files."""
    files = []
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in items.items():
            digest, size = hashlib.sha256(), 0
            with archive.open(_member(name), "w", force_zip64=True) as target:
                for block in _blocks(content):
                    target.write(block)
                    digest.update(block)
                    size += len(block)
            files.append(FileEntry(name, size, digest.hexdigest()))
        manifest = replace(manifest, files=files)
        archive.writestr(_member(FILE_NAME), to_json(asdict(manifest)))
    return manifest


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _DATE)
    # Tensors are as good as random: compressing them takes long and saves little.
    member.compress_type = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    return member


def _blocks(content: Path | bytes):
    if isinstance(content, bytes):
        yield content
        return
    try:
        with open(content, "rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
    except FileNotFoundError as error:
        raise SamunetError(f"{content} is missing", "train the fold again, or restore the file") from error


def _licence(selections: list[Selection]) -> str | None:
    """That of installed models, if all are under the same."""
    stated = set()
    for selection in selections:
        path = selection.model.path / FILE_NAME
        stated.add(parse_manifest(path.read_bytes(), str(path)).licence if path.is_file() else None)
    return stated.pop() if len(stated) == 1 else None


def _versions() -> dict[str, str]:
    import torch

    return {"samunet": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _report(output: Path, manifest: Manifest) -> None:
    for model in manifest.models:
        folds = ", ".join(map(str, model.folds))
        log.info("%s: folds %s, checkpoint %s", model.folder, folds, " and ".join(model.checkpoints))
        if model.base and not model.base.copy:
            log.info(
                "its base weights are not in it: who installs it needs %s (SHA-256 %s…); `with_base=True` puts them in",
                model.base.file, model.base.sha256[:12],
            )  # fmt: skip
    if manifest.licence is None:
        log.warning(
            "no licence is stated: whoever gets the model cannot know what is allowed; `licence=NAME` states it"
        )
    if manifest.case_ids:
        log.warning("names of cases, paths and logs are in it: make sure that these may be handed on")
    log.info("%d files, %.1f MB written to %s", len(manifest.files), output.stat().st_size / 1e6, output)
