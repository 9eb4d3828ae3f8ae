"""A server as a process: started on a free port, waited for, ended."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from paceline.errors import PacelineError

_START_S = 120.0


@contextmanager
def serving(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a server that takes `--host` and `--port` and answers `/health`; it ends with the block.

    Raises PacelineError with the end of what it printed when it does not come up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole = [*map(str, command), "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        env = {**os.environ, **(environment or {})}
        process = subprocess.Popen(whole, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _comes_up(process, url):
                log.seek(0)
                raise PacelineError(f"{Path(whole[0]).name} did not start: {log.read()[-1500:]}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _comes_up(process: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    return False
