"""Runtimes managed over HTTP: a real server, the tiny engine, real installations in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace

import httpx
import psutil
import pytest

from paceline.manager import diskspace
from paceline.manager.installation import install
from paceline.store import Store
from paceline.types import Package, Recipe, Requirements


def parse(lines):
    """(name, data) of each event of a stream."""
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def work(http, path, **body):
    """Follow long work to its end; its events."""
    with http.stream("POST", f"/api/v1/runtimes/{path}", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return list(parse(answer.iter_lines()))


def operations(http):
    return http.get("/api/v1/runtimes/operations").json()["operations"]


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


def test_the_life_of_a_runtime(tiny, store, managed):
    tiny.offer(tiny.release("1.0"))
    server = managed("--update-channel", "beta", PACELINE_MINIMUM_RELEASE_AGE="3")
    with server.client(server.admin) as http:
        events = work(http, "install", query="tiny")
        names = [name for name, _ in events]
        assert (names[0], names[-1], set(names[1:-1])) == ("operation.start", "operation.end", {"operation.progress"})
        steps = [(e["phase"], e["done"], e["total"]) for name, e in events if name == "operation.progress"]
        assert ("build", 3, 3) in steps
        assert events[-1][1]["result"]["runtime"]["id"] == "tiny-any-cpu@1.0"
        assert work(http, "install", query="tiny@1.0")[-1][1]["result"]["already_installed"]

        tiny.offer(tiny.release("1.0"), tiny.release("2.0"))
        (release, old) = http.get("/api/v1/runtimes/releases", params={"query": "tiny"}).json()["releases"]
        assert (release["id"], release["installed"], old["installed"]) == ("tiny-any-cpu@2.0", False, True)
        assert release["verdict"]["status"] == "compatible"
        found = work(http, "update", check=True)[-1][1]["result"]
        assert [u["release"] for u in found["updates"]] == ["tiny-any-cpu@2.0"]
        assert operations(http)[-1]["arguments"].items() >= {"channel": "beta", "minimum_age_days": 3.0}.items()
        assert [r.id for r in store.runtimes()] == ["tiny-any-cpu@1.0"]
        done = work(http, "update")[-1][1]["result"]
        updated = {"runtime": "tiny-any-cpu@2.0", "instead_of": "tiny-any-cpu@1.0", "formats": ["tiny"]}
        assert done["installed"] == [updated]

        listed = http.get("/api/v1/runtimes").json()
        assert [(r["id"], r["selected_for"]) for r in listed["runtimes"]] == [
            ("tiny-any-cpu@2.0", ["tiny"]),
            ("tiny-any-cpu@1.0", []),
        ]
        assert listed["selection"]["previous"] == {"tiny": ["tiny-any-cpu@1.0"]}
        one = http.get("/api/v1/runtimes/tiny-any-cpu@1.0").json()
        assert (one["state"], one["features"]) == ("installed", ["generate"])

        def change(path, **body):
            answer = http.post(f"/api/v1/runtimes/{path}", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        assert change("select", query="tiny@1.0")["formats"] == {"tiny": "tiny-any-cpu@1.0"}
        store.note_loaded(store.get("tiny@1.0"), "tiny")
        change("select", query="tiny@2.0")
        assert change("rollback")["formats"] == {"tiny": "tiny-any-cpu@1.0"}
        assert change("pin", query="tiny@1.0")["pinned"] == ["tiny-any-cpu@1.0"]
        assert list(change("hold", query="tiny@2.0")["held"]) == ["tiny-any-cpu@2.0"]
        held = change("hold", query="tiny@2.0", reason="it leaks")["held"]
        assert held["tiny-any-cpu@2.0"].items() >= {"reason": "it leaks"}.items()
        assert http.get("/api/v1/runtimes/tiny@2.0").json()["hold"] == held["tiny-any-cpu@2.0"]
        assert change("unhold", query="2.0")["held"] == {}
        assert change("unpin", query="tiny")["pinned"] == []
        store.stand_in(store.get("tiny@2.0"), store.get("tiny@1.0"), "tiny", "robin", "a new quantization")
        selection = http.get("/api/v1/runtimes/selection").json()
        assert selection == http.get("/api/v1/runtimes").json()["selection"]
        told = {"runtime": "tiny-any-cpu@2.0", "instead_of": "tiny-any-cpu@1.0", "reason": "a new quantization"}
        assert selection["stand_ins"]["robin"].items() >= told.items()
        assert change("unselect", model="robin")["stand_ins"] == {}
        assert change("unselect", format="tiny")["formats"] == {}

        (store.get("tiny@2.0").directory / "requirements.txt").write_text("other")
        states = work(http, "verify")[-1][1]["result"]["runtimes"]
        assert [(r["id"], r["state"]) for r in states] == [
            ("tiny-any-cpu@2.0", "broken"),
            ("tiny-any-cpu@1.0", "installed"),
        ]
        mended = work(http, "repair")[-1][1]["result"]
        assert mended == {"whole": ["tiny-any-cpu@1.0"], "repaired": ["tiny-any-cpu@2.0"], "failed": []}
        assert change("remove", query="tiny@2.0") == {"removed": "tiny-any-cpu@2.0"}
        assert [r.id for r in store.runtimes()] == ["tiny-any-cpu@1.0"]
        assert http.get("/api/v1/runtimes/survey").json()["facts"]["os"]["value"]


def test_models_and_formats_are_named_in_every_way_that_selecting_takes(
    store, store_world, managed, write_gguf, tmp_path
):
    write_gguf(
        tmp_path / "models" / "me" / "small" / "small.gguf", {"general.architecture": "llama"}, [("w", (32,), 0)]
    )
    old, new = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(old)
    store.note_loaded(old, "gguf")
    store.select(new)
    server = managed()
    with server.client(server.admin) as http:

        def change(path, **body):
            answer = http.post(f"/api/v1/runtimes/{path}", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        for name in ("me/small", "SMALL"):
            assert change("select", query=old.id, model=name)["models"] == {"small": old.id}
            assert change("unselect", model=name)["models"] == {}
        assert change("rollback", format="GGUF")["formats"] == {"gguf": old.id}
        assert change("unselect", format="GGUF")["formats"] == {}


def test_a_repair_goes_on_after_one_that_cannot_be_mended(tiny, store, store_world, managed):
    stranger = store_world.add(store, "2.0")
    (stranger.directory / "manifest.json").unlink()
    install(tiny.release(), store, tiny.engine)
    (runtime,) = store.runtimes()
    cfg = runtime.directory / "env" / "pyvenv.cfg"
    cfg.write_text("x")
    server = managed()
    with server.client(server.admin) as http:
        result = work(http, "repair")[-1][1]["result"]
        cfg.write_text("x")
        assert not work(http, "install", query="tiny")[-1][1]["result"]["already_installed"]
    assert (result["whole"], result["repaired"]) == ([], [runtime.id])
    (failed,) = result["failed"]
    assert (failed["id"], failed["code"]) == (stranger.id, "install_failed")
    assert "no release of that name is known" in failed["message"]
    assert f"paceline runtime remove {stranger.id}" in failed["help"]


def test_what_is_installed_follows_channel_and_wheels_as_asked(tiny, store, managed):
    built, wheel = tiny.release("1.0"), tiny.release("1.0")
    (dependency, _) = wheel.recipe.packages
    wheel = replace(wheel, platform="any-wheel", rank=-1, recipe=Recipe((dependency,)))
    tiny.offer(built, replace(tiny.release("2.0"), channel="nightly", rank=9), wheel)
    server = managed()
    with server.client(server.admin) as http:

        def planned(**body):
            answer = http.post("/api/v1/runtimes/install", json={"query": "tiny", "dry_run": True, **body})
            assert answer.status_code == 200, answer.text
            return answer.json()["plan"]["release"]

        assert planned() == "tiny-any-cpu@1.0"
        assert planned(channel="beta") == planned(channel="nightly") == "tiny-any-cpu@2.0"
        assert planned(prefer="wheel") == "tiny-any-wheel@1.0"
        assert planned(query="tiny@2.0", minimum_age_days=7) == "tiny-any-cpu@2.0"
        done = work(http, "install", query="tiny", channel="nightly", minimum_age_days=0)[-1][1]["result"]
        assert done["runtime"]["id"] == "tiny-any-cpu@2.0"
        assert operations(http)[-1]["arguments"].items() >= {"channel": "nightly", "prefer": None}.items()


def test_what_an_installation_would_do(tiny, store, managed):
    release = tiny.release("1.0")
    tiny.offer(replace(release, recipe=replace(release.recipe, installed_bytes=5_000_000)))
    server = managed()
    with server.client(server.admin) as http:
        answer = http.post("/api/v1/runtimes/install", json={"query": "tiny", "dry_run": True})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert operations(http) == []
    assert (found["plan"]["release"], found["plan"]["selects"]) == ("tiny-any-cpu@1.0", ["tiny"])
    assert found["plan"]["built"] == ["tinyengine"]
    (disk,) = found["disk"]  # home and cache share one
    assert disk["needed_bytes"] == 5_000_000 + diskspace.MARGIN_BYTES
    assert disk["free_bytes"] > 0
    assert store.runtimes() == ()


def test_what_would_not_be_installed_is_said_as_if_it_were_tried(tiny, managed):
    elsewhere = replace(tiny.release("1.0"), requires=Requirements(os="macos"))
    unpinned = Recipe((Package("tinyengine", "1.0", index="https://page.example"),))
    tiny.offer(elsewhere, replace(tiny.release("2.0"), platform="any-wheel", recipe=unpinned))
    server = managed()
    with server.client(server.admin) as http:
        for query, status, code in (("tiny:any-cpu", 400, "incompatible"), ("tiny@2.0", 409, "unpinned_packages")):
            for dry_run in (True, False):
                answer = http.post("/api/v1/runtimes/install", json={"query": query, "dry_run": dry_run})
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (query, dry_run)


def test_the_latest_is_selected_and_what_nobody_needs_goes(tiny, store, store_world, managed):
    first, second, third = (store_world.add(store, f"{n}.0") for n in range(1, 4))
    store.select(first)
    store.hold(third.id)
    download = tiny.cache / "packages" / "files" / ("0" * 64) / "broken-off.whl"
    server = managed()
    with server.client(server.admin) as http:

        def selected(**body):
            return http.post("/api/v1/runtimes/select", json=body).json()["formats"]

        assert selected(latest=True) == {"gguf": second.id}
        store.select(first)
        assert selected(query="engine", latest=True) == {"gguf": second.id}

        store.hold(first.id)  # else a rollback would return to it
        would = work(http, "prune", keep=0, dry_run=True)[-1][1]["result"]
        assert [r["id"] for r in would["runtimes"]] == [third.id, first.id]
        assert store.find(first.id) is not None
        download.parent.mkdir(parents=True)
        download.write_bytes(b"x" * 100_000)
        done = work(http, "prune")[-1][1]["result"]
        assert [r["id"] for r in done["runtimes"]] == [third.id]
        assert (done["runtimes"][0]["size_bytes"] > 0, done["cache"]) == (True, None)
        assert download.exists()
        would = work(http, "prune", keep=0, cache=True, dry_run=True)[-1][1]["result"]["cache"]
        assert {part["name"]: part["freed_bytes"] for part in would}["fetched packages"] == 100_000
        assert download.exists()
        done = work(http, "prune", keep=0, cache=True)[-1][1]["result"]
        assert ([r["id"] for r in done["runtimes"]], done["kept"]) == (
            [first.id],
            [f"{second.id} is selected for gguf"],
        )
        assert {part["name"]: part["freed_bytes"] for part in done["cache"]}["fetched packages"] == 100_000
        assert not download.exists()
    assert store.runtimes() == (second,)


def test_what_engines_see_is_asked_by_an_administrator_and_remembered(tiny, store, managed):
    install(tiny.release("1.0"), store, tiny.engine)
    server = managed()
    with server.client(server.admin) as http:

        def seen(answer):
            (runtime,) = answer.json()["runtimes"]
            return runtime["runtime"], runtime["devices"], runtime["problem"]

        not_yet = ("tiny-any-cpu@1.0", None, "it was not asked yet which devices it sees")
        asked = ("tiny-any-cpu@1.0", ["CPU (cpu)"], None)
        assert seen(http.get("/api/v1/runtimes/survey")) == not_yet
        assert seen(http.post("/api/v1/runtimes/survey", json={})) == asked
        assert seen(http.get("/api/v1/runtimes/survey")) == asked


def test_the_doctor_says_what_is_wrong_to_an_administrator(tiny, store, managed):
    runtime = install(tiny.release("1.0"), store, tiny.engine)
    server = managed()
    with server.client(server.admin) as http:

        def problems():
            answer = http.get("/api/v1/doctor").json()
            wrong = [f for f in answer["findings"] if f["status"] == "problem" and f["check"] == "runtimes"]
            assert answer["problems"] >= len(wrong)
            assert {f["check"] for f in answer["findings"]} >= {"versions", "home", "disk", "runtimes", "index"}
            return wrong

        assert problems() == []
        (runtime.directory / "manifest.json").write_text("{}")
        (wrong,) = problems()
    assert runtime.id in wrong["message"]
    assert wrong["help"]
    for token, status in ((None, 401), (server.user, 403)):
        with server.client(token) as http:
            assert http.get("/api/v1/doctor").status_code == status


@pytest.mark.skipif(sys.platform != "linux", reason="a compiler that is a script")
def test_the_survey_is_taken_anew(tmp_path, managed):
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()

    def release(version):
        compiler.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
        compiler.chmod(0o755)
        os.utime(compiler, (1, 1))  # as the survey remembers it, it is the same program

    release("12.4")
    server = managed(PATH=f"{compiler.parent}:{os.environ['PATH']}")
    with server.client(server.admin) as http:

        def version(answer):
            return answer.json()["facts"]["tool_versions"]["value"]["nvcc"]

        assert version(http.get("/api/v1/runtimes/survey")) == "12.4"
        release("12.8")
        assert version(http.get("/api/v1/runtimes/survey")) == "12.4"
        assert version(http.post("/api/v1/runtimes/survey", json={})) == "12.8"
        assert version(http.get("/api/v1/runtimes/survey")) == "12.8"


def test_who_may_do_what(managed):
    open_server, strict = managed(), managed("--require-token")
    change = ("POST", "/api/v1/runtimes/hold", {"query": "tiny@1.0.0"})
    page = {"origin": "http://localhost:3000"}

    def ask(server, token, method, path, body=None, **headers):
        with server.client(token) as http:
            return http.request(method, path, json=body, headers=headers).status_code

    for server, token, reads, changes in (
        (open_server, None, 200, 401),
        (open_server, "unused", 200, 401),
        (open_server, open_server.user, 200, 403),
        (strict, None, 401, 401),
        (strict, "sk-pl-00000000-" + "a" * 43, 401, 401),
        (strict, strict.user, 200, 403),
        (strict, strict.admin, 200, 200),
    ):
        for path in ("/v1/models", "/health", "/api/v1/runtimes", "/api/v1/runtimes/updates"):
            assert ask(server, token, "GET", path) == reads, (token, path)
        assert ask(server, token, *change) == changes, token
    # A page of a loopback origin, such as somebody's development server, is no administrator either.
    assert ask(open_server, None, *change, **page) == 401
    selecting = ("select", "unselect", "rollback", "remove", "pin", "unhold")
    for path in ("install", "update", "verify", "repair", "prune", "survey", *selecting):
        assert ask(open_server, open_server.user, "POST", f"/api/v1/runtimes/{path}", {}) == 403, path
    assert ask(open_server, open_server.user, "DELETE", "/api/v1/runtimes/operations/1") == 403
    with open_server.client() as http:
        refused = http.post("/api/v1/runtimes/install", json={})
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "paceline tokens create --admin" in refused.json()["error"]["message"]


def test_malformed_requests_name_the_field(managed):
    server = managed()
    with server.client(server.admin) as http:
        for path, body, status, param in (
            ("install", {"query": 3}, 400, "query"),
            ("install", {"query": ""}, 400, "query"),
            ("install", {"query": "x" * 201}, 400, "query"),
            ("install", {"query": "a:"}, 400, None),
            ("install", {"query": "nothing"}, 404, None),
            ("install", {"allow_unpined": True}, 400, "allow_unpined"),
            ("update", {"chek": True}, 400, "chek"),
            ("update", {"channel": "weekly"}, 400, "channel"),
            ("install", {"channel": "weekly"}, 400, "channel"),
            ("install", {"prefer": "source"}, 400, "prefer"),
            ("install", {"minimum_age_days": -1}, 400, "minimum_age_days"),
            ("update", {"minimum_age_days": -1}, 400, "minimum_age_days"),
            ("update", {"query": "tiny"}, 404, None),
            ("install", {"query": "nothing", "dry_run": True}, 404, "query"),
            ("prune", {"keep": -1}, 400, "keep"),
            ("prune", {"query": "tiny"}, 400, "query"),
            ("survey", {"refresh": True}, 400, "refresh"),
            ("select", {"latest": True, "model": "m"}, 400, "query"),
            ("select", {"query": "tiny@1", "latest": True}, 400, None),
            ("select", {}, 400, "query"),
            ("select", {"query": "tiny"}, 404, "query"),
            ("unselect", {}, 400, "format"),
            ("unselect", {"format": "gguf"}, 400, "format"),
            ("rollback", {"format": "gguf"}, 404, "format"),
            ("remove", {"query": "tiny"}, 404, "query"),
            ("hold", {"query": None}, 400, "query"),
            ("unpin", {"query": "tiny"}, 404, "query"),
            ("verify", {"query": "tiny"}, 404, None),
        ):
            answer = http.post(f"/api/v1/runtimes/{path}", json=body)
            assert answer.status_code == status, (path, body, answer.text)
            error = answer.json()["error"]
            assert error["param"] == param, (path, body, error)
            assert error["type"] == "invalid_request"
        assert http.post("/api/v1/runtimes/install", content=b"{").json()["error"]["code"] == "unsupported_media_type"
        assert http.get("/api/v1/runtimes/nothing").json()["error"]["param"] == "id"
        assert http.get("/api/v1/runtimes/operations/1").status_code == 404
        assert http.get("/api/v1/runtimes/releases", params={"query": "a@"}).status_code == 400


def test_what_cannot_be_installed_says_why(tiny, store, managed):
    tiny.offer(tiny.release("1.0", crash="yes"))
    server = managed()
    with server.client(server.admin) as http:
        *_, (name, data) = work(http, "install", query="tiny")
        (operation,) = operations(http)
    assert (name, data["error"]["code"]) == ("error", "smoke_test_failed")
    assert "the engine has no wheels" in data["error"]["message"]
    assert (operation["state"], operation["error"]["code"]) == ("failed", "smoke_test_failed")
    assert store.runtimes() == ()


def builds(server):
    """The processes below the server that pretend to compile."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if "time.sleep(600)" in " ".join(process.cmdline()):
                found.append(process)
    return found


