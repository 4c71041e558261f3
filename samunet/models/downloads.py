"""Downloads of published checkpoints: resumed, verified, and never half a file under the final name.

A download grows in ``NAME.part``, with which a later call goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, build_opener

from samunet import __version__, paths
from samunet.encoders import CHECKPOINTS, EncoderFacts
from samunet.errors import SamunetError, UsageError
from samunet.files import file_hash
from samunet.locks import LockHeld, exclusive

log = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row without a new byte
BACKOFF_SECONDS = 1.0  # doubles with every attempt
TIMEOUT_SECONDS = 30.0
_PROBE_SECONDS = 5.0
_BLOCK = 1 << 18
_POLL_SECONDS = 0.2
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_PROXY = "behind a proxy: export https_proxy=http://USER:PASSWORD@HOST:PORT and SSL_CERT_FILE=/path/to/its/certificate"


class _Broken(Exception):
    """A connection ended early."""


class _NoServer(_Broken):
    """No server answers."""


def download_checkpoint(
    name: str, folder: str | Path | None = None, *, url: str | None = None, overwrite: bool = False, progress=True
) -> Path:
    """:func:`download` of published weights by their name, such as ``vit_b``.

    Raises:
        UsageError: If there are none of that name.
        SamunetError: As :func:`download`.
    """
    if name not in CHECKPOINTS:
        raise UsageError(
            f"there are no published weights called {name!r}",
            f"choose from: {', '.join(CHECKPOINTS)}; `api.published_checkpoints` shows them",
        )
    to = None if folder is None else Path(folder).expanduser()
    return download(CHECKPOINTS[name], to, url=url, force=overwrite, progress=progress)


def published_checkpoints(folder: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """What :func:`download_checkpoint` can bring, by name.

    Args:
        folder: Where files are looked for; None for the checkpoints folder.

    Returns:
        Of each its ``encoder``, ``bytes`` and ``licence`` (None if not known), ``url`` and ``file``, and the
        ``bytes_here`` and ``bytes_begun`` of a whole and of an unfinished file in the folder, None without one.
    """
    folder = (Path(folder) if folder else paths.checkpoints_folder()).expanduser()
    found = {}
    for name, facts in CHECKPOINTS.items():
        here = folder / facts.checkpoint_file
        sizes = [path.stat().st_size if path.is_file() else None for path in (here, _part(here))]
        found[name] = {
            "encoder": facts.name, "bytes": facts.checkpoint_bytes, "licence": facts.checkpoint_licence,
            "url": facts.checkpoint_url, "file": here, "bytes_here": sizes[0], "bytes_begun": sizes[1],
        }  # fmt: skip
    return found


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

    Returns:
        The file.

    Raises:
        SamunetError: If there is no network, no space, no permission, no such file, or the content is not the
            published one; says how to bring the file by hand.
    """
    target = (folder or paths.checkpoints_folder()) / facts.checkpoint_file
    url = url or facts.checkpoint_url
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url} is not a web address", "give one that begins with https:// or http://")
    if target.is_file() and not force:
        verify(target, facts)
        return target
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _part(target).open("ab").close()  # tells now whether the folder may be written to
    with _turn(target):
        if target.is_file() and not force:  # another process brought it while this one waited
            verify(target, facts)
        else:
            _fetch(url, target, facts, progress)
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
            "`api.download_checkpoint(NAME, overwrite=True)` downloads it again in its place; to train with the file "
            "as it is: `api.train(..., checkpoint=FILE)`",
        )


def can_download(facts: EncoderFacts) -> bool:
    """Whether the checkpoint's server answers right now; asks it once, for a few seconds at most."""
    try:
        request = Request(facts.checkpoint_url, headers=_headers(), method="HEAD")
        with build_opener().open(request, timeout=_PROBE_SECONDS):
            return True
    except (OSError, HTTPException):
        return False


