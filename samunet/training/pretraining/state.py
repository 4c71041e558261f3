"""Where a pretraining stands, and the checkpoint it goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch.optim import Optimizer

from samunet.errors import SamunetError
from samunet.training.recipes import BaseRecipe
from samunet.training.state import LoopProgress, load_state


@dataclass
class PretrainingProgress(LoopProgress):
    """Where a pretraining stands, over all pieces.

    Attributes:
        images: Images seen.
        decay: Of a final decay: updates and seconds of it.
        pieces: What every piece was: objective, seed, batch size, image sizes, rate, images, versions, command.
    """

    images: int = 0
    decay: dict = field(default_factory=lambda: {"iterations": 0, "seconds": 0.0})
    pieces: list[dict] = field(default_factory=list)


def load_pretraining(path: Path, recipe: BaseRecipe, optimizer: Optimizer, setup: dict) -> PretrainingProgress:
    """Restore what :func:`samunet.training.state.save_state` wrote.

    Raises:
        SamunetError: If the file is damaged, or was begun with another setup.
    """

    def check(progress: PretrainingProgress) -> None:
        former = progress.setup
        unlike = [
            f"{key} {former.get(key, 'none')}, not {setup.get(key, 'none')}"
            for key in sorted(former | setup)
            if former.get(key) != setup.get(key)
        ]
        if unlike:
            raise SamunetError(
                f"{path} was begun with {'; '.join(unlike)}",
                "give the same `checkpoint`, `dataset`, `configuration` and `encoder` as at its beginning, or use "
                "another `output=FOLDER`",
            )

    remedy = "restore the file, or begin anew in another folder: `output=FOLDER`"
    try:
        return load_state(path, recipe, optimizer, PretrainingProgress, check, remedy)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SamunetError(f"{path} is no checkpoint of a pretraining: {first}", remedy) from error
