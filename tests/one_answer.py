"""Serve a model, have it answer once, wait for the update at start-up and end: `python one_answer.py MODEL ARGV…`.

ARGV are the arguments of `paceline`, `serve --port 0` among them. Prints a JSON object: the server's `port`, the
`answer` to a chat request, the `update` that it made and what it `said`.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time

import httpx


def main(model: str, argv: list[str]) -> None:
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "paceline", *argv]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)", server.stdout.readline())
            if found is None:
                sys.exit(f"it does not serve: {_text(log)}")
            with httpx.Client(base_url=found[0], timeout=60, trust_env=False) as http:
                request = {"model": model, "messages": [{"role": "user", "content": "To be or not"}], "max_tokens": 4}
                answer = http.post("/v1/chat/completions", json=request)
                update = _update(http)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        told = {"port": int(found[1]), "answer": answer.json(), "update": update, "said": _text(log)}
    print(json.dumps(told))


def _update(http: httpx.Client) -> dict:
    for _ in range(1200):
        update = http.get("/api/v1/runtimes/updates").json()
        if update["state"] in ("done", "failed", "cancelled"):
            return update
        time.sleep(0.05)
    sys.exit(f"the update does not end: {update}")


def _text(log) -> str:
    log.seek(0)
    return log.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
