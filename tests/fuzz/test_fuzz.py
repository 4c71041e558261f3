"""Mutated files of every kind through the readers: no crash, no hang, no naked exception, no two readings that differ.

``SAMUNET_FUZZ=10000 python -m pytest tests/fuzz -s`` runs it at length, with a seed that is printed, or the one in
``SAMUNET_FUZZ_SEED``. Without them it reads a few hundred mutants. A mutant that fails is kept, and its path is in the
message.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mutate import mutate
from seeds import write_dicom, write_seeds

from samunet.imageio.registry import ending_of

NUMBER = int(os.environ.get("SAMUNET_FUZZ", "300"))
# A new one each time where it is run at length; the same in every run of all tests, which say what a change has broken.
SEED = int(os.environ.get("SAMUNET_FUZZ_SEED", time.time_ns() % 1_000_000 if "SAMUNET_FUZZ" in os.environ else 1))
KINDS = os.environ.get("SAMUNET_FUZZ_KINDS", "").split()
BATCH, SECONDS = 250, 2  # mutants in one child process; what one may take on average
CHILD = Path(__file__).with_name("child.py")


def image_in(folder):
    """What is read of a folder of seeds or mutants; a series is read as a folder."""
    images = [file for file in sorted(folder.iterdir()) if ending_of(file) is not None]
    return images[0] if images else folder


def write_mutants(seeds, folder, numbers):
    """One folder per number with a mutated file, and those that lie beside it. The same seed gives the same mutants."""
    kinds = sorted(kind for kind in seeds.iterdir() if not KINDS or kind.name in KINDS)
    paths = []
    for number in numbers:
        chance = random.Random(f"{SEED} {number}")
        kind, target = kinds[number % len(kinds)], folder / f"{number:06d}"
        changed = chance.choice(sorted(kind.iterdir()))
        shutil.copytree(kind, target)
        (target / changed.name).write_bytes(mutate(changed.read_bytes(), chance))
        paths.append(image_in(target))
    return paths


def read_all(paths, log):
    """Read files in a child process; which one it did not survive is told by what it had begun.

    Returns:
        What was wrong, and the files that were read as images.
    """
    failures, read = [], []
    while paths:
        log.unlink(missing_ok=True)
        child = subprocess.Popen(
            [sys.executable, str(CHILD), str(log)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            _, noise = child.communicate("\n".join(map(str, paths)), timeout=SECONDS * len(paths))
            ended = f"the process ended with status {child.returncode}: {noise[-2000:]}"
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            ended = "it hangs"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        done = {line["file"]: line for line in lines if "result" in line}
        read += [file for file, line in done.items() if line["read"]]
        failures += [f"{file}: {line['result']}" for file, line in done.items() if line["result"] != "fine"]
        begun = {line["file"] for line in lines} - set(done)
        failures += [f"{file}: {ended}" for file in begun]
        assert lines, f"no file was read: {ended}"
        paths = [path for path in paths if str(path) not in done and str(path) not in begun]
    return failures, read


@pytest.mark.slow
def test_mutants_are_read_or_refused_with_words(tmp_path):
    print(f"\nSAMUNET_FUZZ={NUMBER} SAMUNET_FUZZ_SEED={SEED}")
    seeds, log, refused = tmp_path / "seeds", tmp_path / "log", 0
    write_seeds(seeds)
    if "dicom" in KINDS:
        write_dicom(seeds)
    whole = [image_in(kind) for kind in sorted(seeds.iterdir())]
    failures, read = read_all(whole, log)
    assert not failures
    assert read == [str(path) for path in whole], "files that are whole must be read"
    for start in range(0, NUMBER, BATCH):
        folder = tmp_path / f"from_{start}"
        mutants = write_mutants(seeds, folder, range(start, min(start + BATCH, NUMBER)))
        found, read = read_all(mutants, log)
        failures, refused = failures + found, refused + len(mutants) - len(read)
        if not found:
            shutil.rmtree(folder)
    print(f"{refused} of {NUMBER} refused")
    assert not failures, f"seed {SEED}: {len(failures)} of {NUMBER}\n" + "\n".join(failures[:40])
