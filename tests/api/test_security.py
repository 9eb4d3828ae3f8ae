"""Who may talk to the server."""

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from paceline.api.security import LocalOnly


def ask(headers, **options):
    app = LocalOnly(PlainTextResponse("in"), **options)
    return TestClient(app, base_url="http://127.0.0.1").get("/", headers=headers)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:1234", "127.8.8.8", "[::1]", "[::1]:1234"])
def test_loopback_names_get_in(host):
    assert ask({"host": host}).text == "in"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:1234",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "evil.example/localhost",
        "192.168.1.5",
        "0.0.0.0",
        "",
        "localhost:port",
        "[::1",
    ],
)
def test_other_names_stay_out(host):
    answer = ask({"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"


def test_allowed_names_get_in():
    assert ask({"host": "Box.Lan:1234"}, hosts=["box.lan"]).text == "in"
    assert ask({"host": "evil.example"}, hosts=["box.lan"], bind="0.0.0.0").status_code == 403


def test_beyond_loopback_any_name_gets_in():
    assert ask({"host": "box.lan"}, bind="0.0.0.0").text == "in"


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080"])
def test_loopback_origins_get_in(origin):
    assert ask({"origin": origin}).text == "in"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost.evil.example",
        "null",
        "",
        "file://",
        "chrome-extension://abc",
        "localhost",
    ],
)
def test_other_origins_stay_out(origin):
    answer = ask({"origin": origin})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"


def test_allowed_origins_get_in():
    assert ask({"origin": "https://chat.example"}, origins=["https://chat.example/"]).text == "in"


def test_origins_are_checked_beyond_loopback_too():
    assert ask({"origin": "https://evil.example"}, bind="0.0.0.0").status_code == 403


def test_the_whole_application_is_behind_it(client, serving):
    for path in ("/health", "/v1/models", "/nowhere"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403
        answer = client.get(path, headers={"origin": "https://evil.example"})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
