"""Full disks, signals, dying workers, and two processes at one thing: with real processes and real failing writes."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input import FOLD, PLAN, PREDICT, STORE, TRAIN, assert_readable, full_disk, hashes, make_project, replace

from samunet.errors import SamunetError
from samunet.files import atomic_folder, atomic_path, write_json
from samunet.imageio.itk import written
from samunet.training.lock import training_lock

pytestmark = pytest.mark.full_network

project = pytest.fixture(make_project)

NOISE = np.random.default_rng(0).integers(0, 255, (1, 8, 64, 64)).astype(np.uint8)


def write_blosc2(path):
    from samunet.preprocessing.store import _write_array

    _write_array(path, NOISE, isotropic_chunks=False)


def write_safetensors(path):
    import torch

    from samunet.tensors import write_tensors

    write_tensors(path, {"weight": torch.randn(20_000)})


def write_npz(path):
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, values=NOISE)


def write_itk(path):
    import SimpleITK as sitk

    form = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".gz": "NiftiImageIO"}[path.suffix]
    with written(sitk.GetImageFromArray(NOISE[0]), path, form):
        pass


def write_png(path):
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(NOISE.reshape(256, 128)).save(temporary)


def write_adapter(path):
    from safetensors.numpy import save_file

    with atomic_folder(path) as temporary:
        save_file({"lora": NOISE}, temporary / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("case.b2nd", write_blosc2),
        ("model.safetensors", write_safetensors),
        ("case.npz", write_npz),
        ("case.nrrd", write_itk),
        ("case.mha", write_itk),
        ("case.nii.gz", write_itk),
        ("case.png", write_png),
        ("plans.json", lambda path: write_json(path, NOISE)),
        ("adapter", write_adapter),
    ],
)
@pytest.mark.parametrize("limit", [0, 1000, 8000, 16_000])
def test_no_library_hides_a_full_disk(tmp_path, name, write, limit):
    """Whatever a library makes of a write that fails early or late, the user reads one sentence; nothing is left."""
    undo = full_disk(limit)(None)
    try:
        with pytest.raises(SamunetError, match=rf"^could not write .*{name}: File too large") as caught:
            write(tmp_path / name)
    finally:
        undo()
    assert "free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_killed_training_blocks_nobody(tmp_path):
    script = (
        "import pathlib, sys, time; from samunet.training.lock import training_lock\n"
        "with training_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    folder = tmp_path / "model" / "fold_0"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(SamunetError, match=f"fold_0 is being trained by process {process.pid} on .* since 20"):
        with training_lock(folder):
            pass
    with training_lock(tmp_path / "model" / "fold_1"):
        pass
    process.kill()
    process.communicate()
    assert {path.name for path in (tmp_path / "model").iterdir()} == {".fold_0.lock", ".fold_0.holder"}
    folder.mkdir()
    (folder / ".tmp-1-checkpoint_latest.safetensors").touch()
    with training_lock(folder):
        assert list(folder.iterdir()) == []
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["fold_0"]


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    import errno
    import fcntl

    def fail(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with training_lock(tmp_path / "fold_0"):
        pass
    assert "must not be trained twice at once" in caplog.text


def test_a_worker_that_dies_is_told_with_its_case(project, capsys):
    replace(project.root / "preprocessed/Dataset998_Tiny/samunetPlans_2d/case_0.json", b'{"key": {}}')
    replace(project.root / "preprocessed/Dataset998_Tiny/samunetPlans_2d/case_3.json", b'{"key": {}}')

    def kill():
        deadline = time.monotonic() + 60
        while not active_children() and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in active_children():
            os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    status = project.run(STORE + " -np 2")
    killer.join()
    printed = capsys.readouterr().err
    assert status == 1
    assert "one of the cases case_0, case_3: its worker process was killed" in printed
    assert "-np 1" in printed
    assert_readable(printed)
    assert not active_children()
    assert project.run(STORE) == 0


SCRIPT = "import sys; from samunet.commands import run_command; sys.exit(run_command('{}', sys.argv[1:]))"
PAUSE = """
import sys, time
from {module} import {owner} as owner
original, calls = owner.{name}, []
def paused(*arguments, **options):
    calls.append(1)
    if len(calls) == {call}:
        print("READY", flush=True)
        time.sleep({seconds})
    return original(*arguments, **options)
