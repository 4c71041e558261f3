"""Pretrained weights: the file that a network begins with, found again by its content."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from samunet import paths
from samunet.encoders import BUNDLED_WEIGHTS, CHECKPOINTS, PIXEL_STATISTICS, EncoderFacts, encoder_facts
from samunet.errors import SamunetError, argument, call
from samunet.files import file_hash
from samunet.models import downloads

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

BASE_FOLDER = "base_weights"  # in a model's folder: a copy that was handed on with it


@dataclass(frozen=True)
class PretrainedWeights:
    """Base weights in memory.

    Attributes:
        state: Tensors by SAM's names.
        record: ``base`` of ``run.json``: file, size and hash, the pixel statistics that go with it, and the path if
            the user gave one.
    """

    state: dict[str, Tensor]
    record: dict


def is_available(facts: EncoderFacts, *, may_download: bool = True) -> bool:
    """Whether there are weights for an encoder: its published file on disk, or a server that answers for it."""
    from samunet.network.checkpoints import find_checkpoint

    return find_checkpoint(facts) is not None or (may_download and downloads.can_download(facts))


def automatic_encoder(encoders: Iterable[str], *, gpu: bool) -> tuple[str, str]:
    """The planned encoder to train where nobody says which, and why: SAM's with a GPU and its weights, or the small.

    Args:
        encoders: Names, at least one.
        gpu: Whether there is one.
    """
    names = list(encoders)
    sam = next((name for name in names if encoder_facts(name).is_sam), None)
    small = next((name for name in names if not encoder_facts(name).is_sam), None)
    if sam is None or small is None:
        return names[0], "the only one planned"
    weights = is_available(encoder_facts(sam), may_download=gpu)
    if gpu and weights:
        return sam, f"there is a GPU and {sam}'s checkpoint; {argument('encoder', small)} for the small one"
    lacking = [text for text, there in (("no GPU", gpu), (f"no checkpoint of {sam}", weights)) if not there]
    return small, f"{' and '.join(lacking)}; {argument('encoder', sam)} would choose SAM"


def pretrained_weights(
    encoder: str,
    recorded: dict | None = None,
    checkpoint: Path | None = None,
    *,
    pixel_statistics: str | None = None,
    decoder_from: str | None = None,
    beside: Path | None = None,
    may_download: bool = False,
    progress: bool = True,
) -> PretrainedWeights:
    """Find, read and check an encoder's base weights.

    Args:
        encoder: Its name.
        recorded: ``base`` of the ``run.json`` of a training that began with some; only that file will do, wherever it
            is now.
        checkpoint: The user's choice instead of the published or bundled file.
        decoder_from: What completes a ``checkpoint`` of an encoder alone; see
            :func:`samunet.models.encoder_files.whole_checkpoint`.
        beside: A model's folder, in which a copy of its base may lie.
        pixel_statistics: Name in ``PIXEL_STATISTICS`` of those that go with ``checkpoint``; None for those of the
            published file with its content, else the encoder's.
        may_download: Whether a published file that is missing is downloaded.
        progress: Whether a download shows a progress bar.

    Returns:
        The weights, checked to fit strictly.

    Raises:
        SamunetError: If the file is missing, damaged, made for something else, or not the recorded one.
    """
    from samunet.models import encoder_files
    from samunet.network.checkpoints import check_fits, find_checkpoint, load_sam_checkpoint

    facts = encoder_facts(encoder)
    given = checkpoint.expanduser().resolve() if checkpoint else None
    if given and given.is_file():
        given = encoder_files.whole_checkpoint(given, facts, decoder_from, progress=progress)
    if recorded:
        path = _copy(recorded, beside) or _find_recorded(recorded, given, may_download, progress)
    else:
        path = given or find_checkpoint(facts) or _missing(facts, may_download, progress)
    state = load_sam_checkpoint(path)
    check_fits(facts, state, path)
    named = CHECKPOINTS[PIXEL_STATISTICS[pixel_statistics]] if pixel_statistics else None
    record = _record(path, facts, named)
    if recorded:
        _check_statistics(record, recorded, pixel_statistics)
        return PretrainedWeights(state, record | recorded)
    published = published_as(record["sha256"])
    if given:
        record["path"] = str(given)
        if origin := encoder_files.origin(given):
            record["made_of"] = origin
        log.info(
            "base weights: %s, %s", given,
            f"published by {published.checkpoint_url}" if published
            else f"used with the pixel statistics of {pixel_statistics or encoder}",
        )  # fmt: skip
    elif published is None and facts.checkpoint_sha256:
        log.warning("%s is not the published file of that name; it is used as it is", path)
    return PretrainedWeights(state, record)


def recorded_file(recorded: dict, beside: Path) -> Path:
    """The file that holds recorded base weights.

    Raises:
        SamunetError: If there is none; says where to put it.
    """
    return _copy(recorded, beside) or _find_recorded(recorded, None, False, False)


def _copy(recorded: dict, beside: Path | None) -> Path | None:
    """The copy of the base in a model's folder, where it is whole."""
    copy = recorded.get("copy")
    if beside is None or not isinstance(copy, dict):
        return None
    path = beside / BASE_FOLDER / Path(copy["file"]).name
    return path if _has_content(path, copy) else None


