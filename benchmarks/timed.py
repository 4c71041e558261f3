"""What the scripts of this folder share: a command's wall and CPU seconds and peak memory, and what machine it ran on.

Linux only (``/proc``); Python's standard library alone. The scripts find this file because it lies beside them.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.05
PSS_EVERY = 5  # samples of RSS for one of PSS
FORGET_EVERY = 20  # samples after which processes of others are looked at again
MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS")


class BenchmarkError(Exception):
    """Something the person who runs the benchmark can put right."""


@dataclass(frozen=True)
class Timed:
    """What a command took: seconds, memory of itself and all processes below it, and its exit status."""

    status: int
    wall_seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    peak_pss_mib: float | None
    processes_at_peak_rss: int
    sampler_cpu_seconds: float


def timed(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    cwd: Path | None = None,
    sample_seconds: float = SAMPLE_SECONDS,
) -> Timed:
    """Run a command, its output into the file ``log``, and measure it. If this is interrupted, the command is ended."""
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        sampler = Sampler(process.pid, sample_seconds)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            sampler.stop()
            if process.returncode is None:  # interrupted: end what was started here
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    return Timed(
        status=process.returncode,
        wall_seconds=wall,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_rss_mib=sampler.peak_rss / MIB,
        peak_pss_mib=None if sampler.peak_pss is None else sampler.peak_pss / MIB,
        processes_at_peak_rss=sampler.processes_at_peak,
        sampler_cpu_seconds=sampler.cpu_seconds,
    )


def last_lines(log: Path) -> str:
    """The last 20 lines of a file."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


@dataclass
class Sampler:
    """Follows the memory of a process and everything below it, in a thread, until it is stopped."""

    root: int
    seconds: float = SAMPLE_SECONDS
    peak_rss: int = 0
    peak_pss: int | None = None
    processes_at_peak: int = 0
    cpu_seconds: float = 0.0
    _foreign: set[int] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin sampling."""
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End sampling; the peaks are final afterwards."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        sample = 0
        while not self._stop.is_set():
            if sample % FORGET_EVERY == 0:  # process ids are used again in time
                self._foreign.clear()
            tree = resident_of_tree(self.root, self._foreign)
            total = sum(tree.values())
            if total > self.peak_rss:
                self.peak_rss, self.processes_at_peak = total, len(tree)
            if sample % PSS_EVERY == 0:
                shares = [share for share in map(proportional_share, tree) if share is not None]
                if shares:
                    self.peak_pss = max(self.peak_pss or 0, sum(shares))
            sample += 1
            self._stop.wait(self.seconds)
        self.cpu_seconds = time.thread_time()


def resident_of_tree(root: int, foreign: set[int]) -> dict[int, int]:
    """Resident bytes of process ``root``, its descendants, and the rest of its session (orphans), by process id.

    Processes in ``foreign`` are skipped, and those found not to belong are added to it: a process cannot join the tree
    later, and not reading them again keeps the sampling cheap.
    """
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    resident: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in foreign:
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()  # from the third field of proc(5), the state, on
        except OSError:  # ended meanwhile
            continue
        if len(fields) < 22:
            continue
        process = int(entry)
        parents[process], sessions[process], resident[process] = int(fields[1]), int(fields[3]), int(fields[21]) * PAGE
    children: dict[int, list[int]] = {}
    for process, parent in parents.items():
        children.setdefault(parent, []).append(process)
    found: dict[int, int] = {}
    waiting = [process for process, session in sessions.items() if process == root or session == root]
    while waiting:
        process = waiting.pop()
        if process not in found:
            found[process] = resident[process]
            waiting.extend(children.get(process, []))
    foreign.update(parents.keys() - found.keys())
    return found


def proportional_share(process: int) -> int | None:
    """Proportional set size of a process in bytes, or None where the kernel does not tell."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def machine() -> dict[str, object]:
    """CPU, memory, system, and how busy the machine is before the first run."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "cpu": cpu[1].strip() if cpu else platform.processor() or platform.machine(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": platform.platform(),
        "load_average_before": os.getloadavg()[0],
        "thread_variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, middle and largest of some values."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