owner.{name} = paused
from samunet.commands import run_command
sys.exit(run_command("samunet_{command}", sys.argv[1:]))
"""


def start(command, module, owner, name, call=1, seconds=60.0):
    """Start a command that pauses at the ``call``-th call of a function, and wait until it does."""
    program, *arguments = command.split()
    script = PAUSE.format(module=module, owner=owner, name=name, call=call, seconds=seconds, command=program)
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Sums of floats depend on the number of threads: the same as in this process.
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}, start_new_session=True,
    )  # fmt: skip
    line = process.stdout.readline()
    assert line == "READY\n", line + process.stderr.read()
    return process


AGAIN = TRAIN.replace("2d 1", "2d 0").replace("--iterations 1", "--iterations 4")
STAGES = {
    "fingerprint": (PLAN + " --clean", "preprocessed/*", ("samunet.planning", "fingerprint", "_measure_case", 3)),
    "preprocessing": (STORE, "preprocessed/*/samunetPlans_2d", ("samunet.preprocessing", "run", "prepare_case", 3)),
    "training": (AGAIN, FOLD[:-1], ("samunet.training.trainer", "Trainer", "_step", 3, 1.0)),
    "final validation": (AGAIN, FOLD[:-1], ("samunet.inference.predictor", "Predictor", "predict_case", 2)),
    "prediction": (PREDICT + " --continue_prediction", "preds", ("samunet.inference.predictor", "Predictor",
        "predict_case", 2)),
}  # fmt: skip
RESULTS = ("*.b2nd", "*.nii.gz", "checkpoint_final.safetensors", "splits_final.json")


def results(folder):
    """What must not depend on interruptions: slices, masks, the model."""
    return {name: value for name, value in hashes(folder).items() if any(Path(name).match(kind) for kind in RESULTS)}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_command_goes_on_when_run_again(project, stage, number, capsys):
    command, made, pause = STAGES[stage]
    for path in project.root.glob(made):
        subprocess.run(["rm", "-r", str(path)], check=True)
    assert project.run(command) == 0
    expected = results(project.root)
    for path in project.root.glob(made):
        subprocess.run(["rm", "-r", str(path)], check=True)
    process = start(command, *pause)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("terminated" if number == signal.SIGTERM else "interrupted")
    assert not list(project.root.rglob(".tmp-*"))
    assert not list(project.root.rglob("*.lock"))
    assert len(results(project.root)) < len(expected)
    capsys.readouterr()
    assert project.run(command) == 0
    assert results(project.root) == expected


def children(process):
    """Ids of the processes that a process has started (Linux)."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in found]


def is_alive(number):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks up child processes in /proc")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "SIGTERM", "kill -9"]
)
def test_workers_end_with_the_command(project, number):
    for path in (project.root / "preprocessed").iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    script = SCRIPT.format("samunet_extract_fingerprint")
    process = subprocess.Popen(
        [sys.executable, "-c", script, "-d", "998", "-np", "2"], stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(children(process)) < 3 and time.monotonic() < deadline:  # two workers and multiprocessing's tracker
        time.sleep(0.005)
    started = children(process)
    assert len(started) >= 3
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert number == signal.SIGKILL or "Traceback" not in printed
    deadline = time.monotonic() + 10
    while any(is_alive(child) for child in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in started if is_alive(child)]


@pytest.mark.slow
def test_two_preprocessings_at_once_are_safe(project):
    expected = results(project.root / "preprocessed")
    for path in (project.root / "preprocessed").iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    script = SCRIPT.format("samunet_plan_and_preprocess")
    both = [
        subprocess.Popen([sys.executable, "-c", script, *PLAN.split()[1:]], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        _, printed = process.communicate(timeout=120)
        assert process.returncode == 0, printed
    assert results(project.root / "preprocessed") == expected
    assert not list((project.root / "preprocessed").rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "made", "size"),
    [(STORE, "preprocessed/Dataset998_Tiny/samunetPlans_2d", "16k"), (PREDICT, "preds", "16k"),
     (TRAIN, "results/Dataset998_Tiny/samunetTrainer__samunetPlans__2d/fold_1", "4m")],
    ids=["preprocessing", "prediction", "training"],
)  # fmt: skip
def test_a_disk_that_is_really_full(project, capsys, command, made, size):
    folder = project.root / made
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs the right to mount")
    try:
        capsys.readouterr()
        assert project.run(command) == 1
        printed = capsys.readouterr().err
        assert "No space left on device" in printed
        assert "free some space" in printed
        assert_readable(printed)
        assert not list(folder.rglob(".tmp-*"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)
        assert project.run(command) == 0
    finally:
        subprocess.run(["umount", str(folder)], check=True)
