"""What a user may choose for a training; everything else is in the plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samunet.encoders import PIXEL_STATISTICS
from samunet.errors import UsageError


@dataclass(frozen=True)
class TrainingOptions:
    """Flags of ``samunet_train``. None means: as planned.

    Attributes:
        encoder: Encoder to use; None leaves it to the plans and the machine.
        checkpoint: File with base weights in SAM's layout, instead of the encoder's published one.
        pixel_statistics: ``sam`` or ``medsam``: what ``checkpoint`` was trained with; None to tell from the file.
        epochs, iterations, seconds: Length of the training; at most one of them.
        batch_size: Images per step.
        learning_rate: Peak.
        seed: All randomness depends on it.
        num_workers: Processes that prepare batches; 0 for none.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        num_cases: Train on so many of the fold's cases, drawn by ``seed``; None for all.
        pretrained: A ``checkpoint_*.safetensors`` of another training to start from.
        overwrite: Start anew where this fold was already trained.
        validation_only: Only (re)do the final validation.
        save_probabilities: Keep the validation's probabilities.
        checkpoint_seconds: Time between checkpoints.
    """

    encoder: str | None = None
    checkpoint: Path | None = None
    pixel_statistics: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    seconds: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 12345
    num_workers: int = 0
    device: str = "auto"
    num_cases: int | None = None
    pretrained: Path | None = None
    overwrite: bool = False
    validation_only: bool = False
    save_probabilities: bool = False
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        given = [name for name in ("epochs", "iterations", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"give one of --epochs, --iterations and --time_budget, not {len(given)} of them")
        for name in ("epochs", "iterations", "seconds", "batch_size", "learning_rate", "num_cases"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} must be positive, got {value:g}")
        if self.pixel_statistics not in (None, *PIXEL_STATISTICS):
            raise UsageError(
                f"--pixel_statistics must be one of {', '.join(PIXEL_STATISTICS)}, got {self.pixel_statistics!r}"
            )
        if self.pixel_statistics and not self.checkpoint:
            raise UsageError(
                "--pixel_statistics says how the file after --checkpoint was trained, and there is none",
                "leave it out, or add --checkpoint FILE",
            )
        if self.num_workers < 0:
            raise UsageError(f"--num_workers must be 0 or more, got {self.num_workers}")
