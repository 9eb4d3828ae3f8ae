"""Newer releases from a package index that this test serves: real uv, real HTTP, real installations."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from paceline import plugins
from paceline.errors import InstallError, NotFoundError
from paceline.packages import python_versions
from paceline.packages.resolution import Resolver
from paceline.registry import found_file, load_registry, read_registry, upstream
from paceline.types import Package, Recipe, Release, Requirements, Upstream

NOW = datetime(2030, 6, 30, tzinfo=UTC)
SOURCE = Upstream("tinyengine", ">=1,<2")


class Index:
    """A package index with the versions of one project, each uploaded on a day of its own."""

    def __init__(self, server, folder, tiny):
        self.server = server
        self._folder, self._tiny = folder, tiny
        self._uploads = {}

    @property
    def url(self):
        return self.server.index

    def publish(self, version, day, **settings):
        name = f"tinyengine-{version}-py3-none-any.whl"
        files = {"tinyengine/__main__.py": self._tiny.worker, "tinyengine/settings.json": json.dumps(settings)}
        self._tiny.write_wheel(self._folder / name, "tinyengine", files, version)
        self.server.add_file(name, (self._folder / name).read_bytes())
        self._uploads[name] = day
        self.server.publish("tinyengine", self._uploads)
        return self.server.sha256(name)


@pytest.fixture
def index(tiny, file_server, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", file_server.index)
    return Index(file_server, tmp_path, tiny)


@pytest.fixture
def release(index):
    """What the registry knows: version 1.0, a wheel of the index."""
    digest = index.publish("1.0", "2030-01-01")
    recipe = Recipe((Package("tinyengine", "1.0", (digest,)),), roots=("tinyengine==1.0",))
    requires = Requirements(os="linux", arch="x86_64", min_glibc="2.28")
    return Release("tiny", "1.0", "any-cpu", ("tiny",), requires, recipe)


@pytest.fixture
def newest(release, tmp_path):
    def ask(**options):
        return upstream.newest(release, SOURCE, cache=tmp_path / "cache", **{"now": NOW, **options}).release

    return ask


def test_the_newest_version_that_the_plugin_can_drive(index, newest):
    digest = index.publish("1.10", "2030-02-01")
    index.publish("1.9", "2030-03-01")
    index.publish("2.0", "2030-04-01")

    found = newest()

    assert found.id == "tiny-any-cpu@1.10"
    size = len(index.server.files["/files/tinyengine-1.10-py3-none-any.whl"][0])
    assert found.recipe.packages == (Package("tinyengine", "1.10", (digest,), (size,)),)
    assert found.recipe.roots == ("tinyengine==1.10",)
    assert found.notes == "Found in the package index on 2030-06-30."
    assert found.published == "2030-02-01T00:00:00+00:00"


def test_nothing_newer(newest):
    assert newest() is None


def test_pre_releases_are_for_those_who_ask(index, newest):
    index.publish("1.2b1", "2030-02-01")

    assert newest() is None
    found = newest(prerelease=True)
    assert (found.version, found.channel) == ("1.2b1", "beta")


def test_what_is_too_young_waits(index, newest):
    index.publish("1.1", "2030-06-01")
    index.publish("1.2", "2030-06-29")

    assert newest(minimum_age=timedelta(days=7)).version == "1.1"
    assert newest(minimum_age=timedelta(days=60)) is None
    assert newest().version == "1.2"


def test_a_held_version_hides_no_other(index, newest):
    index.publish("1.1", "2030-02-01")
    index.publish("1.2", "2030-03-01")

    assert newest(without=["1.2"]).version == "1.1"
    assert newest(without=["1.1", "1.2"]) is None


def test_a_version_that_is_named_is_found_older_or_newer(index, release, tmp_path):
    digest = index.publish("1.1", "2030-02-01")
    index.publish("1.2", "2030-03-01")
    index.publish("1.3b1", "2030-03-02")

    def exactly(version):
        return upstream.exactly(release, SOURCE, version, cache=tmp_path / "cache", now=NOW)

    found = exactly("1.1")
    assert (found.id, found.recipe.roots) == ("tiny-any-cpu@1.1", ("tinyengine==1.1",))
    assert (found.recipe.packages[0].sha256, found.published) == ((digest,), "2030-02-01T00:00:00+00:00")
    assert exactly("1.3b1").channel == "beta"
    with pytest.raises(NotFoundError, match=r"tiny drives tinyengine >=1,<2, and 2\.0 is not of these versions"):
        exactly("2.0")
    with pytest.raises(NotFoundError, match=r"tinyengine==1\.7.*the newest that the package index has of .*, is 1\.2$"):
        exactly("1.7")
    index.server.close()
    with pytest.raises(InstallError, match="tinyengine"):
        exactly("1.7")


@pytest.mark.parametrize(
    ("root", "asked"),
    [
        ("llguidance==1.9.1", "llguidance>=1.9.1,<2"),
        ("jinja[extra]==0.5.3", "jinja[extra]>=0.5.3,<0.6"),
        ("calendar==1!2.0", "calendar>=1!2.0,<1!3"),
        ("nvidia-cublas-cu12>=12.4,<13", "nvidia-cublas-cu12>=12.4,<13"),
        ("mlx[cpu]", "mlx[cpu]"),
        ("wild==1.*", "wild==1.*"),
    ],
)
def test_companions_stay_below_what_may_break_them(release, tmp_path, monkeypatch, root, asked):
    """What uv is asked for, without asking it."""
    questions = []

    def compile(self, roots, *_, **__):
        questions.extend(roots)
        return [{"name": "tinyengine", "version": "1.0", "wheels": [{"hashes": {"sha256": "a" * 64}}]}]

    monkeypatch.setattr(Resolver, "_compile", compile)
    with_companion = replace(release, recipe=replace(release.recipe, roots=("tinyengine==1.0", root)))
    upstream.newest(with_companion, SOURCE, cache=tmp_path / "cache", now=NOW)

    assert questions == ["tinyengine>=1,<2", asked]


def test_the_channel_is_that_of_the_version(index, release, tmp_path):
    index.publish("1.1", "2030-02-01")
    beta = replace(release, channel="beta")
    assert upstream.newest(beta, SOURCE, cache=tmp_path / "cache", now=NOW).release.channel == "stable"


def test_what_was_found_before_does_not_decide_what_is_asked(release):
    found = [replace(release, version=version, source="package index") for version in ("1.2b1", "1.1")]
    shipped = replace(release, source="paceline")
    assert upstream.template([*found, shipped], release.name) == shipped
    assert upstream.template(found, release.name) == found[1]
    assert upstream.template([*found, shipped], "another") is None


@pytest.mark.parametrize("status", [404, 403])
def test_an_index_that_does_not_answer(index, newest, status):
    index.server.status = status

    with pytest.raises(InstallError, match=r"tinyengine<2,>=1|tinyengine>=1,<2") as caught:
        newest()
    assert "package index" in caught.value.help


def test_what_was_heard_before_is_not_taken_for_news(index, newest):
    """Also not while it counts as fresh: for the minutes that an index allows, or until a clock set back caught up."""
    index.server.misbehave_always(max_age=365 * 86400)
    assert newest() is None

    index.publish("1.5", "2030-05-01")

    assert newest().version == "1.5"


def test_a_clock_that_was_wrong_keeps_no_update_away(index, newest):
    index.publish("1.5", "2030-05-01")
    with pytest.raises(InstallError, match="tinyengine"):  # in 1970 nothing was published yet
        newest(now=datetime(1970, 2, 1, tzinfo=UTC), minimum_age=timedelta(days=7))
    assert newest(now=datetime(2999, 1, 1, tzinfo=UTC), minimum_age=timedelta(days=7)).version == "1.5"

    assert newest(now=NOW, minimum_age=timedelta(days=7)).version == "1.5"


def test_an_index_that_sends_a_web_page(index, newest):
    index.server.files["/simple/tinyengine/"] = b"<html>please log in</html>", "text/html"

    with pytest.raises(InstallError, match="cannot be resolved"):
        newest()


def test_only_releases_that_were_resolved_can_be_asked_for(release):
    assert upstream.can_be_asked(release, SOURCE)
    assert not upstream.can_be_asked(release, None)
    assert not upstream.can_be_asked(release, Upstream("another", ">=1"))
    by_page = replace(release.recipe, unhashed={"tinyengine": "https://example.org/whl"})
    assert not upstream.can_be_asked(replace(release, recipe=by_page), SOURCE)


def test_what_several_find_at_once_is_all_remembered(tiny):
    file, versions = found_file(tiny.home), [f"1.{n}" for n in range(16)]
    with ThreadPoolExecutor(len(versions)) as pool:
        list(pool.map(lambda version: upstream.remember(file, [tiny.release(version)]), versions))
    assert {r.version for r in read_registry(file)} == set(versions)
    assert [path.name for path in tiny.home.iterdir() if path.name.startswith(".")] == []


def test_what_is_forgotten_is_found_no_more(tiny):
    file, (old, gone, new) = found_file(tiny.home), map(tiny.release, ("1.1", "1.2", "1.3"))
    upstream.remember(file, [old, gone], forgotten=["nobody-any-cpu@9.9"])
    upstream.remember(file, [new], forgotten=[gone.id])
    assert read_registry(file) == (old, new)
    before = file.stat().st_mtime_ns
    upstream.remember(file, [], forgotten=[gone.id])
    assert file.stat().st_mtime_ns == before


def test_what_was_found_is_remembered(tiny, index, newest):
    file = found_file(tiny.home)
    index.publish("1.1", "2030-02-01")
    upstream.remember(file, [newest()])
    index.publish("1.2", "2030-03-01")
    upstream.remember(file, [newest()])

    assert [r.version for r in read_registry(file)] == ["1.1", "1.2"]
    again = replace(newest(), notes="Found on another day.")
    upstream.remember(file, [again])
    assert again not in read_registry(file)
    after = f"3.{sys.version_info.minor + 1}"
    another_python = replace(again, requires=replace(again.requires, python=f"=={after}.*"))
    upstream.remember(file, [another_python])
    both = python_versions.specifier_of([python_versions.here(), after])
    assert replace(another_python, requires=replace(again.requires, python=both)) in read_registry(file)
    more = replace(another_python, features=("generate",))
    upstream.remember(file, [more])
    assert more in read_registry(file)

    known = load_registry(plugins.Plugins((), {"tiny": tiny.engine}), home=tiny.home)
    assert [(r.version, r.source) for r in known.match("tiny")] == [
        ("1.2", "package index"),
        ("1.1", "package index"),
        ("1.0.0", "engine tiny"),
    ]


def test_what_the_plugin_no_longer_drives_is_not_listed(tiny, release):
    upstream.remember(found_file(tiny.home), [replace(release, version=version) for version in ("1.1", "2.0")])

    known = load_registry(plugins.Plugins((), {"tiny": tiny.engine}), home=tiny.home)
    assert [r.version for r in known.match("tiny")] == ["1.1", "1.0.0"]


class TestTheCommand:
    @pytest.fixture
    def installed(self, tiny, release, index):
        tiny.offer(replace(release, requires=Requirements(os="linux")))
        done = self.run(tiny, index, "get", "tiny")
        assert done.returncode == 0, done.stderr

    @staticmethod
    def run(tiny, index, *arguments, **more):
        variables = {"UV_DEFAULT_INDEX": index.url, "PIP_NO_INDEX": "", "UV_FIND_LINKS": "", **more}
        return tiny.paceline("runtime", *arguments, **variables)

    @pytest.mark.usefixtures("installed")
    def test_check_then_update(self, tiny, index):
        same = self.run(tiny, index, "update", "--check")
        assert (same.returncode, "it is the newest" in same.stdout) == (0, True), same.stderr
        index.publish("1.1", "2030-02-01")

        check = self.run(tiny, index, "update", "--check", "--json")
        assert check.returncode == 100, check.stderr
        (update,) = json.loads(check.stdout)["updates"]
        assert update.pop("notes").startswith("Found in the package index on ")
        cost = {"built_here": [], "expected_build_s": None, "download_bytes": update["download_bytes"]}
        assert update == {"runtime": "tiny-any-cpu@1.0", "formats": ["tiny"], "release": "tiny-any-cpu@1.1", **cost}
        dry = self.run(tiny, index, "update", "--dry-run")
        assert (dry.returncode, "would be updated" in dry.stdout) == (0, True)
        assert self.selected(tiny, index) == {"tiny-any-cpu@1.0": ["tiny"]}

        done = self.run(tiny, index, "update")
        assert (done.returncode, "updated" in done.stdout) == (0, True), done.stderr
        assert self.selected(tiny, index) == {"tiny-any-cpu@1.1": ["tiny"], "tiny-any-cpu@1.0": []}

    @pytest.mark.usefixtures("installed")
    def test_what_was_found_without_a_minimum_age_waits_with_one(self, tiny, index):
        index.publish("1.1", "2030-02-01")
        assert self.run(tiny, index, "update", "--check").returncode == 100

        kept = self.run(tiny, index, "update", "--minimum-age", "7")
        assert "1.1 is newer, but it was published, or first seen here, on 2030-02-01" in kept.stdout, kept.stderr
        assert self.selected(tiny, index) == {"tiny-any-cpu@1.0": ["tiny"]}

    @pytest.mark.usefixtures("installed")
    def test_a_version_that_does_not_start_is_never_selected(self, tiny, index):
        index.publish("1.1", "2030-02-01", crash="yes")

        done = self.run(tiny, index, "update")

        assert done.returncode == 1
        assert "the engine has no wheels" in done.stderr
        assert self.selected(tiny, index) == {"tiny-any-cpu@1.0": ["tiny"]}

    @pytest.mark.usefixtures("installed")
    def test_an_index_that_is_gone_changes_nothing_and_is_said(self, tiny, index):
        index.server.close()

        done = self.run(tiny, index, "update", UV_HTTP_RETRIES="0")

        assert done.returncode == 1
        assert "warning: tinyengine" in done.stderr
        assert self.selected(tiny, index) == {"tiny-any-cpu@1.0": ["tiny"]}

    @pytest.mark.usefixtures("installed")
    def test_offline_asks_nobody(self, tiny, index):
        index.server.asked.clear()

        done = tiny.paceline("runtime", "update", "--check", PACELINE_OFFLINE="1", UV_DEFAULT_INDEX=index.url)

        assert (done.returncode, "the package index was not asked" in done.stderr) == (1, True)
        assert index.server.asked == []

    @pytest.mark.usefixtures("installed")
    def test_what_would_be_compiled_and_fetched_is_said(self, tiny, index):
        index.publish("1.1", "2030-02-01")
        size = len(index.server.files["/files/tinyengine-1.1-py3-none-any.whl"][0])

        check = self.run(tiny, index, "update", "--check")

        assert f"would be updated: at most {size / 1000:.1f} KB to download" in check.stdout, check.stderr

    @pytest.mark.usefixtures("installed")
    def test_a_damaged_memory_of_the_index_is_said_and_begins_anew(self, tiny, index):
        file = found_file(tiny.home)
        file.write_text('{"schema_version": 1, "releases": [')

        listed = self.run(tiny, index, "get", "--list")
        assert listed.returncode == 0, listed.stderr
        assert f"note: the registry {file} is no JSON" in listed.stderr
        assert "`paceline runtime update --check` asks the package index and writes it anew" in listed.stderr

        assert self.run(tiny, index, "update", "--check").returncode == 0
        assert read_registry(file) == ()
        assert "note:" not in self.run(tiny, index, "get", "--list").stderr

    @pytest.mark.usefixtures("installed")
    def test_a_version_that_is_not_listed_is_found_by_its_name(self, tiny, index):
        index.publish("1.1", "2030-02-01")
        index.publish("1.2", "2030-03-01")

        dry = self.run(tiny, index, "get", "tiny@1.1", "--dry-run", "--json")
        assert json.loads(dry.stdout)["release"] == "tiny-any-cpu@1.1", dry.stderr
        assert "asking the package index for tinyengine 1.1" in dry.stderr
        done = self.run(tiny, index, "get", "tiny@1.1", PACELINE_MINIMUM_RELEASE_AGE="99999")
        assert (done.returncode, "Installed tiny-any-cpu@1.1" in done.stdout) == (0, True), done.stderr
        assert "asking" not in done.stderr  # it is remembered

        range_ = self.run(tiny, index, "get", "tiny@2.1")
        assert (range_.returncode, "tiny drives tinyengine >=1,<2" in range_.stderr) == (3, True), range_.stderr
        unknown = self.run(tiny, index, "get", "tiny@1.9")
        assert (unknown.returncode, "is 1.2\n" in unknown.stderr) == (3, True), unknown.stderr
        offline = self.run(tiny, index, "get", "tiny@1.9", PACELINE_OFFLINE="1")
        assert (offline.returncode, "the package index was not asked" in offline.stderr) == (3, True)

    @pytest.mark.parametrize("platform", [None, "mac"])
    def test_a_version_that_is_not_listed_is_bundled_by_its_name(self, tiny, index, release, tmp_path, platform):
        mac = Requirements(os="macos", arch="arm64")
        tiny.offer(replace(release, requires=Requirements()), replace(release, platform="mac", requires=mac))
        digest = index.publish("1.1", "2030-02-01")

        def bundle(version, **variables):
            file, chosen = str(tmp_path / "made.bundle"), ["--platform", platform] if platform else []
            place = {"UV_DEFAULT_INDEX": index.url, "PIP_NO_INDEX": "", "UV_FIND_LINKS": ""} | variables
            return tiny.paceline("bundle", "create", f"tiny@{version}", "-o", file, "--json", *chosen, **place)

        done = bundle("1.1")
        assert done.returncode == 0, done.stderr
        assert "tiny@1.1 is not listed: asking the package index for tinyengine 1.1" in done.stderr
        made = json.loads(done.stdout)
        assert [r["id"] for r in made["releases"]] == [f"tiny-{platform or 'any-cpu'}@1.1"]
        assert [f["sha256"] for f in made["files"]] == [digest]
        assert "asking" not in bundle("1.1").stderr  # it is remembered
        unknown = bundle("1.9")
        assert (unknown.returncode, "is 1.1\n" in unknown.stderr) == (3, True), unknown.stderr
        offline = bundle("1.9", PACELINE_OFFLINE="1")
        assert (offline.returncode, "the package index was not asked" in offline.stderr) == (3, True), offline.stderr

    @pytest.mark.usefixtures("installed")
    def test_what_is_too_young_is_not_got_without_its_version(self, tiny, index):
        index.publish("1.1", "2030-02-01")
        assert self.run(tiny, index, "update", "--check").returncode == 100

        kept = self.run(tiny, index, "get", "tiny", "--dry-run", "--json", PACELINE_MINIMUM_RELEASE_AGE="7")
        assert json.loads(kept.stdout)["release"] == "tiny-any-cpu@1.0", kept.stderr
        assert "tiny-any-cpu@1.1 was published, or first seen here, on 2030-02-01" in kept.stderr
        taken = self.run(tiny, index, "get", "tiny", "--dry-run", "--json")
        assert json.loads(taken.stdout)["release"] == "tiny-any-cpu@1.1", taken.stderr

    def selected(self, tiny, index):
        listed = json.loads(self.run(tiny, index, "ls", "--json").stdout)
        return {runtime["id"]: runtime["selected_for"] for runtime in listed}
