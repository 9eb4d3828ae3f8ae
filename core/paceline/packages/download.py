"""One file from an address to a path: resumed where it broke off, hashed while it comes, whole or not there at all.

What has come lies beside the target as NAME.partial, with NAME.partial.json saying what it is the beginning of. A later
call, of this or another process, hashes it again and asks the server for the rest, under the condition that the file
there is still the same one. Only what has the expected size and hash gets the target's name, by one rename.

Ranges and their conditions: https://www.rfc-editor.org/rfc/rfc9110#name-range-requests
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

import httpx

from paceline import network
from paceline.errors import DownloadError
from paceline.packages.watch import ENDED_BY_WATCH, Watch
from paceline.store import transaction
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from paceline.network import Client


class Digest(NamedTuple):
    """What a file is."""

    sha256: str
    size: int
    """Bytes."""


class Progress(Protocol):
    """Told how many bytes are there, of how many, and why nothing comes; what it raises ends the download."""

    def __call__(self, done: int, total: int | None, message: str = "") -> None: ...


@dataclass(frozen=True)
class Patience:
    """How much is put up with."""

    stall_s: float = 30.0
    """The longest silence, while a connection is made and between two bytes."""
    answer_s: float = 90.0
    """The longest wait for what an answer begins with, and between two parts of the file, whatever drips meanwhile."""
    window_s: float = 30.0
    slowest_bytes_per_s: float = 500.0
    """A connection that brings less over `window_s` is given up for a new one."""
    attempts: int = 6
    """So many in a row may fail without bringing `worthwhile_bytes`."""
    worthwhile_bytes: int = 1 << 20
    backoff_s: float = 0.5
    """Doubled with each attempt that fails."""
    longest_wait_s: float = 60.0
    """Also when the server asks for more."""
    redirects: int = 10


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress = lambda done, total, message="": None,
    clients: network.Clients | None = None,
    patience: Patience = Patience(),
    limit: int = 64 * 10**9,
    accept: str | None = None,
    answered: Callable[[httpx.Response], None] = lambda response: None,
) -> Digest:
    """Fetch `url` to `target`, which has the given hash and size (where they are known) or does not appear.

    A target that is there and has them is not fetched again. Of several processes that want one target, one fetches and
    the others wait. No file of more than `limit` bytes is taken. `accept`: the kinds of content that are asked for.
    `answered` sees the head of each answer whose body is taken. Raises DownloadError, OfflineError, and OSError for
    what cannot be written here; what has come stays for the next call, but for a full disk.
    """
    from filelock import FileLock, Timeout

    transaction.make_folder(target.parent)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            progress(0, size, "another process fetches it")
    try:
        here = _digest(target, sha256, size)
        if here is None:
            with contextlib.ExitStack() as ending:
                if clients is None:
                    clients = ending.enter_context(contextlib.closing(network.Clients()))
                transfer = _Transfer(url, target, sha256, size, progress, clients, patience, limit, accept, answered)
                here = transfer.run()
        progress(here.size, here.size)
        return here
    finally:
        lock.release()


def partial_of(target: Path) -> Path:
    """Where what has come of `target` lies until it is whole."""
    return target.with_name(f"{target.name}.partial")


_CHUNK = 1 << 16
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_NUMBER = re.compile(r"[0-9]{1,18}")
_HTML = (b"<!doctype html", b"<html")


class _Again(Exception):
    """This attempt failed; another may not."""

    def __init__(self, reason: str, *, wait_s: float | None = None, from_start: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s
        self.from_start = from_start


class _Transfer:
    """The attempts to get one file."""

    def __init__(
        self,
        url: str,
        target: Path,
        sha256: str | None,
        size: int | None,
        progress: Progress,
        clients: network.Clients,
        patience: Patience,
        limit: int,
        accept: str | None,
        answered: Callable[[httpx.Response], None],
    ) -> None:
        self._url, self._target, self._progress, self._clients = url, target, progress, clients
        self._sha256, self._size, self._patience = sha256, size, patience
        self._limit = size if size is not None else limit
        self._headers = {"Accept-Encoding": "identity", **({"Accept": accept} if accept is not None else {})}
        self._answered = answered
        self._partial = partial_of(target)
        self._notes = target.with_name(f"{self._partial.name}.json")
        self._hash = hashlib.sha256()
        self._have = 0
        self._total = size
        self._validator: str | None = None
        self._wrong = 0

    def run(self) -> Digest:
        self._take_up()
        failures, gained = 0, self._have
        while True:
            try:
                return self._attempt()
            except _Again as again:
                failure = again
            except httpx.UnsupportedProtocol as error:
                raise self._final(f"its address cannot be asked: {error}") from None
            except httpx.TransportError as error:
                failure = _Again(_said(error))
                if "CERTIFICATE_VERIFY_FAILED" in failure.reason:
                    raise self._final(
                        failure.reason, help="SSL_CERT_FILE can name the certificates to believe"
                    ) from None
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self._forget()
                raise
            if failure.from_start:
                self._forget()
            if self._have - gained >= self._patience.worthwhile_bytes:
                failures, gained = 0, self._have
            failures += 1
            if failures >= self._patience.attempts:
                raise self._final(f"{failure.reason}; {failures} attempts failed")
            self._wait(failure, failures)

    def _take_up(self) -> None:
        """Go on from what an earlier call left, when that is the beginning of the same file."""
        try:
            notes = read_object(self._notes)
            known = notes["sha256"] == self._sha256 and notes["size"] == self._size
            # Under a hash, another address may have the rest; without one only the same file of the same server does.
            if not known or (notes["url"] != self._url and self._sha256 is None):
                raise ValueError("the beginning of another file")
            with self._partial.open("rb") as file:
                while part := file.read(_CHUNK):
                    self._hash.update(part)
                    self._have += len(part)
            self._validator = notes["validator"] if notes["url"] == self._url else None
            if self._have > self._limit or (self._validator is None and self._sha256 is None):
                raise ValueError("nothing would say that the rest belongs to it")
        except (OSError, ValueError, KeyError, TypeError):
            self._forget()

    def _attempt(self) -> Digest:
        if not self._is_whole():
            headers = dict(self._headers)
            if self._have:
                headers["Range"] = f"bytes={self._have}-"
                if self._validator is not None:
                    headers["If-Range"] = self._validator
            client = self._clients()
            watch = Watch(client, self._patience.answer_s)
            try:
                with watch, contextlib.closing(self._ask(client, headers)) as response:
                    self._begin(response)
                    self._answered(response)
                    self._receive(response, watch)
            except ENDED_BY_WATCH:
                if not watch.ended:
                    raise
            if watch.ended:
                raise _Again(f"the server sent nothing of use for {self._patience.answer_s:g} s")
        return self._finish()

    def _is_whole(self) -> bool:
        """Whether nothing is left to ask for; without a size only the hash can say so."""
        return self._have == self._size or (self._have > 0 and self._hash.hexdigest() == self._sha256)

    def _ask(self, client: Client, headers: dict[str, str]) -> httpx.Response:
        """The answer after all redirects, none of them to a connection that anybody can read and change."""
        wait = httpx.Timeout(self._patience.stall_s)
        request = client.build_request("GET", self._url, headers=headers, timeout=wait)
        seen = {str(request.url)}
        while True:
            response = client.send(request, stream=True, follow_redirects=False)
            if response.next_request is None:
                return response
            response.close()
            before, request = request, response.next_request
            if before.url.scheme == "https" and request.url.scheme != "https":
                raise self._final(f"the server leads from https to {_shown(request.url)}, which anybody could change")
            if str(request.url) in seen:
                raise self._final(f"the server redirects in a loop, back to {_shown(request.url)}")
            if len(seen) > self._patience.redirects:
                raise self._final(f"the server redirects more than {self._patience.redirects} times")
            seen.add(str(request.url))

    def _begin(self, response: httpx.Response) -> None:
        """Decide from status and headers where the body belongs. Raises _Again and DownloadError."""
        status = response.status_code
        if status in _AGAIN:
            said = f"the server answered {status} {response.reason_phrase}".rstrip()
            raise _Again(said, wait_s=_retry_after(response.headers.get("retry-after")))
        if status == 416:
            raise _Again("the server's file is shorter than what has come of it", from_start=True)
        if status == 206:
            self._check_range(response)
            return
        if status != 200:
            way_in = "give the index's user name and password in its address or in ~/.netrc"
            said = f"the server answered {status} {response.reason_phrase}".rstrip()
            raise self._final(said, help=way_in if status in (401, 403) else None, status=status)
        if self._have:  # it ignored the range, or the file is another one now
            self._forget()
        length = number_in(response.headers.get("content-length"))
        if self._size is not None and length is not None and length != self._size:
            self._is_another(f"the server offers {length} bytes instead of {self._size}")
        if length is not None and length > self._limit:
            raise self._final(f"the server offers {length} bytes, more than the {self._limit} that are taken")
        self._total = self._size if self._size is not None else length
        self._validator = validator_of(response)
        notes = {"url": self._url, "sha256": self._sha256, "size": self._size, "validator": self._validator}
        transaction.write_json(self._notes, notes)

    def _check_range(self, response: httpx.Response) -> None:
        said = response.headers.get("content-range", "")
        unit, _, rest = said.partition(" ")
        span, _, total = rest.partition("/")
        if unit != "bytes" or number_in(span.partition("-")[0]) != self._have:
            raise _Again(f"the server was asked for the rest and sent {said or 'something else'!r}", from_start=True)
        if number_in(total) is not None:
            if self._total is not None and number_in(total) != self._total:
                raise _Again(f"the file has {total} bytes now instead of {self._total}", from_start=True)
            self._total = number_in(total)
        if self._validator is not None and validator_of(response) not in (None, self._validator):
            raise _Again("the file was changed on the server meanwhile", from_start=True)

    def _receive(self, response: httpx.Response, watch: Watch) -> None:
        """Append the body to what is here, bounded in size and in slowness."""
        began, before = time.monotonic(), self._have
        transaction.step("write", self._partial)
        with self._partial.open("ab") as file:
            for part in response.iter_raw():
                watch.feed()
                if not self._have:
                    self._refuse_page(part, response)
                if self._have + len(part) > self._limit:
                    raise _Again(f"the server sends more than {self._limit} bytes", from_start=True)
                file.write(part)
                self._hash.update(part)
                self._have += len(part)
                self._progress(self._have, self._total)
                now = time.monotonic()
                if now - began >= self._patience.window_s:
                    rate = (self._have - before) / (now - began)
                    if rate < self._patience.slowest_bytes_per_s:
                        raise _Again(f"the server sends only {rate:.0f} bytes a second")
                    began, before = now, self._have
        if self._total is not None and self._have < self._total:
            raise _Again(f"the connection ended after {self._have} of {self._total} bytes")

    def _refuse_page(self, start: bytes, response: httpx.Response) -> None:
        page = start.lstrip().lower().startswith(_HTML)
        if not page or self._target.suffix in (".html", ".htm"):
            return
        text = start.decode(errors="replace")
        title = " ".join(text.partition("<title>")[2].partition("</title>")[0].split())[:80]
        raise self._final(
            f"{_shown(response.url)} answered with a web page{f' ({title!r})' if title else ''} instead of the file",
            help="this may be the login page of the network or a proxy: open it in a browser, then try again",
        )

    def _finish(self) -> Digest:
        got = self._hash.hexdigest()
        if self._sha256 is not None and got != self._sha256:
            self._is_another(f"what came ({self._have} bytes) has the sha256 {got}, not {self._sha256}", wait_s=0)
        transaction.settle(self._partial, self._target)
        transaction.discard(self._notes)
        return Digest(got, self._have)

    def _is_another(self, reason: str, wait_s: float | None = None) -> NoReturn:
        """Begin anew, once: what is another file the second time is no mishap."""
        self._wrong += 1
        self._forget()
        if self._wrong > 1:
            raise self._final(reason, help="the file was changed on the server or on its way: try another network")
        raise _Again(reason, wait_s=wait_s)

    def _forget(self) -> None:
        transaction.discard(self._partial)
        transaction.discard(self._notes)
        self._hash, self._have, self._validator, self._total = hashlib.sha256(), 0, None, self._size

    def _wait(self, failure: _Again, failures: int) -> None:
        seconds = failure.wait_s
        if seconds is None:
            seconds = self._patience.backoff_s * 2 ** (failures - 1) * random.uniform(1, 1.5)
        end = time.monotonic() + min(seconds, self._patience.longest_wait_s)
        while (left := end - time.monotonic()) > 0:
            self._progress(self._have, self._total, f"{failure.reason}; trying again in {left:.0f} s")
            time.sleep(min(left, 0.2))

    def _final(self, reason: str, *, help: str | None = None, status: int | None = None) -> DownloadError:
        return DownloadError(
            f"{_shown(httpx.URL(self._url))} could not be fetched: {reason}",
            help=help or "check the network, then try again: what has come is kept",
            status=status,
        )


def _digest(path: Path, sha256: str | None, size: int | None) -> Digest | None:
    """What the file at `path` is, when it is what is wanted. Without a hash nothing says so, and it is fetched anew."""
    try:
        if sha256 is None or (size is not None and path.stat().st_size != size):
            return None
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        return Digest(found, path.stat().st_size) if found == sha256 else None
    except OSError:
        return None


def validator_of(response: httpx.Response) -> str | None:
    """What names this version of the file in If-Range: a strong ETag, or the date of the last change."""
    etag: str = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified")


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a number or a date: https://www.rfc-editor.org/rfc/rfc9110#name-retry-after"""
    if value is None:
        return None
    if (seconds := number_in(value)) is not None:
        return float(seconds)
    try:
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def number_in(value: str | None) -> int | None:
    """None for what is no number of seconds or bytes, such as one with hundreds of digits."""
    return int(value) if value is not None and _NUMBER.fullmatch(value.strip()) else None


def _said(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ReadTimeout):
        return "the server sent nothing for too long"
    return str(error) or type(error).__name__


def _shown(url: httpx.URL) -> str:
    """An address for people, without the password, and without the query, which may hold a signature."""
    return f"{url.scheme}://{url.netloc.decode()}{url.path}"
