"""Which registries are trusted, and which of their releases count."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from paceline import plugins
from paceline.errors import NotFoundError, RegistryError, UsageError
from paceline.registry import load_registry, publishing, registry_text, trust
from paceline.registry.signed import refresh
from paceline.types import Package, Recipe, Release, Requirements

NOW = datetime.now(UTC)


@pytest.fixture
def brings(repository, home):
    """Lets a registry, named, be verified with these releases."""

    def bring(name, *releases, at=NOW, expires=NOW + timedelta(days=7)):
        registry = trust.make_trusted(home, f"https://{name}.example", repository.root(), name)
        registry = replace(registry, trusted_at=at)
        trust.remember_trust(registry)
        trust.remember_verified(registry, releases, "0" * 64, at=at, expires=expires)
        return registry

    return bring


@pytest.fixture
def load(home, tmp_path, tiny):
    """Loads the registry, with these releases as the shipped ones."""

    def run(*shipped):
        file = tmp_path / "shipped.json"
        file.write_text(registry_text(shipped))
        tiny.offer()
        return load_registry(plugins.Plugins((), {"tiny": tiny.engine}), file, home=home)

    return run


def release(version, *digests):
    recipe = Recipe((Package("tinyengine", version, digests, index=None if digests else "https://x.example/whl"),))
    return Release("tiny", version, "any-cpu", ("tiny",), Requirements(), recipe)


A, B = "a" * 64, "b" * 64


def test_what_a_signed_registry_brings_is_offered(brings, load):
    brings("acme", release("2.0", A))
    found = load(release("1.0", A))

    assert [(r.version, r.source) for r in found.releases] == [("2.0", "registry acme"), ("1.0", "paceline")]
    assert found.remarks == ()


class TestWhenAReleaseWasFirstSeen:
    def test_counts_where_it_does_not_say_when_it_was_published(self, brings, load):
        brings("acme", release("2.0", A), at=NOW - timedelta(days=3))
        dated = replace(release("2.1", B), published="2020-01-01T00:00:00+00:00")
        brings("acme", release("2.0", A), dated, release("2.2", B))

        published = {r.version: r.published for r in load().releases}

        assert published == {
            "2.0": (NOW - timedelta(days=3)).isoformat(timespec="seconds"),
            "2.1": "2020-01-01T00:00:00+00:00",
            "2.2": NOW.isoformat(timespec="seconds"),
        }

    def test_begins_anew_when_it_is_made_of_something_else(self, brings, load):
        brings("acme", release("2.0", A), release("2.1", A), at=NOW - timedelta(days=3))
        brings("acme", release("2.0", B), replace(release("2.1", A), notes="Praised."))

        published = {r.version: r.published for r in load().releases}

        assert published["2.0"] == NOW.isoformat(timespec="seconds")
        assert published["2.1"] == (NOW - timedelta(days=3)).isoformat(timespec="seconds")

    def test_is_when_it_was_verified_where_an_older_paceline_wrote_that(self, brings, load):
        registry = brings("acme", release("2.0", A), at=NOW - timedelta(days=3))
        file = registry.folder / "verified.json"
        value = json.loads(file.read_bytes())
        del value["first_seen"]
        file.write_text(json.dumps(value))
        brings("acme", release("2.0", A))

        assert load().releases[0].published == (NOW - timedelta(days=3)).isoformat(timespec="seconds")

    def test_does_not_matter_for_what_came_along(self, load):
        shipped = replace(release("1.0", A), published=NOW.isoformat())
        assert load(shipped).releases[0].published is None


def test_a_known_release_is_not_redefined(brings, load):
    brings("acme", release("1.0", B))
    found = load(release("1.0", A))

    assert found.releases == (release("1.0", A),)
    assert found.releases[0].source == "paceline"
    assert [r.message for r in found.remarks] == [
        "the registry acme says otherwise what tiny-any-cpu@1.0 is, and is not followed"
    ]


def test_of_two_registries_the_first_that_was_trusted_is_right(brings, load):
    brings("later", release("1.0", B))
    brings("sooner", release("1.0", A), at=NOW - timedelta(hours=1))
    found = load()

    assert [r.recipe for r in found.releases] == [release("1.0", A).recipe]
    assert "the registry later says otherwise" in found.remarks[0].message


def test_missing_hashes_are_added_and_nothing_else(brings, load):
    unpinned = release("1.0")
    theirs = replace(unpinned, recipe=Recipe((replace(unpinned.recipe.packages[0], sha256=(A,)),)))
    brings("acme", theirs)
    found = load(unpinned)
    assert found.releases[0].recipe.packages[0].sha256 == (A,)
    assert found.releases[0].source == "paceline, hashes of registry acme"
    assert found.remarks == ()

    brings("acme", replace(theirs, recipe=replace(theirs.recipe, prune=("lib",))))
    found = load(unpinned)
    assert found.releases == (unpinned,)
    assert "not followed" in found.remarks[0].message


def test_hashes_come_with_their_sizes_and_sizes_alone_are_no_difference(brings, load):
    unpinned = release("1.0")
    package = replace(unpinned.recipe.packages[0], sha256=(A,), size=(5,))
    brings("acme", replace(unpinned, recipe=Recipe((package,))))
    assert load(unpinned).releases[0].recipe.packages == (package,)

    ours = replace(unpinned, recipe=Recipe((replace(package, size=()),)))
    found = load(ours)
    assert (found.releases, found.remarks) == ((ours,), ())


def test_what_has_expired_is_left_out_and_said(brings, load):
    brings("acme", release("2.0", A), at=NOW - timedelta(days=9), expires=NOW - timedelta(days=2))
    found = load(release("1.0", A))

    assert [r.version for r in found.releases] == ["1.0"]
    assert list(map(str, found.remarks)) == [
        "the registry acme was verified 9 days ago and has expired, so its releases are left out: "
        "`paceline registry refresh acme` asks it again"
    ]


def test_what_is_old_counts_and_is_said(brings, load):
    brings("acme", release("2.0", A), at=NOW - timedelta(days=3))
    found = load()

    assert [r.version for r in found.releases] == ["2.0"]
    assert [r.message for r in found.remarks] == ["the registry acme was verified 3 days ago"]


def test_what_was_damaged_here_is_left_out_and_said(brings, load):
    registry = brings("acme", release("2.0", A))
    file = registry.folder / "verified.json"
    value = json.loads(file.read_bytes())
    value["registry"]["releases"][0]["version"] = "../2"
    file.write_text(json.dumps(value))
    found = load(release("1.0", A))

    assert [r.version for r in found.releases] == ["1.0"]
    assert "is wrong at $.releases[0].version" in found.remarks[0].message
    assert found.remarks[0].help == "`paceline registry refresh acme` asks it again"


def test_another_root_or_address_starts_anew(registry, repository, home):
    assert refresh(registry).ok
    assert trust.verified(registry) is not None
    moved = trust.make_trusted(home, "https://elsewhere.example/", repository.root(), "acme")
    trust.remember_trust(moved)

    (now,) = trust.trusted(home)
    assert (now.url, trust.verified(now)) == ("https://elsewhere.example", None)
    assert not registry.folder.exists()


def test_who_ships_paceline_can_bring_registries(home, registry, tmp_path, monkeypatch, repository):
    brought = tmp_path / "brought"
    brought.mkdir()
    value = {"schema_version": 1, "url": "https://vendor.example", "root": repository.root()}
    (brought / "vendor.json").write_text(json.dumps(value))
    monkeypatch.setenv("PACELINE_REGISTRIES", str(brought))

    vendor, acme = trust.trusted(home)
    assert (vendor.name, vendor.url) == ("vendor", "https://vendor.example")
    assert vendor.folder.parent == home / "registries"
    assert acme.name == "acme"
    with pytest.raises(UsageError, match=r"vendor is trusted by .*which is not this home's"):
        trust.forget(home, "vendor")


def test_forgetting(registry, home):
    assert refresh(registry).ok
    trust.forget(home, "acme")

    assert trust.trusted(home) == ()
    assert list((home / "registries").iterdir()) == []
    with pytest.raises(NotFoundError, match=r"no trusted registry is named 'acme' \(trusted: none\)"):
        trust.forget(home, "acme")


@pytest.mark.parametrize(
    "url", ["ftp://x.example", "https://[x", "example.org", "https://", "https://x.example/?a", "file:///srv"]
)
def test_what_is_no_address(home, repository, url):
    with pytest.raises(UsageError, match="is no address of a registry"):
        trust.make_trusted(home, url, repository.root())


def test_a_password_is_not_written_down(home, repository):
    with pytest.raises(UsageError, match="holds a password"):
        trust.make_trusted(home, "https://me:secret@x.example", repository.root())


@pytest.mark.parametrize("name", ["../x", "A", "", "a/b", ".x", "x" * 41])
def test_what_is_no_name(home, repository, name):
    if name:
        with pytest.raises(UsageError, match="is no name"):
            trust.make_trusted(home, "https://x.example", repository.root(), name)
    else:
        assert trust.make_trusted(home, "https://x.example", repository.root(), name).name == "x.example"


def test_a_damaged_trust_file_is_named(home):
    file = home / "registries" / "acme.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"schema_version": 1}')
    with pytest.raises(RegistryError, match=r"acme\.json does not say which registry is trusted"):
        trust.trusted(home)


class TestTheCommands:
    @pytest.fixture
    def run(self, tiny, home):
        return lambda *arguments, **variables: tiny.paceline(*arguments, PACELINE_HOME=str(home), **variables)

    @pytest.fixture
    def root(self, repository):
        return str(repository.metadata / "1.root.json")

    def test_trust_list_refresh_remove(self, run, web, repository, root):
        done = run("registry", "trust", web.url, "--root", root, "--name", "acme", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["refresh"]["state"] == "updated"
        (listed,) = json.loads(run("registry", "ls", "--json").stdout)
        assert (listed["name"], listed["releases"], listed["expired"]) == ("acme", 1, False)

        offline = run("registry", "refresh", PACELINE_OFFLINE="1")
        assert offline.returncode == 75, offline.stderr
        assert "warning: the registry acme cannot be verified now" in offline.stderr
        repository.forge("timestamp", keys=[])
        refused = run("registry", "refresh", "acme", "--json")
        assert refused.returncode == 1
        (outcome,) = json.loads(refused.stdout)
        assert (outcome["state"], outcome["reason"]) == ("refused", "signature")
        assert run("registry", "refresh", "other").returncode == 3

        assert json.loads(run("registry", "remove", "acme", "--json").stdout) == {"removed": "acme"}
        assert run("registry", "ls").stdout.startswith("no signed registry is trusted")

    def test_what_does_not_follow_from_the_root_is_not_trusted(self, run, web, repository, root, home):
        repository.forge("timestamp", keys=[])
        done = run("registry", "trust", web.url, "--root", root, "--name", "acme")
        assert (done.returncode, "is not trusted" in done.stderr) == (1, True)
        assert trust.trusted(home) == ()
        assert list((home / "registries").iterdir()) == []

    def test_a_publisher_needs_no_server_of_ours(self, run, tmp_path, repository):
        keys, site, file = tmp_path / "k", tmp_path / "s", repository.folder / "registry.json"
        assert len(json.loads(run("registry", "keys", "new", str(keys), "--json").stdout)["files"]) == 4
        at = ("--keys", str(keys), "--json")
        done = run("registry", "sign", str(file), "--site", str(site), *at, "--days", "timestamp=1")
        assert json.loads(done.stdout)["signed"] == ["root", "targets", "snapshot", "timestamp"], done.stderr
        assert json.loads(run("registry", "renew", str(site), *at).stdout)["signed"] == ["timestamp"]
        done = run("registry", "keys", "rotate", "timestamp", "--site", str(site), *at)
        assert json.loads(done.stdout)["signed"] == ["timestamp", "root"], done.stderr
        assert run("registry", "renew", str(site), *at, "--days", "moon=1").returncode == 2

    def test_an_update_comes_from_a_signed_registry(self, run, tiny, web, repository, root, home):
        tiny.offer(tiny.release("1.0.0"))
        assert run("runtime", "get", "tiny").returncode == 0
        newer = tiny.release("1.1.0")
        file = repository.folder / "registry.json"
        file.write_text(registry_text([newer]))
        publishing.publish(file, repository.keys, repository.site)
        assert run("registry", "trust", web.url, "--root", root, "--name", "acme").returncode == 0

        waits = run("runtime", "update", "--registry-only", "--minimum-age", "7")
        assert "stays: 1.1.0 is newer, but it was published, or first seen here, on " in waits.stdout, waits.stderr
        done = run("runtime", "update", "--registry-only")
        assert (done.returncode, "updated" in done.stdout) == (0, True), done.stderr
        assert "asking the registry acme" in done.stderr
        assert (home / "runtimes" / "tiny-any-cpu@1.1.0").is_dir()

        repository.forge("timestamp", keys=[])
        done = run("runtime", "update", "--check", "--registry-only", "--json")
        assert done.returncode == 1
        (problem,) = json.loads(done.stdout)["problems"]
        assert (problem["source"], problem["failure"]) == ("the registry acme", "untrusted")


def test_tuf_is_not_loaded_to_read_what_was_verified(tiny, registry, home):
    code = (
        "import sys; from pathlib import Path\n"
        "from paceline import plugins; from paceline.registry import load_registry\n"
        "load_registry(plugins.load(), home=Path(sys.argv[1]))\n"
        "import paceline.cli.getting, paceline.cli.update, paceline.cli.registry\n"
        "sys.exit(', '.join({'tuf', 'securesystemslib', 'cryptography', 'httpx'} & sys.modules.keys()) or None)"
    )
    assert refresh(registry).ok
    done = tiny.python("-c", code, str(home))
    assert done.stderr == "", done.stderr
