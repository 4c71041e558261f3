"""Accuracy after the same minutes on the same machine: samunet and, beside it, nnU-Net's 2d configuration.

    python benchmarks/accuracy.py --dataset 004 --minutes 10 --work /tmp/004 --nnunet-bin /venvs/nnunet/bin --batch 8

One dataset a call. Both programs plan and preprocess, train a fold for so many minutes, and predict imagesTs, in turn
and never at the same time; ``samunet_evaluate_folder`` scores the masks of both against labelsTs. Without
``--nnunet-bin``, the ``bin`` folder of an environment with nnU-Net v2, samunet runs alone.

* Both train on the same cases: nnU-Net gets samunet's fold 0, with ``--num_cases`` the cases that samunet drew. With
  ``--fold all`` both train on all cases, and none is left to validate.
* The minutes are those of the training loop, with the checks between epochs; loading, planning and the prediction of
  the validation cases after the training are not in them. nnU-Net ends after the iteration in which the time is up, and
  its polynomial decay ends then (``nnunet_trainer/by_the_clock.py``); all else is its own.
* Both get all cores: variables of the shell that limit threads (``OMP_NUM_THREADS``) are not passed on, for nnU-Net
  overrules them and samunet does not.
* ``--batch`` gives nnU-Net's 2d configuration another batch size: with its own, a machine without a GPU may finish only
  a few iterations in minutes.
* Peak memory is that of the training command with its validation, summed over its processes (PSS, sampled every
  5 seconds).
* samunet is repeatable up to the speed of the machine (``--seed``); nnU-Net takes no seed, and its runs differ.

Everything is written below ``--work``: logs, models, masks, scores, and ``result.json``. Linux only (``/proc``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from contestants import NNUNET_COMMANDS, SAMUNET_COMMANDS, Contestant, NNUNet, Samunet, Task, find_trainer
from preprocess import RAW_VARIABLE, Contender, find_dataset, versions
from timed import BenchmarkError, machine

LEAST_MINUTES = 0.01


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Accuracy after the same minutes on the same machine: samunet and nnU-Net's 2d configuration.",
        epilog="The top of this file says what is compared.",
    )
    parser.add_argument("--dataset", required=True, metavar="ID", help="dataset number or name")
    parser.add_argument("--minutes", type=float, required=True, metavar="N", help="of training, for each")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="new folder for all that is written")
    parser.add_argument(
        "--raw", type=Path, default=os.environ.get(RAW_VARIABLE), metavar="FOLDER",
        help="folder with the raw datasets (default: the variable samunet_raw)",
    )  # fmt: skip
    parser.add_argument("--fold", choices=("0", "all"), default="0", help="to train (default: 0)")
    parser.add_argument("--num_cases", type=int, metavar="N", help="train on so many of the fold's cases")
    parser.add_argument("--seed", type=int, default=12345, help="of samunet (default: 12345)")
    parser.add_argument("--disable_tta", action="store_true", help="predict imagesTs without test-time augmentation")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="for both (default: cpu)")
    parser.add_argument("--nnunet-bin", type=Path, metavar="DIR", help="folder of nnU-Net's commands")
    parser.add_argument("--batch", type=int, metavar="N", help="nnU-Net's batch size (default: its plan's)")
    parser.add_argument(
        "--samunet-bin", type=Path, default=Path(sys.executable).parent, metavar="DIR",
        help="folder of samunet's commands (default: that of this Python)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="result (default: result.json in --work)")
    parsed = parser.parse_args(arguments)
    if not LEAST_MINUTES <= parsed.minutes < math.inf:
        parser.error(f"--minutes must be at least {LEAST_MINUTES}, got {parsed.minutes:g}")
    if any(number is not None and number < 1 for number in (parsed.num_cases, parsed.batch)):
        parser.error("--num_cases and --batch must be at least 1")
    if parsed.num_cases and parsed.fold == "all":
        parser.error("--num_cases draws from fold 0; leave out --fold all")
    if parsed.batch and parsed.nnunet_bin is None:
        parser.error("--batch is nnU-Net's: it needs --nnunet-bin DIR")
    if not parsed.raw:
        parser.error("give the folder with the raw datasets: --raw FOLDER, or the environment variable samunet_raw")
    if parsed.json is not None and not parsed.json.absolute().parent.is_dir():
        parser.error(f"--json {parsed.json}: there is no folder {parsed.json.absolute().parent}")
    return parsed


def find_commands(name: str, folder: Path, prefix: str, commands: Sequence[str], flag: str) -> Contender:
    """A program whose commands are all there.

    Raises:
        BenchmarkError: One is not; the message names it and the flag.
    """
    folder = Path(os.path.abspath(folder.expanduser()))  # not resolved: a link to Python leaves its environment
    for command in (*(f"{prefix}_{command}" for command in commands), "python"):
        if not os.access(folder / command, os.X_OK):
            raise BenchmarkError(f"{folder / command} is not there or cannot be run; say where with {flag}")
    return Contender(name, folder, [], "samunet" if name == "samunet" else "nnUNet")


def check_test_set(dataset: Path) -> None:
    """Refuse a dataset without images to predict or without their labels."""
    for part in ("imagesTs", "labelsTs"):
        folder = dataset / part
        if not folder.is_dir() or not any(folder.iterdir()):
            raise BenchmarkError(f"{folder} has no files: the masks of imagesTs are compared with labelsTs")


def new_folder(work: Path) -> Path:
    """Make ``--work``; one with something in it is refused, for two runs would mix."""
    work = work.expanduser().absolute()
    if work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise BenchmarkError(f"--work {work} is not empty; give a new folder")
    work.mkdir(parents=True, exist_ok=True)
    return work


def class_names(dataset: Path) -> dict[str, str]:
    """Key in ``summary.json`` to name, of every class or region of a dataset.

    Raises:
        BenchmarkError: Its dataset.json is wrong.
    """
    from samunet.dataset.description import read_description
    from samunet.errors import SamunetError
    from samunet.evaluation.summary import class_key

    try:
        return {class_key(region): name for name, region in read_description(dataset).labels.foreground}
    except SamunetError as error:
        raise BenchmarkError(str(error)) from None


def run_in_turn(contestants: Sequence[Contestant], names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Every step by one program after the other; returns the results by name, samunet's first."""
    for contestant in contestants:
        contestant.plan()
    for contestant in contestants:
        contestant.train()
    for contestant in contestants:
        contestant.predict()
    samunet, labels = contestants[0], contestants[0].task.dataset / "labelsTs"
    results = {}
    for contestant in contestants:
        name = contestant.contender.name
        test = samunet.evaluate(f"{name}_imagesTs", labels, contestant.masks)
        results[name] = contestant.result(names, test)
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown: Dice of imagesTs by class and in the mean, of the validation cases, and what it took."""
    classes = list(next(iter(results.values()))["dice"])
    mean = ["mean"] if len(classes) > 1 else []
    header = ["", *classes, *mean, "validation cases", "iterations", "minutes", "batch, input px", "peak memory GB"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, row in results.items():
        scores = [*row["dice"].values(), *([row["mean"]] if mean else []), row["validation"]]
        cells = [name, *map(_score, scores), str(row["iterations"]), f"{row['training_seconds'] / 60:.2f}"]
        memory = f"{row['peak_memory_mib'] * 2**20 / 1e9:.1f}"
        cells += [f"{row['batch']}, {' x '.join(map(str, row['input']))}", memory]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _score(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def find_contenders(arguments: argparse.Namespace) -> list[Contender]:
    """The programs to compare, samunet first; nnU-Net only where its commands are given."""
    contenders = [find_commands("samunet", arguments.samunet_bin, "samunet", SAMUNET_COMMANDS, "--samunet-bin")]
    if arguments.nnunet_bin is not None:
        contenders.append(find_commands("nnU-Net", arguments.nnunet_bin, "nnUNetv2", NNUNET_COMMANDS, "--nnunet-bin"))
        find_trainer(contenders[1])
    return contenders


def compare(arguments: argparse.Namespace) -> None:
    """Run everything and report."""
    if not sys.platform.startswith("linux"):
        raise BenchmarkError("this benchmark reads /proc and so runs on Linux only")
    dataset = find_dataset(arguments.raw.expanduser().absolute(), arguments.dataset)
    check_test_set(dataset)
    names = class_names(dataset)
    contenders = find_contenders(arguments)
    task = Task(
        dataset, new_folder(arguments.work), 60 * arguments.minutes, arguments.device, arguments.num_cases,
        arguments.seed, not arguments.disable_tta, arguments.fold,
    )  # fmt: skip
    samunet = Samunet(task, contenders[0])
    others = [NNUNet(task, contender, samunet, arguments.batch) for contender in contenders[1:]]
    about = introduction(arguments, task, contenders)
    results = run_in_turn([samunet, *others], names)
    split, first = samunet.split(), results["samunet"]
    print(
        f"\n{dataset.name}, {len(split['train'])} training cases, {arguments.minutes:g} minutes; Dice of "
        f"{first['test_cases']} cases of imagesTs and of {first['validation_cases'] or 'no'} validation cases; "
        f"test-time augmentation {'on' if task.tta else 'off'} in imagesTs\n\n{table(results)}\n"
    )
    file = arguments.json or task.work / "result.json"
    content = {**about, "split": split, "results": results}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"Written: {file}")


def introduction(arguments: argparse.Namespace, task: Task, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Say what is compared, on which machine and with which versions; returns it for the result."""
    here, date = machine(), datetime.now().astimezone().isoformat(timespec="seconds")
    found = {contender.name: versions(contender) for contender in contenders}
    print(f"{task.dataset.name}, {arguments.minutes:g} minutes of training on {task.device}, {date}")
    print(
        f"{here['cpu']}, {here['cores_usable']} of {here['cores']} cores usable, {here['memory_gib']} GiB, "
        f"{here['system']}, load {here['load_average_before']:.2f} before the start"
    )
    for name, packages in found.items():
        print(f"{name}: {', '.join(f'{key} {version}' for key, version in packages.items()) or 'versions unknown'}")
    if len(contenders) == 1:
        print("nnU-Net: left out, --nnunet-bin was not given")
    print(flush=True)
    return {
        "date": date,
        "machine": here,
        "versions": found,
        "left_out": [] if len(contenders) > 1 else ["nnU-Net"],
        "dataset": task.dataset.name,
        "minutes": arguments.minutes,
        "device": task.device,
        "fold": task.fold,
        "num_cases": task.num_cases,
        "seed": task.seed,
        "tta": task.tta,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parsed = parse(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)  # else what runs at that moment would go on alone
    try:
        compare(parsed)
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"interrupted; what was finished is in {parsed.work}, the commands' output in its folder logs",
            file=sys.stderr,
        )
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
