"""Reads the files that standard input names, twice each, and writes what became of each to the log."""

import json
import re
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError
from samunet.imageio.registry import READERS, image_reader_for

SECONDS, MEGABYTES = 10, 1000  # of one file, and of the process


def read(path, label):
    """A reading as something that can be compared: voxels and geometry, or the words of the refusal."""
    try:
        reader = image_reader_for(path, READERS[0])
        reader_channels = reader.count_channels(path)
        if label:
            array, geometry = reader.read_label(path)
        else:
            image = reader.read_image([path])
            array, geometry = image.array, image.geometry
        return array.shape, array.tobytes(), repr(geometry), reader_channels
    except SamunetError as error:
        return str(error)


class TooLong(BaseException):
    """Beyond what ``except Exception`` catches."""


def peak_memory():
    """Bytes of this process at most. Linux counts those of its parent too where a resource usage is asked for."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) << 10


def result_of(path):
    """What became of a file, and whether it was read as an image."""
    start, images = time.monotonic(), None
    for label in (False, True):
        first = read(path, label)
        images = images or first
        np.full(1 << 16, 0xA5, np.uint8)  # what freed memory may hold
        if read(path, label) != first:
            return "two readings differ", False
        if isinstance(first, str) and (str(path.parent.name) not in first or len(first) > 2000):
            return f"words without the file, or too many: {first[:3000]}", False
    took = time.monotonic() - start
    memory = peak_memory() >> 20
    if took > SECONDS or memory > MEGABYTES:
        return f"took {took:.0f} s and {memory} MB", False
    return "fine", not isinstance(images, str)


def too_long(*_):
    raise TooLong


def main():
    """One line of JSON when a file is begun, and one when it is done: a crash shows which it was."""
    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("error", RuntimeWarning)
    with open(sys.argv[1], "a", buffering=1) as log:
        for line in sys.stdin.read().splitlines():
            log.write(json.dumps({"file": line}) + "\n")
            signal.alarm(3 * SECONDS)
            try:
                result, was_read = result_of(Path(line))
            except BaseException as error:
                result, was_read = f"{type(error).__name__}: {error}"[:600], False
            signal.alarm(0)
            log.write(json.dumps({"file": line, "result": result, "read": was_read}) + "\n")


if __name__ == "__main__":
    main()
