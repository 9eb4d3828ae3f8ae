"""The update that a server makes after its start: a real server, real installations, a real package index."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from paceline.api.operations import GRACE_S
from paceline.manager.installation import install
from paceline.store import Store
from paceline.types import Package, Recipe, Requirements

AT_ONCE = ("--update-delay", "0")
LOOKS = 10
"""So often a step that has to wait looks whether it may begin, sleeping in between, before it counts as waiting."""


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


@pytest.fixture
def installed(tiny, store):
    return install(tiny.release("1.0"), store, tiny.engine)


def outcome(server):
    """What the update came to, once it has ended."""
    return server.until(lambda: (u := server.update())["state"] in ("done", "failed", "cancelled") and u)


def test_checking_says_what_is_new_and_changes_nothing(tiny, store, installed, managed):
    tiny.offer(tiny.release("2.0"))
    server = managed(*AT_ONCE, PACELINE_UPDATE="check")

    update = outcome(server)

    assert (update["mode"], update["state"], update["returned"]) == ("check", "done", [])
    assert [u["release"] for u in update["operation"]["result"]["updates"]] == ["tiny-any-cpu@2.0"]
    server.until(lambda: "tiny-any-cpu@2.0 is newer than tiny-any-cpu@1.0: `paceline runtime update`" in server.said())
    assert [r.id for r in store.runtimes()] == [installed.id]


def test_an_update_before_anything_is_answered(tiny, store, installed, managed):
    tiny.offer(tiny.release("2.0"))

    server = managed("--update", "before")

    assert store.selected("tiny").id == "tiny-any-cpu@2.0"
    assert "updating tiny-any-cpu@1.0 to 2.0" in server.said()
    update = server.update()
    assert (update["mode"], update["state"], update["operation"]) == ("before", "done", None)


def test_an_update_before_that_cannot_even_look_keeps_nobody_from_serving(tiny, store, installed, managed):
    tiny.offer(tiny.release("2.0"))
    (store.home / "upstream.json").write_text("{")
    (store.home / "registries").mkdir()
    (store.home / "registries" / "acme.json").write_text("no registry")

    server = managed("--update", "before")

    assert store.selected("tiny") == installed
    said = server.said()
    assert "warning: runtimes were not updated: " in said
    assert "acme.json does not say which registry is trusted" in said


def test_an_update_before_passes_over_a_damaged_memory_of_the_index(tiny, store, installed, managed):
    tiny.offer(tiny.release("2.0"))
    (store.home / "upstream.json").write_text("{")

    server = managed("--update", "before")

    assert store.selected("tiny").id == "tiny-any-cpu@2.0"
    assert server.said().count("updating tiny-any-cpu@1.0 to 2.0") == 1


def test_an_update_before_that_fails_leaves_what_serves(tiny, store, installed, managed):
    tiny.offer(tiny.release("2.0", crash="yes"))

    server = managed("--update", "before")

    assert store.selected("tiny") == installed
    assert "tiny-any-cpu@1.0 stays: " in server.said()
    assert "tiny-any-cpu@2.0 is held until `paceline runtime unhold tiny-any-cpu@2.0`" in server.said()
    assert "tiny-any-cpu@2.0" in store.selection().holds


def test_an_update_before_takes_nothing_again_that_a_rollback_left(tiny, store, installed, managed):
    store.note_loaded(installed, "tiny")
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))
    managed("--update", "before").end()
    assert store.selected("tiny").id == "tiny-any-cpu@2.0"
    assert json.loads(tiny.paceline("runtime", "rollback", "--json").stdout)["held"] == ["tiny-any-cpu@2.0"]

    server = managed("--update", "before")

    assert store.selected("tiny") == installed
    assert "updating" not in server.said()


def test_off_asks_nobody(tiny, installed, managed):
    server = managed(*AT_ONCE, PACELINE_UPDATE="off")
    assert server.update()["state"] == "off"
    with server.client(server.user) as http:
        assert http.get("/api/v1/runtimes/operations").json() == {"operations": []}


@pytest.fixture
def index(tiny, file_server, tmp_path):
    """A package index with versions 1.0 and 1.1 of the engine, of which 1.0 is installed and selected."""
    digests = {}
    for version, day in (("1.0", "2030-01-01"), ("1.1", "2030-02-01")):
        name = f"tinyengine-{version}-py3-none-any.whl"
        files = {"tinyengine/__main__.py": tiny.worker, "tinyengine/settings.json": "{}"}
        tiny.write_wheel(tmp_path / name, "tinyengine", files, version)
        file_server.add_file(name, (tmp_path / name).read_bytes())
        digests[name] = day
    file_server.publish("tinyengine", digests)
    package = Package("tinyengine", "1.0", (file_server.sha256("tinyengine-1.0-py3-none-any.whl"),))
    recipe = Recipe((package,), roots=("tinyengine==1.0",))
    requires = Requirements(os="linux", arch="x86_64", min_glibc="2.28")
    tiny.offer(replace(tiny.release("1.0"), recipe=recipe, requires=requires))
    variables = {"UV_DEFAULT_INDEX": file_server.index, "PIP_NO_INDEX": "", "UV_FIND_LINKS": ""}
    done = tiny.paceline("runtime", "get", "tiny", **variables)
    assert done.returncode == 0, done.stderr
    return variables


def test_what_the_package_index_has_is_installed_and_selected(tiny, store, index, managed):
    server = managed("--update", "apply", *AT_ONCE, **index)

    result = outcome(server)["operation"]["result"]

    updated = {"runtime": "tiny-any-cpu@1.1", "instead_of": "tiny-any-cpu@1.0", "formats": ["tiny"]}
    assert result["installed"] == [updated]
    assert store.selection().formats == {"tiny": "tiny-any-cpu@1.1"}
    assert [r.id for r in store.runtimes()] == ["tiny-any-cpu@1.1", "tiny-any-cpu@1.0"]
    server.until(lambda: "updated tiny-any-cpu@1.0 to tiny-any-cpu@1.1; `paceline runtime rollback`" in server.said())


def test_no_network_is_no_failure(tiny, store, index, file_server, managed):
    file_server.close()
    server = managed("--update", "apply", *AT_ONCE, **index, UV_HTTP_RETRIES="0")

    (problem,) = outcome(server)["operation"]["result"]["problems"]

    assert (problem["source"], problem["failure"]) == ("the package index", "unanswered")
    assert store.selection().formats == {"tiny": "tiny-any-cpu@1.0"}


def test_a_version_that_does_not_start_is_held_and_the_old_one_stays(tiny, store, installed, managed):
    tiny.offer(tiny.release("2.0", crash="yes"))
    server = managed("--update", "apply", *AT_ONCE)

    (failed,) = outcome(server)["operation"]["result"]["failed"]

    assert (failed["release"], failed["stays"], failed["held"]) == ("tiny-any-cpu@2.0", installed.id, True)
    assert "the engine has no wheels" in failed["help"]
    server.until(lambda: "tiny-any-cpu@1.0 stays, tiny-any-cpu@2.0 was not installed" in server.said())
    assert "held until `paceline runtime unhold`" in server.said()
    chosen = store.selection()
    assert (chosen.formats, list(chosen.holds)) == ({"tiny": installed.id}, ["tiny-any-cpu@2.0"])
    assert chosen.holds["tiny-any-cpu@2.0"].reason.startswith("did not pass its smoke test: ")
    server.end()
    again = outcome(managed("--update", "apply", *AT_ONCE))["operation"]["result"]
    assert (again["updates"], again["kept"][0]["reason"]) == ([], "2.0 is newer, but it is held back")


def test_loaded_models_follow_a_selection_and_a_rollback(tiny, store, managed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "thirdparty" / "paceline-echo" / "src"))
    from paceline_echo.engine import EchoEngine

    (release,) = EchoEngine().releases()
    first, second = (install(replace(release, version=v), store, EchoEngine()) for v in ("1.0.0", "2.0.0"))
    file = tmp_path / "models" / "birds" / "parrot" / "parrot.echo"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"name": "parrot", "parameters": 2000, "context_length": 4096, "vocabulary": ["To"]}))
    server = managed()

    def serving(http):
        return [loaded["runtime"] for loaded in http.get("/health").json()["loaded"]]

    with server.client(server.admin) as http:
        http.post("/v1/completions", json={"model": "parrot", "prompt": "To", "max_tokens": 1}).raise_for_status()
        assert serving(http) == [first.id]
        http.post("/api/v1/runtimes/select", json={"query": second.id}).raise_for_status()
        server.until(lambda: serving(http) == [second.id])
        http.post("/api/v1/runtimes/rollback", json={}).raise_for_status()
        server.until(lambda: serving(http) == [first.id])
    assert server.update()["returned"] == []


def below(server, words):
    """The processes that a server started, directly or not, with `words` on their command line."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if words in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture
