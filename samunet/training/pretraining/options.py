"""Options of a pretraining."""

from __future__ import annotations

from dataclasses import dataclass

from samunet.errors import UsageError, argument, check_number

PERIOD = 4  # updates after which a mix begins anew, at the next image size

_MOST = {"iterations": 1e9, "seconds": 1e9, "batch_size": 1e5, "learning_rate": 100.0}


@dataclass(frozen=True)
class PretrainingOptions:
    """What a user may choose.

    Attributes:
        objective: ``mae``: reconstruct what is hidden.
        iterations: Length in updates over all pieces, or of the final decay; exclusive with ``seconds``.
        seconds: Length of this piece in the training loop.
        batch_size: Images of the largest size per update; of smaller ones as many more as have the same pixels.
        image_sizes: Sides of the images in pixels; they take turns.
        learning_rate: After the warm-up, and until the final decay.
        final_decay: Bring the rate to zero over this piece's length and write the weights.
        seed: All randomness depends on it.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        checkpoint_seconds: Time between checkpoints.
    """

    objective: str = "mae"
    iterations: int | None = None
    seconds: float | None = None
    batch_size: int = 12
    image_sizes: tuple[int, ...] = (224,)
    learning_rate: float = 5e-4
    final_decay: bool = False
    seed: int = 12345
    device: str = "auto"
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        if (self.iterations is None) == (self.seconds is None):
            raise UsageError("the length is not clear", "give either `seconds` or `iterations`")
        for name in ("iterations", "seconds", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, above=0, most=_MOST[name])
        check_number("seed", self.seed, least=0, most=2**32 - 1)
        for size in self.image_sizes:
            if size < 32 or size % 16:
                given = argument("image_size", size)
                raise UsageError(f"{given} is no multiple of 16 from 32 on", "use for example 224")

    def shape(self, iteration: int) -> tuple[int, int]:
        """Number and side of an update's images."""
        size = self.image_sizes[iteration // PERIOD % len(self.image_sizes)]
        return round(self.batch_size * (max(self.image_sizes) / size) ** 2), size
