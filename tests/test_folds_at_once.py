"""How many folds a CPU trains at a time, and what is said when one of them dies."""

import os
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from samunet.errors import SamunetError, UsageError
from samunet.training import folds, source
from samunet.training.options import TrainingOptions


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that sets threads and free gigabytes, and a plan whose training needs 1 GB beside the program's."""
    small, large = SimpleNamespace(memory_bytes=10**9), SimpleNamespace(memory_bytes=7 * 10**9)
    networks = {"vit_b": large, "small": small, None: small}
    planned = SimpleNamespace(network=lambda encoder, checkpoint, device: (networks[encoder], ""))
    monkeypatch.setattr(source, "Source", lambda *names: planned)

    def set_up(threads, gigabytes):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gigabytes * 1e9))

    return set_up


def jobs(number, **options):
    return [("Dataset001_A", "2d", fold, TrainingOptions(device="cpu", **options), "p") for fold in range(number)]


@pytest.mark.parametrize(
    ("threads", "gigabytes", "number", "options", "asked", "expected"),
    [
        (2, 24, 5, {}, None, (2, 1)),
        (8, 24, 5, {}, None, (5, 1)),
        (12, 64, 5, {}, None, (5, 2)),
        (1, 24, 5, {}, None, (1, 1)),
        (8, 6, 5, {}, None, (2, 4)),  # 0.8 of 6 GB hold two times 2 GB
        (8, 0.5, 5, {}, None, (1, 8)),
        (8, 24, 5, {"encoder": "vit_b"}, None, (2, 4)),  # 19.2 GB hold two times 8 GB
        (8, 0.5, 5, {}, 3, (3, 2)),
        (2, 24, 2, {}, 5, (2, 1)),
    ],
)
def test_as_many_as_there_are_threads_and_memory_for(machine, threads, gigabytes, number, options, asked, expected):
    machine(threads, gigabytes)
    places = folds._places_on_cpu(jobs(number, **options), asked)
    assert (len(places), places[0].threads) == expected


def test_a_number_of_folds_is_not_for_several_devices():
    for settings, message in (
        ({"folds_at_once": 0}, "at least 1"),
        ({"folds_at_once": 2, "devices": ["cpu", "cpu"]}, "several devices train a fold each"),
    ):
        with pytest.raises(UsageError, match=message):
            folds._check_places(settings.get("devices", ()), settings["folds_at_once"])


def die_or_finish(job, place, level, reports):
    """In place of a training: fold 0 is killed, the others end a little later."""
    if job[2] == 0:
        os.kill(os.getpid(), 9)
    time.sleep(0.5)
    with open(job[0], "a") as file:
        file.write(f"fold {job[2]} on {place.threads}\n")
    reports.put((job[2], None))


def test_the_death_of_one_ends_with_one_message_and_the_others_end(tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "_train_in_process", die_or_finish)
    done = tmp_path / "done"
    work = [(str(done), "2d", fold, None, "p") for fold in range(3)]
    with pytest.raises(SamunetError, match="fold 0: its process ended with status -9") as caught:
        folds._side_by_side(work, [folds._Place("cpu", 1)] * 2)
    assert "`folds_at_once=1`" in caught.value.hint
    assert done.read_text() == "fold 1 on 1\n"  # begun beside it; fold 2 was not
