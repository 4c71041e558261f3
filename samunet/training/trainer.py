"""The training of one fold: set up, check, log, save; the loop itself is in :mod:`.loop`."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor

from samunet.devices import fast_dtype, peak_memory, reset_peak_memory, resolve_device
from samunet.errors import SamunetError
from samunet.files import write_json
from samunet.inference.logits import SlicePredictor
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.models.checkpoint import load_model, save_model
from samunet.models.folder import build_network
from samunet.models.pretrained import PretrainedWeights
from samunet.network.encoders import hold_frozen
from samunet.network.model import SamunetModel
from samunet.planning.resources import step_bytes
from samunet.preprocessing.store import StoredCase
from samunet.tensors import not_finite
from samunet.training.estimate import Costs, StepClock, announce, passes_to_predict
from samunet.training.feature_cache import CachedEncoder
from samunet.training.loader import SliceLoader, batches
from samunet.training.log import point_line, progress_bar, update_bar, write_logs
from samunet.training.loop import Loop, dtype_name
from samunet.training.monitoring import (
    GRADIENTS,
    is_check,
    is_point,
    monitored_cases,
    monitored_dice,
    seconds_of_pass,
    seconds_of_prediction,
    windows_of,
    windows_per_check,
)
from samunet.training.recipes import Batch, load_recipe
from samunet.training.schedule import Budget, format_duration
from samunet.training.start import start_from
from samunet.training.state import LATEST, load_latest, save_latest
from samunet.training.task import Material, Task

log = logging.getLogger(__name__)

_LONG_PREDICTION = 120.0  # seconds that are not spent to say how long a prediction takes
_EPOCH_ITERATIONS = (100, 250)
_PICTURE_SECONDS = 30.0  # from one drawing of the curve to the next: it takes a second


class Trainer(Loop):
    """Trains one fold.

    Args:
        task: What to train.
        material: What it learns from; of the validation cases as many are monitored as 5 % of the time allow.
        progress: Whether to show a progress bar.
    """

    def __init__(self, task: Task, material: Material, *, progress: bool = True) -> None:
        self.task, self.options, self.network, self.folder = task, task.options, task.network, task.folder
        self.labels = task.source.description.labels
        self.show_progress = progress
        self.run = dict(material.run)
        self.drawn = time.monotonic()
        self.costs: dict[str, float] = {}  # seconds of the last check, and of its prediction alone
        self.device = resolve_device(self.options.device)
        reset_peak_memory(self.device)
        kind = load_recipe(self.network.recipe)
        self.images_per_item = kind.slices_for(self.network) * (2 if material.unlabelled else 1)
        self.micro_batch = max(1, self.network.batch_size // self.images_per_item)
        self.batch_size = self.network.batch_size * self.network.accumulation
        num_slices = sum(case.shape[0] for case in material.train.values())
        self.epoch_iterations = int(np.clip(-(-num_slices // self.batch_size), *_EPOCH_ITERATIONS))
        self.loader = SliceLoader(
            material.train, task.source.configuration, self.network, self.batch_size, self.options.seed,
            ignore=self.labels.ignore, recipe=kind, unlabelled=material.unlabelled,
        )  # fmt: skip
        self.budget = self._plan_budget()
        torch.manual_seed(self.options.seed)
        self.model = self._build_model(material.base)
        self.dtype = self._choose_dtype()
        recipe = kind(self.model, self.network, self.labels, self.dtype)
        optimizer = recipe.optimizer()
        self.validation, cases = material.validation, material.validation or material.train
        self.monitored = self._choose_monitored(cases)
        kind_of_cases = "validation" if self.validation else "training"
        self.monitored_name = f"{len(self.monitored)} of {len(cases)} {kind_of_cases} cases"
        if self.options.feature_cache:
            recipe.encode = self._open_cache()
        self.setup = {
            "identity": material.identity,
            "seed": self.options.seed,
            "batch_size": self.batch_size,
            "learning_rate": self.network.learning_rate,
            "iterations": self.budget.iterations,
            "time_budget": self.budget.seconds,
            "variants": self.loader.variants,
            # None as in files of before there was any.
            "augmentation": None if self.network.augmentation == "standard" else self.network.augmentation,
            "synthesis": self.loader.synthesis and self.network.synthesis.model_dump(),
        }
        state = load_latest(self.folder, recipe, optimizer, self.setup)
        if self.dtype is not None:
            hold_frozen(self.model.image_encoder, self.dtype)
        # A number of updates that the user gave is to come out the same every time, to the last bit.
        repeatable = bool(self.options.iterations or self.options.epochs)
        super().__init__(
            recipe, optimizer, state, self.budget,
            checkpoint_seconds=self.options.checkpoint_seconds, repeatable=repeatable, dtype=self.dtype,
        )  # fmt: skip
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def train(self) -> None:
        """Train to the end of the budget and write the final model.

        Raises:
            KeyboardInterrupt: After a signal, once the checkpoint is written.
            SamunetError: If the loss is no longer a number, or a single image does not fit into memory.
        """
        self._announce()
        if self.state.log:
            self._write_logs()  # what was written after the checkpoint is done again
        self.clock: StepClock | None = StepClock(2 * self.options.num_workers)
        with progress_bar(self.show_progress) as self.bar:
            self.learn(batches(self.loader, self.state.iteration, self.options.num_workers))
        self._finish()

    def _begin(self) -> None:
        if not self.state.iteration:
            self._add_point(check=True)

    def _updated(self, loss: float, seconds: float) -> None:
        iteration, done = self.state.iteration, self.progress >= 1
        self.state.losses.append(loss)
        if self.clock:
            self.clock.add(seconds)
        if done or is_point(iteration, self.epoch_iterations):
            self._add_point(check=done or is_check(iteration, self.epoch_iterations))
        update_bar(self.bar, self.progress, self.state)
        if self.clock and self.costs and (done or self.clock.is_enough):  # gone on, the first check is still to come
            self.bar.clear()
            self._announce_duration(self.clock.mean)
            self.clock = None

    def _save_latest(self) -> None:
        self.state.scaler = self.scaler.state_dict()
        save_latest(self.folder, self.recipe, self.optimizer, self.state)

    def _loss_error(self, loss: float, batch: Batch) -> SamunetError:
        return loss_error(loss, self.state.iteration, batch.images, self.model, self.dtype, self.network.learning_rate)

    def _backward(self, batch: Batch) -> float:
        """Gradients of the batch, in as many parts as memory needs; returns the loss."""
        while True:
            # Memory is freed after the block: until the exception is gone, its traceback holds the part that failed.
            with suppress(torch.cuda.OutOfMemoryError):
                return self.recipe.gradients(batch, self.micro_batch, self.scaler.scale)
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            if self.micro_batch == 1:
                raise SamunetError(
                    "a single image does not fit into the GPU's memory",
                    "plan for less memory under another name (`api.plan_experiment(ID, "
                    "gpu_memory_target_gb=4, plans_name=NAME)`) and train with `plans_name=NAME`; or use a smaller "
                    "configuration, for example 2d_448, or `encoder='small'`",
                )
            self.micro_batch = max(1, self.micro_batch // 2)
            log.warning("out of GPU memory: %d images at a time from now on", self.micro_batch)

    def _add_point(self, *, check: bool) -> None:
        """Add a point to the curve: of the updates since the last one.

        With a check, log and plot the curve, and keep the model if it is the best so far.
        """
        steps, seconds = self.steps, self.seconds
        begin = time.monotonic()
        score = self._monitor() if check else None
        self.state.log.append(
            {
                "epoch": -(-self.state.iteration // self.epoch_iterations),
                "iteration": self.state.iteration,
                "elapsed": round(self.state.elapsed, 1),
                "loss": float(np.mean(self.state.losses)) if self.state.losses else None,
                "dice": score,
                "learning_rate": self.optimizer.param_groups[0]["lr"] if steps else None,
                "images_per_second": steps * self.batch_size / seconds if steps else None,
                "data_share": self.data_seconds / seconds if steps else None,
            }
        )
        self.state.losses = []
        self.restart_clock()
        if check:
            self._check(score, begin, trained=steps > 0)
        self._tick()

    def _check(self, score: float | None, begin: float, *, trained: bool) -> None:
        """Log the curve with its last point, and keep the model if it has been trained and is the best so far."""
        self.costs["prediction"] = time.monotonic() - begin
        self.bar.clear()
        log.info("%s", point_line(self.state.log[-1]))
        if score is not None and trained and (self.state.best_dice is None or score > self.state.best_dice):
            self.state.best_dice, self.state.best_iteration = score, self.state.iteration
            save_model(self.folder, self.recipe.result, "best")
        self.ended = self._is_out_of_patience()
        self._write_logs()
        self.costs["check"] = time.monotonic() - begin

    def _write_logs(self) -> None:
        source = self.task.source
        title = f"{source.dataset_name}, {source.configuration_name}, fold {self.task.fold}, {self.network.encoder}"
        picture = self.progress >= 1 or self.ended or time.monotonic() - self.drawn > _PICTURE_SECONDS
        write_logs(self.state.log, self.folder, title, self.monitored_name, picture=picture)
        if picture:
            self.drawn = time.monotonic()

    def _monitor(self) -> float | None:
        """See :func:`samunet.training.monitoring.monitored_dice`."""
        model = self.recipe.result
        predictor = SlicePredictor(
            [partial(model, encode=self.recipe.encode)],
            neighbours=self.network.input_channels == "neighbours",
            slab=self.network.adaptation.slab,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.micro_batch * self.images_per_item,
        )
        model.eval()
        score = monitored_dice(predictor, self.monitored, self.network, self.labels)
        model.train()
        return score

    def _is_out_of_patience(self) -> bool:
        patience, updates = self.recipe.patience, self.loader.batches_of_a_pass
        if not (patience and updates) or self.state.iteration - self.state.best_iteration < patience * updates:
            return False
        log.info("no better check in %d passes: the training ends", patience)
        return True

    def _finish(self) -> None:
        if self.recipe.patience and self.state.best_dice is not None:
            load_model(self.folder, self.recipe.result, "best")
        save_model(self.folder, self.recipe.result, "final")
        self.run |= {
            "iterations": self.state.iteration,
            "training_seconds": round(self.state.elapsed, 1),
            "best_monitored_dice": self.state.best_dice,
            "peak_memory_bytes": peak_memory(self.device),
            "micro_batch": self.micro_batch,
        }
        if self.recipe.encode:
            self.run["feature_cache"] = self.recipe.encode.close()
        write_json(self.folder / "run.json", self.run)
        (self.folder / LATEST).unlink(missing_ok=True)
        peak = self.run["peak_memory_bytes"]
        memory = f"; peak memory {peak / 1e9:.1f} GB" if peak else ""
        log.info("trained %d iterations in %s%s", self.state.iteration, format_duration(self.state.elapsed), memory)

    def _build_model(self, base: PretrainedWeights | None) -> SamunetModel:
        source = self.task.source
        model = build_network(source.configuration, self.network, source.description, base).to(self.device)
        if base:
            # Only what a fold leaves to its base must be found again.
            self.run["base" if model.has_base else "started_from"] = base.record
        if self.options.pretrained:
            start_from(model, self.options.pretrained)
        return model

    def _plan_budget(self) -> Budget:
        options = self.options
        if options.seconds:
            return Budget(seconds=options.seconds)
        if options.iterations or options.epochs:
            epoch = self.loader.batches_of_a_pass or self.epoch_iterations
            return Budget(iterations=options.iterations or options.epochs * epoch)
        if self.network.passes and self.loader.batches_of_a_pass:
            return Budget(iterations=self.network.passes * self.loader.batches_of_a_pass)
        kind = "cpu" if self.device.type == "cpu" else "gpu"
        return Budget(iterations=-(-self.network.training_images[kind] // self.batch_size))

    def _choose_monitored(self, cases: dict[str, StoredCase]) -> dict[str, StoredCase]:
        """As many cases as the checks' share of the work allows; those of before where the training goes on."""
        begun = self.run.get("monitored") if (self.folder / LATEST).is_file() else None
        if begun and set(begun) <= set(cases):
            return {name: cases[name] for name in begun}
        iterations = self.budget.iterations
        if not iterations:
            images = self._some_images()
            step = GRADIENTS * seconds_of_pass(self.model, images, self.dtype) * self.batch_size / len(images)
            iterations = self.budget.seconds / step
        most = windows_per_check(iterations, self.epoch_iterations, self.batch_size)
        return monitored_cases(cases, self.network, most)

    def _some_images(self) -> Tensor:
        """As many as memory allows at a time, ``(b, channels, H, W)``."""
        return torch.from_numpy(self.loader.batch(0)["data"][: self.micro_batch]).to(self.device).flatten(0, -4)

    def _draws(self) -> int | None:
        """Images drawn in the whole training; None under a budget of time."""
        return self.budget.iterations and self.budget.iterations * self.batch_size

    def _open_cache(self) -> CachedEncoder:
        return CachedEncoder(
            self.model, self.loader, self.folder / "features", self.options.feature_cache,
            dtype=self.dtype, draws=self._draws(), monitored=self.monitored.values(),
        )  # fmt: skip

    def _choose_dtype(self) -> torch.dtype | None:
        """The number format: as this fold began, else the device's fast one (told by hardware, not by a timing)."""
        if "dtype" not in self.run:
            self.run["dtype"] = dtype_name(fast_dtype(self.device, self.network.input_shape))
        return None if self.run["dtype"] == "float32" else getattr(torch, self.run["dtype"])

    def _announce(self) -> None:
        """Say what will happen and how long it takes, before it starts; write it to run.json."""
        self.run |= {"seed": self.options.seed, "setup": self.setup, "threads": torch.get_num_threads()}
        self.run |= {"trained_parameters": self.model.trained_parameters()}
        self.run |= {"device": str(self.device), "monitored": sorted(self.monitored)}
        write_json(self.folder / "run.json", self.run)
        log.info(
            "input %d x %d px, batch %d x %d, %s on %s",
            *self.network.input_shape, self.micro_batch, self.network.accumulation, self.run["dtype"], self.device,
        )  # fmt: skip
        if self.network.checkpoint_blocks:
            log.info("the encoder's blocks are computed a second time in the backward pass, to save memory")
        trained = self.run["trained_parameters"]
        parts = ", ".join(f"{name} {count:,}" for name, count in trained.items() if count)
        log.info(
            "%s of %s trained: %s parameters (%s)",
            self.network.adaptation.method, self.network.components, f"{sum(trained.values()):,}", parts,
        )  # fmt: skip
        kind = "cpu" if self.device.type == "cpu" else "gpu"
        memory = step_bytes(self.network, self.micro_batch * self.images_per_item, kind, self.labels.num_outputs)
        log.info("checked while training: %s; memory about %.1f GB", self.monitored_name, memory / 1e9)
        if self.loader.synthesis:
            names = self.labels.names_in_masks if not self.labels.has_regions else {}
            log.info("%s", self.loader.synthesis.describe(names))
        if self.state.iteration:
            log.info("going on from iteration %d", self.state.iteration)

    def _announce_duration(self, step: float) -> None:
        """Say how long the training takes, and what follows it; write what was measured to run.json."""
        if self.recipe.encode:  # the first steps computed features that later ones read
            images = self._some_images()
            draws = self._draws() or self.budget.seconds / step * self.batch_size
            step -= self.recipe.encode.saved_seconds(images, draws) * self.batch_size
        begin = time.monotonic()
        if self.budget.progress(self.state.iteration, self.state.elapsed) < 1:
            self._save_latest()
        costs = Costs(step, self.costs["check"], time.monotonic() - begin, self.options.checkpoint_seconds)
        after = self._seconds_after()
        self.run["estimate"] = announce(costs, self.budget, self.epoch_iterations, after, self.state.iteration)
        write_json(self.folder / "run.json", self.run)

    def _seconds_after(self) -> list[float]:
        """What predicting each validation case will take, from one that is predicted now as it will be then."""
        if not self.validation:
            return []
        source = self.task.source
        passes = [passes_to_predict(case, source.configuration, self.network) for case in self.validation.values()]
        middle = int(np.argsort(passes)[len(passes) // 2])
        window = self.costs["prediction"] / sum(windows_of(case, self.network) for case in self.monitored.values())
        if passes[middle] * window < _LONG_PREDICTION:
            case = list(self.validation.values())[middle]
            predictor = Predictor(
                [self.recipe.result], source.plans, source.configuration, self.network, source.description,
                PredictionOptions(device=self.options.device, measure_uncertainty=True),
            )  # fmt: skip
            window = seconds_of_prediction(predictor, case) / passes[middle]
            self.recipe.result.train()
        return [number * window for number in passes]


def loss_error(
    loss: float, iteration: int, images: Tensor, model: SamunetModel, dtype: torch.dtype | None, learning_rate: float
) -> SamunetError:
    """Why a loss is no number: told from what it was computed from, not guessed.

    Args:
        loss: NaN or infinite.
        iteration: At which.
        images: The batch.
        model: As it was when the loss was computed.
        dtype: Number format of the computation; None for float32.
        learning_rate: Peak.
    """
    what = f"the loss became {loss} at iteration {iteration}"
    if not torch.isfinite(images).all():
        return SamunetError(
            f"{what}: the batch has pixels that are no numbers",
            "look for damaged images (`api.plan_and_preprocess(ID, verify=True, clean=True)`)",
        )
    wrong = not_finite(model.trained_state())
    if wrong:
        return SamunetError(
            f"{what}: an update made the weights infinite, for example {wrong}",
            f"use a lower learning rate: `learning_rate={learning_rate / 3:.1e}, overwrite=True`",
        )
    return SamunetError(
        f"{what}, though images and weights are numbers: {dtype_name(dtype)} does not hold what lies between them",
        "train again with another seed (`seed=N, overwrite=True`) or on another device (`device`); if that does not "
        "help, report it with the name of the processor or GPU",
    )
