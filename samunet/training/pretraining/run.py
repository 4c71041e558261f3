"""Pretraining in pieces: a constant rate after a short warm-up, so that it may go on at any time, and a final decay.

``pretraining_latest.safetensors`` is where the constant rate goes on. A final decay starts from there and leaves it as
it is, so that a longer pretraining can go on from before the decay (Hu et al. 2024, MiniCPM; Hägele et al. 2024).
"""

from __future__ import annotations

import itertools
import logging
import platform
import shlex
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from samunet import __version__
from samunet.dataset.outputs import check_holdings, check_place
from samunet.devices import fast_dtype, resolve_device
from samunet.errors import SamunetError, UsageError
from samunet.files import file_hash, make_folder, write_json
from samunet.tensors import write_tensors
from samunet.training.lock import training_lock
from samunet.training.log import drawn
from samunet.training.loop import Loop, dtype_name
from samunet.training.pretraining.options import PretrainingOptions
from samunet.training.pretraining.recipe import PretrainingRecipe
from samunet.training.schedule import Budget
from samunet.training.state import LoopProgress, load_state, save_state

LATEST = "pretraining_latest.safetensors"
DECAY = "pretraining_decay.safetensors"
WEIGHTS = "{}_pretrained.safetensors"  # of an encoder, after a final decay
WEIGHTS_SO_FAR = "{}_latest.safetensors"
_LOG_EVERY = 100

log = logging.getLogger(__name__)


class Work(Protocol):
    """What :func:`pretrain` trains on.

    Attributes:
        recipe: How it learns.
        encoder: Name of the encoder.
        optimizer: As a plan names it (:func:`samunet.network.optimizer.build_optimizer`).
        setup: What must not change from piece to piece.
        facts: What the weights' card says of the images and of the weights at the start.
    """

    recipe: type[PretrainingRecipe]
    encoder: str
    optimizer: Literal["adamw", "muon"]
    setup: dict[str, Any]
    facts: dict[str, Any]

    def build(self) -> nn.Module:
        """A model as the recipe wants it, whose ``sam_state()`` gives the weights by SAM's names."""

    def batch(self, options: PretrainingOptions, iteration: int, device: torch.device) -> Any:
        """The batch of an iteration, which depends on the arguments alone."""


def pretrain(folder: Path, options: PretrainingOptions, work: Work) -> Path:
    """Train a piece, or the final decay, going on from what ``folder`` holds.

    Args:
        folder: For checkpoints, log and weights; made if missing.
        options: The user's choices.
        work: Encoder and images.

    Returns:
        The file with the weights, by SAM's names; a card beside it says how they came about.

    Raises:
        UsageError: If the folder lies in a raw dataset, or holds a model or preprocessed data.
        SamunetError: If the folder is in use, its checkpoint is damaged, or the loss is no longer a number.
        KeyboardInterrupt: After a signal, once the checkpoint is written.
    """
    check_holdings(check_place(folder))
    make_folder(folder)
    with training_lock(folder.resolve(), "pretrained", "wait until it is done, or use another `output=FOLDER`"):
        return Pretraining(folder, options, work).run()


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


@dataclass(frozen=True)
class PieceBudget(Budget):
    """The length of a piece, counted from an iteration and a moment on."""

    first_iteration: int = 0
    first_elapsed: float = 0.0

    def progress(self, iteration: int, elapsed: float) -> float:
        """Share of the piece that is done, from 0 to 1."""
        return super().progress(iteration - self.first_iteration, elapsed - self.first_elapsed)