def lingering(server, http):
    """Begin an installation that compiles for ten minutes; its stream and id."""
    stream = http.stream("POST", "/api/v1/runtimes/install", json={"query": "tiny"})
    answer = stream.__enter__()
    events = parse(answer.iter_lines())
    _, operation = next(events)
    server.until(lambda: builds(server))
    return stream, operation["id"]


def ended(server, store):
    """Wait until nothing is left of an installation."""
    server.until(lambda: not builds(server))
    server.until(lambda: not store.staging.exists() or not list(store.staging.iterdir()))
    assert store.runtimes() == ()


@pytest.mark.parametrize("how", ["leaving", "delete"])
def test_an_operation_is_cancelled(tiny, store, managed, how):
    tiny.offer(tiny.release("1.0", linger="yes"))
    server = managed()
    with server.client(server.admin) as http:
        stream, id = lingering(server, http)
        if how == "leaving":
            stream.__exit__(None, None, None)
        else:
            with server.client(server.admin) as other:
                assert other.delete(f"/api/v1/runtimes/operations/{id}").json()["state"] == "cancelled"
                assert other.delete(f"/api/v1/runtimes/operations/{id}").json()["state"] == "cancelled"
            stream.__exit__(None, None, None)
        ended(server, store)
        (operation,) = server.until(lambda: [o for o in operations(http) if o["state"] != "running"])
        assert (operation["state"], operation["progress"]["phase"]) == ("cancelled", "build")
        tiny.offer(tiny.release("1.0"))
        assert work(http, "install", query="tiny")[-1][0] == "operation.end"


