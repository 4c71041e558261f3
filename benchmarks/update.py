"""Updates of a training as users start it: this checkout's code against another one's, in pairs.

Both plan and preprocess a dataset of ``samunet_raw`` in a folder of their own, and then train its fold 0 by the
command, alternately, in processes of their own; no validation follows. For example, from the repository's folder:

    git worktree add ../v0.1 a3e5d52
    python benchmarks/update.py --against ../v0.1 --dataset 028 --batches 1 4 16 --threads 1 2 --json update.json

The time of an update is the time between the ends of two updates, the loader included; it is the median over a
training after its first updates, and of the repeats median and range are given. Phases: ``data`` (from the end of an
update to the network's forward pass: waiting for the batch, placing it), ``forward`` (with the loss), ``backward``,
``clip``, ``optimizer``, and ``rest``. Operations are those that PyTorch's profiler counts in one update. ``cpu`` is
processor time an update, which other programs disturb less than wall time. ``share`` is that of the machine's product
rate (4096 x 4096 in the faster format) which the plan's operations of the images are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SKIPPED = 5  # first updates, in which memory grows and kernels are chosen
COUNTED = 3  # updates before the one whose operations are counted


def main() -> None:
    arguments = build_parser().parse_args()
    if arguments.worker:
        work(arguments)
        return
    from timed import machine

    result = {"machine": machine(), "dataset": arguments.dataset, "further": arguments.further, "rows": []}
    checkouts = {"here": HERE} | ({"against": arguments.against.resolve()} if arguments.against else {})
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: prepare(path, Path(folder) / name, arguments) for name, path in checkouts.items()}
        for threads in arguments.threads:
            rate = product_rate(threads)
            for batch in arguments.batches:
                runs = {name: [] for name in checkouts}
                for _ in range(arguments.repeats):
                    for name, path in checkouts.items():
                        runs[name].append(train(path, folders[name], batch, threads, arguments))
                row = {"threads": threads, "batch": batch, "product_gflops": rate}
                row |= {name: summary(found, rate) for name, found in runs.items()}
                if "against" in row:
                    row["times_faster"] = row["against"]["seconds"]["median"] / row["here"]["seconds"]["median"]
                result["rows"].append(row)
                print(line(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--dataset", default="028", help="number of a dataset in samunet_raw")
    parser.add_argument("--batches", type=int, nargs="+", help="images an update (default: the plan's)", default=[None])
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--updates", type=int, default=25, help="of each training")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--worker", choices=["plan", "train"], help=argparse.SUPPRESS)
    parser.add_argument("further", nargs="*", help="after --: further arguments of samunet_train, -encoder small first")
    return parser


def prepare(checkout: Path, folder: Path, arguments: argparse.Namespace) -> Path:
    """Plan and preprocess with a checkout's own code; returns its folder."""
    for part in ("preprocessed", "results"):
        (folder / part).mkdir(parents=True)
    run(checkout, folder, ["--worker", "plan", "--dataset", arguments.dataset], None)
    return folder


def train(checkout: Path, folder: Path, batch: int | None, threads: int, arguments: argparse.Namespace) -> dict:
    """What one training measured."""
    command = ["--worker", "train", "--dataset", arguments.dataset, "--updates", str(arguments.updates)]
    command += [] if batch is None else ["--batches", str(batch)]
    return json.loads(run(checkout, folder, [*command, "--", *arguments.further], threads).splitlines()[-1])


