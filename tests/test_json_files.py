"""JSON that others wrote: read whatever Windows makes of it, refused with words where it is no JSON of samunet's."""

import json
import os

import pytest

from samunet import files
from samunet.errors import SamunetError, printable
from samunet.files import read_json


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"Läsion": 1}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"Läsion": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf", "it is empty"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 101 + b"]" * 101, "deeper than 100 levels"),
        (b"[" + b"1" * 20 + b"]", "a number has 20 digits"),
        (b"9" * 5000, "a number has 5000 digits"),
        (b'"\\ud800"', "is not a text file"),
        (b'{"a": [1, 2', "line 1, column 12"),
    ],
)
def test_what_no_file_holds_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(SamunetError, match=message):
        read_json(tmp_path / "a.json")


def test_a_hundred_levels_are_read(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100 + "]" * 100)
    assert json.dumps(read_json(tmp_path / "a.json")) == "[" * 100 + "]" * 100


def test_huge_files_and_pipes_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "JSON_BYTES", 1 << 20)
    (tmp_path / "a.json").write_text(json.dumps("a" * (1 << 20)))
    with pytest.raises(SamunetError, match="larger than 1 MiB"):
        read_json(tmp_path / "a.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(SamunetError, match=r"pipe\.json is no file"):
        read_json(tmp_path / "pipe.json")


def test_what_cannot_be_seen_is_shown():
    assert printable("نیم\u200cفاصله, 12\u00a0mm") == "نیم\u200cفاصله, 12\u00a0mm"  # letters need these
    assert printable("\udcff") == r"\xff"
    assert printable("a\x1b[2Jb\u202ec\nd é") == r"a\x1b[2Jb\u202ec\nd é"
    assert printable("two\nlines", keep="\n") == "two\nlines"