def test_one_after_the_other_and_in_the_background(tiny, store, managed):
    install(tiny.release("1.0"), store, tiny.engine)
    tiny.offer(tiny.release("2.0", linger="yes"))
    server = managed()
    with server.client(server.admin) as http:
        answer = http.post("/api/v1/runtimes/install", json={"query": "tiny", "background": True})
        assert answer.status_code == 202
        first = answer.json()["id"]
        server.until(lambda: builds(server))
        second = http.post("/api/v1/runtimes/verify", json={"background": True}).json()["id"]

        def states():
            return [o["state"] for o in operations(http)]

        assert states() == ["running", "waiting"]
        http.delete(f"/api/v1/runtimes/operations/{first}")
        server.until(lambda: states() == ["cancelled", "done"])
        done = http.get(f"/api/v1/runtimes/operations/{second}").json()
        assert done["result"]["runtimes"][0]["state"] == "installed"


def test_the_end_of_the_server_ends_its_operations(tiny, store, managed):
    tiny.offer(tiny.release("1.0", linger="yes"))
    server = managed()
    with server.client(server.admin) as http:
        http.post("/api/v1/runtimes/install", json={"query": "tiny", "background": True})
        (build,) = server.until(lambda: builds(server))

    assert server.end() == -signal.SIGTERM  # as uvicorn passes it on, after an orderly end

    assert not build.is_running() or build.status() == psutil.STATUS_ZOMBIE
    assert list(store.staging.iterdir()) == []
    assert store.runtimes() == ()


def test_tokens_are_revoked_while_the_server_runs(tiny, managed):
    server = managed("--require-token")
    with server.client(server.user) as http:
        assert http.get("/v1/models").status_code == 200
        assert tiny.paceline("tokens", "revoke", "user").returncode == 0
        assert http.get("/v1/models").status_code == 401


def test_beyond_this_machine_only_with_tokens(tiny, managed):
    server = managed()
    assert tiny.paceline("tokens", "revoke", "user").returncode == 0
    assert tiny.paceline("tokens", "revoke", "admin").returncode == 0
    for options in (["--host", "0.0.0.0"], ["--require-token"]):
        done = tiny.paceline("serve", *options)
        assert (done.returncode, "paceline tokens create" in done.stderr) == (2, True), done.stderr
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/v1/models").status_code == 200
