"""Registries, bundles and plugins managed over HTTP: a real server, an index and a registry on this machine."""

from __future__ import annotations

import hashlib
import json

import pytest

from paceline.plugin_folder import read_state
from paceline.registry import publishing, registry_text, signing
from paceline.store import Store
from paceline.tokens import Permission, Tokens
from paceline.types import Package, Recipe, Release, Requirements

PLUGIN = """
from paceline import Engine, hookimpl
PACELINE_API = 1
class Parrot(Engine):
    name = "parrot"
    formats = ("parrot",)
    def worker(self, runtime): ...
@hookimpl
def paceline_engines():
    return [Parrot()]
"""


def work(http, path, **body):
    """Follow long work to its end; its events as (name, data)."""
    with http.stream("POST", f"/api/v1/{path}", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        lines = list(answer.iter_lines())
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return list(zip(names, data, strict=True))


def result(http, path, **body):
    (name, data) = work(http, path, **body)[-1]
    assert name == "operation.end", data
    return data["result"]


def refused(answer):
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


@pytest.fixture
def limited(tiny):
    """A token that manages runtimes and decides nothing about whose code comes here."""
    return Tokens(tiny.home).create("limited", [Permission.INFERENCE, Permission.ADMIN])[1]


@pytest.fixture
def index(tiny, file_server):
    """The packages of the tiny engine in an index, and the variables with which a server asks it."""
    for file in tiny.index.iterdir():
        file_server.add_file(file.name, file.read_bytes())
        file_server.publish(file.name.partition("-")[0], {file.name: "2030-01-01"})
    file_server.variables = {"UV_DEFAULT_INDEX": file_server.index, "UV_FIND_LINKS": "", "PIP_NO_INDEX": ""}
    file_server.variables["UV_HTTP_RETRIES"] = "0"
    return file_server


class TestRegistries:
    @pytest.fixture
    def publisher(self, tiny, tmp_path, file_server):
        """Publishes a signed registry with versions of the tiny engine; its root is `publisher.root`."""
        tiny.offer()
        folder = tmp_path / "publisher"
        for role in publishing.ROLES:
            signing.new_key(folder / "keys", role)

        def publish(*versions):
            releases = [
                Release("tiny", v, "any-cpu", ("tiny",), Requirements(), Recipe((Package("t", v, ("a" * 64,)),)))
                for v in versions
            ]
            (folder / "registry.json").write_text(registry_text(releases))
            publishing.publish(folder / "registry.json", folder / "keys", folder / "site")
            for file in (folder / "site").rglob("*.*"):
                path = f"/registry/{file.relative_to(folder / 'site').as_posix()}"
                file_server.files[path] = file.read_bytes(), "application/json"
            publish.root = json.loads((folder / "site" / "metadata" / "1.root.json").read_bytes())

        publish.url = f"{file_server.url}/registry"
        publish("1.0")
        return publish

    def test_the_life_of_a_trust(self, publisher, managed, limited):
        server = managed()
        with server.client(server.admin) as http:

            def releases():
                answer = http.get("/api/v1/runtimes/releases", params={"query": "tiny"})
                return [r["id"] for r in answer.json()["releases"]] if answer.status_code == 200 else []

            assert http.get("/api/v1/registries").json() == {"registries": []}
            assert releases() == []
            events = work(http, "registries/trust", url=publisher.url, root=publisher.root, name="acme")
            said = [data["message"] for name, data in events if name == "operation.progress"]
            assert said == [f"asking {publisher.url}"]
            made = events[-1][1]["result"]
            assert (made["registry"]["name"], made["registry"]["releases"]) == ("acme", 1)
            assert made["refresh"]["state"] == "updated"
            assert http.get("/api/v1/registries").json()["registries"] == [made["registry"]]
            assert releases() == ["tiny-any-cpu@1.0"]

            publisher("1.0", "2.0")
            with server.client(limited) as other:
                (outcome,) = result(other, "registries/refresh", names=["acme"])["registries"]
                assert refused(other.post("/api/v1/registries/remove", json={"name": "acme"}))[0] == 403
            assert outcome["state"] == "updated"
            assert releases() == ["tiny-any-cpu@2.0", "tiny-any-cpu@1.0"]
            assert result(http, "registries/refresh")["registries"][0]["state"] == "unchanged"

            assert http.post("/api/v1/registries/remove", json={"name": "acme"}).json() == {"removed": "acme"}
            assert http.get("/api/v1/registries").json() == {"registries": []}

    def test_what_is_not_trusted(self, publisher, managed, file_server, store):
        server = managed()
        with server.client(server.admin) as http:

            def trust(**body):
                return http.post("/api/v1/registries/trust", json={"url": publisher.url, "root": publisher.root} | body)

            assert refused(trust(root={})) == (409, "registry_error", "root")
            assert refused(trust(url="ftp://x")) == (400, "invalid_request", "url")
            assert refused(trust(root="x")) == (400, "invalid_type", "root")
            assert refused(trust(root={"x": "y" * 100_000}))[:2] == (413, "request_too_large")
            assert refused(trust(roots=1)) == (400, "invalid_value", "roots")
            path = next(p for p in file_server.files if p.endswith("timestamp.json"))
            forged = json.loads(file_server.files[path][0])
            forged["signed"]["version"] += 1
            file_server.files[path] = json.dumps(forged).encode(), "application/json"
            (name, data) = work(http, "registries/trust", url=publisher.url, root=publisher.root)[-1]
            assert (name, data["error"]["code"]) == ("error", "registry_error")
            assert "is not trusted: the registry 127.0.0.1 is refused" in data["error"]["message"]
            assert http.get("/api/v1/registries").json() == {"registries": []}
            remove = http.post("/api/v1/registries/remove", json={"name": "acme"})
            assert refused(remove) == (404, "not_found", "name")
            assert refused(http.post("/api/v1/registries/refresh", json={"names": ["acme"]}))[:2] == (404, "not_found")

    def test_one_that_is_silent_is_left(self, publisher, managed, file_server, store):
        server = managed()
        file_server.misbehave_always(stall=0)
        with server.client(server.admin) as http:
            body = {"url": publisher.url, "root": publisher.root, "background": True}
            id = http.post("/api/v1/registries/trust", json=body).json()["id"]
            operation = f"/api/v1/runtimes/operations/{id}"
            server.until(lambda: http.get(operation).json()["progress"] and file_server.asked)
            assert http.delete(operation).json()["state"] == "cancelled"
            assert http.get("/api/v1/registries").json() == {"registries": []}


class TestBundles:
    def test_made_fetched_brought_and_installed(self, tiny, store, index, managed, limited):
        tiny.offer(tiny.release("1.0"))
        server = managed(**index.variables)
        with server.client(limited) as http:
            events = work(http, "bundles/create", name="tiny.bundle", queries=["tiny"])
            total = sum(len(content) for path, (content, _) in index.files.items() if path.startswith("/files/"))
            steps = [(e["phase"], e["done"], e["total"]) for name, e in events if name == "operation.progress"]
            assert ("download", total, total) in steps
            made = events[-1][1]["result"]
            assert [r["id"] for r in made["releases"]] == ["tiny-any-cpu@1.0"]
            assert len(made["files"]) == 3
            assert made.pop("remarks") == []
            (listed,) = http.get("/api/v1/bundles").json()["bundles"]
            assert (listed["name"], listed["size_bytes"]) == ("tiny.bundle", made["size_bytes"])

            fetched = http.get("/api/v1/bundles/tiny.bundle/file")
            assert hashlib.sha256(fetched.content).hexdigest() == made["sha256"]
            rest = http.get("/api/v1/bundles/tiny.bundle/file", headers={"Range": "bytes=100-"})
            assert (rest.status_code, rest.content) == (206, fetched.content[100:])
            assert http.post("/api/v1/bundles/remove", json={"name": "tiny.bundle"}).json() == {
                "removed": "tiny.bundle"
            }
            assert http.get("/api/v1/bundles").json() == {"bundles": []}

            place = f"/api/v1/bundles/brought?sha256={made['sha256']}"
            assert refused(http.put(place, content=fetched.content))[0] == 403
        index.asked.clear()
        with server.client(server.admin) as http:
            brought = http.put(place, content=fetched.content)
            assert brought.status_code == 200, brought.text
            assert brought.json() == made | {"name": "brought"}
        with server.client(limited) as http:
            looked = http.get("/api/v1/bundles/brought").json()
            assert looked["releases"][0]["verdict"]["status"] == "compatible"
            would = result(http, "bundles/install", name="brought", dry_run=True)
            assert (would, store.runtimes()) == ({"would_install": ["tiny-any-cpu@1.0"]}, ())
            (runtime,) = result(http, "bundles/install", name="brought")["runtimes"]
        assert (runtime["id"], runtime["selected_for"]) == ("tiny-any-cpu@1.0", ["tiny"])
        assert [r.id for r in store.runtimes()] == ["tiny-any-cpu@1.0"]
        assert index.asked == []

    def test_what_has_no_published_hash_is_accepted_or_refused(self, tiny, store, index, managed, limited, tmp_path):
        """When it is bundled, and when a bundle is installed where it was not seen before."""
        name = "tinyengine-1.0.0-py3-none-any.whl"
        files = {"tinyengine/__main__.py": tiny.worker, "tinyengine/settings.json": "{}"}
        tiny.write_wheel(tmp_path / name, "tinyengine", files)
        index.files[f"/page/tinyengine/{name}"] = (tmp_path / name).read_bytes(), "application/zip"
        index.files["/page/tinyengine/"] = f'<a href="{name}">{name}</a>'.encode(), "text/html"
        recipe = Recipe((Package("tinyengine", "1.0.0", index=f"{index.url}/page"),))
        tiny.offer(Release("tiny", "1.0", "any-cpu", ("tiny",), Requirements(), recipe))
        server = managed(**index.variables)
        with server.client(limited) as http:
            making = {"name": "b", "queries": ["tiny"]}
            assert refused(http.post("/api/v1/bundles/create", json=making)) == (409, "unpinned_packages", None)
            made = result(http, "bundles/create", **making, allow_unpinned=True)
            assert [r["unpinned"] for r in made["releases"]] == [["tinyengine"]]

            (store.home / "first-use.json").unlink()
            (_, data) = work(http, "bundles/install", name="b", dry_run=True)[-1]
            assert (data["error"]["code"], store.runtimes()) == ("unpinned_packages", ())
            (runtime,) = result(http, "bundles/install", name="b", allow_unpinned=True)["runtimes"]
            assert store.manifest(store.get(runtime["id"]))["unpinned"] == ["tinyengine"]

    def test_what_is_no_bundle_is_not_kept(self, managed, store):
        server = managed(PACELINE_OFFLINE="1")
        with server.client(server.admin) as http:

            def bring(content, name="b", query="", **headers):
                return refused(http.put(f"/api/v1/bundles/{name}{query}", content=content, headers=headers))

            answer = http.put("/api/v1/bundles/b", content=b"x" * 3_000_000)
            assert refused(answer)[:2] == (400, "bad_archive")
            assert answer.json()["error"]["message"].startswith("b cannot be used: it is no bundle")
            assert bring(iter([b"PK", b"x"]))[:2] == (400, "bad_archive")
            assert bring(b"", query="?sha256=" + "0" * 64)[:2] == (400, "bad_archive")
            assert bring(b"", query="?sha256=0") == (400, "invalid_request", "sha256")
            assert bring(b"", name=".hidden") == (400, "invalid_request", "name")
            assert bring(b"{}", **{"content-type": "application/json"})[:2] == (415, "unsupported_media_type")
            assert list((store.home / "bundles").iterdir()) == []
            assert refused(http.get("/api/v1/bundles/b")) == (404, "not_found", "name")
            assert refused(http.get("/api/v1/bundles/..%2Ftokens.json/file"))[0] in (400, 404)
            for path, body, status, param in (
                ("create", {"name": "b"}, 400, "queries"),
                ("create", {"name": "a/b", "queries": ["tiny"]}, 400, "name"),
                ("create", {"name": "b", "queries": ["nothing"]}, 404, None),
                ("create", {"name": "b", "queries": ["tiny"]}, 409, None),  # nothing could be fetched
                ("create", {"name": "b", "queries": ["llama.cpp"], "pythons": ["2.7"]}, 400, "pythons"),
                ("install", {"name": "b"}, 404, "name"),
                ("install", {"name": "b", "path": "/x"}, 400, "path"),
                ("remove", {"name": "b"}, 404, "name"),
            ):
                answer = http.post(f"/api/v1/bundles/{path}", json=body)
                assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), (path, body)

    def test_what_a_client_leaves_or_a_process_left_is_gone(self, managed, store, tmp_path):
        server = managed()
        left = store.home / "bundles" / ".b.00000000.999999999"
        left.parent.mkdir()
        left.write_bytes(b"x")
        arriving = []

        def parts():
            yield b"x" * 2_000_000
            arriving.extend(server.until(lambda: list(left.parent.iterdir())))
            raise KeyboardInterrupt

        with server.client(server.admin) as http:
            with pytest.raises(KeyboardInterrupt):
                http.put("/api/v1/bundles/b", content=parts())
            server.until(lambda: not list(left.parent.iterdir()))
            assert arriving != []
            assert http.get("/api/v1/bundles").json() == {"bundles": []}


