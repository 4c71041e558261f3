"""What a user may choose for a training; everything else is in the plans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samunet.encoders import PIXEL_STATISTICS
from samunet.errors import UsageError, check_number

# Of numbers that must be above 0; beyond these lie mistakes in typing.
_LIMITS = {
    "epochs": 1e7,
    "iterations": 1e9,
    "seconds": 1e9,
    "batch_size": 1e5,
    "learning_rate": None,
    "feature_cache": None,
    "num_cases": None,
    "checkpoint_seconds": None,
}
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_size(text: str) -> int:
    """Bytes from ``20GB``, ``500 MB`` or a plain number of bytes.

    Raises:
        UsageError: If the text is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]b)?", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise UsageError(f"{text!r} is no size", "write for example 20GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def format_size(size: float) -> str:
    """``1.5 GB``; below 1 GB ``20.0 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class TrainingOptions:
    """What a user may choose. None means: as planned.

    Attributes:
        encoder: Encoder to use; None leaves it to the plans and the machine.
        checkpoint: File with base weights in SAM's layout, instead of the encoder's own.
        pixel_statistics: ``sam`` or ``medsam``: what ``checkpoint`` was trained with; None to tell from the file.
        decoder_from: Completes a ``checkpoint`` that holds an image encoder alone: a whole checkpoint of the encoder (a
            file, or the encoder's name), or ``random``; None for the published one.
        epochs, iterations, seconds: Length of the training; at most one of them.
        batch_size: Images per step.
        learning_rate: Peak.
        seed: All randomness depends on it.
        num_workers: Processes that prepare batches; 0 for none.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        feature_cache: Bytes that features of the encoder's frozen part may take on disk; None for no cache.
        num_cases: Train on so many of the fold's cases, drawn by ``seed``; None for all.
        cases: Train on these of the fold's cases alone: names, or a JSON or text file with them; None for all.
        augmentation: ``standard`` (nnU-Net's) or ``strong``; None as planned.
        synthesis: Share of the training images that get something new, made of the labelled slices; 0 for none,
            ``auto`` for the rule by the number of slices (:mod:`samunet.training.synthesis`).
        pretrained: A ``checkpoint_*.safetensors`` of another training to start from.
        random_weights: Start the bundled encoder from random weights, to compare.
        overwrite: Start anew where this fold was already trained.
        validation_only: Only (re)do the final validation.
        validate_best: Also predict and score the validation cases with ``checkpoint_best``, into ``validation_best``.
        save_probabilities: Keep the validation's probabilities.
        checkpoint_seconds: Time between checkpoints.
    """

    encoder: str | None = None
    checkpoint: str | Path | None = None
    pixel_statistics: str | None = None
    decoder_from: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    seconds: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 12345
    num_workers: int = 0
    device: str = "auto"
    feature_cache: int | None = None
    num_cases: int | None = None
    cases: Sequence[str] | str | Path | None = None
    synthesis: float | str | None = None
    augmentation: str | None = None
    pretrained: str | Path | None = None
    random_weights: bool = False
    overwrite: bool = False
    validation_only: bool = False
    validate_best: bool = False
    save_probabilities: bool = False
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("checkpoint", "pretrained"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        given = [name for name in ("epochs", "iterations", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"give one of `epochs`, `iterations` and `seconds`, not {len(given)} of them")
        for name, most in _LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, above=0, most=most)
        check_number("seed", self.seed, least=0, most=2**32 - 1)
        if self.augmentation not in (None, "standard", "strong"):
            raise UsageError(f"`augmentation` must be 'standard' or 'strong', got {self.augmentation!r}")
        if isinstance(self.synthesis, str) and self.synthesis != "auto":
            raise UsageError(f"`synthesis` must be a number from 0 to 1, or 'auto', got {self.synthesis!r}")
        if self.synthesis not in (None, "auto"):
            check_number("synthesis", self.synthesis, least=0, most=1)
        if self.cases is not None and self.num_cases is not None:
            raise UsageError("`cases` names what to train on, and `num_cases` draws it: give one of them")
        if self.random_weights and (self.checkpoint or self.pretrained):
            raise UsageError("`random_weights` and a file to start from exclude each other", "give one of them")
        if self.pixel_statistics not in (None, *PIXEL_STATISTICS):
            raise UsageError(
                f"`pixel_statistics` must be one of {', '.join(PIXEL_STATISTICS)}, got {self.pixel_statistics!r}"
            )
        if self.pixel_statistics and not self.checkpoint:
            raise UsageError(
                "`pixel_statistics` says how the file after `checkpoint` was trained, and there is none",
                "leave it out, or add `checkpoint=FILE`",
            )
        if self.decoder_from and not self.checkpoint:
            raise UsageError(
                "`decoder_from` completes the file of `checkpoint`, and there is none",
                "leave it out, or add `checkpoint=FILE`",
            )
        if self.num_workers < 0:
            raise UsageError(f"`num_workers` must be 0 or more, got {self.num_workers}")
