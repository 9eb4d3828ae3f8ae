"""An end to requests that bring nothing while bytes drip.

httpx waits anew for each byte: headers that drip, or the lengths of chunks, never return to who called it. So the
client is closed under the request, which then raises one of `ENDED_BY_WATCH`.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from paceline.network import Client

ENDED_BY_WATCH = (httpx.HTTPError, httpx.StreamError, OSError, RuntimeError, AttributeError)
"""What a request raises, among others for other reasons, whose client was closed."""


class Watch:
    """While the block runs, `client` is closed once nothing was fed for `seconds`."""

    def __init__(self, client: Client, seconds: float) -> None:
        self._client, self._seconds = client, seconds
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ended = False
        """Whether it had to close the client."""

    def __enter__(self) -> None:
        self.feed()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def feed(self) -> None:
        """Something came."""
        self._until = time.monotonic() + self._seconds

    def _run(self) -> None:
        while not self._left.wait(max(0.0, self._until - time.monotonic())):
            if time.monotonic() >= self._until:
                self.ended = True
                self._client.close()
                return