class TestPlugins:
    @pytest.fixture
    def publish(self, tiny, index, tmp_path):
        def put(version, source=PLUGIN, claims="[paceline.engines]\nparrot = parrot\n"):
            name = f"parrot-{version}-py3-none-any.whl"
            entry_points = f"[paceline]\nparrot = parrot\n{claims}"
            files = {"parrot.py": source, f"parrot-{version}.dist-info/entry_points.txt": entry_points}
            tiny.write_wheel(tmp_path / name, "parrot", files, version)
            index.add_file(name, (tmp_path / name).read_bytes())
            put.uploads[name] = "2030-01-01"
            index.publish("parrot", put.uploads)

        put.uploads = {}
        put("1.0")
        return put

    @pytest.fixture
    def with_parrot(self, index):
        return {**index.variables, "PACELINE_PLUGINS": "tiny,echo,parrot"}

    def test_the_life_of_a_plugin(self, tiny, index, publish, managed, with_parrot):
        server = managed(**with_parrot)
        with server.client(server.admin) as http:
            before = http.get("/api/v1/plugins").json()
            states = {p["name"]: p["state"] for p in before["plugins"]}
            assert (states["tiny"], states["parrot"]) == ("active", "missing")
            assert (before["installed"], before["restart_needed"]) == ([], False)

            shown = result(http, "plugins/install", names=["parrot"], dry_run=True)
            (package,) = shown["added"]
            assert (package["name"], package["version"], package["engines"]) == ("parrot", "1.0", ["parrot"])
            assert package["sha256"] == [index.sha256("parrot-1.0-py3-none-any.whl")]
            assert (shown["changed"], read_state(tiny.home).generation) == (False, 0)

            events = work(http, "plugins/install", names=["parrot"], change=shown["change"])
            phases = [e["phase"] for name, e in events if name == "operation.progress"]
            assert list(dict.fromkeys(phases)) == ["search", "packages", "check", "publish"]
            made = events[-1][1]["result"]
            assert (made["changed"], made["engines"]) == (True, {"parrot": ["parrot"]})
            assert made["remarks"] == ["what is running, such as `paceline serve`, sees it after its next start"]

            found = http.get("/api/v1/plugins").json()
            assert [(p["name"], p["version"]) for p in found["installed"]] == [("parrot", "1.0")]
            assert found["restart_needed"]
            assert {p["name"]: p["state"] for p in found["plugins"]}["parrot"] == "missing"

        server = managed(**with_parrot)
        with server.client(server.admin) as http:
            found = http.get("/api/v1/plugins").json()
            parrot = {p["name"]: p for p in found["plugins"]}["parrot"]
            assert (parrot["state"], parrot["source"], parrot["managed"]) == ("active", "index", True)
            assert not found["restart_needed"]

            publish("1.1")
            shown = result(http, "plugins/update", dry_run=True)
            assert [p["version"] for p in (*shown["gone"], *shown["added"])] == ["1.0", "1.1"]
            publish("1.2")
            (name, data) = work(http, "plugins/update", change=shown["change"])[-1]
            assert (name, data["error"]["code"]) == ("error", "install_failed")
            assert "what would change now is not what was looked at" in data["error"]["message"]
            assert {p.version for p in read_state(tiny.home).packages} == {"1.0"}

            shown = result(http, "plugins/remove", names=["parrot"], dry_run=True)
            assert result(http, "plugins/remove", names=["parrot"], change=shown["change"])["changed"]
            assert read_state(tiny.home).packages == ()

    def test_one_that_does_not_load_changes_nothing(self, tiny, publish, managed, with_parrot):
        publish("1.0", "raise RuntimeError('no voice')")
        server = managed(**with_parrot)
        with server.client(server.admin) as http:
            shown = result(http, "plugins/install", names=["parrot"], dry_run=True)
            (name, data) = work(http, "plugins/install", names=["parrot"], change=shown["change"])[-1]
            assert (name, data["error"]["code"]) == ("error", "plugin_error")
            assert "no voice" in data["error"]["message"]
            assert http.get("/api/v1/plugins").json()["restart_needed"] is False
        assert read_state(tiny.home).generation == 0

    def test_malformed_requests_name_the_field(self, managed, limited):
        server = managed()
        with server.client(server.admin) as http:
            for path, body, status, param in (
                ("install", {}, 400, "names"),
                ("install", {"names": []}, 400, "names"),
                ("install", {"names": ["parrot"]}, 400, "change"),
                ("install", {"names": ["parrot"], "dry_run": True, "change": "0" * 64}, 400, "change"),
                ("install", {"names": ["parrot"], "change": "0"}, 400, "change"),
                ("install", {"names": ["./parrot"], "dry_run": True}, 400, "names"),
                ("install", {"names": ["/etc/parrot.whl"], "dry_run": True}, 400, "names"),
                ("install", {"names": ["parrot @ file:///etc/x.whl"], "dry_run": True}, 400, "names"),
                ("install", {"names": ["a b"], "dry_run": True}, 400, "names"),
                ("update", {"names": ["parrot"], "dry_run": True}, 404, "names"),
                ("remove", {"names": ["parrot"], "dry_run": True}, 404, "names"),
                ("remove", {"dry_run": True}, 400, "names"),
            ):
                answer = http.post(f"/api/v1/plugins/{path}", json=body)
                assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), (
                    path,
                    body,
                    answer.text,
                )
        with server.client(limited) as http:
            answer = http.post("/api/v1/plugins/install", json={"names": ["parrot"], "dry_run": True})
            assert answer.status_code == 403
            assert "lacks trust; `paceline tokens create --trust` makes one" in answer.json()["error"]["message"]


def test_who_may_do_what(managed, limited):
    server = managed()
    reads = ("registries", "plugins")
    managing = ("registries/refresh", "bundles/create", "bundles/install", "bundles/remove")
    deciding = ("registries/trust", "registries/remove", "plugins/install", "plugins/update", "plugins/remove")

    def status(token, method, path):
        with server.client(token) as http:
            return http.request(method, f"/api/v1/{path}", json={"nonsense": 1}).status_code

    for path in reads:
        assert status(None, "GET", path) == 200
    assert [status(token, "GET", "bundles") for token in (None, server.user, limited)] == [401, 403, 200]
    for path in managing:
        assert [status(t, "POST", path) for t in (None, server.user, limited)] == [401, 403, 400], path
    for path in deciding:
        assert [status(t, "POST", path) for t in (None, server.user, limited, server.admin)] == [401, 403, 403, 400], (
            path
        )
