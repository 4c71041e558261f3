"""benchmarks/timed.py measures a command and everything that it starts."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from timed import last_lines, timed

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

HOLD = "import time; block = bytearray(b'x') * (80 << 20); time.sleep(0.6)"
PARENT = f"import subprocess, sys; print('begin'); sys.exit(subprocess.call([sys.executable, '-c', {HOLD!r}]) or 3)"


def test_memory_of_children_counts_and_the_status_is_told(tmp_path):
    took = timed([sys.executable, "-c", PARENT], os.environ, tmp_path / "log", cwd=tmp_path)
    assert took.status == 3
    assert took.wall_seconds >= 0.6
    assert 0 < took.cpu_seconds < took.wall_seconds + 1
    assert took.peak_rss_mib > 80
    assert took.processes_at_peak_rss == 2
    assert last_lines(tmp_path / "log") == "begin"
