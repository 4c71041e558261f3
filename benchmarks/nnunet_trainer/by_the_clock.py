"""nnU-Net's trainer, ended by the clock: for benchmarks/accuracy.py.

nnU-Net imports this file in its own environment, from the folder named by ``nnUNet_extTrainer``. It imports every file
there until it finds the class, which is why this one has a folder to itself.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

SECONDS = "samunet_benchmark_seconds"
RESULT = "by_the_clock.json"
# Epochs are bookkeeping here (a check, a plot, a checkpoint): few of them, and none of a handful of slow iterations.
EPOCHS = 5
LEAST_ITERATIONS = 20
CHECKED_BATCHES = 2
EXPONENT = 0.9  # nnU-Net's


class ClockDecay:
    """nnU-Net's polynomial decay, over the time that is given in place of the epochs. Its clock starts at once."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_rate: float, seconds: float) -> None:
        self.optimizer = optimizer
        self.initial_rate = initial_rate
        self.seconds = seconds
        self.start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """Part of the time that is used up; 1 or more at the end."""
        return self.elapsed / self.seconds

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate of this moment; nnU-Net's trainer gives the epoch, which does not matter."""
        rate = self.initial_rate * max(0.0, 1 - self.share) ** EXPONENT
        for group in self.optimizer.param_groups:
            group["lr"] = rate


class nnUNetTrainerByTheClock(nnUNetTrainer):
    """Trains for the seconds in the environment variable ``samunet_benchmark_seconds``.

    Everything else is nnU-Net's own. The training ends after the iteration in which the time is up. The clock runs from
    the first epoch on and includes the checks between epochs, as samunet's ``--time_budget`` does. Iterations and
    seconds are written to ``by_the_clock.json`` in the fold's folder.
    """

    def run_training(self) -> None:
        """Train until the time is up, and save the final checkpoint."""
        self.num_epochs = EPOCHS
        self.on_train_start()
        self.lr_scheduler = clock = ClockDecay(self.optimizer, self.initial_lr, float(os.environ[SECONDS]))
        iterations = 0
        while clock.share < 1:
            iterations += self._run_epoch(clock, until=(self.current_epoch + 1) / EPOCHS)
        seconds = clock.elapsed
        self.on_train_end()
        self._write_result(iterations, seconds)

    def _run_epoch(self, clock: ClockDecay, until: float) -> int:
        """One epoch, which ends at a share of the time; returns its iterations, at least one."""
        self.on_epoch_start()
        self.on_train_epoch_start()
        outputs = []
        while not outputs or (clock.share < 1 and (clock.share < until or len(outputs) < LEAST_ITERATIONS)):
            clock.step()
            outputs.append(self.train_step(next(self.dataloader_train)))
        self.on_train_epoch_end(outputs)
        with torch.no_grad():
            self.on_validation_epoch_start()
            checks = [self.validation_step(next(self.dataloader_val)) for _ in range(CHECKED_BATCHES)]
            self.on_validation_epoch_end(checks)
        self.on_epoch_end()
        return len(outputs)

    def _write_result(self, iterations: int, seconds: float) -> None:
        result = {
            "iterations": iterations,
            "training_seconds": round(seconds, 1),
            "batch": int(self.configuration_manager.batch_size),
            "input": [int(side) for side in self.configuration_manager.patch_size],
        }
        (Path(self.output_folder) / RESULT).write_text(json.dumps(result) + "\n", encoding="utf-8")
