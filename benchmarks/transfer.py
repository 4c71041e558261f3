"""What weights are worth: short fine-tunings of real datasets from each of several files, as a table.

    OMP_NUM_THREADS=1 python benchmarks/transfer.py --weights random bundled pretraining/small_latest.safetensors \\
        --tasks 004:600:8 027:400:8 --seeds 12345 1 2 --work transfer --jobs 2

A task is a preprocessed dataset, the number of updates and, after a second colon, how many of fold 0's cases to train
on (default: all). Every training is one call of ``ablation.py``, whose file says what its Dice is. The cards that
``samunet_pretrain`` writes beside its weights say how many images they have seen. Results that ``--work`` holds are
not computed again, so that a table may grow row by row and file by file; after a change of samunet give a new folder.
Updates, not minutes, are fixed: a busy machine and ``--jobs`` change nothing but the time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from samunet.encoders import BUNDLED_WEIGHTS, ENCODERS
from samunet.files import file_hash, read_json, write_json

ABLATION = Path(__file__).with_name("ablation.py")


@dataclass(frozen=True)
class Task:
    """A short training: dataset, updates, and training cases, None for all."""

    dataset: str
    iterations: int
    cases: int | None

    @classmethod
    def parse(cls, text: str) -> Task:
        """From ``DATASET:UPDATES[:CASES]``."""
        dataset, *numbers = text.split(":")
        if not 1 <= len(numbers) <= 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            raise argparse.ArgumentTypeError(f"{text!r} is not DATASET:UPDATES[:CASES], such as 027:400:8")
        return cls(dataset, int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else None)

    def flags(self) -> list[str]:
        """For ``ablation.py``."""
        cases = ["--num_cases", str(self.cases)] if self.cases else []
        return [self.dataset, "--iterations", str(self.iterations), *cases]


@dataclass(frozen=True)
class Weights:
    """Weights to start from: ``random``, ``bundled`` or a file, and what their card says."""

    name: str
    identity: str
    images: int | None

    @classmethod
    def find(cls, text: str) -> Weights:
        """From a name or a file."""
        if text == "random":
            return cls(text, text, 0)
        file = BUNDLED_WEIGHTS / ENCODERS["small"].checkpoint_file if text == "bundled" else Path(text)
        if not file.is_file():
            raise argparse.ArgumentTypeError(f"{text!r} is no file, and not one of: random, bundled")
        card = file.with_suffix(".json")
        images = images_seen(read_json(card)) if card.is_file() else None
        return cls(text, file_hash(file), images)


def images_seen(card: dict) -> int:
    """Images that weights have seen, with those of the weights that they were begun with."""
    return card["images_seen"] + (images_seen(card["base"]["card"]) if "card" in card.get("base", {}) else 0)


def dice(task: Task, weights: Weights, seed: int, work: Path, more: Sequence[str]) -> float:
    """Dice of one training, from ``work`` if it is there."""
    words = [*task.flags(), "--seed", str(seed), *more]
    file = work / f"{sha256(json.dumps([weights.identity, *words]).encode()).hexdigest()[:16]}.json"
    if not file.is_file():
        command = [sys.executable, str(ABLATION), *words, "--weights", weights.name]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if finished.returncode:
            raise SystemExit(f"this failed, and said why above: {shlex.join(command)}")
        last = finished.stdout.splitlines()[-1]
        write_json(file, json.loads(last))
        print(last, file=sys.stderr, flush=True)
    return read_json(file)["averaged_dice"]


def table(scores: dict[tuple[Task, Weights], list[float]], tasks: Sequence[Task], weights: Sequence[Weights]) -> str:
    """In Markdown: a row for each task, a column for each of the weights; means, in brackets the seeds' own Dice."""
    heads = [item.name + ("" if item.images is None else f", {item.images:,} images") for item in weights]
    lines = [f"| data | training cases | updates | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for task in tasks:
        cells = []
        for item in weights:
            values = scores[task, item]
            seeds = f" ({', '.join(f'{value:.4f}' for value in values)})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4f}{seeds}")
        lines.append(f"| {task.dataset} | {task.cases or 'all'} | {task.iterations} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train whatever is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", type=Weights.find, required=True, help="random, bundled, or files")
    parser.add_argument("--tasks", nargs="+", type=Task.parse, required=True, metavar="DATASET:UPDATES[:CASES]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[12345])
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for the results")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as of ablation.py")
    parsed = parser.parse_args(arguments)
    parsed.work.mkdir(parents=True, exist_ok=True)
    more = ["--set", *parsed.set] if parsed.set else []
    wanted = [(task, item, seed) for seed in parsed.seeds for task in parsed.tasks for item in parsed.weights]
    pool = ThreadPoolExecutor(max(1, parsed.jobs))
    try:
        found = list(pool.map(lambda item: dice(*item, parsed.work, more), wanted))
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C nothing new is begun
    scores: dict[tuple[Task, Weights], list[float]] = {}
    for (task, item, _), score in zip(wanted, found):
        scores.setdefault((task, item), []).append(score)
    print(table(scores, parsed.tasks, parsed.weights))


if __name__ == "__main__":
    main()
