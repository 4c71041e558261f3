"""Several folds one after the other, with all threads, against side by side, with a thread each: seconds for all.

Both train the same number of updates of the same folds of a planned and preprocessed dataset, alternately, in a results
folder of their own; validation is left out of the seconds, since it is what both do in the same way. For example:

    samunet_plan_and_preprocess -d 028
    python benchmarks/folds.py 028 --folds 0 1 --iterations 40 --repeats 3 --json folds.json

For a quiet machine. In turn, the seconds of the folds' trainings add up; side by side the longest counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from timed import machine, spread

WAYS = {"in turn": 1, "at once": None}


def main() -> None:
    arguments = build_parser().parse_args()
    result = {"machine": machine(), "dataset": arguments.dataset, "folds": arguments.folds, "seconds": {}}
    result["iterations"] = arguments.iterations
    measured = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way, at_once in WAYS.items():
            measured[way].append(train(arguments, at_once or len(arguments.folds)))
            print(f"{way}: {measured[way][-1]:.1f} s", flush=True)
    result["seconds"] = {way: spread(seconds) for way, seconds in measured.items()}
    result["share"] = result["seconds"]["at once"]["median"] / result["seconds"]["in turn"]["median"]
    print(f"at once takes {result['share']:.2f} of the time in turn")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="id or name")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the result")
    return parser


def train(arguments: argparse.Namespace, at_once: int) -> float:
    """Seconds of the trainings without their validation."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["samunet_train", arguments.dataset, "2d", *map(str, arguments.folds)]
        words += ["--iterations", str(arguments.iterations), "--folds_at_once", str(at_once), "-device", "cpu"]
        words += ["-encoder", "small"]
        environment = os.environ | {"samunet_results": folder}
        with open(Path(folder) / "log", "w") as log:
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
        code = process.wait()
        if code:
            sys.exit((Path(folder) / "log").read_text()[-3000:])
        runs = [json.loads(file.read_text()) for file in Path(folder).glob("*/*/fold_*/run.json")]
        seconds = [run["training_seconds"] for run in runs]
        return sum(seconds) if at_once == 1 else max(seconds)


if __name__ == "__main__":
    main()
