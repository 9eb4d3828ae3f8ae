"""Downloads from a real server that misbehaves in every way a network is known for."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from filelock import FileLock

from paceline import network
from paceline.errors import DownloadError, OfflineError
from paceline.packages.download import Digest, Patience, download, partial_of

CONTENT = bytes((n * n) % 251 for n in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
QUICK = Patience(stall_s=0.5, window_s=0.4, slowest_bytes_per_s=2000, attempts=3, backoff_s=0.01, longest_wait_s=0.3)
DIGITS = f"bytes {'1' * 5000}-{'2' * 5000}/{'3' * 5000}"
EXPECTED = {"sha256": SHA256, "size": SIZE}


@pytest.fixture
def site(file_server):
    file_server.files["/file.whl"] = CONTENT, "application/octet-stream"
    return file_server


@pytest.fixture
def fetch(site, tmp_path):
    """Fetches the file, by default knowing its hash and size; `said` are the reasons for waiting."""
    target = tmp_path / "files" / "file.whl"

    def run(path="/file.whl", expected=EXPECTED, patience=QUICK, **options):
        def progress(done, total, message=""):
            run.seen.append((done, total))
            if message and message.partition(";")[0] not in run.said:
                run.said.append(message.partition(";")[0])

        run.seen, run.said = [], []
        return download(f"{site.url}{path}", target, **expected, patience=patience, progress=progress, **options)

    run.target, run.partial = target, partial_of(target)
    return run


def assert_whole(fetch):
    assert fetch.target.read_bytes() == CONTENT
    assert {p.name for p in fetch.target.parent.iterdir()} == {"file.whl", ".file.whl.lock"}


def test_a_file_comes_whole_and_is_not_fetched_again(site, fetch):
    assert fetch() == Digest(SHA256, SIZE)
    assert_whole(fetch)
    assert fetch.seen[-1] == (SIZE, SIZE)
    assert fetch() == Digest(SHA256, SIZE)
    assert site.asked == ["/file.whl"]
    fetch.target.write_bytes(b"damaged")
    fetch()
    assert_whole(fetch)


def test_without_a_hash_and_a_size(site, fetch):
    assert fetch(expected={}) == Digest(SHA256, SIZE)
    assert_whole(fetch)


class TestWhatBreaksOff:
    def test_is_resumed_in_the_same_call(self, site, fetch):
        site.misbehave(truncate=100_000)
        fetch()
        assert_whole(fetch)
        assert [h.get("range") for h in site.headers] == [None, "bytes=100000-"]
        assert site.headers[1]["if-range"] == site.etag(CONTENT)

    def test_is_resumed_by_the_next_call_from_another_address(self, site, fetch):
        site.misbehave(*[{"truncate": 100_000}] + [{"status": 503}] * 2)
        with pytest.raises(DownloadError, match="503"):
            fetch()
        assert fetch.partial.read_bytes() == CONTENT[:100_000]
        site.files["/mirror.whl"] = site.files["/file.whl"]
        fetch("/mirror.whl")
        assert_whole(fetch)
        assert site.headers[-1]["range"] == "bytes=100000-"
        assert "if-range" not in site.headers[-1]

    @pytest.mark.parametrize("size", [None, SIZE])
    def test_after_its_last_byte_is_asked_for_no_more(self, site, fetch, size):
        site.misbehave(*[{"truncate": 100_000}] + [{"status": 503}] * 2)
        expected = {"sha256": SHA256, "size": size}
        with pytest.raises(DownloadError):
            fetch(expected=expected)
        site.asked.clear()
        fetch.partial.write_bytes(CONTENT)
        assert fetch(expected=expected) == Digest(SHA256, SIZE)
        assert_whole(fetch)
        assert site.asked == []

    def test_is_not_believed_when_it_is_damaged(self, site, fetch):
        self.test_is_resumed_by_the_next_call_from_another_address(site, fetch)
        fetch.target.unlink()
        site.misbehave(*[{"truncate": 100_000}] + [{"status": 503}] * 2)
        with pytest.raises(DownloadError):
            fetch()
        fetch.partial.write_bytes(b"x" + fetch.partial.read_bytes()[1:])
        fetch()
        assert_whole(fetch)
        assert site.headers[-1].get("range") is None

    def test_belongs_to_nothing_without_its_notes(self, site, fetch):
        fetch.partial.parent.mkdir(parents=True)
        fetch.partial.write_bytes(CONTENT[:5])
        fetch()
        assert_whole(fetch)
        assert site.headers[0].get("range") is None

    def test_is_not_resumed_when_nothing_says_that_the_rest_belongs_to_it(self, site, fetch):
        site.misbehave(truncate=100_000, no_etag=True)
        fetch(expected={})
        assert_whole(fetch)

    @pytest.mark.parametrize("length", [True, False])
    def test_every_time_is_given_up(self, site, fetch, length):
        site.misbehave(*[{"truncate": 100, "no_length": not length}] * 3)
        site.misbehave_always(truncate=10, no_length=not length)
        with pytest.raises(DownloadError, match="3 attempts failed") as caught:
            fetch()
        assert "what has come is kept" in caught.value.help
        assert not fetch.target.exists()


class TestWhatIsNotTheFile:
    def test_flipped_bits_once(self, site, fetch):
        site.misbehave(flip=1234)
        fetch()
        assert_whole(fetch)

    def test_flipped_bits_always(self, site, fetch):
        site.misbehave_always(flip=1234)
        with pytest.raises(DownloadError, match=f"has the sha256 [0-9a-f]+, not {SHA256}"):
            fetch()
        assert {p.name for p in fetch.target.parent.iterdir()} == {".file.whl.lock"}

    def test_a_flipped_bit_before_the_break(self, site, fetch):
        site.misbehave(flip=5, truncate=1000)
        fetch()
        assert_whole(fetch)

    @pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
    def test_a_web_page(self, site, fetch, kind):
        page = b"\n<!DOCTYPE html><html><head><title>Sign in to\nHotel Wifi</title></head></html>"
        site.files["/file.whl"] = page, kind
        with pytest.raises(DownloadError, match="answered with a web page \\('Sign in to Hotel Wifi'\\)") as caught:
            fetch(expected={"sha256": SHA256})
        assert "login page" in caught.value.help
        assert not fetch.target.exists()

    @pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1])
    def test_a_wrong_length(self, site, fetch, length):
        site.misbehave(length=length)
        fetch()
        assert fetch.said == [f"the server offers {length} bytes instead of {SIZE}"]
        assert_whole(fetch)

    def test_a_length_of_thousands_of_digits(self, site, fetch):
        site.misbehave(length="9" * 5000)
        fetch()
        assert_whole(fetch)

    def test_more_than_it_should_be(self, site, fetch):
        site.files["/file.whl"] = CONTENT + b"more", "application/octet-stream"
        site.misbehave_always(no_length=True)
        with pytest.raises(DownloadError, match=f"sends more than {SIZE} bytes"):
            fetch()

    def test_more_than_is_ever_taken(self, site, fetch):
        with pytest.raises(DownloadError, match=f"offers {SIZE} bytes, more than the 1000"):
            fetch(expected={}, limit=1000)
        site.misbehave_always(no_length=True)
        with pytest.raises(DownloadError, match="sends more than 1000 bytes"):
            fetch(expected={}, limit=1000)


class TestRanges:
    def test_that_are_ignored(self, site, fetch):
        site.misbehave({"truncate": 100_000}, {"ignore_range": True})
        fetch()
        assert_whole(fetch)

    @pytest.mark.parametrize(
        "said",
        ["bytes 0-299999/300000", "bytes 100000-299999/300001", "nonsense", DIGITS, None],
        ids=lambda said: str(said)[:30],
    )
    def test_that_are_answered_with_another_one(self, site, fetch, said):
        site.misbehave({"truncate": 100_000}, {"content_range": said})
        fetch()
        assert_whole(fetch)
        assert site.headers[-1].get("range") is None

    def test_that_lie(self, site, fetch):
        """The rest is said to be the rest, and is something else: the hash finds out."""
        site.misbehave({"truncate": 100_000}, {"shift": 7})
        fetch()
        assert_whole(fetch)

    def test_that_cannot_be(self, site, fetch):
        site.misbehave({"truncate": 100_000}, {"status": 416})
        fetch()
        assert_whole(fetch)

    @pytest.mark.parametrize("honest", [True, False])
    @pytest.mark.parametrize("known", [True, False])
    def test_of_a_file_that_changed_midway(self, site, fetch, honest, known):
        """An honest server sends the new file whole; another one its second half, under a new ETag."""
        old = bytes(reversed(CONTENT))
        site.files["/file.whl"] = old, "application/octet-stream"

        def change():
            site.files["/file.whl"] = CONTENT, "application/octet-stream"

        site.misbehave({"truncate": 100_000, "then": change}, {"ignore_if_range": not honest})
        fetch(expected=EXPECTED if known else {})
        assert_whole(fetch)


class TestSlowness:
    def test_a_stall(self, site, fetch):
        site.misbehave(stall=100_000)
        fetch()
        assert_whole(fetch)
        assert fetch.said == ["the server sent nothing for too long"]
        assert site.headers[-1]["range"] == "bytes=100000-"

    def test_a_stall_before_the_first_byte(self, site, fetch):
        site.misbehave(stall=0)
        fetch()
        assert_whole(fetch)

    def test_a_drip(self, site, fetch):
        site.misbehave_always(drip=0.05)
        with pytest.raises(DownloadError, match=r"sends only \d+ bytes a second; 3 attempts failed"):
            fetch()

    @pytest.mark.parametrize("start", [b"", b"Transfer-Encoding: chunked\r\n\r\n3;"], ids=["headers", "chunk length"])
    def test_a_drip_in_what_is_not_the_file(self, tmp_path, start):
        """Nothing of it ever reaches the caller, and no wait for a byte is long."""
        patience = replace(QUICK, answer_s=0.7, attempts=2)
        with (
            _drips(b"HTTP/1.1 200 OK\r\n" + start) as url,
            pytest.raises(DownloadError, match=r"the server sent nothing of use for 0\.7 s; 2 attempts failed"),
        ):
            download(url, tmp_path / "f", **EXPECTED, patience=patience)
        with FileLock(tmp_path / ".f.lock", timeout=0):
            pass

    def test_one_that_drips_ends_no_other(self, site, tmp_path):
        """Of two threads with the same clients one waits for headers that drip."""
        site.misbehave_always(stall=100_000)
        clients, ended = network.Clients(), []

        def run(url, name, patience):
            try:
                ended.append(download(url, tmp_path / name, **EXPECTED, clients=clients, patience=patience).size)
            except DownloadError as error:
                ended.append(error.message.rpartition(": ")[2])

        with _drips(b"HTTP/1.1 200 OK\r\n") as url:
            dripping = threading.Thread(target=run, args=(url, "a", replace(QUICK, answer_s=0.5, attempts=1)))
            stalling = threading.Thread(
                target=run, args=(f"{site.url}/file.whl", "b", replace(QUICK, stall_s=2, attempts=1))
            )
            stalling.start()
            dripping.start()
            dripping.join()
            stalling.join()
        assert ended == [
            "the server sent nothing of use for 0.5 s; 1 attempts failed",
            "the server sent nothing for too long; 1 attempts failed",
        ]

    def test_who_waits_can_cancel(self, site, fetch, tmp_path):
        site.misbehave_always(status=503, retry_after="3600")

        def progress(done, total, message=""):
            if message:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download(f"{site.url}/file.whl", tmp_path / "f", **EXPECTED, progress=progress)


@contextmanager
def _drips(start):
    """The address of a server that answers `start` and then a header's beginning, a byte at a time, without end."""
    ended = threading.Event()

    def answer(connection):
        with connection, suppress(OSError):
            connection.recv(9999)
            connection.sendall(start)
            while not ended.wait(0.05):
                connection.sendall(b"a")

    def serve():
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=listening.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/f"
        ended.set()


