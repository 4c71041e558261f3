"""The training loop of one fold, top to bottom: set up, step, check, save."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from samunet.cores import FreeCores
from samunet.dataset.description import Description
from samunet.devices import fast_dtype, peak_memory, reset_peak_memory, resolve_device
from samunet.errors import SamunetError
from samunet.evaluation.metrics import confusion_counts, dice
from samunet.files import write_json
from samunet.inference.logits import SlicePredictor, decode
from samunet.inference.model_folder import build_network
from samunet.inference.planes import PlanePredictor
from samunet.interruption import StopRequest
from samunet.network.base_weights import BaseWeights
from samunet.network.image_encoder import hold_frozen
from samunet.network.optimizer import build_optimizer
from samunet.planning.resources import step_bytes
from samunet.plans import ConfigurationPlan, NetworkPlan
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.store import StoredCase
from samunet.training.cached_model import CachedModel
from samunet.training.divergence import loss_error
from samunet.training.loader import SliceLoader, batches
from samunet.training.log import epoch_line, plot, progress_bar
from samunet.training.loss import SegmentationLoss
from samunet.training.monitoring import monitored_cases
from samunet.training.options import TrainingOptions
from samunet.training.samed import SamedLoss
from samunet.training.schedule import Budget, format_duration
from samunet.training.start import start_from
from samunet.training.state import LATEST, load_latest, save_latest, save_model

log = logging.getLogger(__name__)

_CLIP_NORM = 1.0
_EPOCH_ITERATIONS = (100, 250)
_MONITORED_SHARE = 0.1  # of an epoch's images: a pass without gradients takes a third of one with, so 3 % of the time


class Trainer:
    """Trains one fold.

    Args:
        folder: The fold's folder.
        configuration, network, description: What to train.
        train, validation: Stored cases; of the validation cases a fixed few are monitored.
        options: The user's choices.
        identity: Hash of plans, labels and training cases: a checkpoint of another identity is refused.
        run: Content of ``run.json`` so far; measured choices in it are kept.
        base: What the network starts from; None for random weights.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self,
        *,
        folder: Path,
        configuration: ConfigurationPlan,
        network: NetworkPlan,
        description: Description,
        train: dict[str, StoredCase],
        validation: dict[str, StoredCase],
        options: TrainingOptions,
        identity: str,
        run: dict,
        base: BaseWeights | None = None,
        progress: bool = True,
    ) -> None:
        self.folder = folder
        self.configuration = configuration
        self.network = network
        self.description = description
        self.options = options
        self.run = run
        self.show_progress = progress
        self.device = resolve_device(options.device)
        reset_peak_memory(self.device)
        self.micro_batch = network.batch_size
        self.batch_size = network.batch_size * network.accumulation
        num_slices = sum(case.shape[0] for case in train.values())
        self.epoch_iterations = int(np.clip(-(-num_slices // self.batch_size), *_EPOCH_ITERATIONS))
        self.budget = self._plan_budget()
        self.labels = description.labels
        self.loader = SliceLoader(
            train, configuration, network, self.batch_size, options.seed, ignore=self.labels.ignore
        )
        self.monitored = monitored_cases(
            validation or train, network, round(self.epoch_iterations * self.batch_size * _MONITORED_SHARE)
        )
        self.monitored_name = f"{len(self.monitored)} {'validation' if validation else 'training'} cases"
        torch.manual_seed(options.seed)
        self.model = build_network(configuration, network, description, base).to(self.device)
        if base:
            # Only what a fold leaves to its base must be found again.
            self.run["base" if self.model.has_base else "started_from"] = base.record
        if options.pretrained:
            start_from(self.model, options.pretrained)
        self.samed = network.recipe == "samed"
        self.loss = (SamedLoss() if self.samed else SegmentationLoss(self.labels)).to(self.device)
        self.optimizer = build_optimizer(
            network.optimizer, self.model, network.learning_rate, network.weight_decay, everything_decays=self.samed
        )
        self.dtype = self._choose_dtype()
        self.cached = self._open_cache() if options.feature_cache else None
        self.setup = {
            "identity": identity,
            "seed": options.seed,
            "batch_size": self.batch_size,
            "learning_rate": network.learning_rate,
            "iterations": self.budget.iterations,
            "time_budget": self.budget.seconds,
            "variants": self.loader.variants,
        }
        self.state = load_latest(folder, self.model, self.optimizer, self.setup)
        if self.dtype is not None:
            hold_frozen(self.model.image_encoder, self.dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)

    def train(self) -> None:
        """Train to the end of the budget and write the final model.

        Raises:
            KeyboardInterrupt: After a signal, once the checkpoint is written.
            SamunetError: If the loss is no longer a number, or a single image does not fit into memory.
        """
        self._announce()
        source = batches(self.loader, self.state.iteration, self.options.num_workers)
        started, saved = time.monotonic() - self.state.elapsed, time.monotonic()
        losses, seconds, data_seconds = [], 0.0, 0.0
        # A number of updates that the user gave is to come out the same every time, to the last bit.
        watch = self.device.type == "cpu" and not (self.options.iterations or self.options.epochs)
        with StopRequest() as stop, progress_bar(self.show_progress) as bar, FreeCores(watch) as cores:
            while self.budget.progress(self.state.iteration, self.state.elapsed) < 1:
                begin = time.monotonic()
                batch = next(source)
                data_seconds += time.monotonic() - begin
                cores.adjust()
                losses.append(self._step(batch))
                self.state.iteration += 1
                self.state.elapsed = time.monotonic() - started
                seconds += time.monotonic() - begin
                done = self.budget.progress(self.state.iteration, self.state.elapsed) >= 1
                if self.state.iteration % self.epoch_iterations == 0 or done:
                    self._end_epoch(losses, seconds, data_seconds, bar)
                    losses, seconds, data_seconds = [], 0.0, 0.0
                    self.state.elapsed = time.monotonic() - started
                self._update_bar(bar, losses)
                if stop.received or time.monotonic() - saved > self.options.checkpoint_seconds:
                    self._save_latest()
                    saved = time.monotonic()
                if stop.received:
                    source.close()
                    log.info("checkpoint written at iteration %d", self.state.iteration)
                    stop.pass_on()
        source.close()
        self._finish()

    def _save_latest(self) -> None:
        self.state.scaler = self.scaler.state_dict()
        save_latest(self.folder, self.model, self.optimizer, self.state)

    def _step(self, batch: dict[str, np.ndarray]) -> float:
        """One update from one batch; returns its loss."""
        schedule = self.budget.samed_learning_rate_factor if self.samed else self.budget.learning_rate_factor
        factor = schedule(self.state.iteration, self.state.elapsed)
        for group in self.optimizer.param_groups:
            group["lr"] = self.network.learning_rate * factor
        images = torch.from_numpy(batch["data"]).to(self.device)
        labels = torch.from_numpy(batch["seg"]).to(self.device)
        loss = self._backward(images, labels, batch.get("key"))
        if not np.isfinite(loss):
            rate = self.network.learning_rate
            raise loss_error(loss, self.state.iteration, images, self.model, self.dtype, rate)
        if not self.samed:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._trained(), _CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _backward(self, images: Tensor, labels: Tensor, keys: np.ndarray | None = None) -> float:
        """Gradients of the batch, in as many parts as memory needs; ``keys`` name the images in the feature cache."""
        while True:
            # Memory is freed after the block: until the exception is gone, its traceback holds the part that failed.
            with suppress(torch.cuda.OutOfMemoryError):
                parts = range(0, len(images), self.micro_batch)
                return sum(self._backward_part(slice(i, i + self.micro_batch), images, labels, keys) for i in parts)
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            if self.micro_batch == 1:
                raise SamunetError(
                    "a single image does not fit into the GPU's memory",
                    "plan for less memory under another name (samunet_plan_experiment with a smaller "
                    "-gpu_memory_target and -overwrite_plans_name NAME) and train with -p NAME; or use a smaller "
                    "configuration, for example 2d_448, or -encoder small",
                )
            self.micro_batch = max(1, self.micro_batch // 2)
            log.warning("out of GPU memory: %d images at a time from now on", self.micro_batch)

    def _backward_part(self, rows: slice, images: Tensor, labels: Tensor, keys: np.ndarray | None) -> float:
        """Adds the gradients of some of the batch's images; returns their share of its loss."""
        part, target = images[rows], labels[rows]
        model = self.cached.with_keys(keys[rows]) if self.cached else self.model
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            logits = model(part, upsample=not self.samed)
        loss = self.loss(logits.float(), target) * (len(part) / len(images))
        self.scaler.scale(loss).backward()
        return float(loss.detach())

    def _end_epoch(self, losses: list[float], seconds: float, data_seconds: float, bar) -> None:
        """Check the monitored cases, log, plot, and keep the model if it is the best so far."""
        score = self._monitor()
        entry = {
            "epoch": len(self.state.log) + 1,
            "iteration": self.state.iteration,
            "elapsed": round(self.state.elapsed, 1),
            "loss": float(np.mean(losses)),
            "dice": score,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": len(losses) * self.batch_size / seconds,
            "data_share": data_seconds / seconds,
        }
        self.state.log.append(entry)
        bar.clear()
        log.info("%s", epoch_line(entry))
        plot(self.state.log, self.folder / "progress.png", f"Dice of {self.monitored_name}")
        write_json(self.folder / "training_log.json", self.state.log)
        if score is not None and (self.state.best_dice is None or score > self.state.best_dice):
            self.state.best_dice = score
            save_model(self.folder, self.model, "best")

    def _monitor(self, averaged: bool = False) -> float | None:
        """Mean foreground Dice, case by case, of the monitored cases on their stored grid; None without foreground.

        Args:
            averaged: Over mirrored inputs and planes, as the plan has them; not while the fold trains.
        """
        self.model.eval()
        predictor = SlicePredictor(
            [self.cached or self.model],
            neighbours=self.network.input_channels == "neighbours",
            device=self.device,
            dtype=self.dtype,
            mirror_axes=self.configuration.mirror_axes if averaged else (),
            batch_size=self.micro_batch,
        )
        planes = None
        if averaged and len(self.loader.planes) > 1:
            planes = PlanePredictor(predictor, self.loader.planes, self.network, self.labels)
        regions = [region for _, region in self.labels.foreground]
        scores = []
        for case in self.monitored.values():
            shape = case.shape[1:]
            grid = SliceGrid.of(shape, case.spacing, self.network.spacing, self.network.input_shape)
            if planes:
                slices = planes.logits(case.image(), case.record, shape)
                mask = np.stack([decode(logits, self.labels).cpu().numpy() for _, logits in slices])
            else:
                mask = predictor.mask(case.image(), grid, shape, self.labels)
            counts = confusion_counts(mask, case.label(), regions, self.labels.ignore)
            scores.append([dice(count) for count in counts])
        self.model.train()
        per_class = [np.mean(column[~np.isnan(column)]) for column in np.array(scores).T if not np.isnan(column).all()]
        return float(np.mean(per_class)) if per_class else None

    def _finish(self) -> None:
        save_model(self.folder, self.model, "final")
        self.run |= {
            "iterations": self.state.iteration,
            "training_seconds": round(self.state.elapsed, 1),
            "best_monitored_dice": self.state.best_dice,
            "peak_memory_bytes": peak_memory(self.device),
            "micro_batch": self.micro_batch,
        }
        if self.cached:
            self.run["feature_cache"] = self.cached.close()
        write_json(self.folder / "run.json", self.run)
        (self.folder / LATEST).unlink(missing_ok=True)
        peak = self.run["peak_memory_bytes"]
        memory = f"; peak memory {peak / 1e9:.1f} GB" if peak else ""
        log.info("trained %d iterations in %s%s", self.state.iteration, format_duration(self.state.elapsed), memory)

    def _plan_budget(self) -> Budget:
        options = self.options
        if options.seconds:
            return Budget(seconds=options.seconds)
        if options.iterations or options.epochs:
            return Budget(iterations=options.iterations or options.epochs * self.epoch_iterations)
        kind = "cpu" if self.device.type == "cpu" else "gpu"
        return Budget(iterations=-(-self.network.training_images[kind] // self.batch_size))

    def _draws(self) -> int | None:
        """Images drawn in the whole training; None under a budget of time."""
        return self.budget.iterations and self.budget.iterations * self.batch_size

    def _open_cache(self) -> CachedModel:
        return CachedModel(
            self.model, self.loader, self.folder / "features", self.options.feature_cache,
            dtype=self.dtype, draws=self._draws(), monitored=self.monitored.values(),
        )  # fmt: skip

    def _choose_dtype(self) -> torch.dtype | None:
        """The number format: as this fold began, else the device's fast one (told by hardware, not by a timing)."""
        if "dtype" not in self.run:
            fast = fast_dtype(self.device, self.network.input_shape)
            self.run["dtype"] = "float32" if fast is None else str(fast).removeprefix("torch.")
        return None if self.run["dtype"] == "float32" else getattr(torch, self.run["dtype"])

    def _measure_step(self) -> float:
        """Seconds of one update, from passes whose gradients are thrown away."""
        batch = self.loader.batch(0)
        images, labels = (torch.from_numpy(batch[key][: self.micro_batch]).to(self.device) for key in ("data", "seg"))
        keys = batch["key"][: self.micro_batch] if self.cached else None
        running = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        seconds = min(self._timed_pass(images, labels, keys) for _ in range(3))
        self.optimizer.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(running[name])  # statistics of a batch normalisation that trains
        if self.cached:  # the quickest pass read its features; some are computed
            draws = self._draws() or self.budget.seconds / seconds * len(images)
            seconds += self.cached.mean_seconds(images, draws) * len(images)
        return seconds * self.batch_size / len(images)

    def _timed_pass(self, images: Tensor, labels: Tensor, keys: np.ndarray | None) -> float:
        begin = time.monotonic()
        self._backward(images, labels, keys)  # reading the loss waits for the device
        return time.monotonic() - begin

    def _announce(self) -> None:
        """Say what will happen and how long it takes, before it starts; write it to run.json."""
        step = self._measure_step()
        self.run |= {"seed": self.options.seed, "setup": self.setup, "threads": torch.get_num_threads()}
        self.run |= {"measured_step_seconds": round(step, 4), "trained_parameters": self.model.trained_parameters()}
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
            self.network.adaptation, self.network.components, f"{sum(trained.values()):,}", parts,
        )  # fmt: skip
        if self.budget.seconds:
            length = f"{format_duration(self.budget.seconds)}, about {self.budget.seconds / step:.0f} iterations"
        else:
            length = f"{self.budget.iterations} iterations, about {format_duration(self.budget.iterations * step)}"
        kind = "cpu" if self.device.type == "cpu" else "gpu"
        memory = step_bytes(self.network, self.micro_batch, kind, self.labels.num_outputs)
        log.info("estimate: %s (%.2f s a step), %.1f GB", length, step, memory / 1e9)
        if self.state.iteration:
            log.info("going on from iteration %d", self.state.iteration)

    def _update_bar(self, bar, losses: Sequence[float]) -> None:
        progress = self.budget.progress(self.state.iteration, self.state.elapsed)
        left = self.state.elapsed * (1 - progress) / max(progress, 1e-6)
        shown = [f"iteration {self.state.iteration}"]
        if losses:
            shown.append(f"loss {np.mean(losses[-20:]):.3f}")
        if self.state.log and self.state.log[-1]["dice"] is not None:
            shown.append(f"Dice {self.state.log[-1]['dice']:.3f}")
        bar.n = 100 * progress
        bar.set_description_str(", ".join([*shown, f"{format_duration(left)} left"]))

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
