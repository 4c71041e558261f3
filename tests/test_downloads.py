"""Downloads of checkpoints, against a local server that can break off, lie and forget."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from samunet.commands import run_command
from samunet.encoders import CHECKPOINTS, ENCODERS
from samunet.errors import SamunetError
from samunet.models import downloads

CONTENT = random.Random(0).randbytes(1_000_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content``; each request first takes what is next in ``server.script``, if anything is."""

    def do_HEAD(self):
        self.answer(body=b"", length=len(self.server.content))

    def do_GET(self):
        self.server.seen.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
        step = self.server.script.pop(0) if self.server.script else serve
        step(self)

    def answer(self, status=200, body=b"", length=None, **headers):
        self.send_response(status)
        headers = {"Content-Type": "application/octet-stream"} | {k.replace("_", "-"): v for k, v in headers.items()}
        if length is not False:
            headers["Content-Length"] = str(len(body) if length is None else length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def serve(handler, stop=None, ranges=True):
    """As a good server does: ranges, If-Range, 416; ``stop`` breaks the connection at that byte of the file."""
    content, etag = handler.server.content, handler.server.etag
    asked = handler.headers.get("Range") if ranges else None
    if asked and handler.headers.get("If-Range") in (None, etag):
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            return handler.answer(416, Content_Range=f"bytes */{len(content)}")
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return handler.answer(206, content[start:stop], len(content) - start, Content_Range=span, ETag=etag)
    return handler.answer(200, content[:stop], len(content), ETag=etag)


def breaking(stop):
    return lambda handler: serve(handler, stop)


class Server(ThreadingHTTPServer):
    def handle_error(self, request, address):
        """A client that hangs up is part of many tests, and no news."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.content, server.etag, server.script, server.seen = CONTENT, '"one"', [], []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/weights.pth"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def facts(server):
    return replace(
        ENCODERS["vit_b"],
        checkpoint_file="weights.pth",
        checkpoint_url=server.url,
        checkpoint_bytes=len(CONTENT),
        checkpoint_sha256=HASH,
    )


def fetch(facts, folder, **options):
    return downloads.download(facts, folder, progress=False, **options)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "weights.pth")


def test_whole_file(facts, server, tmp_path):
    path = fetch(facts, tmp_path / "deep" / "folder")
    assert path == tmp_path / "deep" / "folder" / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert leftovers(path.parent) == []
    assert len(server.seen) == 1
    assert fetch(facts, path.parent) == path  # it is there: verified, not asked for again
    assert len(server.seen) == 1
    fetch(facts, path.parent, force=True)
    assert len(server.seen) == 2


def test_resumes_where_the_server_broke_off(facts, server, tmp_path):
    server.script = [breaking(300_000), breaking(300_000), breaking(800_000)]
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    assert [request.get("range") for request in server.seen[:2]] == [None, "bytes=300000-"]
    assert server.seen[-1]["range"] == "bytes=800000-"
    assert leftovers(tmp_path) == []


def test_a_later_command_goes_on(facts, server, tmp_path):
    server.script = [breaking(300_000), *[lambda handler: handler.answer(503)] * downloads.ATTEMPTS]
    with pytest.raises(SamunetError, match="503") as error:
        fetch(facts, tmp_path)
    assert "same command goes on" in error.value.hint
    assert leftovers(tmp_path) == ["weights.pth.part"]
    assert (tmp_path / "weights.pth.part").stat().st_size == 300_000
    server.seen.clear()
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    assert server.seen[0]["range"] == "bytes=300000-"


def test_part_of_another_version_is_dropped(facts, server, tmp_path):
    old = bytes(reversed(CONTENT))
    server.content, server.etag = old, '"zero"'
    server.script = [breaking(300_000), lambda handler: handler.answer(404)]
    with pytest.raises(SamunetError):
        fetch(facts, tmp_path)
    server.content, server.etag = CONTENT, '"one"'
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    ranges = [request.get("range") for request in server.seen[2:]]
    assert ranges == ["bytes=300000-", None]  # the hash tells that the two do not belong together


def test_part_of_unknown_origin_is_caught_by_the_checksum(facts, server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    assert [request.get("range") for request in server.seen] == ["bytes=1000-", None]


def test_part_without_a_checksum_is_not_trusted(facts, server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    assert fetch(replace(facts, checkpoint_sha256=None), tmp_path).read_bytes() == CONTENT
    assert "range" not in server.seen[0]


def test_server_that_ignores_ranges(facts, server, tmp_path):
    server.script = [breaking(300_000), lambda handler: serve(handler, ranges=False)]
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    assert server.seen[1]["range"] == "bytes=300000-"


def test_part_that_is_complete_or_too_long(facts, server, tmp_path):
    part = tmp_path / "weights.pth.part"
    part.write_bytes(CONTENT)
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    assert server.seen == []  # nothing was missing
    part.write_bytes(CONTENT + b"more")
    assert fetch(facts, tmp_path, force=True).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT) - 1000, len(CONTENT) + 1000])
def test_server_that_announces_another_length(facts, server, tmp_path, length):
    server.script = [lambda handler: handler.answer(200, CONTENT, length)]
    with pytest.raises(SamunetError, match=f"{length} bytes, the published one has {len(CONTENT)}"):
        fetch(facts, tmp_path)
    assert not (tmp_path / "weights.pth").exists()
    assert len(server.seen) == 1


@pytest.mark.parametrize(("length", "message"), [(-1000, "does not give the published"), (1000, "ended at byte")])
def test_wrong_length_of_a_file_whose_size_is_not_known(facts, server, tmp_path, length, message):
    lie = len(CONTENT) + length
    server.script = [lambda handler: handler.answer(200, CONTENT, lie)] * (downloads.ATTEMPTS + 1)
    with pytest.raises(SamunetError, match=message):
        fetch(replace(facts, checkpoint_bytes=None), tmp_path)
    assert not (tmp_path / "weights.pth").exists()


def test_no_length_at_all(facts, server, tmp_path):
    server.script = [lambda handler: handler.answer(200, CONTENT[:400_000], False)]
    assert fetch(facts, tmp_path).read_bytes() == CONTENT  # the published size tells that it was cut
    server.script = [lambda handler: handler.answer(200, CONTENT + b"more", False)] * (downloads.ATTEMPTS + 1)
    with pytest.raises(SamunetError, match="could not download"):
        fetch(facts, tmp_path, force=True)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT  # what was there stays


def test_404_says_where_to_put_the_file(facts, server, tmp_path):
    server.script = [lambda handler: handler.answer(404)]
    with pytest.raises(SamunetError, match="404 Not Found") as error:
        fetch(facts, tmp_path)
    assert server.url in str(error.value)
    assert str(tmp_path / "weights.pth") in error.value.hint
    assert len(server.seen) == 1


def test_500_is_tried_again(facts, server, tmp_path):
    server.script = [lambda handler: handler.answer(500), lambda handler: handler.answer(429)]
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    server.script = [lambda handler: handler.answer(500)] * 99
    server.seen.clear()
    with pytest.raises(SamunetError, match="500"):
        fetch(facts, tmp_path, force=True)
    assert len(server.seen) == downloads.ATTEMPTS


def test_web_page_instead_of_the_file(facts, server, tmp_path):
    server.script = [lambda handler: handler.answer(200, b"<html>log in</html>", Content_Type="text/html")]
    with pytest.raises(SamunetError, match="web page"):
        fetch(facts, tmp_path)


def test_wrong_checksum_leaves_no_file(facts, server, tmp_path):
    server.content = bytes(len(CONTENT))
    with pytest.raises(SamunetError, match="SHA-256") as error:
        fetch(facts, tmp_path)
    assert server.url in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_there_is_verified(facts, server, tmp_path):
    (tmp_path / "weights.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(SamunetError, match="999999 bytes instead of 1000000") as error:
        fetch(facts, tmp_path)
    assert "overwrite=True" in error.value.hint
    assert (tmp_path / "weights.pth").stat().st_size == 999_999
    assert fetch(facts, tmp_path, force=True).read_bytes() == CONTENT


def test_stalled_connection_is_left(facts, server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.2)

    def stall(handler):
        serve(handler, 300_000)
        time.sleep(0.6)

    server.script = [stall]
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_no_network(facts, tmp_path):
    begin = time.monotonic()
    with pytest.raises(SamunetError, match="no connection") as error:
        fetch(replace(facts, checkpoint_url="http://127.0.0.1:9/weights.pth"), tmp_path)
    assert time.monotonic() - begin < 5
    assert "http://127.0.0.1:9/weights.pth" in error.value.hint
    assert str(tmp_path / "weights.pth") in error.value.hint
    assert not downloads.can_download(replace(facts, checkpoint_url="http://127.0.0.1:9/weights.pth"))
    assert downloads.can_download(facts)


def test_proxy_variables_are_honoured(facts, server, tmp_path, monkeypatch):
    elsewhere = "http://weights.invalid/weights.pth"  # only the proxy knows it
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(SamunetError, match="no connection"):
        fetch(facts, tmp_path, url=elsewhere)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    assert fetch(facts, tmp_path, url=elsewhere).read_bytes() == CONTENT
    assert server.seen[-1]["path"] == elsewhere
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(facts, tmp_path, force=True)
    assert server.seen[-1]["path"] == "/weights.pth"
    server.script = [lambda handler: handler.answer(407)]
    with pytest.raises(SamunetError, match="407") as error:
        fetch(facts, tmp_path, force=True)
    assert "https_proxy=http://USER:PASSWORD@" in error.value.hint


def test_too_little_space_is_told_before(facts, tmp_path, monkeypatch):
    usage = downloads.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage._replace(free=999))
    with pytest.raises(SamunetError, match=r"999 B of free space, weights\.pth needs 1 MB") as error:
        fetch(facts, tmp_path)
    assert "samunet_checkpoints" in error.value.hint


def test_disk_that_fills_up(facts, server, tmp_path, monkeypatch):
    def opened(*arguments):
        stream = open(*arguments)  # noqa: SIM115
        write = stream.write

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                stream.close()

            def write(self, block):
                if stream.tell() > 500_000:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(block)

        return Full()

    monkeypatch.setattr(downloads, "open", opened, raising=False)
    with pytest.raises(SamunetError, match="No space left") as error:
        fetch(facts, tmp_path)
    assert "free some space" in error.value.hint
    assert not (tmp_path / "weights.pth").exists()
    monkeypatch.undo()
    assert fetch(facts, tmp_path).read_bytes() == CONTENT
    assert int(server.seen[-1]["range"].strip("bytes=-")) > 500_000


def test_folder_that_cannot_be_written(facts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SamunetError, match="could not write") as error:
        fetch(facts, tmp_path / "file")
    assert "samunet_checkpoints" in error.value.hint
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):  # root may write anywhere

        def refuse(*arguments, **options):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(SamunetError, match="Permission denied"):
        fetch(facts, locked)


def test_two_processes_do_not_damage_each_other(facts, server, tmp_path):
    def slow(handler):
        time.sleep(0.4)
        serve(handler)

    server.script = [slow]
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch(facts, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "weights.pth"] * 4
    assert results[0].read_bytes() == CONTENT
    assert len(server.seen) == 1
    assert leftovers(tmp_path) == []


SCRIPT = """
import sys
from dataclasses import replace
from samunet.commands import run_command
from samunet.encoders import CHECKPOINTS
CHECKPOINTS["vit_b"] = replace(
    CHECKPOINTS["vit_b"], checkpoint_file="weights.pth", checkpoint_url=sys.argv[1],
    checkpoint_bytes=int(sys.argv[2]), checkpoint_sha256=sys.argv[3],
)
sys.exit(run_command("samunet_download_checkpoint", ["vit_b", "--folder", sys.argv[4]]))
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_interruption_keeps_what_is_there(server, tmp_path, stop):
    """Ctrl-C says how to go on; after any kill the same command goes on."""
    release = threading.Event()

    def hang(handler):
        serve(handler, 600_000)
        release.wait(20)

    server.script = [hang]
    command = [sys.executable, "-c", SCRIPT, server.url, str(len(CONTENT)), HASH, str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "weights.pth.part"
    deadline = time.monotonic() + 20
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(stop)
    errors = process.communicate(timeout=20)[1]
    release.set()
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    if stop == signal.SIGINT:
        assert "the same command goes on from here" in errors
        assert str(part) in errors
    assert not (tmp_path / "weights.pth").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert int(server.seen[-1]["range"].strip("bytes=-")) >= 262_144
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert str(tmp_path / "weights.pth") in again.stdout


def test_command(facts, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CHECKPOINTS, "vit_b", facts)
    monkeypatch.setenv("samunet_checkpoints", str(tmp_path))
    assert run_command("samunet_download_checkpoint", ["--list"]) == 0
    listed = capsys.readouterr().out
    for text in ("vit_l", "medsam", "1 MB", "Apache-2.0", "CC-BY-4.0", "no"):
        assert text in listed
    assert run_command("samunet_download_checkpoint", ["vit_b", "--list"]) == 0
    output = capsys.readouterr()
    assert f"vit_b: {tmp_path / 'weights.pth'}" in output.out
    assert "yes" in output.out
    assert server.url in output.err
    for arguments in ([], ["vit_x"], ["vit_b", "vit_l", "--url", server.url], ["vit_b", "--url", "ftp://x", "--force"]):
        assert run_command("samunet_download_checkpoint", arguments) == 2
        assert "->" in capsys.readouterr().err
    (tmp_path / "weights.pth").write_bytes(b"other")
    assert run_command("samunet_download_checkpoint", ["vit_b"]) == 1
    assert "5 bytes instead of 1000000" in capsys.readouterr().err


def test_facts_of_the_published_files():
    assert set(CHECKPOINTS) >= {"vit_b", "vit_l", "vit_h", "medsam"}
    for facts in CHECKPOINTS.values():
        assert facts.checkpoint_url.startswith("https://")
        assert facts.checkpoint_licence
        assert facts.checkpoint_sha256 is None or len(bytes.fromhex(facts.checkpoint_sha256)) == 32
    # float32, parameters and the one buffer (segment_anything's counts), and less than 1 MB around them
    counts = {"vit_b": 93_735_472, "vit_l": 312_342_832, "vit_h": 641_090_608, "medsam": 93_735_472}
    for name, parameters in counts.items():
        assert 0 < CHECKPOINTS[name].checkpoint_bytes - 4 * (parameters + 256) < 1_000_000
