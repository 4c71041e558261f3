"""Time planning and preprocessing: samunet beside nnU-Net, on the same machine, in the same minutes.

Both commands run in turn, the order swapped from one repeat to the next, each into its own fresh temporary folder:

    samunet_plan_and_preprocess -d ID
    nnUNetv2_plan_and_preprocess -d ID -c 2d -np N -npfp N

Example (``--nnunet-bin`` is the ``bin`` folder of an environment with nnU-Net v2; without it only samunet is timed):

    python benchmarks/preprocess.py --dataset 004 --raw /data/raw --nnunet-bin /venvs/nnunet/bin --json result.json

What is measured, from the start of the command to its end (so with the time Python takes to import):

* wall seconds;
* CPU seconds, user and system, of the command and of the processes that it started and waited for;
* peak RSS: resident memory summed over the command and all processes below it, sampled every 50 ms. A page that
  several processes share (a library, memory inherited by a fork) is counted once for each of them;
* peak PSS: the same sum with every shared page divided among those sharing it, sampled every 250 ms because the kernel
  takes longer to work it out. This is nearer to the memory that the machine must have.

Before the timed runs the dataset is read once and each command is run once with ``-h``, so that no run pays for a cold
disk. Linux only (``/proc``). Needs nothing but Python's standard library and ``timed.py`` beside it. ``TMPDIR`` says
where temporary folders go.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from timed import MIB, PSS_EVERY, SAMPLE_SECONDS, BenchmarkError, last_lines, machine, spread, timed

RAW_VARIABLE = "samunet_raw"
PACKAGES = ("samunet", "nnunetv2", "torch", "numpy", "scipy", "SimpleITK", "blosc2", "batchgenerators", "acvl-utils")
MEASURES = {
    "wall_seconds": "wall s",
    "cpu_seconds": "CPU s",
    "peak_rss_mib": "peak RSS MiB",
    "peak_pss_mib": "peak PSS MiB",
}


@dataclass(frozen=True)
class Contender:
    """One of the programs compared: its name, its folder of scripts, its command, and its environment variables."""

    name: str
    bin: Path
    command: list[str]
    prefix: str

    def environment(self, raw: Path, scratch: Path) -> dict[str, str]:
        """The cleaned environment with this program's folders, the written ones created under ``scratch``."""
        environment = {**self.cleaned_environment(), f"{self.prefix}_raw": str(raw)}
        for folder in ("preprocessed", "results"):
            (scratch / folder).mkdir()
            environment[f"{self.prefix}_{folder}"] = str(scratch / folder)
        return environment

    def cleaned_environment(self) -> dict[str, str]:
        """The caller's environment without what would lead one program's Python to the other's packages.

        samunet keeps ``PYTHONPATH``, so that a working copy can be timed.
        """
        dropped = {"PYTHONHOME"} if self.name == "samunet" else {"PYTHONHOME", "PYTHONPATH"}
        return {name: value for name, value in os.environ.items() if name not in dropped}


@dataclass
class Run:
    """What one run took."""

    contender: str
    repeat: int
    wall_seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    peak_pss_mib: float | None
    processes_at_peak_rss: int
    stored_mib: float
    sampler_cpu_seconds: float