def _fetch(url: str, target: Path, facts: EncoderFacts, progress: bool) -> None:
    """Bring the verified file, over as many connections as it takes."""
    part, failures = _part(target), 0
    resumed = _size(part) > 0
    log.info("downloading %s to %s", url, target)
    try:
        while True:
            before = _size(part)
            try:
                _receive(url, part, target, facts, progress)
            except _Broken as broken:
                have = _size(part)
                failures = 0 if have > before else failures + 1
                if failures >= (2 if isinstance(broken, _NoServer) else ATTEMPTS):
                    raise SamunetError(f"could not download {url}: {broken}", _by_hand(target, facts)) from None
                pause = BACKOFF_SECONDS * 2**failures
                log.warning("%s; trying again from %s in %.0f s", broken, format_bytes(have), pause)
                resumed = resumed or have > 0
                time.sleep(pause)
                continue
            problem = _difference(part, facts)
            if problem is None:
                break
            part.unlink()
            if not resumed:
                raise SamunetError(f"{url} does not give the published file: {problem}", _by_hand(target, facts))
            resumed = False
            log.warning("the resumed download is not the published file (%s): starting anew", problem)
    except KeyboardInterrupt:
        log.info("%s of %s are kept in %s", format_bytes(_size(part)), target.name, part)
        raise
    finally:
        if not _size(part):
            part.unlink(missing_ok=True)
    with _writing(target):
        os.replace(part, target)


def _receive(url: str, part: Path, target: Path, facts: EncoderFacts, progress: bool) -> None:
    """One connection: append to the part what the server gives, to the end of the file."""
    from tqdm import tqdm

    expected = facts.checkpoint_bytes
    offset = _size(part) if facts.checkpoint_sha256 else 0  # only the hash tells whether it is a part of this file
    if offset and offset == expected:
        return
    with _opened(url, offset, part, target, facts) as response:
        if response.headers.get_content_type() == "text/html":
            raise SamunetError(
                f"{url} gives a web page instead of the file (the login page of a proxy?)", _by_hand(target, facts)
            )
        offset = offset if response.status == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if length.isdigit() else expected
        if expected is not None and total != expected:
            raise SamunetError(
                f"{url} gives a file of {total} bytes, the published one has {expected}", _by_hand(target, facts)
            )
        _check_space(target, (total or 0) - offset)
        bar = tqdm(
            desc=target.name, total=total, initial=offset, unit="B", unit_scale=True,
            disable=None if progress else True, leave=False,
        )  # fmt: skip
        with bar, _writing(target), open(part, "ab" if offset else "wb") as stream:
            while block := _block(response):
                stream.write(block)
                bar.update(len(block))
            stream.flush()
            os.fsync(stream.fileno())
    have = _size(part)
    if total is not None and have != total:
        if have > total:
            part.unlink()
        raise _Broken(f"the connection ended at byte {have} of {total}")


def _opened(url: str, offset: int, part: Path, target: Path, facts: EncoderFacts) -> HTTPResponse:
    headers = _headers() | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        # A new opener each time: the one that urllib keeps would miss changes of the proxy variables.
        return build_opener().open(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        answer = f"the server answered {error.code} {error.reason}"
        if error.code == 416:  # the part is longer than the file
            part.unlink(missing_ok=True)
        if error.code in _TRANSIENT or (error.code == 416 and offset):
            raise _Broken(answer) from None
        raise SamunetError(f"could not download {url}: {answer}", _by_hand(target, facts)) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        refused = isinstance(reason, (socket.gaierror, ConnectionRefusedError)) or "Tunnel" in str(reason)
        kind = _NoServer if refused or "certificate" in str(reason).lower() else _Broken
        raise kind(f"no connection ({reason})") from None


def _block(response: HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, HTTPException) as error:
        raise _Broken(f"the connection broke ({error or type(error).__name__})") from None


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise SamunetError(
            f"{target.parent} has {format_bytes(free)} of free space, {target.name} needs {format_bytes(needed)}",
            "free some space, or choose another folder: export samunet_checkpoints=/path/to/folder",
        )


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _by_hand(target: Path, facts: EncoderFacts) -> str:
    kept = "the same command goes on where this one stopped. " if _size(_part(target)) else ""
    return f"{kept}{_PROXY}. By hand: get {facts.checkpoint_url} on any computer and put it at {target}"


def format_bytes(number: int) -> str:
    """A size as people read it: ``375 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number} B"


def _headers() -> dict[str, str]:
    return {"User-Agent": f"samunet/{__version__}", "Accept-Encoding": "identity"}


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