def parrot(tmp_path):
    """A model of the echo engine that answers no further before a file `go` is in the folder."""
    gate = tmp_path / "gate"
    gate.mkdir()
    file = tmp_path / "models" / "birds" / "parrot" / "parrot.echo"
    file.parent.mkdir(parents=True)
    faults = [{"at": "step", "do": "gate", "value": str(gate)}]
    words = ["To", " be", " or", " not"]
    model = {"name": "parrot", "parameters": 2000, "context_length": 4096, "vocabulary": words, "faults": faults}
    file.write_text(json.dumps(model))
    return gate


def get_echo(managed):
    """Install the echo engine through a server, which then ends."""
    server = managed()
    with server.client(server.admin) as http:
        http.post("/api/v1/runtimes/install", json={"query": "echo"}).raise_for_status()
    server.end()


def ask(http):
    return http.post("/v1/completions", json={"model": "parrot", "prompt": "To be or not", "max_tokens": 4})


@pytest.mark.parametrize("then", ["goes on", "is ended"])
def test_nothing_that_computes_much_begins_while_answers_are_generated(
    tiny, store, index, file_server, managed, parrot, then
):
    get_echo(managed)
    file_server.faulty = "/files/tinyengine-1.1"
    file_server.misbehave_always(drip=0.005)  # long enough for a request to come meanwhile
    server = managed("--update", "apply", *AT_ONCE, **index)

    def progress():
        return (server.update()["operation"] or {}).get("progress") or {}

    server.until(lambda: progress().get("phase") == "download")
    with server.client() as http, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, http)
        server.until(lambda: server.update()["operation"]["paused"])
        assert (progress()["phase"], progress()["done"]) == ("packages", 0)
        (staged,) = store.staging.iterdir()
        _guard, errand = below(server, "paceline.manager.errand")
        looked = errand.num_ctx_switches().voluntary
        server.until(lambda: errand.num_ctx_switches().voluntary >= looked + LOOKS)
        assert server.update()["operation"]["paused"]
        assert errand.children() == []  # such as uv
        assert not list(staged.glob("env/lib/python*/site-packages/tinyengine"))
        if then == "is ended":
            began = time.monotonic()
            operation = server.update()["operation"]["id"]
            with server.client(server.admin) as admin:
                assert admin.delete(f"/api/v1/runtimes/operations/{operation}").json()["state"] == "cancelled"
            assert time.monotonic() - began < GRACE_S
        (parrot / "go").touch()
        assert answer.result(60).json()["choices"][0]["text"] == "To be or not"
    if then == "is ended":
        assert list(store.staging.iterdir()) == []
        assert store.selection().formats["tiny"] == "tiny-any-cpu@1.0"
    else:
        assert outcome(server)["operation"]["result"]["installed"][0]["runtime"] == "tiny-any-cpu@1.1"


def test_a_build_stands_still_while_answers_are_generated_and_ends_with_the_server(
    tiny, store, installed, managed, parrot
):
    get_echo(managed)
    tiny.offer(tiny.release("2.0", linger="yes"))
    server = managed("--update", "apply", *AT_ONCE)
    (build,) = server.until(lambda: below(server, "time.sleep(600)"))

    with server.client() as http, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, http)
        server.until(lambda: server.update()["operation"]["paused"])
        server.until(lambda: build.status() == psutil.STATUS_STOPPED)
        (parrot / "go").touch()
        assert answer.result(60).status_code == 200
    server.until(lambda: not server.update()["operation"]["paused"])
    server.until(lambda: build.status() != psutil.STATUS_STOPPED)

    server.end()

    assert not build.is_running() or build.status() == psutil.STATUS_ZOMBIE
    assert store.selection().formats["tiny"] == installed.id
    assert store.find("tiny-any-cpu@2.0") is None
    assert list(store.staging.iterdir()) == []
