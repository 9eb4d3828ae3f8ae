"""What the TUF client asks the network, through the host's one door, with an end to everything.

A server that sends too much is stopped by the client's own count. This adds that nothing is unpacked on the way, so
what arrives is what is counted; one deadline for a whole refresh, however slowly bytes drip; and why an answer was
none.
"""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import httpx
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient import FetcherInterface

from paceline import network
from paceline.errors import OfflineError, PacelineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_REDIRECTS = 5
_SILENCE_S = 20.0
"""How long a server may say nothing."""


class NoAnswer(StrEnum):
    """Why there was nothing to verify."""

    OFFLINE = "offline"
    UNREACHABLE = "unreachable"
    TOO_SLOW = "tooSlow"
    REFUSED_BY_SERVER = "httpStatus"
    WEB_PAGE = "webPage"


class FetchError(DownloadError):
    """A request without a usable answer."""

    def __init__(self, why: NoAnswer, message: str) -> None:
        super().__init__(message)
        self.why = why


class HttpStatusError(DownloadHTTPError):
    """An answer that says no; the TUF client looks at its status."""


class Fetcher(FetcherInterface):
    """A context manager; leaving it closes the connections."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._client = network.client(
            headers={"Accept-Encoding": "identity"},
            timeout=min(_SILENCE_S, self._deadline_s),
            max_redirects=_REDIRECTS,
        )
        # Headers that drip never return to us, so the connections are closed under whoever waits for them.
        self._timer = threading.Timer(self._deadline_s, self._end)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._client.close()

    def _end(self) -> None:
        self._over.set()
        self._client.close()

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            with self._client.stream("GET", url) as answer:
                if answer.status_code != 200:
                    raise HttpStatusError(f"{url} answered with status {answer.status_code}", answer.status_code)
                if answer.headers.get("Content-Type", "").startswith("text/html"):
                    raise FetchError(NoAnswer.WEB_PAGE, f"{url} answered with a web page, perhaps one to log in")
                for part in answer.iter_raw():
                    if self._over.is_set():
                        break
                    yield part
        except OfflineError as error:
            raise FetchError(NoAnswer.OFFLINE, error.message) from None
        except PacelineError as error:
            raise FetchError(NoAnswer.UNREACHABLE, error.message) from None
        except httpx.TimeoutException:
            raise FetchError(NoAnswer.TOO_SLOW, f"{url} took too long to say anything") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, RuntimeError, AttributeError) as error:
            self._check_deadline(url)
            said = str(error) or type(error).__name__
            raise FetchError(NoAnswer.UNREACHABLE, f"{url} cannot be read: {said}") from None
        self._check_deadline(url)

    def _check_deadline(self, url: str) -> None:
        if self._over.is_set():
            raise FetchError(NoAnswer.TOO_SLOW, f"{url} was not there after {self._deadline_s:.0f} s") from None
