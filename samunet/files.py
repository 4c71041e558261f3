"""Atomic writes and JSON: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import csv
import ctypes
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from samunet.errors import FatalError, SamunetError

_TEMPORARY = ".tmp-"
_REPLACED = ".old-"  # what a folder was, while its successor takes its name
_ENDING_LETTERS = 16
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_PROBE = os.urandom(4096)  # a block; random, because some file systems store zeros in no space at all
_OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux
JSON_BYTES = 1 << 27
_DEPTH = 100  # of lists and objects in each other
_LARGEST = 2**63  # what fits 64 bits, as times of files in nanoseconds do
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_RESTORE = "correct it there, or restore the file"
_tidy: set[Path] = set()  # folders that this process has written to before

# A list of numbers as json.dumps indents it; a raw newline never occurs inside a JSON string.
_NUMBER_LIST = re.compile(r"\[\n\s*([-+\d.,eE\s]+?)\n\s*\]")


def make_folder(path: Path) -> Path:
    """Make a folder and those above it, if they are missing.

    Raises:
        SamunetError: If it cannot be made, for example because a file has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failure(f"cannot make the folder {path}", error) from error
    return path


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; it takes the target's name when the block ends without an error.

    The temporary name keeps the target's full ending, because image writers choose their format by it.
    A killed process leaves at most a hidden ``.tmp-…`` file, which no room ever reads; see :func:`remove_leftovers`.

    Raises:
        SamunetError: If the disk is full or the folder may not be written to, whatever the writing library makes of it.
    """
    target = Path(target)
    _prepare(target.parent)
    temporary = _temporary(target)
    try:
        yield temporary
        _finish(temporary)
        os.replace(temporary, target)
    except SamunetError:
        raise
    except Exception as error:
        cause = _disk_error(error, temporary)
        if cause is None:
            raise
        raise _failure(f"could not write {target}", cause) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``target`` when the block ends without an error.

    Wherever the process is killed, the old folder or the new one has the name; or, on file systems that cannot exchange
    two names, gets it back from :func:`restore_folders`.

    Raises:
        SamunetError: As :func:`atomic_path`.
    """
    target = Path(target)
    _prepare(target.parent)
    temporary = _temporary(target)
    replaced = target.with_name(f"{_REPLACED}{secrets.token_hex(4)}-{target.name}")
    try:
        make_folder(temporary)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _finish(file)
        if not _exchange(temporary, target):
            if target.exists():
                os.replace(target, replaced)
            os.replace(temporary, target)
    except SamunetError:
        raise
    except Exception as error:
        cause = _disk_error(error, temporary / "probe")
        if cause is None:
            raise
        raise _failure(f"could not write {target}", cause) from error
    finally:
        if replaced.exists() and not target.exists():
            os.replace(replaced, target)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where ``other`` is missing or the system cannot do it."""
    if not sys.platform.startswith("linux") or not other.exists():
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def restore_folders(parent: Path) -> None:
    """Give folders in ``parent`` their names back that a killed process was about to replace.

    What is of no use any more, because its successor has the name, is removed.
    """
    with suppress(OSError):
        for entry in sorted(parent.glob(f"{_REPLACED}????????-*")):
            target = parent / entry.name[len(_REPLACED) + 9 :]
            if not target.exists():
                time.sleep(0.2)  # a process that lives needs but a moment between its two steps
            if target.exists():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.replace(entry, target)


def remove_leftovers(folder: Path, age: float = 3600.0) -> None:
    """Remove what killed processes left half written in ``folder``: ``.tmp-…`` untouched for ``age`` seconds.

    The first write of a process into a folder does this. Age decides, and not whether the process that the name tells
    still runs, because that process may be one of another machine that shares the folder; no write pauses for an hour.
    The time is that of the file system, told by a file that is made there: a server's clock is not this machine's.
    """
    for entry in leftovers(folder, age):
        with suppress(OSError):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def leftovers(folder: Path, age: float = 3600.0) -> list[Path]:
    """What :func:`remove_leftovers` removes; nothing where the folder cannot be read or written."""
    with suppress(OSError):
        found = [entry for entry in folder.iterdir() if entry.name.startswith(_TEMPORARY)]
        if not found:
            return []
        probe = _temporary(folder / "clock")
        probe.touch()
        try:
            limit = probe.stat().st_mtime - age
        finally:
            probe.unlink()
        return [entry for entry in found if entry.stat().st_mtime <= limit]
    return []


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """Serialise to indented JSON. Short lists of numbers stay on one line; NaN is written as null."""
    text = json.dumps(_plain(value), indent=4, ensure_ascii=False, allow_nan=False)
    return _NUMBER_LIST.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically."""
    write_text(path, to_json(value))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, in which no name of a case or a class is a formula to a spreadsheet."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def read_json(path: Path, hint: str = _RESTORE) -> Any:
    """Read a JSON file, whoever wrote it: UTF-8 or UTF-16 with or without a byte order mark, and of bounded size.

    Args:
        path: The file.
        hint: What to do where it is damaged.

    Raises:
        SamunetError: If the file is missing or is not JSON; the message names the file and the line.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise SamunetError(f"{path} is no file", "restore it, or run the command that makes it")
        with open(path, "rb") as stream:
            content = stream.read(JSON_BYTES + 1)
    except FileNotFoundError:
        raise SamunetError(f"{path} does not exist", "restore it, or run the command that makes it") from None
    except OSError as error:
        raise SamunetError(f"could not read {path}: {_reason(error)}", "make it a file that you may read") from error
    return parse_json(content, str(path), hint)


def parse_json(content: bytes, where: str, hint: str = _RESTORE) -> Any:
    """The value that JSON stands for; see :func:`read_json`.

    Args:
        content: Of a file.
        where: What to call it in messages.
        hint: What to do where it is damaged.

    Raises:
        SamunetError: If it is not JSON, too large, too deep, or has what no file of samunet's holds.
    """
    if len(content) > JSON_BYTES:
        raise SamunetError(f"{where} is larger than {JSON_BYTES >> 20} MiB, far too large for JSON", hint)
    try:
        text = content.decode("utf-16" if content[:2] in _UTF_16 else "utf-8-sig")
        value = json.loads(text, parse_int=_integer)
        _check_nesting(value, where, hint)
        if "\\u" in text:  # half of a character: it could be neither shown nor written
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        what = "it is empty" if not text.strip() else f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise SamunetError(f"{where} is not valid JSON: {what}", hint) from None
    except RecursionError:
        raise SamunetError(f"{where} is not valid JSON: it is nested too deeply", hint) from None
    except UnicodeError:
        raise SamunetError(f"{where} is not a text file", hint) from None
    except ValueError as error:
        raise SamunetError(f"{where} is not valid JSON: {error}", hint) from None
    return value


def read_as(kind: Any, path: Path, hint: str = _RESTORE) -> Any:
    """Read a JSON file whose content has a known form; errors as those of :func:`read_json` and :func:`as_kind`."""
    return as_kind(kind, read_json(path, hint), str(path), hint)


def as_kind(kind: Any, data: Any, where: str, hint: str | dict[str, str] = _RESTORE) -> Any:
    """JSON's content as a type says it.

    Args:
        kind: What pydantic knows: a dataclass, a ``TypedDict``, ``dict[str, int]``.
        data: As read.
        where: The file, for messages.
        hint: What to do where it does not fit; or that by key.

    Raises:
        SamunetError: Naming the file, and the key that is missing, unknown or of another type.
    """
    from pydantic import ValidationError

    try:
        # Through JSON, because only there are lists and plain objects strictly what the annotations say.
        return _adapter(kind).validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(_place(first["loc"], data)) or "the whole file"
        got = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
        if isinstance(hint, dict):
            hint = hint.get(str(next(iter(first["loc"]), "")), _RESTORE)
        text = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            text, got = "there is no such key", ""
        if first["type"].startswith("union_tag"):
            key, text = f"{key}.method", f"must be one of {first['ctx'].get('expected_tags', 'those there are')}"
            got = f", got {first['ctx']['tag']!r:.60}" if "tag" in first["ctx"] else ""
        raise SamunetError(f"{where}: {key}: {text}{got}", hint) from None


def _place(location: tuple[str | int, ...], data: Any) -> Iterator[str]:
    """The keys to a value, without the names that pydantic puts between them for the variants of a union."""
    for index, part in enumerate(location, start=1):
        if isinstance(data, dict) and part not in data and index < len(location):
            continue
        yield str(part)
        data = data[part] if isinstance(data, dict | list) and index < len(location) else None


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _integer(digits: str) -> int:
    if len(digits) > len(str(_LARGEST)) or abs(int(digits)) >= _LARGEST:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _check_nesting(value: Any, where: str, hint: str) -> None:
    """Refuse what is deeper than any file of samunet's, so that nothing that walks through it ends in a recursion."""
    level = [value]
    for _ in range(_DEPTH):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return
    raise SamunetError(f"{where} is nested deeper than {_DEPTH} levels", hint)


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _temporary(target: Path) -> Path:
    """A name beside ``target`` that nobody else has: containers that share a folder have processes of one number."""
    ending = target.name[-_ENDING_LETTERS:]  # the whole name could become longer than file systems allow
    return target.with_name(f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{ending}")


def _prepare(folder: Path) -> None:
    make_folder(folder)
    if folder not in _tidy:
        _tidy.add(folder)
        restore_folders(folder)
        remove_leftovers(folder)


def _disk_error(error: Exception, file: Path) -> OSError | None:
    """What the disk has to do with a library's failure to write ``file``; None if nothing."""
    if isinstance(error, OSError):
        return error
    for code in (*_FULL, errno.EACCES, errno.EROFS):
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code))
    try:
        check_room(file)  # others keep the reason to themselves (blosc2, ITK)
    except OSError as cause:
        return cause
    return None