def measure(contender: Contender, raw: Path, repeat: int) -> Run:
    """Run a command once into a fresh folder and say what it took.

    Raises:
        BenchmarkError: The command failed or stored nothing; the end of its output is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="preprocess_benchmark_", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        environment = contender.environment(raw, scratch)
        log = scratch / "output.log"
        took = timed(contender.command, environment, log, cwd=scratch)
        stored = sum(path.stat().st_size for path in (scratch / "preprocessed").rglob("*") if path.is_file())
        if took.status != 0 or stored == 0:
            problem = f"ended with status {took.status}" if took.status else "stored nothing"
            raise BenchmarkError(f"{' '.join(contender.command)} {problem}. The end of its output:\n{last_lines(log)}")
    return Run(
        contender=contender.name,
        repeat=repeat,
        wall_seconds=took.wall_seconds,
        cpu_seconds=took.cpu_seconds,
        peak_rss_mib=took.peak_rss_mib,
        peak_pss_mib=took.peak_pss_mib,
        processes_at_peak_rss=took.processes_at_peak_rss,
        stored_mib=stored / MIB,
        sampler_cpu_seconds=took.sampler_cpu_seconds,
    )


def warm_up(contenders: Sequence[Contender], dataset: Path) -> None:
    """Read the dataset and start each command once with ``-h``, so that the first run finds a warm disk cache."""
    for path in dataset.rglob("*"):
        if path.is_file():
            path.read_bytes()
    for contender in contenders:
        with tempfile.TemporaryDirectory(prefix="preprocess_benchmark_") as folder:
            command = [contender.command[0], "-h"]
            environment = contender.environment(dataset.parent, Path(folder))
            done = subprocess.run(
                command, check=False, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise BenchmarkError(f"{' '.join(command)} ended with status {done.returncode}:\n{tail}")


def find_dataset(raw: Path, dataset: str) -> Path:
    """Folder of a dataset named by number (``4``, ``004``) or by its whole name."""
    number = re.fullmatch(r"(?:Dataset)?(\d+)(?:_.*)?", dataset)
    if not number:
        raise BenchmarkError(f"--dataset {dataset}: give a number (004) or a name (Dataset004_Hippocampus)")
    if not raw.is_dir():
        raise BenchmarkError(f"{raw} is not a folder; give the folder with the raw datasets with --raw")
    found = sorted(path for path in raw.glob(f"Dataset{int(number[1]):03d}_*") if path.is_dir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise BenchmarkError(f"one dataset with number {int(number[1]):03d} is needed in {raw}; found: {names}")
    if not (found[0] / "dataset.json").is_file():
        raise BenchmarkError(f"{found[0]} has no dataset.json")
    return found[0]


def find_contenders(arguments: argparse.Namespace, dataset: Path) -> list[Contender]:
    """The programs to compare, samunet first; nnU-Net only where its scripts are given."""
    identifier = str(int(dataset.name[len("Dataset") :].partition("_")[0]))
    workers = str(arguments.np)
    # Absolute, for the commands run in another folder; not resolved, for a link to Python leaves its environment.
    samunet_bin = Path(os.path.abspath(arguments.samunet_bin))
    command = [str(samunet_bin / "samunet_plan_and_preprocess"), "-d", identifier]
    contenders = [Contender("samunet", samunet_bin, command, "samunet")]
    if arguments.nnunet_bin is not None:
        nnunet_bin = Path(os.path.abspath(arguments.nnunet_bin))
        command = [str(nnunet_bin / "nnUNetv2_plan_and_preprocess"), "-d", identifier, "-c", "2d"]
        contenders.append(
            Contender("nnU-Net", nnunet_bin, [*command, "-np", workers, "-npfp", workers], prefix="nnUNet")
        )
    for contender in contenders:
        if not os.access(contender.command[0], os.X_OK):
            flag = "--samunet-bin" if contender.name == "samunet" else "--nnunet-bin"
            raise BenchmarkError(f"{contender.command[0]} is not there or cannot be run; say where with {flag}")
    return contenders


def versions(contender: Contender) -> dict[str, str]:
    """Versions of Python and of the packages that matter, as found by the Python beside a program's scripts."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "found = {'python': platform.python_version()}\n"
        f"for name in {PACKAGES!r}:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    with suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        # In that folder, for Python would look for packages where this script was called from.
        command, environment = [str(contender.bin / "python"), "-c", code], contender.cleaned_environment()
        done = subprocess.run(command, cwd=contender.bin, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    return {}


def summarise(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Spread of every measure for every contender and, where there is a rival, of the ratio within each pair."""
    by_name: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.repeat):
        by_name.setdefault(run.contender, []).append(run)
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, its_runs in by_name.items():
        columns = {measure: [getattr(run, measure) for run in its_runs] for measure in MEASURES}
        summary[name] = {measure: spread(column) for measure, column in columns.items() if None not in column}
    if "nnU-Net" in by_name:
        pairs = list(zip(by_name["samunet"], by_name["nnU-Net"], strict=True))
        summary["nnU-Net / samunet"] = {
            measure: spread([getattr(rival, measure) / getattr(ours, measure) for ours, rival in pairs])
            for measure in summary["samunet"].keys() & summary["nnU-Net"].keys()
            if summary["samunet"][measure]["min"] > 0
        }
    return summary


def table(summary: dict[str, dict[str, dict[str, float]]]) -> str:
    """The summary as text: one line for each contender, ``min / median / max`` in each column."""
    lines = [f"{'min / median / max':<20}" + "".join(f"{title:>21}" for title in MEASURES.values())]
    for name, row in summary.items():
        cells = []
        for measure in MEASURES:
            digits = 2 if "/" in name else 0 if measure.endswith("mib") else 1
            values = row.get(measure)
            cells.append(" / ".join(f"{value:.{digits}f}" for value in values.values()) if values else "-")
        lines.append(f"{name:<20}" + "".join(f"{cell:>21}" for cell in cells))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Time planning and preprocessing: samunet beside nnU-Net, in turn, on this machine.",
        epilog="Memory is the sum over the command and all processes below it; see the top of this file.",
    )
    parser.add_argument("--dataset", default="004", metavar="ID", help="dataset number or name (default: 004)")
    parser.add_argument(
        "--raw", type=Path, default=os.environ.get(RAW_VARIABLE), metavar="FOLDER",
        help="folder with the raw datasets, nnU-Net's layout (default: the variable samunet_raw)",
    )  # fmt: skip
    parser.add_argument("--nnunet-bin", type=Path, metavar="DIR", help="folder with nnUNetv2_plan_and_preprocess")
    parser.add_argument(
        "--samunet-bin", type=Path, default=Path(sys.executable).parent, metavar="DIR",
        help="folder with samunet_plan_and_preprocess (default: that of this Python)",
    )  # fmt: skip
    parser.add_argument("--np", type=int, default=2, metavar="N", help="worker processes of nnU-Net (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each command (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the summary to this file")
    parsed = parser.parse_args(arguments)
    if parsed.np < 1 or parsed.repeats < 1:
        parser.error("--np and --repeats must be at least 1")
    if not parsed.raw:
        parser.error("give the folder with the raw datasets: --raw FOLDER, or the environment variable samunet_raw")
    if parsed.json is not None and not parsed.json.absolute().parent.is_dir():
        parser.error(f"--json {parsed.json}: there is no folder {parsed.json.absolute().parent}")
    return parsed


def compare(arguments: argparse.Namespace) -> None:
    """Run everything and report."""
    if not sys.platform.startswith("linux"):
        raise BenchmarkError("this benchmark reads /proc and so runs on Linux only")
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    raw = arguments.raw.expanduser().absolute()
    dataset = find_dataset(raw, arguments.dataset)
    contenders = find_contenders(arguments, dataset)
    here = machine()
    found = {contender.name: versions(contender) for contender in contenders}
    cases = sum(1 for path in (dataset / "labelsTr").glob("*") if path.is_file())

    print(f"{dataset.name}, {cases} training labels, {arguments.repeats} repeats, {date}")
    print(
        f"{here['cpu']}, {here['cores_usable']} of {here['cores']} cores usable, {here['memory_gib']} GiB, "
        f"{here['system']}, load {here['load_average_before']:.2f} before the start"
    )
    for contender in contenders:
        listed = ", ".join(f"{name} {version}" for name, version in found[contender.name].items()) or "versions unknown"
        print(f"{contender.name}: {' '.join(contender.command)}\n    {listed}")
    if len(contenders) == 1:
        print("nnU-Net: left out, --nnunet-bin was not given; only samunet is timed")
    print(flush=True)

    warm_up(contenders, dataset)
    runs: list[Run] = []
    for repeat in range(arguments.repeats):
        for contender in contenders if repeat % 2 == 0 else reversed(contenders):
            run = measure(contender, raw, repeat + 1)
            runs.append(run)
            pss = "unknown" if run.peak_pss_mib is None else f"{run.peak_pss_mib:.0f} MiB"
            print(
                f"repeat {run.repeat} {run.contender:<8} wall {run.wall_seconds:.2f} s, CPU {run.cpu_seconds:.2f} s, "
                f"peak RSS {run.peak_rss_mib:.0f} MiB in {run.processes_at_peak_rss} processes, peak PSS {pss}, "
                f"stored {run.stored_mib:.1f} MiB",
                flush=True,
            )
    summary = summarise(runs)
    print(f"\n{table(summary)}\n")
    if len(contenders) > 1:
        print("The ratio is taken within each repeat; above 1, samunet takes less.")
    print(
        "Peak memory is the sum over the command and all processes below it. RSS (every 50 ms) counts a page shared\n"
        "by several processes once for each, so many processes look larger than they are; PSS (every 250 ms) divides\n"
        f"it. Sampling took at most {max(run.sampler_cpu_seconds for run in runs):.2f} CPU seconds in a run, beside "
        "the\nCPU seconds above; where all cores are busy it lengthens wall time a little."
    )
    if arguments.json is not None:
        result = {
            "date": date,
            "machine": here,
            "dataset": dataset.name,
            "training_labels": cases,
            "repeats": arguments.repeats,
            "sample_seconds": {"rss": SAMPLE_SECONDS, "pss": SAMPLE_SECONDS * PSS_EVERY},
            "memory": "sum over the command and all processes below it",
            "contenders": {
                contender.name: {"command": contender.command, "versions": found[contender.name]}
                for contender in contenders
            },
            "left_out": [] if len(contenders) > 1 else ["nnU-Net"],
            "runs": [asdict(run) for run in runs],
            "summary": summary,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"Written: {arguments.json}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    try:
        compare(parse(arguments))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
