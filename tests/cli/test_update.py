"""`paceline runtime update` where something goes wrong: the command, installations and a signed registry are real."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from paceline.registry import publishing, registry_text, signing, trust
from paceline.store import Store
from paceline.types import Package, Recipe, Requirements


@pytest.fixture
def two(tiny):
    """Two runtimes, each selected for a format of its own; newer ones are there, and the first does not start."""
    gone = {"requires": Requirements(), "platform": "any-other", "formats": ("other",)}
    tiny.offer(tiny.release("1.0"), replace(tiny.release("1.0"), **gone))
    for name in ("tiny-any-cpu", "tiny-any-other"):
        done = tiny.paceline("runtime", "get", name)
        assert done.returncode == 0, done.stderr
    tiny.offer(tiny.release("2.0", crash="yes"), replace(tiny.release("2.0"), **gone))


@pytest.mark.usefixtures("two")
def test_one_update_that_fails_stops_no_other(tiny):
    done = tiny.paceline("runtime", "update", "--registry-only", "--json")

    assert done.returncode == 1
    assert "warning: tiny-any-cpu@1.0 stays: " in done.stderr
    said = json.loads(done.stdout)
    assert said["installed"] == ["tiny-any-other@2.0"]
    (failed,) = said["failed"]
    assert (failed["release"], failed["stays"]) == ("tiny-any-cpu@2.0", "tiny-any-cpu@1.0")
    assert failed["message"].endswith("the worker ended with exit code 1")
    assert failed["held"] is True
    assert said["selected"] == {"other": "tiny-any-other@2.0"}
    listed = json.loads(tiny.paceline("runtime", "ls", "--json").stdout)
    assert {r["id"]: r["selected_for"] for r in listed if r["selected_for"]} == {
        "tiny-any-cpu@1.0": ["tiny"],
        "tiny-any-other@2.0": ["other"],
    }


def test_what_does_not_start_is_held_and_hides_no_older_one(tiny):
    tiny.offer(tiny.release("1.0"))
    assert tiny.paceline("runtime", "get", "tiny").returncode == 0
    tiny.offer(tiny.release("1.5"), tiny.release("2.0", crash="yes"))

    first = tiny.paceline("runtime", "update", "--registry-only")

    assert first.returncode == 1
    assert "; tiny-any-cpu@2.0 is held until `paceline runtime unhold tiny-any-cpu@2.0`" in first.stderr
    again = tiny.paceline("runtime", "update", "--registry-only", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["selected"] == {"tiny": "tiny-any-cpu@1.5"}


def test_what_serves_a_single_model_alone_is_listed_and_stays(tiny):
    store = Store(tiny.home)
    tiny.offer(tiny.release("1.0"))
    assert tiny.paceline("runtime", "get", "tiny").returncode == 0
    store.select_for_model(store.get("tiny"), "parrot")
    store.unselect("tiny")
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))

    for query in ([], ["tiny"]):
        done = tiny.paceline("runtime", "update", *query, "--registry-only")
        assert done.returncode == 0, done.stderr
        assert "stays: 2.0 is newer, but this one was chosen for parrot alone" in done.stdout
    said = json.loads(tiny.paceline("runtime", "update", "--registry-only", "--check", "--json").stdout)
    assert [(k["runtime"], k["newer"]) for k in said["kept"]] == [("tiny-any-cpu@1.0", "tiny-any-cpu@2.0")]
    assert store.selection().models == {"parrot": "tiny-any-cpu@1.0"}


def test_what_a_rollback_left_is_not_taken_again(tiny):
    def run(*arguments, status=0):
        done = tiny.paceline("runtime", *arguments, "--json")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)

    def selected():
        return [r["id"] for r in run("ls") if r["selected_for"]]

    store = Store(tiny.home)
    tiny.offer(tiny.release("1.0"))
    run("get", "tiny")
    store.note_loaded(store.get("tiny@1.0"), "tiny")
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))
    assert run("update", "--registry-only")["installed"] == ["tiny-any-cpu@2.0"]

    assert run("rollback")["held"] == ["tiny-any-cpu@2.0"]

    for _ in range(2):
        again = run("update", "--registry-only")
        assert (again["updates"], again["kept"][0]["reason"]) == ([], "2.0 is newer, but it is held back")
    assert run("update", "--registry-only", "--check")["updates"] == []
    assert selected() == ["tiny-any-cpu@1.0"]
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"), tiny.release("3.0"))
    assert run("update", "--registry-only")["installed"] == ["tiny-any-cpu@3.0"]  # the next one gets its try
    run("rollback")
    run("unhold", "tiny@2.0")
    assert [u["release"] for u in run("update", "--registry-only", "--check", status=100)["updates"]] == [
        "tiny-any-cpu@2.0"
    ]


class Index:
    """A package index whose versions of the engine can be taken back. Of 1.0 the registry knows, too."""

    def __init__(self, tiny, server, folder):
        self._server, self._files = server, {}
        for version in ("1.0", "1.1", "1.2"):
            name = f"tinyengine-{version}-py3-none-any.whl"
            files = {"tinyengine/__main__.py": tiny.worker, "tinyengine/settings.json": "{}"}
            tiny.write_wheel(folder / name, "tinyengine", files, version)
            server.add_file(name, (folder / name).read_bytes())
            self._files[version] = name
        self.offer("1.0", "1.1", "1.2")
        package = Package("tinyengine", "1.0", (server.sha256(self._files["1.0"]),))
        recipe = Recipe((package,), roots=("tinyengine==1.0",))
        requires = Requirements(os="linux", arch="x86_64", min_glibc="2.28")
        tiny.offer(replace(tiny.release("1.0"), recipe=recipe, requires=requires))

    def offer(self, *versions, yanked=()):
        uploads = {self._files[version]: "2020-01-01" for version in versions}
        self._server.publish("tinyengine", uploads, [self._files[version] for version in yanked])


@pytest.fixture
def index(tiny, file_server, tmp_path):
    return Index(tiny, file_server, tmp_path)


@pytest.fixture
def run(tiny, file_server):
    """Runs a command that can ask the index, and returns what it prints as JSON."""
    variables = {"UV_DEFAULT_INDEX": file_server.index, "PIP_NO_INDEX": "", "UV_FIND_LINKS": "", "UV_HTTP_RETRIES": "0"}

    def run(*arguments, status=0):
        done = tiny.paceline(*arguments, "--json", **variables)
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)

    return run


def _found(tiny):
    return [r["version"] for r in json.loads((tiny.home / "upstream.json").read_text())["releases"]]


def test_what_the_index_takes_back_is_no_candidate_any_more(tiny, index, run, file_server):
    run("runtime", "get", "tiny")
    assert [u["release"] for u in run("runtime", "update", "--check", status=100)["updates"]] == ["tiny-any-cpu@1.2"]

    index.offer("1.0", "1.1", "1.2", yanked=["1.2"])
    said = run("runtime", "update", "--check", status=100)
    assert [u["release"] for u in said["updates"]] == ["tiny-any-cpu@1.1"]
    gone = "the package index no longer offers tiny-any-cpu@1.2: it, or what it needs, was yanked or deleted"
    assert said["remarks"] == [gone]
    assert _found(tiny) == ["1.1"]

    index.offer("1.0")  # deleted
    assert run("runtime", "update")["updates"] == []
    assert _found(tiny) == []

    index.offer("1.0", "1.1", "1.2")  # and there again
    assert run("runtime", "update")["selected"] == {"tiny": "tiny-any-cpu@1.2"}
    index.offer("1.0", "1.1")
    said = run("runtime", "update")  # what is installed stays, and is said to be gone
    assert (said["updates"], said["remarks"]) == ([], [gone])
    assert "1.2" in _found(tiny)
    run("runtime", "select", "tiny@1.0")
    assert run("runtime", "update")["selected"] == {"tiny": "tiny-any-cpu@1.1"}


def test_an_index_that_does_not_answer_takes_nothing_back(tiny, index, run, file_server):
    run("runtime", "get", "tiny")
    run("runtime", "update", "--check", status=100)
    file_server.close()

    said = run("runtime", "update", "--check", status=100)

    assert [p["failure"] for p in said["problems"]] == ["unanswered"]
    assert [u["release"] for u in said["updates"]] == ["tiny-any-cpu@1.2"]


def test_what_was_named_exactly_stays_named_and_is_no_update(tiny, index, run):
    index.offer("1.0", "1.1", "1.2", yanked=["1.2"])
    run("runtime", "get", "tiny@1.0")
    assert run("runtime", "get", "tiny@1.2")["id"] == "tiny-any-cpu@1.2"

    said = run("runtime", "update")

    assert said["selected"] == {"tiny": "tiny-any-cpu@1.1"}
    assert "1.2" in _found(tiny)
    assert run("runtime", "update", "--check")["kept"][0]["reason"] == (
        "1.2 is newer, but the package index no longer offers it"
    )


def test_a_registry_that_is_verified_bad_is_not_masked_by_updates(tiny, tmp_path, file_server):
    assert tiny.paceline("runtime", "get", "tiny").returncode == 0
    tiny.offer(tiny.release("2.0"))
    _trust_what_is_forged(tiny, tmp_path, file_server)

    done = tiny.paceline("runtime", "update", "--check", "--json")

    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert [u["release"] for u in said["updates"]] == ["tiny-any-cpu@2.0"]
    assert ("the registry acme", "untrusted") in [(p["source"], p["failure"]) for p in said["problems"]]


def _trust_what_is_forged(tiny, folder, server):
    """Trust a registry whose published timestamp carries signatures of a stranger."""
    for keys in ("keys", "other-keys"):
        for role in publishing.ROLES:
            signing.new_key(folder / keys, role)
        file = folder / "registry.json"
        file.write_text(registry_text([replace(tiny.release("3.0"), requires=Requirements())]))
        publishing.publish(file, folder / keys, folder / f"site-of-{keys}")
    ours, theirs = (folder / f"site-of-{keys}" / "metadata" for keys in ("keys", "other-keys"))
    server.files["/metadata/1.root.json"] = (ours / "1.root.json").read_bytes(), "application/json"
    server.files["/metadata/timestamp.json"] = (theirs / "timestamp.json").read_bytes(), "application/json"
    root = json.loads((ours / "1.root.json").read_bytes())
    trust.remember_trust(trust.make_trusted(tiny.home, server.url, root, "acme"))


def test_what_serves_single_models_alone_is_kept_and_said(tiny):
    tiny.offer(tiny.release("1.0"))
    assert tiny.paceline("runtime", "get", "tiny").returncode == 0
    store = Store(tiny.home)
    runtime = store.get("tiny")
    store.select_for_model(runtime, "robin")
    store.unselect("tiny")
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))
    reason = "2.0 is newer, but this one was chosen for robin alone"

    for query in ([], ["tiny"]):
        done = tiny.paceline("runtime", "update", *query, "--registry-only")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith(reason)
    request = {"query": None, "check": False, "channel": "stable", "minimum_age_days": 0.0, "registry_only": True}
    request |= {"allow_unpinned": False}
    said = tiny.python("-m", "paceline.manager.errand", json.dumps({"do": "update", "arguments": request}))
    kept = json.loads(said.stdout.splitlines()[-1])["result"]["kept"]
    assert kept == [{"runtime": runtime.id, "reason": reason, "newer": "tiny-any-cpu@2.0"}]
    store.select(runtime)  # for a format too: then it is updated
    done = tiny.paceline("runtime", "update", "--registry-only", "--check")
    assert (done.returncode, reason in done.stdout) == (100, False)


@pytest.mark.parametrize("days", ["nan", "inf", "-inf", "1e999"])
def test_an_age_is_a_finite_number(tiny, days):
    for command in (("runtime", "update", "--minimum-age"), ("serve", "--update-minimum-age"), ("serve", "--ttl")):
        done = tiny.paceline(*command, days)
        assert done.returncode == 2, done.stderr
        assert "Error: Invalid value for" in done.stderr
    assert tiny.paceline("runtime", "get", "tiny", PACELINE_MINIMUM_RELEASE_AGE=days).returncode == 2
