"""Downloads of published checkpoints: resumed, verified, and never half a file under the final name.

A download grows in ``NAME.part``; ``NAME.part.json`` beside it remembers which version of the file it is a part of.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, IncompleteRead
from io import RawIOBase
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from samunet import __version__, paths
from samunet.encoders import EncoderFacts
from samunet.errors import SamunetError, UsageError
from samunet.files import file_hash, read_as, write_json
from samunet.locks import LockHeld, exclusive

log = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row without a new byte
BACKOFF_SECONDS = 1.0  # doubles with every attempt
TIMEOUT_SECONDS = 30.0
_PROBE_SECONDS = 5.0
_BLOCK = 1 << 18
_POLL_SECONDS = 0.2
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class _Broken(Exception):
    """A connection ended early; ``hopeless`` if trying again at once cannot help."""

    def __init__(self, reason: str, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


def download(
    facts: EncoderFacts, folder: Path | None = None, *, url: str | None = None, force: bool = False, progress=True
) -> Path:
    """Bring a published checkpoint into the checkpoints folder, going on with what an earlier attempt left.

    Proxies are taken from ``http_proxy``, ``https_proxy`` and ``no_proxy``. Of several processes that ask for the same
    file one downloads, the others wait for it.

    Args:
        facts: Whose ``checkpoint_*`` say what to get and how it is verified.
        folder: Where to; None for the checkpoints folder.
        url: Another source of the same file.
        force: Replace the file if it is there. Without it, the file that is there is verified.
        progress: Whether to show a progress bar.

    Returns:
        The file.

    Raises:
        SamunetError: If there is no network, no space, no permission, no such file, or the content is not the
            published one; says how to bring the file by hand.
    """
    target = (folder or paths.checkpoints_folder()) / facts.checkpoint_file
    _check_url(url or facts.checkpoint_url)
    if target.is_file() and not force:
        verify(target, facts)
        return target
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_name(target.name + ".part").open("ab").close()  # tells now whether the folder may be written to
    with _turn(target):
        if target.is_file() and not force:  # another process brought it while this one waited
            verify(target, facts)
        else:
            _Download(url or facts.checkpoint_url, target, facts, progress).run()
    return target


@contextmanager
def _turn(target: Path) -> Iterator[None]:
    """Wait while another process is at work on ``target``."""
    told = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive(target))
                break
            except LockHeld as holder:
                if not told:
                    log.info("waiting: %s is at work on %s", holder, target)
                    told = True
                time.sleep(_POLL_SECONDS)
        yield


def verify(path: Path, facts: EncoderFacts) -> None:
    """Compare a file with the published size and SHA-256, as far as they are known.

    Raises:
        SamunetError: If it is another file.
    """
    problem = _difference(path, facts)
    if problem:
        raise SamunetError(
            f"{path} is not the published file: {problem}",
            "--force downloads it again in its place; to train with the file as it is: samunet_train --checkpoint FILE",
        )


def can_download(facts: EncoderFacts) -> bool:
    """Whether the checkpoint's server answers right now; asks it once, for a few seconds at most."""
    try:
        request = Request(facts.checkpoint_url, headers=_headers(), method="HEAD")
        with build_opener().open(request, timeout=_PROBE_SECONDS):
            return True
    except (OSError, HTTPException):
        return False