class TestRedirects:
    def test_are_followed(self, site, fetch):
        site.redirects |= {"/a": "/b", "/b": f"{site.url}/file.whl"}
        fetch("/a")
        assert_whole(fetch)

    def test_in_a_loop(self, site, fetch):
        site.redirects |= {"/a": "/b", "/b": "/a"}
        with pytest.raises(DownloadError, match="redirects in a loop, back to http:"):
            fetch("/a")
        assert site.asked == ["/a", "/b"]

    def test_without_end(self, site, fetch):
        site.redirects |= {f"/{n}": f"/{n + 1}" for n in range(50)}
        with pytest.raises(DownloadError, match="redirects more than 10 times"):
            fetch("/0")
        assert len(site.asked) == 11

    def test_out_of_encryption(self, fetch):
        """A transport of the test stands for the https server: what counts is that nothing is asked in the clear."""
        asked = []

        def answer(request):
            asked.append(str(request.url))
            return httpx.Response(302, headers={"Location": "http://mirror.example/file.whl?key=secret"})

        clients = network.Clients(transport=httpx.MockTransport(answer))
        with pytest.raises(DownloadError, match=r"leads from https to http://mirror.example/file.whl, which") as caught:
            download("https://files.example/file.whl", fetch.target, **EXPECTED, clients=clients)
        assert asked == ["https://files.example/file.whl"]
        assert "secret" not in caught.value.message


