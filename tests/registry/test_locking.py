"""Locking a registry against a package index and a page without hashes that this test serves."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from paceline.errors import InstallError, RegistryError
from paceline.registry import read_registry, registry_text
from paceline.registry.locking import lock
from paceline.types import Package, Recipe, Release, Requirements

LINUX = Requirements(os="linux", arch="x86_64", min_glibc="2.28", python=">=3.12,<3.14")


@pytest.fixture
def site(tiny, file_server, tmp_path, monkeypatch):
    """A package index with two versions of `alpha` and one of `beta`."""
    for name in ("alpha-1.0-py3-none-any.whl", "alpha-2.0-py3-none-any.whl", "beta-1.5-py3-none-any.whl"):
        project, version = name.split("-")[:2]
        tiny.write_wheel(tmp_path / name, project, {f"{project}.py": "X = 1\n"}, version)
        file_server.add_file(name, (tmp_path / name).read_bytes())
    uploads = dict.fromkeys(("alpha-1.0-py3-none-any.whl", "alpha-2.0-py3-none-any.whl"), "2030-01-01")
    file_server.publish("alpha", uploads)
    file_server.publish("beta", {"beta-1.5-py3-none-any.whl": "2030-01-01"})
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", file_server.index)
    return file_server


def release(*roots, **recipe):
    return Release("e", "1.0", "linux-x86_64-cpu", ("gguf",), LINUX, Recipe(roots=roots, **recipe))


def pinned(site, name, version):
    """The package as the index publishes it."""
    file = f"{name}-{version}-py3-none-any.whl"
    return Package(name, version, (site.sha256(file),), (len(site.files[f"/files/{file}"][0]),))


@pytest.fixture
def locked(tmp_path):
    said = []

    def run(wanted, **options):
        return lock(wanted, cache=tmp_path / "cache", tell=said.append, **options)

    run.said = said
    return run


def test_versions_and_hashes_of_the_roots(site, locked):
    done = locked(release("alpha>=1", build_roots=("beta",)))

    assert done.recipe.packages == (pinned(site, "alpha", "2.0"),)
    assert done.recipe.build_packages == (pinned(site, "beta", "1.5"),)
    assert done.recipe.roots == ("alpha>=1",)


def test_what_is_locked_can_stay(site, locked):
    """Locked before its index said how large files are, and when version 1.0 was the newest."""
    alpha = replace(pinned(site, "alpha", "1.0"), size=())
    before = release("alpha>=1", packages=(alpha,))

    assert locked(before, keep=True).recipe.packages == (pinned(site, "alpha", "1.0"),)
    assert locked(before).recipe.packages == (pinned(site, "alpha", "2.0"),)


def test_when_the_engine_was_uploaded(site, locked):
    """The engine is the root that has the release's version, whatever else is uploaded later."""
    site.publish("beta", {"beta-1.5-py3-none-any.whl": "2030-02-02"})
    assert locked(release("beta", "alpha==1.0", build_roots=("beta",))).published == "2030-01-01T00:00:00+00:00"

    said_before = replace(release("beta"), published="2029-01-01T00:00:00+00:00")
    assert locked(said_before).published == "2029-01-01T00:00:00+00:00"


def test_an_index_that_says_no_sizes(site, locked):
    path = "/simple/beta/"
    page = json.loads(site.files[path][0])
    del page["files"][0]["size"]
    site.files[path] = json.dumps(page).encode(), site.files[path][1]

    assert locked(release("beta")).recipe.packages == (replace(pinned(site, "beta", "1.5"), size=()),)


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
        assert package.size == (len(name),)
        assert package.index == f"{site.url}/whl"
        assert locked.said == [f"fetching {name} for its sha256"]

    def test_a_hash_in_the_link_is_believed(self, site, locked, wanted):
        link = f'<a href="/whl/files/alpha-1.0-py3-none-linux_x86_64.whl#sha256={"a" * 64}">a</a>'
        site.files["/whl/alpha/"] = link.encode(), "text/html"

        (package,) = locked(wanted).recipe.packages
        assert (package.sha256, package.size) == (("a" * 64,), ())

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
        assert (done.returncode, "has no release named nothing" in done.stderr) == (3, True)

    def test_verify(self, file):
        listed = json.loads(self.run("verify", file, "--json").stdout)
        assert [r["id"] for r in listed] == ["e-linux-x86_64-cpu@1.0", "e-linux-x86_64-other@1.0"]
        file.write_text(file.read_text().replace('"gguf"', "7"))
        done = self.run("verify", file)
        assert (done.returncode, "$.releases[0].formats[0]: expected a text" in done.stderr) == (1, True)
