"""Run one function over many cases, in this process or in spawned workers, with errors that name the case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from samunet.errors import SamunetError


def default_workers() -> int:
    """Number of worker processes when the user asks for none: 0 (in this process) on two cores or fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return 0 if cores <= 2 else min(8, cores)


def map_cases(
    function: Callable[..., Any],
    cases: Sequence[str],
    arguments: Iterable[tuple],
    *,
    num_workers: int,
    description: str,
    progress: bool = True,
) -> Iterator[tuple[str, Any]]:
    """Yield ``(case, function(*arguments))`` for every case, in order of completion.

    With ``num_workers <= 1`` everything runs in this process. Workers are spawned, so ``function`` and its arguments
    must be importable and picklable.

    Raises:
        SamunetError: The first failure, prefixed with the case's name. Cases not yet started are cancelled.
    """
    from tqdm import tqdm

    jobs = list(zip(cases, arguments, strict=True))
    with tqdm(total=len(jobs), desc=description, unit="case", disable=None if progress else True, leave=False) as bar:
        for case, result in _run(function, jobs, num_workers):
            bar.update()
            yield case, result


def _run(function: Callable[..., Any], jobs: list[tuple[str, tuple]], num_workers: int) -> Iterator[tuple[str, Any]]:
    if num_workers <= 1 or len(jobs) <= 1:
        for case, arguments in jobs:
            with naming_the_case(case):
                result = function(*arguments)
            yield case, result
        return
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(function, *arguments): case for case, arguments in jobs}
        try:
            for future in as_completed(futures):
                with naming_the_case(futures[future]):
                    result = future.result()
                yield futures[future], result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class naming_the_case:
    """Context manager that turns a failure into a SamunetError that starts with the case's name."""

    def __init__(self, case: str) -> None:
        self.case = case

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, BrokenProcessPool):
            raise SamunetError(
                f"case {self.case}: a worker process was killed, most likely because memory ran out",
                "use fewer workers: -np 1",
            ) from error
        if isinstance(error, MemoryError):
            raise SamunetError(f"case {self.case}: memory ran out", "close other programs or use -np 1") from error
        if isinstance(error, SamunetError):
            raise type(error)(f"case {self.case}: {error.message}", error.hint) from error
        if isinstance(error, Exception):
            raise SamunetError(f"case {self.case}: {type(error).__name__}: {error}") from error
