"""An HTTP server over loopback whose files a test sets, and a package index (PEP 691) made of them."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Serves `files`: by path, the content and its type. `status` is what it answers for those it has."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, str]] = {}
        self.status = 200
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body, kind = outer.files.get(self.path, (None, "text/plain"))
                self.send_response(outer.status if body is not None else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def index(self) -> str:
        """The address of the package index."""
        return f"{self.url}/simple"

    def add_file(self, name: str, content: bytes) -> None:
        self.files[f"/files/{name}"] = content, "application/zip"

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[f"/files/{name}"][0]).hexdigest()

    def publish(self, project: str, uploads: dict[str, str]) -> None:
        """Make the index list a project's files, added before, each with the day of its upload."""
        listed = [
            {
                "filename": name,
                "url": f"/files/{name}",
                "hashes": {"sha256": self.sha256(name)},
                "upload-time": f"{day}T00:00:00Z",
            }
            for name, day in uploads.items()
        ]
        page = {"meta": {"api-version": "1.1"}, "name": project, "files": listed}
        self.files[f"/simple/{project}/"] = json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json"

    def close(self) -> None:
        """End the server; also when it has ended."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
