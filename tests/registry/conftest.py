"""A signed registry over a real HTTP server, its keys at hand, so that a test can publish, forge and misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, MetaFile

from paceline.registry import publishing, registry_text, signing, trust
from paceline.types import Package, Recipe, Release, Requirements


class Repository:
    """The files of a signed registry, below `folder`/site, with its keys beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site, self.keys = folder, folder / "site", folder / "keys"
        self.metadata = self.site / "metadata"
        for role in publishing.ROLES:
            signing.new_key(self.keys, role)

    def publish(self, *versions: str) -> None:
        file = self.folder / "registry.json"
        file.write_text(registry_text([self.release(version) for version in versions]))
        publishing.publish(file, self.keys, self.site)

    @staticmethod
    def release(version: str, **fields: Any) -> Release:
        recipe = Recipe((Package("tinyengine", version, ("a" * 64,)),))
        return Release("tiny", version, "any-cpu", ("tiny",), Requirements(), recipe, **fields)

    def root(self) -> dict[str, Any]:
        return json.loads((self.metadata / "1.root.json").read_bytes())

    def newest(self, role: str) -> Path:
        if role == "timestamp":
            return self.metadata / "timestamp.json"
        found = self.metadata.glob(f"[0-9]*.{role}.json")
        return max(found, key=lambda file: int(file.name.partition(".")[0]))

    def target(self) -> Path:
        (entry,) = Metadata.from_file(str(self.newest("targets"))).signed.targets.values()
        return self.site / "targets" / f"{entry.hashes['sha256']}.registry.json"

    def forge(
        self, role: str, change: Callable[[Any], None] | None = None, *, keys: Any = None, name: str | None = None
    ) -> None:
        """Change the newest metadata of a role in place and sign it, with the role's own key or with `keys`."""
        file = self.newest(role)
        metadata = Metadata.from_file(str(file))
        if change is not None:
            change(metadata.signed)
        metadata.signatures.clear()
        for signer in signing.keys_of(self.keys, role) if keys is None else keys:
            metadata.sign(signer, append=True)
        (self.metadata / (name or file.name)).write_bytes(metadata.to_bytes())

    meta_file = staticmethod(lambda data: meta_file(data))

    def rechain(self) -> None:
        """Have snapshot and timestamp, a version on, announce whatever lies there now."""
        for role, referred in (("snapshot", "targets"), ("timestamp", "snapshot")):
            data = self.newest(referred).read_bytes()

            def announce(signed: Any, role: str = role, entry: MetaFile = meta_file(data)) -> None:  # noqa: B008
                signed.version += 1
                if role == "snapshot":
                    signed.meta = {"targets.json": entry}
                else:
                    signed.snapshot_meta = entry

            following = Metadata.from_file(str(self.newest(role))).signed.version + 1
            self.forge(role, announce, name=None if role == "timestamp" else f"{following}.{role}.json")


def meta_file(data: bytes) -> MetaFile:
    """How other metadata announces this."""
    return MetaFile.from_data(Metadata.from_bytes(data).signed.version, data, ["sha256"])


class Web:
    """Serves a folder. `answers` maps the end of a path to a function that answers instead."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                for end, answer in outer.answers.items():
                    if self.path.endswith(end):
                        return answer(self)
                file = outer.folder / self.path.lstrip("/")
                if not file.is_file():
                    return self.send_error(404)
                data = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return None

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(BrokenPipeError, ConnectionResetError):  # a client that had enough
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A signed registry with version 1.0 of the engine `tiny`."""
    made = Repository(tmp_path / "publisher")
    made.publish("1.0")
    return made


@pytest.fixture
def web(repository: Repository):
    server = Web(repository.site)
    yield server
    server.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def registry(repository: Repository, web: Web, home: Path) -> trust.TrustedRegistry:
    """That registry, trusted by its first root, under the name `acme`."""
    made = trust.make_trusted(home, web.url, repository.root(), "acme")
    trust.remember_trust(made)
    return made
