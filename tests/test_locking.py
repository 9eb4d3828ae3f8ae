"""Locking a registry against a package index and a page without hashes that this test serves."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from paceline.errors import InstallError, RegistryError
from paceline.locking import lock
from paceline.registry import read_registry, registry_text
from paceline.types import Package, Recipe, Release, Requirements

LINUX = Requirements(os="linux", arch="x86_64", min_glibc="2.28", python=">=3.12,<3.14")


class Site:
    """Files by path."""

    def __init__(self):
        self.files = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body, kind = site.files.get(self.path, (None, "text/plain"))
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def project(self, name, *wheels):
        files = [{"filename": w, "url": f"/files/{w}", "hashes": {"sha256": self.sha256(w)}} for w in wheels]
        page = {"meta": {"api-version": "1.0"}, "name": name, "files": files}
        self.files[f"/simple/{name}/"] = json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json"

    def sha256(self, wheel):
        return hashlib.sha256(self.files[f"/files/{wheel}"][0]).hexdigest()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def site(tiny, tmp_path, monkeypatch):
    made = Site()
    for name in ("alpha-1.0-py3-none-any.whl", "alpha-2.0-py3-none-any.whl", "beta-1.5-py3-none-any.whl"):
        project, version = name.split("-")[:2]
        tiny.write_wheel(tmp_path / name, project, {f"{project}.py": "X = 1\n"}, version)
        made.files[f"/files/{name}"] = (tmp_path / name).read_bytes(), "application/zip"
    made.project("alpha", "alpha-1.0-py3-none-any.whl", "alpha-2.0-py3-none-any.whl")
    made.project("beta", "beta-1.5-py3-none-any.whl")
    monkeypatch.delenv("UV_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{made.url}/simple")
    yield made
    made.close()


def release(*roots, **recipe):
    return Release("e", "1.0", "linux-x86_64-cpu", ("gguf",), LINUX, Recipe(roots=roots, **recipe))


@pytest.fixture
def locked(tmp_path):
    said = []

    def run(wanted, **options):
        return lock(wanted, cache=tmp_path / "cache", tell=said.append, **options)

    run.said = said
    return run


def test_versions_and_hashes_of_the_roots(site, locked):
    done = locked(release("alpha>=1", build_roots=("beta",)))

    assert done.recipe.packages == (Package("alpha", "2.0", (site.sha256("alpha-2.0-py3-none-any.whl"),)),)
    assert done.recipe.build_packages == (Package("beta", "1.5", (site.sha256("beta-1.5-py3-none-any.whl"),)),)
    assert done.recipe.roots == ("alpha>=1",)


def test_a_package_that_only_some_pythons_need_gets_a_marker(site, locked):
    done = locked(release("alpha", "beta; python_version >= '3.13'"))

    assert [(p.name, p.marker) for p in done.recipe.packages] == [
        ("alpha", None),
        ("beta", "python_version >= '3.13'"),
    ]


def test_what_cannot_be_resolved(site, locked):
    with pytest.raises(InstallError, match="alpha==9") as caught:
        locked(release("alpha==9"))
    assert "no version" in caught.value.message


class TestAPageWithoutHashes:
    @pytest.fixture
    def wanted(self, site):
        page = [
            "alpha-1.0-py3-none-manylinux_2_17_x86_64.whl",
            "alpha-1.0-py3-none-macosx_11_0_arm64.whl",
            "alpha-1.0-py3-none-win_amd64.whl",
            "alpha-2.0-py3-none-linux_x86_64.whl",
            "alpha-1.0.tar.gz",
        ]
        for name in page:
            site.files[f"/whl/files/{name}"] = name.encode(), "application/zip"
        links = "".join(f'<a href="../files/{name}">{name}</a>\n' for name in page)
        site.files["/whl/alpha/"] = f"<!doctype html><html><body>{links}</body></html>".encode(), "text/html"
        return release("alpha==1.0", unhashed={"alpha": f"{site.url}/whl"})

    def test_is_hashed_by_fetching_what_the_platform_could_use(self, site, locked, wanted):
        (package,) = locked(wanted).recipe.packages

        name = "alpha-1.0-py3-none-manylinux_2_17_x86_64.whl"
        assert package.sha256 == (hashlib.sha256(name.encode()).hexdigest(),)
        assert package.index == f"{site.url}/whl"
        assert locked.said == [f"fetching {name} for its sha256"]

    def test_a_hash_in_the_link_is_believed(self, site, locked, wanted):
        link = f'<a href="/whl/files/alpha-1.0-py3-none-linux_x86_64.whl#sha256={"a" * 64}">a</a>'
        site.files["/whl/alpha/"] = link.encode(), "text/html"

        (package,) = locked(wanted).recipe.packages
        assert package.sha256 == ("a" * 64,)

    def test_stays_unpinned_when_nothing_may_be_fetched(self, site, locked, wanted):
        done = locked(wanted, fetch=False)
        assert [p.name for p in done.recipe.unpinned] == ["alpha"]

    def test_that_lacks_the_wheel(self, site, locked, wanted):
        mac = replace(wanted, requires=replace(LINUX, os="windows", arch="arm64"))
        with pytest.raises(RegistryError, match=r"has no wheel of alpha 1\.0 for windows on arm64"):
            locked(mac)

    def test_that_is_gone(self, site, locked, wanted):
        del site.files["/whl/alpha/"]
        with pytest.raises(RegistryError, match=r"cannot be read.*404"):
            locked(wanted)


class TestTheCommand:
    @pytest.fixture
    def file(self, tmp_path):
        file = tmp_path / "registry.json"
        other = replace(release("beta"), platform="linux-x86_64-other")
        file.write_text(registry_text([release("alpha"), other]))
        return file

    @staticmethod
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "paceline", "registry", *map(str, arguments)], capture_output=True, text=True
        )

    def test_build_locks_what_is_named(self, site, file):
        before = file.read_text()
        dry = self.run("build", file, "e-linux-x86_64-cpu", "--dry-run")
        assert (dry.returncode, dry.stdout) == (0, "e-linux-x86_64-cpu@1.0: 1 of 1 packages changed\n"), dry.stderr
        assert file.read_text() == before

        done = self.run("build", file, "e-linux-x86_64-cpu")
        assert done.returncode == 0, done.stderr
        first, second = read_registry(file)
        assert [p.name for p in first.recipe.packages] == ["alpha"]
        assert second.recipe.packages == ()
        assert self.run("build", file, "e-linux-x86_64-cpu").stdout == "e-linux-x86_64-cpu@1.0: unchanged\n"

    def test_a_name_that_is_not_there(self, file):
        done = self.run("build", file, "nothing")
        assert (done.returncode, "has no release named nothing" in done.stderr) == (1, True)

    def test_verify(self, file):
        listed = json.loads(self.run("verify", file, "--json").stdout)
        assert [r["id"] for r in listed] == ["e-linux-x86_64-cpu@1.0", "e-linux-x86_64-other@1.0"]
        file.write_text(file.read_text().replace('"gguf"', "7"))
        done = self.run("verify", file)
        assert (done.returncode, "$.releases[0].formats[0]: expected a text" in done.stderr) == (1, True)