def _record(path: Path, facts: EncoderFacts, named: EncoderFacts | None) -> dict:
    sha256 = file_hash(path)
    statistics = named or published_as(sha256) or facts
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "pixel_mean": list(statistics.pixel_mean),
        "pixel_std": list(statistics.pixel_std),
    }


def _check_statistics(record: dict, recorded: dict, asked: str | None) -> None:
    """A training, and all folds of a model, keep to the statistics they began with."""
    if asked and any(recorded.get(key, record[key]) != record[key] for key in ("pixel_mean", "pixel_std")):
        raise SamunetError(
            f"this model was begun with other pixel statistics than {asked}'s: mean {recorded['pixel_mean']}, "
            f"deviation {recorded['pixel_std']} on 0-255",
            "leave out `pixel_statistics`, or train another model: plan under another name, or use `overwrite=True` "
            "on all its folds",
        )


def published_as(sha256: str) -> EncoderFacts | None:
    """What is known of weights that somebody published: address and licence."""
    return next((facts for facts in CHECKPOINTS.values() if facts.checkpoint_sha256 == sha256), None)


def _missing(facts: EncoderFacts, may_download: bool, progress: bool) -> Path:
    if not facts.checkpoint_url:
        raise SamunetError(
            f"the weights of {facts.name} are missing: {BUNDLED_WEIGHTS / facts.checkpoint_file}",
            "install samunet again",
        )
    folder = paths.checkpoints_folder()
    if may_download:
        log.info("the weights of %s are not in %s", facts.name, folder)
        try:
            return downloads.download(facts, progress=progress)
        except SamunetError as error:
            raise SamunetError(error.message, f"{error.hint}, or use `encoder='small'`") from error
    raise SamunetError(
        f"the weights of {facts.name} are not in {folder}",
        f"{call('download_checkpoint', facts.name)}, or get {facts.checkpoint_url} and put it at "
        f"{folder / facts.checkpoint_file}, or use `encoder='small'`",
    )


def _find_recorded(recorded: dict, given: Path | None, may_download: bool, progress: bool) -> Path:
    """The file that a training began with: given, where it was, by its name, or any with its content."""
    wanted = f"{recorded['file']} (SHA-256 {recorded['sha256'][:12]}…)"
    if given and not _has_content(given, recorded):
        raise SamunetError(
            f"this model was begun with {wanted}; {given} has another content, and what was trained on one base does "
            "not work on another",
            f"give `checkpoint='/path/to/{recorded['file']}'` or leave it out, or train another model: plan under "
            "another name, or use `overwrite=True` on all its folds",
        )
    folder = paths.checkpoints_folder()
    candidates = [given, Path(recorded["path"]) if recorded.get("path") else None, folder / recorded["file"]]
    candidates += sorted(BUNDLED_WEIGHTS.iterdir()) if BUNDLED_WEIGHTS.is_dir() else []
    candidates += sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for path in candidates:
        if path is not None and _has_content(path, recorded):
            return path
    published = published_as(recorded["sha256"])
    if published and may_download and not (folder / published.checkpoint_file).exists():
        return downloads.download(published, progress=progress)
    names = [name for name, facts in CHECKPOINTS.items() if facts is published]
    command = f"{call('download_checkpoint', names[0])}, or " if names else ""
    where = f" or back at {recorded['path']}" if recorded.get("path") else ""
    raise SamunetError(
        f"this model needs its base weights {wanted}, and no file with that content is in {folder}",
        f"{command}put the original file into that folder{where}",
    )


def _has_content(path: Path, recorded: dict) -> bool:
    """Whether a file is the recorded one; sizes are compared first, because a hash reads the whole file."""
    try:
        if path.stat().st_size != recorded.get("bytes", path.stat().st_size):
            return False
        return path.is_file() and file_hash(path) == recorded["sha256"]
    except OSError:
        return False