def check_room(file: Path) -> None:
    """Raise an OSError where no more than what a library has written to ``file`` fits on the disk; ITK says nothing."""
    with open(file, "ab") as stream:
        size = stream.tell()
        stream.write(_PROBE)
        stream.flush()
        stream.truncate(size)


def _finish(file: Path) -> None:
    """Make sure that what was written is on the disk, and that whoever may read the user's files may read it."""
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())
    if file.stat().st_mode & 0o777 == 0o600:  # as safetensors writes, whatever the user's umask
        usual = _temporary(file)
        usual.touch()
        os.chmod(file, usual.stat().st_mode & 0o777)
        usual.unlink()


def _failure(what: str, error: OSError) -> SamunetError:
    """In words; fatal unless it is about this one name, or a library's own complaint about this one content."""
    kind = SamunetError if error.errno in (None, *_OF_ONE_NAME) else FatalError
    return kind(f"{what}: {_reason(error)}", _remedy(error))


def worded(error: OSError, what: str) -> SamunetError:
    """An error of the system, met while ``what`` was done, in words; a :class:`FatalError` where the disk is full."""
    where = f"{what}: {error.filename}" if error.filename else what
    if error.errno in _FULL:
        return FatalError(f"{where}: {_reason(error)}", _remedy(error))
    return SamunetError(f"{where}: {_reason(error)}", "make it a file that you may read, or remove the case")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "free some space or write to another disk, then run the same command again"
    if error.errno == errno.ENAMETOOLONG:
        return "give it a shorter name, or choose a folder whose own path is shorter"
    return "choose a folder that you may write to, then run the same command again"


def _plain(value: Any) -> Any:
    """Turn numpy scalars and arrays, tuples and paths into what JSON knows; NaN and infinities into None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; computed again only when size or time of change differ."""
    status = Path(path).stat()
    return _file_hash(str(Path(path).resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
