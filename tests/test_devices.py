"""Choosing a device, where torch is told which GPUs there are."""

from contextlib import contextmanager

import pytest
import torch

from samunet.devices import fast_dtype, reset_peak_memory, resolve_device
from samunet.errors import UsageError


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes torch find so many GPUs."""

    def find(number):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return find


def test_devices_that_are_there(gpus):
    gpus(2)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert resolve_device(name) == torch.device(name)
    assert resolve_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("cuda:3", 1, "`device='cuda:3'`: torch finds no such device, but cuda:0\n"),
        ("cuda:2", 2, "no such device, but cuda:0, cuda:1\n"),
        ("cuda:x", 1, "`device='cuda:x'`: torch finds no such device, but cuda:0\n"),
        ("cuda:", 1, "no such device, but cuda:0\n"),
        ("cuda:-1", 1, "no such device, but cuda:0\n"),
        ("cpu:x", 1, "no such device, but cpu:0\n"),
        ("auto:1", 2, "`device='auto:1'` is unknown"),
        ("tpu", 1, "`device='tpu'` is unknown"),
        ("cuda:0", 0, "`device='cuda:0'`: torch finds no such device on this machine"),
    ],
)
def test_devices_that_are_not_there(gpus, name, number, expected):
    gpus(number)
    with pytest.raises(UsageError, match=expected) as caught:
        resolve_device(name)
    assert caught.value.hint


def test_the_number_format_is_that_of_the_chosen_gpu(monkeypatch):
    """An older GPU beside a newer one: only the second computes bfloat16."""
    current = [torch.device("cuda:0")]

    @contextmanager
    def chosen(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == torch.device("cuda:1")
    )
    assert fast_dtype(torch.device("cuda:0")) == torch.float16
    assert fast_dtype(torch.device("cuda:1")) == torch.bfloat16


def test_narrow_inputs_are_computed_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert fast_dtype(torch.device("cpu"), [64, 16]) is None
    assert fast_dtype(torch.device("cpu"), [64, 32]) == torch.bfloat16


def test_peak_memory_of_a_gpu_can_begin_anew(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    for ready in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda ready=ready: ready)
        for name in ("cpu", "mps", "cuda:1"):
            reset_peak_memory(torch.device(name))
    assert calls == [torch.device("cuda:1")]
