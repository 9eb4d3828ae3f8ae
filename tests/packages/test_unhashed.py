"""Wheels whose page publishes no hashes, from servers that behave and that do not: fetched as pinned ones are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from paceline.errors import ArchiveError, DownloadError, OfflineError, SmokeTestError
from paceline.manager.installation import install
from paceline.network import Clients
from paceline.packages import cache, first_use, indexes
from paceline.packages.depot import Depot, PackageFile
from paceline.packages.download import Patience, download
from paceline.packages.heads import head_of
from paceline.packages.unhashed import bring, locate
from paceline.progress import Phase
from paceline.store import Store, transaction
from paceline.types import Package

NAME = "tinyengine-1.0.0-py3-none-any.whl"
PATH = f"/whl/files/{NAME}"


@pytest.fixture
def page(tiny, file_server, tmp_path, monkeypatch):
    """A page over HTTP that says nothing but names; the fixture puts another wheel there, and returns its sha256."""

    def put(note="first", **settings):
        files = {"tinyengine/__main__.py": tiny.worker, "tinyengine/settings.json": json.dumps(settings)}
        tiny.write_wheel(tmp_path / NAME, "tinyengine", files | {"tinyengine/note": note + "#" * 300_000})
        put.content = (tmp_path / NAME).read_bytes()
        file_server.files[PATH] = put.content, "application/zip"
        return hashlib.sha256(put.content).hexdigest()

    put()
    listed = f'<html><body><a href="../files/{NAME}">{NAME}</a></body></html>'
    file_server.files["/whl/tinyengine/"] = listed.encode(), "text/html"
    file_server.faulty = "/whl/files/"
    monkeypatch.delenv("PIP_NO_INDEX")
    quick = Patience(stall_s=0.5, attempts=2, backoff_s=0.01)
    monkeypatch.setattr(indexes, "download", lambda *a, **k: download(*a, **{"patience": quick, **k}))
    return put


@pytest.fixture
def package(file_server, page):
    return Package("tinyengine", "1.0.0", index=f"{file_server.url}/whl")


@pytest.fixture
def fetch(tiny, package):
    """Brings the package to a depot; `bytes` is the last count."""
    depot = Depot(tiny.cache)

    def run(**options):
        def progress(phase, done=0, total=None, message=""):
            if phase is Phase.DOWNLOAD:
                run.bytes = done, total

        run.bytes = None
        found = indexes.Indexes(tiny.cache)
        try:
            wanted = locate([replace(package, **options)], found, depot)
            (file,) = bring(wanted, found, depot, progress).values()
        finally:
            found.close()
        return file

    run.depot = depot
    return run


@pytest.fixture
def put(tiny, package):
    """Installs the tiny engine with that package; `bytes` is the last count of its download."""
    whole = tiny.release()
    release = replace(whole, recipe=replace(whole.recipe, packages=(package,), build_packages=()))

    def run(**options):
        def progress(phase, done=0, total=None, message=""):
            if phase is Phase.DOWNLOAD and total:
                run.bytes = done, total

        run.bytes = None
        options = {"allow_unpinned": True, **options}
        return install(release, Store(tiny.home), tiny.engine, progress, **options)

    return run


def gets(server):
    """How often the file was asked for."""
    return [(p, m) for p, m in zip(server.asked, server.methods, strict=True)].count((PATH, "GET"))


def test_every_byte_is_counted_and_the_hash_is_what_came(file_server, page, fetch):
    file = fetch()
    assert file == PackageFile(NAME, hashlib.sha256(page.content).hexdigest(), len(page.content))
    assert fetch.depot.path(file).read_bytes() == page.content
    assert fetch.bytes == (len(page.content), len(page.content))
    assert gets(file_server) == 1


def test_an_installation_counts_them_too_and_records_the_hash(tiny, file_server, page, put):
    put()
    assert put.bytes == (len(page.content), len(page.content))
    (entry,) = json.loads(first_use.record_file(tiny.home).read_bytes())["packages"].values()
    assert entry["sha256"] == [hashlib.sha256(page.content).hexdigest()]
    assert gets(file_server) == 1
    assert not list(tiny.cache.glob(f"packages/files/*/{NAME}*"))


def test_what_broke_off_goes_on_if_it_is_the_same_still(file_server, page, fetch):
    file_server.misbehave({"truncate": 100_000}, {"status": 503})
    with pytest.raises(DownloadError, match=r"tinyengine 1\.0\.0 cannot be fetched from .*/whl: .*503"):
        fetch()
    file_server.headers.clear()
    fetch()
    (rest,) = (headers for headers in file_server.headers if "range" in headers)
    assert rest["range"] == "bytes=100000-"
    assert rest["if-range"] == file_server.etag(page.content)


def test_what_changed_meanwhile_begins_anew(file_server, page, fetch):
    file_server.misbehave({"truncate": 100_000, "then": lambda: page("second")})
    file = fetch()
    assert file.sha256 == hashlib.sha256(page.content).hexdigest()
    assert b"second" in fetch.depot.path(file).read_bytes()


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ({"stall": 1000}, DownloadError, "nothing for too long"),
        ({"truncate": 1000, "no_etag": True}, DownloadError, "peer closed connection"),
        ({"flip": 100_000}, ArchiveError, "it is damaged"),
        ({"status": 404}, DownloadError, "404"),
    ],
)
def test_a_server_that_does_not_bring_it(file_server, page, fetch, fault, error, said):
    file_server.misbehave_always(**fault)
    with pytest.raises(error, match=said):
        fetch()
    file_server.misbehave_always()
    assert fetch().sha256 == hashlib.sha256(page.content).hexdigest()


def test_a_page_to_log_in_is_no_wheel(file_server, page, fetch):
    file_server.files[PATH] = b"<!doctype html><title>Guests</title>", "text/html"
    with pytest.raises(DownloadError, match=r"answered with a web page \('Guests'\)"):
        fetch()


def test_after_a_failure_nothing_is_fetched_again_unless_it_changed(tiny, file_server, page, put):
    page(crash="yes")
    for _ in range(2):
        with pytest.raises(SmokeTestError):
            put()
    assert gets(file_server) == 1
    page()
    put()
    assert gets(file_server) == 2


def test_another_file_than_the_recorded_one_is_refused_before_it_is_taken(tiny, file_server, page, put):
    Store(tiny.home).remove(put(), force=True)
    before = len(page.content)
    page("another")
    said = rf"the server offers {len(page.content)} bytes instead of {before}"
    with pytest.raises(DownloadError, match=said) as caught:
        put(cache=tiny.cache / "another")
    assert "required is what was first used here: tinyengine 1.0.0 (" in caught.value.help


def test_what_is_recorded_is_fetched_in_the_same_way(tiny, file_server, page, put):
    store = Store(tiny.home)
    store.remove(put(), force=True)
    assert {part.name: part.freed_bytes for part in cache.clear(tiny.cache)}["fetched packages"] > 0
    file_server.asked.clear()
    file_server.methods.clear()
    file_server.headers.clear()
    file_server.misbehave({"truncate": 100_000})
    put(allow_unpinned=False, cache=tiny.cache / "another")
    assert put.bytes == (len(page.content), len(page.content))
    assert gets(file_server) == 2
    agents = {
        h["user-agent"].partition("/")[0]
        for p, h in zip(file_server.asked, file_server.headers, strict=True)
        if p == PATH
    }
    assert agents == {"paceline"}


def test_what_came_whole_before_a_kill_is_not_fetched_again(file_server, page, fetch):
    def end(step, path):
        if step == "make file" and path.parent.name == "seen":
            raise KeyboardInterrupt

    with transaction.observed(end), pytest.raises(KeyboardInterrupt):
        fetch()
    assert fetch().sha256 == hashlib.sha256(page.content).hexdigest()
    assert gets(file_server) == 1


def test_a_page_that_tells_the_hash_is_held_to_it(file_server, page, fetch):
    listed = {"filename": NAME, "url": f"../files/{NAME}", "hashes": {"sha256": "0" * 64}, "size": len(page.content)}
    file_server.files["/whl/tinyengine/"] = json.dumps({"files": [listed]}).encode(), "application/json"
    with pytest.raises(DownloadError, match=f"not {'0' * 64}"):
        fetch()


def test_a_page_without_the_wheel_and_no_page(file_server, page, fetch):
    with pytest.raises(DownloadError, match=r"/whl/tinyengine/ has no wheel of tinyengine 1\.0\.1 for this Python"):
        fetch(version="1.0.1")
    with pytest.raises(DownloadError, match="404"):
        fetch(name="other")
    file_server.files["/whl/tinyengine/"] = b"{}", "application/json"
    with pytest.raises(DownloadError, match="it is no page of a package index"):
        fetch()


def test_a_page_of_files_here(tiny, put, page, fetch):
    file = fetch(index=tiny.simple_index())
    assert fetch.depot.path(file).is_file()
    assert fetch.bytes is not None


def test_offline_nothing_is_asked(file_server, page, fetch, monkeypatch):
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    with pytest.raises(OfflineError, match="was not asked"):
        fetch()
    assert file_server.asked == []


class TestAHead:
    @pytest.fixture
    def head(self, file_server):
        clients = Clients()
        yield lambda path=PATH: head_of(f"{file_server.url}{path}", clients, 0.3)
        clients.close()

    def test_says_size_and_version(self, file_server, page, head):
        found = head()
        assert (found.size, found.validator) == (len(page.content), file_server.etag(page.content))

    def test_that_is_none(self, file_server, page, head):
        assert head("/nothing") is None
        file_server.close()
        assert head() is None