class TestRefusals:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_that_pass(self, site, fetch, status):
        site.misbehave(status=status, retry_after="0")
        fetch()
        assert_whole(fetch)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
    def test_that_stay(self, site, fetch, status):
        site.misbehave_always(status=status)
        with pytest.raises(DownloadError, match=str(status)) as caught:
            fetch()
        assert caught.value.status == status
        assert ("~/.netrc" in caught.value.help) == (status in (401, 403))
        assert len(site.asked) == 1

    @pytest.mark.parametrize("status", [429, 500])
    @pytest.mark.parametrize(
        "ask",
        ["0", "3600", "date", "past", "nonsense", "9" * 400, "9" * 5000, f"Mon, 1 Jan {'9' * 30} 00:00:00 GMT"],
        ids=lambda ask: ask[:20],
    )
    def test_that_say_how_long(self, site, fetch, ask, status):
        """An hour, as a number or as a date, is too long: the cap is waited, and then asked again."""
        hour = timedelta(hours=1)
        dates = {"date": datetime.now(UTC) + hour, "past": datetime.now(UTC) - hour}
        value = format_datetime(dates[ask], usegmt=True) if ask in dates else ask
        site.misbehave(status=status, retry_after=value)
        began = time.monotonic()
        fetch()
        assert_whole(fetch)
        assert len(site.asked) == 2
        assert (fetch.said == []) == (ask in ("0", "past"))  # it is asked again at once
        assert ask not in ("3600", "date") or time.monotonic() - began >= QUICK.longest_wait_s

    def test_offline(self, site, fetch, monkeypatch):
        monkeypatch.setenv("PACELINE_OFFLINE", "1")
        with pytest.raises(OfflineError):
            fetch()
        assert site.asked == []

    def test_nobody_there(self, site, fetch):
        site.close()
        with pytest.raises(DownloadError, match="3 attempts failed"):
            fetch()


_FETCHER = """
import sys
from pathlib import Path
from paceline.packages.download import download
download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], size=int(sys.argv[4]))
"""


def test_of_several_processes_one_fetches(site, fetch):
    argv = [sys.executable, "-c", _FETCHER, f"{site.url}/file.whl", str(fetch.target), SHA256, str(SIZE)]
    processes = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [p.communicate()[1] for p in processes] == [""] * 3
    assert site.asked == ["/file.whl"]
    assert_whole(fetch)


def test_several_threads_each_their_file(site, tmp_path):
    errors = []

    def run(n):
        try:
            download(f"{site.url}/file.whl", tmp_path / f"{n}.whl", **EXPECTED)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all((tmp_path / f"{n}.whl").read_bytes() == CONTENT for n in range(4))
