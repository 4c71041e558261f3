import csv
import io
import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from samunet import files, paths
from samunet.dataset.layout import find_dataset
from samunet.errors import SamunetError, UsageError, check_number, quoted
from samunet.files import atomic_folder, atomic_path, read_json, remove_leftovers, to_json, write_json, write_text
from samunet.workers import map_cases


def test_atomic_path_leaves_nothing_behind_after_an_exception(tmp_path):
    def fail():
        with atomic_path(tmp_path / "new.txt") as temporary:
            temporary.write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_atomic_path_keeps_the_old_file_after_an_exception(tmp_path):
    target = tmp_path / "old.txt"
    target.write_text("old")

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_text("half of the new")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_replaces_and_keeps_the_ending(tmp_path):
    target = tmp_path / "deep" / "a.nii.gz"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            assert temporary.name.endswith(".nii.gz")
            assert temporary.name.startswith(".")
            temporary.write_text(content)
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_is_explained(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(SamunetError, match=r"could not write .*taken"):
        write_text(tmp_path / "taken", "text")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_written_files_have_the_mode_that_the_user_gives_new_files(tmp_path):
    (tmp_path / "plain").touch()
    for kind in ("file", "folder"):
        with atomic_path(tmp_path / "file") if kind == "file" else atomic_folder(tmp_path / "folder") as target:
            written = target if kind == "file" else target / "inside"
            written.touch(mode=0o600)
    modes = {path.stat().st_mode for path in (tmp_path / "plain", tmp_path / "file", tmp_path / "folder" / "inside")}
    assert len(modes) == 1


def test_atomic_folder_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").write_text("old")

    def fail():
        with atomic_folder(target) as temporary:
            (temporary / "new.txt").write_text("new")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert [file.name for file in target.iterdir()] == ["old.txt"]
    with atomic_folder(target) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [file.name for file in target.iterdir()] == ["new.txt"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_killed_processes_left_is_removed_by_age(tmp_path):
    old, young, other = (tmp_path / name for name in (".tmp-1-a.json", ".tmp-2-b.json", "tmp-3.json"))
    folder = tmp_path / ".tmp-1-adapter"
    folder.mkdir()
    (folder / "part").touch()
    for path in (old, young, other):
        path.touch()
    for path in (old, other, folder):
        os.utime(path, (time.time() - 4000,) * 2)
    write_text(tmp_path / "new.txt", "the first write into this folder")
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name, "new.txt"}
    remove_leftovers(tmp_path, age=0)
    assert {path.name for path in tmp_path.iterdir()} == {other.name, "new.txt"}
    remove_leftovers(tmp_path / "missing")


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").write_text("old")
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    replace, calls = os.replace, []

    def failing(source, destination):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(SamunetError, match=r"could not write .*folder: No space left"), atomic_folder(target):
        pass
    assert [file.name for file in target.iterdir()] == ["old.txt"]
    assert list(tmp_path.iterdir()) == [target]


KILLED = """
import os, sys
from pathlib import Path
from samunet import files
{patch}
replace, calls = os.replace, []
def counted(source, destination):
    calls.append(1)
    if len(calls) == {call}:
        os._exit(9)
    replace(source, destination)
os.replace = counted
with files.atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "new.txt").write_text("new")
os._exit(9)
"""


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("patch", ["", "files._exchange = lambda *_: False"], ids=["exchange", "two steps"])
def test_a_kill_at_any_step_loses_no_folder(tmp_path, patch, call):
    """Killed at its first or second renaming, or just after the folder was written."""
    if not (patch or sys.platform.startswith("linux")):
        pytest.skip("exchanging two names in one step is Linux's")
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").write_text("old")
    script = KILLED.format(patch=patch, call=call)
    assert subprocess.run([sys.executable, "-c", script, str(target)]).returncode == 9
    if patch and call == 2:
        assert not target.exists()
    write_text(tmp_path / "next.txt", "the next start's first write here")
    whole = [file.name for file in target.iterdir()]
    assert whole == (["old.txt"] if patch and call < 3 else ["new.txt"])
    remove_leftovers(tmp_path, age=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "next.txt"]


def test_a_dataset_that_was_being_replaced_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("samunet_raw", str(tmp_path))
    (tmp_path / ".old-0123abcd-Dataset012_Vessels").mkdir()
    assert find_dataset(12) == "Dataset012_Vessels"
    assert (tmp_path / "Dataset012_Vessels").is_dir()


def test_leftovers_are_decided_by_the_clock_of_their_file_system(tmp_path, monkeypatch):
    """This machine's clock is two hours ahead of the server's; then two hours behind."""
    (tmp_path / ".tmp-1-in-work.json").touch()
    here = time.time()
    monkeypatch.setattr(time, "time", lambda: here + 7200)
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-1-in-work.json"]
    os.utime(tmp_path / ".tmp-1-in-work.json", (here - 4000,) * 2)
    monkeypatch.setattr(time, "time", lambda: here - 7200)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_environment_variables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "raw").mkdir()
    monkeypatch.delenv("samunet_raw", raising=False)
    for value in ("~/raw", "raw", str(tmp_path / "raw")):
        monkeypatch.setenv("nnUNet_raw", value)
        assert paths.raw_folder() == tmp_path / "raw"
    monkeypatch.setenv("nnUNet_raw", "~/gone")
    with pytest.raises(SamunetError, match=r"^nnUNet_raw is .*gone, and there is no such folder"):
        paths.raw_folder()
    monkeypatch.setenv("samunet_results", str(tmp_path / "a" / "b"))
    assert paths.results_folder() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("written", ["{} ", " {}", '"{}"', "'{}' ", "“{}”", '" {} "'])
