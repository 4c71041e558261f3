"""Run one function over many cases, in this process or in spawned workers, with errors that name the case."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from samunet.errors import FatalError, SamunetError, UsageError
from samunet.files import worded
from samunet.signals import STOPPED, interrupts_held, prepare_worker

log = logging.getLogger(__name__)

_said: set[str] = set()  # warnings
_unsaid: list[str] = []  # of a worker: for the first process
_GRACE_SECONDS = 5.0  # for a worker that is told to stop to remove its unfinished files


def default_workers() -> int:
    """Number of worker processes when the user asks for none: 0 (in this process) on two cores or fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return 0 if cores <= 2 else min(8, cores)


def map_cases(
    function: Callable[..., Any],
    cases: Sequence[str],
    arguments: Iterable[tuple],
    *,
    num_workers: int | None,
    description: str,
    progress: bool = True,
    failures: dict[str, SamunetError] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield ``(case, function(*arguments))`` for every case, in order of completion.

    With ``num_workers <= 1`` everything runs in this process. Workers are spawned, so ``function`` and its arguments
    must be importable and picklable.

    Args:
        function, cases, arguments: What to do, for which cases, with which arguments.
        num_workers: Worker processes; None for a number that suits this machine.
        description: For the progress bar.
        progress: Whether to show it.
        failures: Where given, cases that fail are put there and the others go on; only a
            :class:`samunet.errors.FatalError` is raised.

    Raises:
        UsageError: If ``num_workers`` is negative.
        SamunetError: The first failure, prefixed with the case's name. Other cases are stopped.
    """
    from tqdm import tqdm

    jobs = list(zip(cases, arguments, strict=True))
    with tqdm(total=len(jobs), desc=description, unit="case", disable=None if progress else True, leave=False) as bar:
        for case, result in _run(function, jobs, num_workers, failures):
            bar.update()
            yield case, result


def _run(
    function: Callable[..., Any],
    jobs: list[tuple[str, tuple]],
    num_workers: int | None,
    failures: dict[str, SamunetError] | None,
) -> Iterator[tuple[str, Any]]:
    if num_workers is None:
        num_workers = default_workers()
    if num_workers < 0:
        raise UsageError(
            f"`num_workers` must be 0 or more, got {num_workers}", "use `num_workers=0` for no worker processes"
        )
    if num_workers <= 1 or len(jobs) <= 1:
        for case, arguments in jobs:
            with collecting_failures(failures, case), naming_the_case(case):
                result = function(*arguments)
            if failures is None or case not in failures:
                yield case, result
        return
    number, others = min(num_workers, len(jobs)), active_children()
    pool = ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=prepare_worker)
    futures: dict[Future, str] = {}
    try:
        with interrupts_held():
            for case, arguments in jobs:
                futures[_submit(pool, function, arguments)] = case
        for future in as_completed(futures):
            case = futures[future]
            with collecting_failures(failures, case), naming_the_case(case):
                result, notes = future.result()
                for note in notes:
                    warn_once(note)
            if failures is None or case not in failures:
                yield case, result
    except BaseException as error:
        # The cases in work are of no use any more, and one may take minutes. A pool that is broken while it starts
        # would wait for ever for a worker that it has not told to stop.
        _stop([process for process in active_children() if process not in others])
        if isinstance(error, BrokenProcessPool):
            done = {case for future, case in futures.items() if _has_result(future)}
            raise _worker_died([case for case, _ in jobs if case not in done][:number]) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Any], arguments: tuple) -> Future:
    try:
        return pool.submit(_call, function, arguments)
    except OSError as error:
        if error.errno is not None:  # no process could be started
            raise
        # A worker died at this moment: the pool has closed its own pipe, and does not say so.
        raise BrokenProcessPool("the pool closed while cases were handed out") from error


def warn_once(message: str) -> None:
    """Log a warning once in a run, whichever workers of :func:`map_cases` have it."""
    if message not in _said:
        _said.add(message)
        if parent_process() is None:
            log.warning("%s", message)
        else:
            _unsaid.append(message)


def _call(function: Callable[..., Any], arguments: tuple) -> tuple[Any, list[str]]:
    """The result, and the warnings for the first process to log."""
    try:
        result, notes = function(*arguments), list(_unsaid)
        _unsaid.clear()
        return result, notes
    except SystemExit:
        os._exit(STOPPED)  # unfinished files are removed by now; the pool would go on to the next case


def _stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()


def _has_result(future: Future) -> bool:
    return future.done() and not future.cancelled() and not isinstance(future.exception(), BrokenProcessPool)


def _worker_died(cases: list[str]) -> SamunetError:
    # Cases start in the order in which they were handed out: the first without a result were in work.
    which = f"case {cases[0]}" if len(cases) == 1 else f"one of the cases {', '.join(cases)}"
    return FatalError(
        f"{which}: its worker process was killed, most likely because memory ran out",
        "run the same command again with fewer worker processes: `num_workers=1`",
    )


class naming_the_case:
    """Context manager that turns a failure into a SamunetError that starts with the case's name."""

    def __init__(self, case: str) -> None:
        self.case = case

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, MemoryError):
            raise FatalError(
                f"case {self.case}: memory ran out", "close other programs or use `num_workers=1`"
            ) from error
        if isinstance(error, SamunetError):
            raise type(error)(f"case {self.case}: {error.message}", error.hint) from error
        if isinstance(error, OSError):
            raise worded(error, f"case {self.case}") from error
        if isinstance(error, Exception) and not isinstance(error, BrokenProcessPool):
            raise SamunetError(f"case {self.case}: {type(error).__name__}: {error}") from error


@contextmanager
def collecting_failures(failures: dict[str, SamunetError] | None, case: str) -> Iterator[None]:
    """Put what goes wrong with one case into ``failures``, if there are such, unless it is the machine that fails."""
    try:
        yield
    except FatalError:
        raise
    except SamunetError as error:
        if failures is None:
            raise
        failures[case] = error
        log.warning("%s; going on with the others", error.message)
