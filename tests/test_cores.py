"""Threads follow what other programs leave free, and come back."""

import subprocess
import sys
import time

import psutil
import pytest
import torch

from samunet import cores
from samunet.cores import FreeCores, free_threads


@pytest.mark.parametrize(
    ("most", "available", "others", "threads"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.3, 2),
        (2, 2, 0.7, 1),
        (2, 2, 1.9, 1),
        (8, 16, 3.2, 8),  # torch takes one thread a core; the others have their second ones
        (16, 16, 3.2, 13),
        (16, 16, 40.0, 1),
    ],
)
def test_threads_for_the_free_cores(most, available, others, threads):
    assert free_threads(most, available, others) == threads


@pytest.fixture
def clock(monkeypatch):
    """Sets what the system tells: seconds, of them of this process, of all; four cores."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(4)
    told = {"now": (100.0, 10.0, 50.0, 4)}
    monkeypatch.setattr(cores, "_sample", lambda: told["now"])
    monkeypatch.setattr(cores.time, "monotonic", lambda: told["now"][0] if told["now"] else 1e9)
    yield told
    torch.set_num_threads(torch_threads)


def test_threads_are_given_up_and_taken_back(clock):
    with FreeCores() as free:
        clock["now"] = (104.0, 14.0, 62.0, 4)
        free.adjust()
        assert torch.get_num_threads() == 4  # too early to tell
        clock["now"] = (110.0, 20.0, 80.0, 4)  # others: 20 s in 10 s
        free.adjust()
        assert torch.get_num_threads() == 2
        clock["now"] = (120.0, 40.0, 100.5, 4)
        free.adjust()
        assert torch.get_num_threads() == 4
        clock["now"] = (130.0, 40.0, 140.0, 4)
        free.adjust()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4


def test_what_is_not_told_changes_nothing(clock):
    with FreeCores() as free:
        clock["now"] = None
        free.adjust()
        free.adjust()
        assert torch.get_num_threads() == 4
    clock["now"] = (100.0, 10.0, 50.0, 4)
    with FreeCores(watch=False) as free:
        clock["now"] = (110.0, 10.0, 90.0, 4)
        free.adjust()
        assert torch.get_num_threads() == 4


def test_sandboxes_tell_nothing(monkeypatch):
    times = psutil.cpu_times(percpu=True)

    def hidden(percpu):
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", hidden)
    assert cores._sample() is None
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: times[:0])
    assert cores._sample() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems need not tell it as exactly")
def test_another_program_is_seen_and_this_one_is_not_taken_for_another():
    """On a busy machine a second of work takes longer: what counts is the time that the processor spent."""
    end, before = time.process_time() + 0.5, cores._sample()
    while time.process_time() < end:
        pass
    after = cores._sample()
    assert after[1] - before[1] > 0.3
    assert after[2] - before[2] > 0.3
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, end = cores._sample(), time.monotonic() + 30
        while (after := cores._sample())[2] - before[2] < 0.5 and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert after[1] - before[1] < 0.3
    assert after[2] - before[2] >= 0.5