def test_blanks_and_quotes_around_a_setting_are_no_part_of_it(tmp_path, monkeypatch, written):
    for name in ("raw", "preprocessed", "results", "checkpoints"):
        monkeypatch.setenv(f"samunet_{name}", written.format(tmp_path / name))
    (tmp_path / "raw").mkdir()
    assert paths.raw_folder() == tmp_path / "raw"
    assert paths.preprocessed_folder() == tmp_path / "preprocessed"
    assert paths.checkpoints_folder() == tmp_path / "checkpoints"
    assert paths.known_folders() == [tmp_path / "raw", tmp_path / "preprocessed"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["preprocessed", "raw"]


def test_json_round_trip(tmp_path):
    value = {"names": ["a, b", "ü"], "numbers": [1, 2.5, -3e-7], "nested": {"empty": [], "yes": True, "nothing": None}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    number = 0.1 + 0.2
    write_json(
        tmp_path / "b.json", {"numpy": np.array([number, 1]), "tuple": (1, 2), "path": Path("x"), 3: np.int64(4)}
    )
    assert read_json(tmp_path / "b.json") == {"numpy": [number, 1.0], "tuple": [1, 2], "path": "x", "3": 4}


def test_nan_and_infinities_are_null():
    assert json.loads(to_json({"a": math.nan, "b": [1.0, -math.inf], "c": np.float32("nan")})) == {
        "a": None,
        "b": [1.0, None],
        "c": None,
    }


def test_number_lists_are_on_one_line():
    text = to_json({"spacing": [3.0, 0.5, -1e-05], "names": ["a", "b"]})
    assert '"spacing": [3.0, 0.5, -1e-05]' in text
    assert json.loads(text) == {"spacing": [3.0, 0.5, -1e-05], "names": ["a", "b"]}


def test_unreadable_json_is_explained(tmp_path):
    with pytest.raises(SamunetError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{\n"a": 1,,\n}')
    with pytest.raises(SamunetError, match=r"a\.json is not valid JSON: line 2"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\x00\x81")
    with pytest.raises(SamunetError, match=r"a\.json is not a text file"):
        read_json(tmp_path / "a.json")


# Spawned workers import what they call by name: functions of installed modules serve best.
@pytest.mark.parametrize("num_workers", [0, 2])
def test_map_cases_yields_every_result_with_its_case(num_workers):
    cases = ["four", "nine", "sixteen"]
    done = map_cases(math.sqrt, cases, [(4,), (9,), (16,)], num_workers=num_workers, description="", progress=False)
    assert dict(done) == {"four": 2, "nine": 3, "sixteen": 4}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_map_cases_names_the_case_that_failed(num_workers):
    done = map_cases(math.sqrt, ["good", "bad"], [(4,), (-1,)], num_workers=num_workers, description="", progress=False)
    with pytest.raises(SamunetError, match=r"^case bad: ValueError: "):
        list(done)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_map_cases_keeps_a_users_error_whole(num_workers, tmp_path):
    (tmp_path / "good.json").write_text("{}")
    arguments = [(tmp_path / "good.json",), (tmp_path / "gone.json",)]
    done = map_cases(read_json, ["good", "gone"], arguments, num_workers=num_workers, description="", progress=False)
    with pytest.raises(SamunetError, match=r"^case gone: .*gone\.json does not exist\n"):
        list(done)


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(UsageError, match="`num_workers` must be 0 or more, got -1"):
        list(map_cases(math.sqrt, ["four"], [(4,)], num_workers=-1, description="", progress=False))


def test_a_worker_that_dies_names_the_cases_in_work():
    done = map_cases(os._exit, ["a", "b", "c"], [(9,)] * 3, num_workers=2, description="", progress=False)
    with pytest.raises(SamunetError, match=r"^one of the cases a, b: its worker process was killed") as caught:
        list(done)
    assert "num_workers=1" in caught.value.hint


def test_a_pool_that_closes_while_cases_are_handed_out_has_lost_a_worker(monkeypatch):
    """What Python's pool raises where a worker dies between two submissions."""

    def closed(self, *arguments):
        raise OSError("handle is closed")

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor.submit", closed)
    with pytest.raises(SamunetError, match="one of the cases a, b: its worker process was killed"):
        list(map_cases(abs, ["a", "b"], [(1,), (2,)], num_workers=2, description="", progress=False))


def test_errors_print_their_hint():
    assert str(SamunetError("wrong", "do that")) == "wrong\n  -> do that"
    assert SamunetError("wrong").exit_status == 1
    assert UsageError("wrong").exit_status == 2


def test_processes_of_the_same_number_do_not_share_temporary_files(tmp_path):
    """As in two containers that write to one folder; one process plays both here."""
    target = tmp_path / "a.json"
    with atomic_path(target) as first:
        first.write_text("first")
        with atomic_path(target) as second:
            assert not second.exists()
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    with atomic_folder(tmp_path / "folder") as first:
        (first / "a").touch()
        with atomic_folder(tmp_path / "folder") as second:
            assert list(second.iterdir()) == []
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, 1001, 10**400, "3", None])
def test_numbers_out_of_range_are_refused(value):
    with pytest.raises(UsageError, match=r"^`lr` must be above 0 and at most 1000, got "):
        check_number("lr", value, above=0, most=1000)


def test_numbers_within_a_range_pass():
    check_number("lr", 1000, above=0, most=1000)
    check_number("-step_size", np.float32(0.5), least=0.5, most=1)
    check_number("--seed", np.int64(0), least=0)


def test_the_longest_names_can_be_written(tmp_path):
    for target in (tmp_path / f"{'a' * 251}.txt", tmp_path / f"{'ä' * 125}.txt"):
        write_text(target, "x")
        assert target.read_text() == "x"
    with pytest.raises(SamunetError, match=r"(?s)too long.*shorter name"):
        write_text(tmp_path / f"{'a' * 252}.txt", "x")


@pytest.mark.parametrize("word", ["my data (1)", "a'b", "$(rm x)", "`rm x`", "a\nb", "", Path("a b"), 3])
def test_a_shell_takes_a_quoted_word_as_one(word):
    assert shlex.split(f"rm {quoted(word)}") == ["rm", str(word)]


def test_no_cell_of_a_table_is_a_formula():
    rows = [["case", "Dice"], ["=cmd|'/c calc'!A1", -0.5], ["+a", "-1.5"], ["-a", ""], ["@a", None], ["\ta", "b=c"]]
    read = list(csv.reader(io.StringIO(files.csv_text(rows))))
    assert read == [
        ["case", "Dice"], ["'=cmd|'/c calc'!A1", "-0.5"], ["'+a", "-1.5"], ["'-a", ""], ["'@a", ""], ["'\ta", "b=c"]
    ]  # fmt: skip