class Pretraining(Loop):
    """A piece of a pretraining, or its final decay; see :func:`pretrain`."""

    def __init__(self, folder: Path, options: PretrainingOptions, work: Work) -> None:
        self.folder, self.options, self.work = folder, options, work
        device = resolve_device(options.device)
        fast = fast_dtype(device)
        dtype = fast if fast is torch.bfloat16 else None  # float16 would need its gradients scaled
        torch.manual_seed(options.seed)
        self.model = work.build().to(device).train()
        recipe = work.recipe(self.model, options, work.optimizer, dtype)
        optimizer = recipe.optimizer()
        self.file = folder / (DECAY if options.final_decay else LATEST)
        source = self.file if self.file.is_file() else folder / LATEST
        if source.is_file():
            state = load_state(
                source, recipe, optimizer, PretrainingProgress, {"dataset": None, "base": None} | work.setup,
                again="give the same `checkpoint`, `dataset`, `configuration` and `encoder` as at its beginning, or "
                "use another `output=FOLDER`",
                remedy="restore the file, or begin anew in another folder: `output=FOLDER`",
            )  # fmt: skip
        elif options.final_decay:
            raise UsageError(f"{folder} has no pretraining to end", "run the same without `final_decay` first")
        else:
            state = PretrainingProgress(setup=work.setup)
        if not options.final_decay and (folder / DECAY).is_file():
            raise SamunetError(
                f"{folder} has a final decay that was interrupted",
                f"end it with `final_decay=True`, or delete {folder / DECAY} to go on without it",
            )
        # Iterations are counted over all pieces, seconds in this one; a final decay counts in all its runs.
        first, begun = 0, state.elapsed
        if options.final_decay:
            first, begun = state.iteration - state.decay["iterations"], state.elapsed - state.decay["seconds"]
        super().__init__(
            recipe, optimizer, state, PieceBudget(options.iterations, options.seconds, first, begun),
            checkpoint_seconds=options.checkpoint_seconds, repeatable=bool(options.iterations), dtype=dtype,
        )  # fmt: skip
        self.before = list(state.pieces)
        self.images_before = self.images_logged = state.images
        self.sums: dict[str, list[float]] = {}

    def run(self) -> Path:
        """Go on to the end; returns the file with the weights."""
        if self.progress >= 1:
            log.info("%s has %d iterations already", self.folder, self.state.iteration)
        self.learn(self.batches())
        return self._finish()

    def batches(self) -> Generator[Any, None, None]:
        """From the state's iteration on."""
        for iteration in itertools.count(self.state.iteration):
            yield self.work.batch(self.options, iteration, self.device)

    def _updated(self, loss: float, seconds: float) -> None:
        state, budget = self.state, self.budget
        state.images += self.options.shape(state.iteration - 1)[0]
        if self.options.final_decay:
            state.decay = {
                "iterations": state.iteration - budget.first_iteration,
                "seconds": state.elapsed - budget.first_elapsed,
            }
        for name, value in self.recipe.values.items():
            self.sums.setdefault(name, []).append(value)
        if state.iteration % _LOG_EVERY == 0:
            self._log()

    def _loss_error(self, loss: float, batch: Any) -> SamunetError:
        return SamunetError(
            f"the loss became {self.recipe.values} at iteration {self.state.iteration}",
            f"go on from the last checkpoint with a lower rate: `learning_rate={self.options.learning_rate / 3:.1e}`",
        )

    def _log(self) -> None:
        entry = {
            "iteration": self.state.iteration,
            "images": self.state.images,
            "losses": {name: sum(values) / len(values) for name, values in sorted(self.sums.items())},
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": round((self.state.images - self.images_logged) / self.seconds, 1),
        }
        self.state.log.append(entry)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in entry["losses"].items())
        log.info("iteration %6d: %s, %.1f images/s", entry["iteration"], losses, entry["images_per_second"])
        self.sums, self.images_logged = {}, self.state.images
        self.restart_clock()

    def _save_latest(self) -> None:
        """Checkpoint and log, with this piece as the last of the record."""
        if self.state.images > self.images_before:
            self.state.pieces = [*self.before, self._piece(self.state.images - self.images_before)]
        save_state(self.file, self.recipe, self.optimizer, self.state)
        write_json(self.folder / "pretraining_log.json", self.state.log)
        if self.state.log:
            _plot(self.state.log, self.folder / "pretraining.png")

    def _piece(self, images: int) -> dict:
        options = self.options
        return {
            "objective": options.objective,
            "images": images,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "image_sizes": list(options.image_sizes),
            "learning_rate": options.learning_rate,
            "optimizer": self.work.optimizer,
            "final_decay": options.final_decay,
            "dtype": dtype_name(self.dtype),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "command": shlex.join([Path(sys.argv[0]).name, *(_without_place(word) for word in sys.argv[1:])]),
            "versions": {"samunet": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }

    def _finish(self) -> Path:
        self._save_latest()
        encoder = self.work.encoder
        weights = self.folder / (WEIGHTS if self.options.final_decay else WEIGHTS_SO_FAR).format(encoder)
        write_tensors(weights, self.model.sam_state(), {"encoder": encoder})
        state = self.state
        card = {
            "encoder": encoder,
            **self.work.facts,
            "file": weights.name,
            "sha256": file_hash(weights),
            "objectives": sorted({piece["objective"] for piece in state.pieces}),
            "images_seen": state.images,
            "iterations": state.iteration,
            "training_seconds": round(state.elapsed, 1),
            "final_decay": self.options.final_decay,
            "last_losses": state.log[-1]["losses"] if state.log else None,
            "pieces": state.pieces,
        }
        write_json(weights.with_suffix(".json"), card)
        if self.options.final_decay:
            self.file.unlink()
        log.info("%d images seen, %d iterations in all", state.images, state.iteration)
        return weights


def _without_place(word: str) -> str:
    """A word of the command; of a path its last part alone, because cards are published."""
    return Path(word).name if Path(word).is_absolute() else word


def _plot(entries: list[dict], file: Path) -> None:
    """Losses over images seen."""
    with drawn(file, (9, 5)) as figure:
        axes = figure.subplots()
        for name in sorted({name for entry in entries for name in entry["losses"]}):
            points = [(entry["images"], entry["losses"][name]) for entry in entries if name in entry["losses"]]
            axes.plot(*zip(*points), label=name)
        axes.set_xlabel("images seen")
        axes.set_ylabel("loss")
        axes.legend()
