"""An HTTP server over loopback whose files a test sets, and a package index (PEP 691) made of them.

It answers ranges as https://www.rfc-editor.org/rfc/rfc9110#name-range-requests says, and misbehaves as it is told.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Serves `files`: by path, the content and its type. `status` is what it answers for those it has."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, str]] = {}
        self.redirects: dict[str, str] = {}
        self.status = 200
        self.asked: list[str] = []
        self.methods: list[str] = []
        """Of the requests in `asked`; only GET meets faults."""
        self.headers: list[dict[str, str]] = []
        """What came with each request, names in lower case."""
        self.credentials: tuple[str, ...] | None = None
        """Values of `Authorization` that are let in; None lets everybody in."""
        self.faulty = "/"
        """What begins so is what misbehaves."""
        self._faults: deque[Mapping[str, Any]] = deque()
        self._always: Mapping[str, Any] = {}
        self._ended = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.methods.append(self.command)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                if outer.credentials is not None and self.headers.get("Authorization") not in outer.credentials:
                    self._head(401, {"Content-Length": "0", "WWW-Authenticate": "Basic"})
                elif self.path in outer.redirects:
                    self._head(302, {"Content-Length": "0", "Location": outer.redirects[self.path]})
                elif self.path in outer.files:
                    fault = outer._fault(self.path) if self.command == "GET" else {}
                    self._serve(*outer.files[self.path], fault)
                else:
                    self._head(404, {"Content-Length": "0"})

            do_HEAD = do_GET

            def _serve(self, body: bytes, kind: str, fault: Mapping[str, Any]) -> None:
                headers = {"Content-Type": kind}
                if not fault.get("no_etag"):
                    headers["ETag"] = outer.etag(body)
                if "max_age" in fault:
                    headers["Cache-Control"] = f"max-age={fault['max_age']}"
                if status := fault.get("status"):
                    if "retry_after" in fault:
                        headers["Retry-After"] = fault["retry_after"]
                    self._head(status, headers | {"Content-Length": "0"})
                    return
                status, start, total = outer.status, 0, len(body)
                wanted = self.headers.get("Range", "")
                unchanged = self.headers.get("If-Range") in (None, outer.etag(body)) or fault.get("ignore_if_range")
                if wanted and unchanged and not fault.get("ignore_range"):
                    status, start = 206, int(wanted.removeprefix("bytes=").partition("-")[0])
                    said = fault.get("content_range", f"bytes {start}-{total - 1}/{total}")
                    if said is not None:
                        headers["Content-Range"] = said
                if (flip := fault.get("flip")) is not None:
                    body = body[:flip] + bytes([body[flip] ^ 1]) + body[flip + 1 :]
                body = body[start:]
                if shift := fault.get("shift"):
                    body = body[shift:] + body[:shift]
                if not fault.get("no_length"):
                    headers["Content-Length"] = str(fault.get("length", len(body)))
                self._head(status, headers)
                if self.command == "GET":
                    self._send(body, fault)
                    if then := fault.get("then"):
                        then()

            def _head(self, status: int, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def _send(self, body: bytes, fault: Mapping[str, Any]) -> None:
                stop = fault.get("truncate", fault.get("stall", len(body)))
                try:
                    if (pause := fault.get("drip")) is not None:
                        for byte in body:
                            self.wfile.write(bytes([byte]))
                            if outer._ended.wait(pause):
                                return
                        return
                    self.wfile.write(body[:stop])
                    if "stall" in fault:
                        outer._ended.wait(60)
                except OSError:  # the client has had enough
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def index(self) -> str:
        """The address of the package index."""
        return f"{self.url}/simple"

    @staticmethod
    def etag(content: bytes) -> str:
        return f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def misbehave(self, *faults: Mapping[str, Any], **fault: Any) -> None:
        """Answer the next requests for files there are each with one of `faults`, or the next one with `fault`.

        status, retry_after: answer that. truncate, stall: after so many bytes the connection ends, or nothing comes.
        drip: seconds between two bytes. flip: one bit of the byte there is another. length: a Content-Length that is
        not so. no_length, no_etag: without them. ignore_range, ignore_if_range: as if there were none. content_range:
        what is said of the range, whatever is sent. shift: the range begins so much later. max_age: seconds for which
        it need not be asked for again. then: called afterwards.
        """
        self._faults.extend(faults or [fault])

    def misbehave_always(self, **fault: Any) -> None:
        """Answer every request with `fault` for which `misbehave` left none."""
        self._always = fault

    def _fault(self, path: str) -> Mapping[str, Any]:
        if not path.startswith(self.faulty):
            return {}
        return self._faults.popleft() if self._faults else self._always

    def add_file(self, name: str, content: bytes) -> None:
        self.files[f"/files/{name}"] = content, "application/zip"

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[f"/files/{name}"][0]).hexdigest()

    def publish(self, project: str, uploads: Mapping[str, str], yanked: Collection[str] = ()) -> None:
        """Make the index list a project's files, added before, each with the day of its upload, some as yanked."""
        listed = [
            {
                "filename": name,
                "url": f"/files/{name}",
                "hashes": {"sha256": self.sha256(name)},
                "size": len(self.files[f"/files/{name}"][0]),
                "upload-time": f"{day}T00:00:00Z",
                "yanked": name in yanked,
            }
            for name, day in uploads.items()
        ]
        page = {"meta": {"api-version": "1.1"}, "name": project, "files": listed}
        self.files[f"/simple/{project}/"] = json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json"

    def close(self) -> None:
        """End the server; also when it has ended."""
        self._ended.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