def run(checkout: Path, folder: Path, command: list[str], threads: int | None) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    environment |= {f"samunet_{part}": str(folder / part) for part in ("preprocessed", "results")}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run([sys.executable, __file__, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def product_rate(threads: int) -> float:
    """GFLOP/s of a large matrix product, in the faster of float32 and bfloat16."""
    command = [sys.executable, str(HERE / "benchmarks" / "sam_step.py"), "--variant", "matmul"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return max(value for key, value in json.loads(done.stdout).items() if key.endswith("_gflops"))


def summary(runs: list[dict], rate: float) -> dict:
    """Median and range over the repeats."""
    from timed import spread

    found = {key: spread([one[key] for one in runs]) for key in ("seconds", "cpu_seconds")}
    found["phases"] = {key: statistics.median(one["phases"][key] for one in runs) for key in runs[0]["phases"]}
    found["operations"] = runs[0]["operations"]
    found["share"] = runs[0]["gflop"] / found["seconds"]["median"] / rate
    return found


def line(row: dict) -> str:
    words = [f"threads {row['threads']}, batch {row['batch'] or 'as planned'}"]
    for name in ("against", "here"):
        if name in row:
            one, seconds = row[name], row[name]["seconds"]
            phases = ", ".join(f"{key} {value:.3f}" for key, value in one["phases"].items())
            words.append(
                f"  {name}: {seconds['median']:.3f} s ({seconds['min']:.3f}-{seconds['max']:.3f}), cpu "
                f"{one['cpu_seconds']['median']:.3f} s, {one['operations']} operations, share {one['share']:.3f}; "
                + phases
            )
    if "times_faster" in row:
        words.append(f"  {row['times_faster']:.2f} times as fast")
    return "\n".join(words)


def work(arguments: argparse.Namespace) -> None:
    """Run a command of whichever checkout is on Python's path."""
    if arguments.worker == "plan":
        sys.exit(command("plan_and_preprocess", "prepare")(["-d", arguments.dataset]))
    # Far longer than is measured, so that no check of the monitored cases falls into it.
    words = [arguments.dataset, "2d", "0", "--iterations", "100000", "--overwrite"]
    if arguments.batches[0]:
        words += ["--batch_size", str(arguments.batches[0])]
    if "-encoder" not in arguments.further:
        words += ["-encoder", "small"]
    Stopwatch(arguments.updates + SKIPPED).install()
    command("train", "train")([*words, *arguments.further])
    sys.exit("the training ended before it was measured")


def command(name: str, file: str):
    """A command's function, in this version's layout or in that of 0.1.0 (a module for each command)."""
    try:
        return getattr(importlib.import_module(f"samunet.commands.{file}"), name)
    except (ImportError, AttributeError):
        return importlib.import_module(f"samunet.commands.{name}").main


class Stopwatch:
    """Times what every version does in an update, by hooks on PyTorch; ends the process after enough of them."""

    def __init__(self, updates: int) -> None:
        self.updates, self.rows, self.operations = updates, [], 0
        self.marks: dict[str, float] = {}
        self.profiler = None
        self.depth = 0

    def install(self) -> None:
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)
        torch.nn.modules.module.register_module_forward_pre_hook(self._before_forward)
        self._wrap(torch.Tensor, "backward", "backward")
        self._wrap(torch.nn.utils, "clip_grad_norm_", "clip")

    def _wrap(self, owner, name: str, phase: str) -> None:
        function = getattr(owner, name)

        def timed(*arguments, **keywords):
            begin = time.perf_counter()
            self.marks.setdefault(f"{phase} begins", begin)
            try:
                return function(*arguments, **keywords)
            finally:
                self.marks[phase] = self.marks.get(phase, 0.0) + time.perf_counter() - begin

        setattr(owner, name, timed)

    def _before_forward(self, module, _) -> None:
        if type(module).__name__ == "SamunetModel":
            self.marks.setdefault("forward begins", time.perf_counter())

    def _before_step(self, *_) -> None:
        self.depth += 1  # an optimizer may make another one's step
        if self.depth == 1:
            self.marks["optimizer begins"] = time.perf_counter()

    def _after_step(self, *_) -> None:
        self.depth -= 1
        if self.depth:
            return
        import torch

        now, cpu, marks = time.perf_counter(), time.process_time(), self.marks
        if "ended" in marks:
            phases = {
                "data": marks["forward begins"] - marks["ended"],
                "forward": marks["backward begins"] - marks["forward begins"],
                "backward": marks["backward"],
                "clip": marks.get("clip", 0.0),
                "optimizer": now - marks["optimizer begins"],
            }
            phases["rest"] = now - marks["ended"] - sum(phases.values())
            self.rows.append({"seconds": now - marks["ended"], "cpu": cpu - marks["cpu ended"], "phases": phases})
        if self.profiler:
            self.profiler.__exit__(None, None, None)
            self.operations = sum(
                event.count for event in self.profiler.key_averages() if event.key.startswith("aten::")
            )
            self.profiler = None
            self.rows.pop()
        elif len(self.rows) == COUNTED and not self.operations:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profiler.__enter__()
        if len(self.rows) >= self.updates:
            self._finish()
        self.marks = {"ended": time.perf_counter(), "cpu ended": time.process_time()}

    def _finish(self) -> None:
        rows = self.rows[SKIPPED:]
        middle = sorted(rows, key=lambda row: row["seconds"])[len(rows) // 2]
        found = {"seconds": middle["seconds"], "cpu_seconds": statistics.median(row["cpu"] for row in rows)}
        found |= {"phases": middle["phases"], "operations": self.operations, "gflop": gflop()}
        print(json.dumps(found), flush=True)
        os._exit(0)


def gflop() -> float:
    """Planned operations of an update in 10^9, from the files that the training wrote so far."""
    [record] = Path(os.environ["samunet_results"]).rglob("fold_0/run.json")
    run = json.loads(record.read_text())
    [plans] = Path(os.environ["samunet_results"]).rglob("plans.json")
    configuration = json.loads(plans.read_text())["configurations"]["2d"]
    networks = configuration.get("networks") or {}
    network = next(one for one in networks.values() if one and one["encoder"] == "small")
    return network["training_gflops"] * run["setup"]["batch_size"]


if __name__ == "__main__":
    main()