@dataclass
class _Download:
    url: str
    target: Path
    facts: EncoderFacts
    progress: bool

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def note(self) -> Path:
        return self.target.with_name(self.target.name + ".part.json")

    def run(self) -> None:
        log.info("downloading %s to %s", self.url, self.target)
        try:
            self._complete()
        except KeyboardInterrupt:
            log.info("%s of %s are kept in %s", format_bytes(self._have()), self.target.name, self.part)
            raise
        finally:
            if not self._have():
                self.part.unlink(missing_ok=True)
        with _writing(self.target):
            os.replace(self.part, self.target)
            self.note.unlink(missing_ok=True)

    def _complete(self) -> None:
        """Bring the part to the whole, verified file, over as many connections as it takes."""
        failures, furthest = 0, self._have()
        resumed = furthest > 0
        while True:
            try:
                self._transfer()
                problem = _difference(self.part, self.facts)
                if problem is None:
                    return
                self._drop()
                if not resumed:
                    raise SamunetError(f"{self.url} does not give the published file: {problem}", self._by_hand())
                resumed = False
                log.warning("the resumed download is not the published file (%s): starting anew", problem)
            except _Broken as broken:
                have = self._have()
                failures = 0 if have > furthest else failures + 1
                furthest = max(furthest, have)
                if failures >= ATTEMPTS or (broken.hopeless and failures):
                    raise SamunetError(f"could not download {self.url}: {broken}", self._by_hand()) from None
                pause = BACKOFF_SECONDS * 2**failures
                log.warning("%s; trying again from %s in %.0f s", broken, format_bytes(have), pause)
                resumed = resumed or have > 0
                time.sleep(pause)

    def _transfer(self) -> None:
        """One connection: append to the part what the server gives, to the end of the file."""
        response = self._request()
        if response is None:
            return
        with response:
            if response.headers.get_content_type() == "text/html":
                raise SamunetError(
                    f"{self.url} gives a web page instead of the file (the login page of a proxy?)", self._by_hand()
                )
            offset = self._have() if response.status == 206 else 0
            start, total = _range(response) if response.status == 206 else (0, _length(response))
            if start != offset:
                self._drop()
                raise _Broken(f"the server went on at byte {start} instead of {offset}")
            expected = self.facts.checkpoint_bytes
            if total is not None and expected is not None and total != expected:
                raise SamunetError(
                    f"{self.url} gives a file of {total} bytes, the published one has {expected}", self._by_hand()
                )
            total = expected if total is None else total
            self._check_space(total, offset)
            have = self._receive(response, offset, total)
        if total is not None and have != total:
            if have > total:
                self._drop()
            raise _Broken(f"the connection ended at byte {have} of {total}")

    def _request(self) -> HTTPResponse | None:
        """Ask for the rest of the part; None if the part is the whole file already."""
        offset = self._have()
        headers = _headers()
        validator = self._validator()
        if offset and (validator or self.facts.checkpoint_sha256):
            headers["Range"] = f"bytes={offset}-"
            if validator:
                headers["If-Range"] = validator
        try:
            # A new opener each time: the one that urllib keeps would miss changes of the proxy variables.
            return build_opener().open(Request(self.url, headers=headers), timeout=TIMEOUT_SECONDS)
        except HTTPError as error:
            error.close()
            if error.code == 416 and offset:
                if error.headers.get("Content-Range", "").endswith(f"/{offset}"):
                    return None
                self._drop()
                raise _Broken(f"the server has no bytes from {offset} on") from None
            if error.code in _TRANSIENT:
                raise _Broken(f"the server answered {error.code} {error.reason}") from None
            if error.code == 407:
                raise SamunetError(
                    f"the proxy wants a login for {self.url}",
                    f"export https_proxy=http://USER:PASSWORD@HOST:PORT, or {self._by_hand()}",
                ) from None
            raise SamunetError(
                f"could not download {self.url}: the server answered {error.code} {error.reason}", self._by_hand()
            ) from None
        except (OSError, HTTPException) as error:
            raise self._no_connection(error) from None

    def _no_connection(self, error: Exception) -> Exception:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return SamunetError(
                f"could not download {self.url}: its certificate is not trusted here ({reason.verify_message})",
                f"behind a proxy with a certificate of its own: export SSL_CERT_FILE=/path/to/it.pem, or "
                f"{self._by_hand()}",
            )
        refused = isinstance(reason, (socket.gaierror, ConnectionRefusedError)) or "Tunnel" in str(reason)
        return _Broken(f"no connection ({reason})", hopeless=refused)

    def _receive(self, response: HTTPResponse, offset: int, total: int | None) -> int:
        """Write the response's body behind ``offset``; returns the part's size at the end of the connection."""
        from tqdm import tqdm

        bar = tqdm(
            desc=self.target.name, total=total, initial=offset, unit="B", unit_scale=True,
            disable=None if self.progress else True, leave=False,
        )  # fmt: skip
        have = offset
        with bar, _writing(self.target), open(self.part, "ab" if offset else "wb", buffering=0) as stream:
            if not offset:
                validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
                write_json(self.note, {"url": self.url, "validator": validator})
            while total is None or have <= total:
                try:
                    block = response.read(_BLOCK)
                except IncompleteRead as error:
                    block = error.partial
                except (OSError, HTTPException) as error:
                    log.debug("%s at byte %d: %s", self.url, have, error)
                    raise _Broken(f"the connection broke at byte {have} of {total or 'unknown'}") from None
                if not block:
                    break
                have += _write_all(stream, block)
                bar.update(len(block))
            os.fsync(stream.fileno())
        return have

    def _validator(self) -> str | None:
        """What tells the part's version of the file from others: a strong ETag, or the date of its last change."""
        if not self.note.is_file():
            return None
        try:
            note = read_as(dict[str, Any], self.note)
        except SamunetError:
            return None
        validator = note.get("validator") or ""
        return validator if note.get("url") == self.url and not validator.startswith("W/") else None

    def _check_space(self, total: int | None, offset: int) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if total is not None and free < total - offset:
            raise SamunetError(
                f"{self.target.parent} has {format_bytes(free)} of free space, {self.target.name} needs "
                f"{format_bytes(total - offset)}",
                "free some space, or choose another folder: export samunet_checkpoints=/path/to/folder",
            )

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _by_hand(self) -> str:
        kept = "the same command goes on where this one stopped. " if self._have() else ""
        return f"{kept}By hand: get {self.facts.checkpoint_url} on any computer and put it at {self.target}"


def format_bytes(number: int) -> str:
    """A size as people read it: ``375 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number} B"


def _write_all(stream: RawIOBase, block: bytes) -> int:
    """An unbuffered stream may take a part of what it is given, for example what just fits on the disk."""
    rest = memoryview(block)
    while rest:
        rest = rest[stream.write(rest) :]
    return len(block)


def _headers() -> dict[str, str]:
    return {"User-Agent": f"samunet/{__version__}", "Accept-Encoding": "identity"}


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url} is not a web address", "give one that begins with https:// or http://")


def _length(response: HTTPResponse) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdigit() else None


def _range(response: HTTPResponse) -> tuple[int | None, int | None]:
    """First byte and total size from ``Content-Range: bytes 100-199/200``."""
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return (int(start) if start.isdigit() else None), (int(total) if total.isdigit() else None)


def _difference(path: Path, facts: EncoderFacts) -> str | None:
    """How a file differs from the published one; None if it does not as far as can be told."""
    size, expected = path.stat().st_size, facts.checkpoint_bytes
    if expected is not None and size != expected:
        return f"it has {size} bytes instead of {expected}"
    if facts.checkpoint_sha256 is not None and (found := file_hash(path)) != facts.checkpoint_sha256:
        return f"its SHA-256 is {found[:12]}… instead of {facts.checkpoint_sha256[:12]}…"
    return None


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn errors of the file system into sentences."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        raise SamunetError(
            f"could not write {target}: {error.strerror or error}",
            ("free some space" if full else "use a folder that you may write to")
            + ", or choose another one: export samunet_checkpoints=/path/to/folder",
        ) from error
