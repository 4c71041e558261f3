"""Pretraining in pieces: a constant rate after a short warm-up, so that it may go on at any time, and a final decay.

``pretraining_latest.safetensors`` is where the constant rate goes on. A final decay starts from there and leaves it as
it is, so that a longer pretraining can go on from before the decay (Hu et al. 2024, MiniCPM; Hägele et al. 2024).
"""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from samunet import __version__
from samunet.cores import FreeCores
from samunet.dataset.outputs import check_holdings, check_place
from samunet.devices import fast_dtype, resolve_device
from samunet.errors import SamunetError, UsageError
from samunet.files import atomic_path, file_hash, make_folder, write_json
from samunet.locks import LockHeld, exclusive
from samunet.network.optimizer import build_optimizer
from samunet.signals import StopRequest
from samunet.tensors import write_tensors
from samunet.training.pretraining.draw import Draw
from samunet.training.pretraining.options import PretrainingOptions
from samunet.training.pretraining.state import PretrainingProgress, load_state, save_state
from samunet.training.pretraining.work import Work

LATEST = "pretraining_latest.safetensors"
DECAY = "pretraining_decay.safetensors"
WEIGHTS = "{}_pretrained.safetensors"  # of an encoder, after a final decay
WEIGHTS_SO_FAR = "{}_latest.safetensors"
_WARM_UP = 200
_LOG_EVERY = 100
_CLIP_NORM = 1.0
_WEIGHT_DECAY = 0.05
_OBJECTIVE_KEY = 1  # tells the objectives' randomness from the images'

log = logging.getLogger(__name__)


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
    try:
        with exclusive(folder.resolve()) as held:
            if not held:
                log.warning("%s cannot be locked: never use one folder twice at once", folder)
            return _Pretraining(folder, options, work).run()
    except LockHeld as holder:
        raise SamunetError(
            f"{folder} is being pretrained by {holder}", "wait until it is done, or use another --out FOLDER"
        ) from None


class _Pretraining:
    def __init__(self, folder: Path, options: PretrainingOptions, work: Work) -> None:
        self.folder, self.options, self.work = folder, options, work
        self.device = resolve_device(options.device)
        fast = fast_dtype(self.device)
        self.dtype = fast if fast is torch.bfloat16 else None  # float16 would need its gradients scaled
        torch.manual_seed(options.seed)
        self.model = work.build().to(self.device).train()
        self.optimizer = build_optimizer(
            work.optimizer, self.model, options.learning_rate, _WEIGHT_DECAY, betas=(0.9, 0.95)
        )
        self.file = folder / (DECAY if options.final_decay else LATEST)
        source = self.file if self.file.is_file() else folder / LATEST
        if source.is_file():
            self.state = load_state(source, self.model, self.optimizer, work.setup)
        elif options.final_decay:
            raise UsageError(f"{folder} has no pretraining to end", "run the same without --final_decay first")
        else:
            self.state = PretrainingProgress(setup=work.setup)
        if not options.final_decay and (folder / DECAY).is_file():
            raise SamunetError(
                f"{folder} has a final decay that was interrupted",
                f"end it with --final_decay, or delete {folder / DECAY} to go on without it",
            )

    def run(self) -> Path:
        state, options = self.state, self.options
        begun, images = dict(vars(state)), state.images
        spent = self._spent(begun)
        if spent() >= 1:
            log.info("%s has %d iterations already", self.folder, state.iteration)
        started, saved, logged = time.monotonic() - state.elapsed, time.monotonic(), time.monotonic()
        sums: dict[str, list[float]] = {}
        seen = images
        watch = self.device.type == "cpu" and not options.iterations
        with StopRequest() as stop, FreeCores(watch) as cores:
            while spent() < 1:
                before = time.monotonic()
                cores.adjust()
                factor = 1 - spent() if options.final_decay else min(1.0, (state.iteration + 1) / _WARM_UP)
                for name, value in self._step(factor).items():
                    sums.setdefault(name, []).append(value)
                now = time.monotonic()
                state.iteration += 1
                state.images += options.shape(state.iteration - 1)[0]
                state.elapsed = now - started
                if options.final_decay:
                    state.decay["iterations"] += 1
                    state.decay["seconds"] += now - before
                if state.iteration % _LOG_EVERY == 0:
                    self._log(sums, factor, (state.images - seen) / (now - logged))
                    sums, seen, logged = {}, state.images, time.monotonic()
                if stop.received or now - saved > options.checkpoint_seconds:
                    self._save(begun, images)
                    saved = time.monotonic()
                if stop.received:
                    log.info("checkpoint written at iteration %d", state.iteration)
                    stop.pass_on()
        return self._finish(begun, images)

    def _spent(self, begun: dict) -> Callable[[], float]:
        """Share of this piece's length that is done. A final decay counts from its own beginning, in all its runs."""
        state, options = self.state, self.options
        if options.iterations:
            if options.final_decay:
                return lambda: state.decay["iterations"] / options.iterations
            return lambda: state.iteration / options.iterations
        if options.final_decay:
            return lambda: state.decay["seconds"] / options.seconds
        return lambda: (state.elapsed - begun["elapsed"]) / options.seconds

    def _step(self, factor: float) -> dict[str, float]:
        """One update; returns its losses."""
        options, iteration = self.options, self.state.iteration
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        batch = self.work.batch(options, iteration, self.device)
        draw = Draw(self.device, options.seed, iteration, _OBJECTIVE_KEY)
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            losses = self.model(batch, options.objective, iteration, draw)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if not all(abs(value) < float("inf") for value in values.values()):
            raise SamunetError(
                f"the loss became {values} at iteration {iteration}",
                f"go on from the last checkpoint with a lower rate: --lr {options.learning_rate / 3:.1e}",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return values

    def _log(self, sums: dict[str, list[float]], factor: float, images_per_second: float) -> None:
        entry = {
            "iteration": self.state.iteration,
            "images": self.state.images,
            "losses": {name: sum(values) / len(values) for name, values in sorted(sums.items())},
            "learning_rate": self.options.learning_rate * factor,
            "images_per_second": round(images_per_second, 1),
        }
        self.state.log.append(entry)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in entry["losses"].items())
        log.info("iteration %6d: %s, %.1f images/s", entry["iteration"], losses, entry["images_per_second"])

    def _save(self, begun: dict, images: int) -> None:
        """Checkpoint and log, with this piece as the last of the record."""
        if self.state.images > images:
            self.state.pieces = [*begun["pieces"], self._piece(images)]
        save_state(self.file, self.model, self.optimizer, self.state)
        write_json(self.folder / "pretraining_log.json", self.state.log)
        if self.state.log:
            _plot(self.state.log, self.folder / "pretraining.png")

    def _piece(self, images: int) -> dict:
        options = self.options
        return {
            "objective": options.objective,
            "images": self.state.images - images,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "image_sizes": list(options.image_sizes),
            "learning_rate": options.learning_rate,
            "optimizer": self.work.optimizer,
            "final_decay": options.final_decay,
            "dtype": "float32" if self.dtype is None else str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "command": shlex.join([Path(sys.argv[0]).name, *(_without_place(word) for word in sys.argv[1:])]),
            "versions": {"samunet": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }

    def _finish(self, begun: dict, images: int) -> Path:
        self._save(begun, images)
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in sorted({name for entry in entries for name in entry["losses"]}):
        points = [(entry["images"], entry["losses"][name]) for entry in entries if name in entry["losses"]]
        axes.plot(*zip(*points), label=name)
    axes.set_xlabel("images seen")
    axes.set_ylabel("loss")
    axes.legend()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
