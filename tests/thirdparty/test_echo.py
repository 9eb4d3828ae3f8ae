"""A third party's engine plugin, from its wheel to an answer through the API."""

import json
import os
import subprocess
import sys
import zipfile

import httpx
import pytest

LINE = "To be or not to be, that is the question"


def test_the_wheel_of_the_host_holds_regular_files(wheels):
    """The editable install reads registry.json and the workers through symbolic links; a wheel has none."""
    with zipfile.ZipFile(wheels[0]) as wheel:
        members = {info.filename: info for info in wheel.infolist()}
        registry = json.loads(wheel.read("paceline/registry.json"))
    assert registry["schema_version"]
    for name in (
        "paceline/_runtimes/paceline_worker/__init__.py",
        "paceline/_runtimes/paceline_llama_cpp_worker/__main__.py",
        "paceline_llama_cpp/__init__.py",
        "paceline_mlx/__init__.py",
        "paceline/py.typed",
    ):
        assert name in members
    assert all(info.external_attr >> 28 == 0o10 for info in members.values() if info.external_attr >> 28)
    tops = {name.split("/")[0] for name in members}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "paceline",
        "paceline_llama_cpp",
        "paceline_mlx",
    }


def test_the_plugin_is_listed_beside_the_first_party_ones(installed):
    found = {plugin["name"]: plugin for plugin in installed.json("plugins")}
    assert found["echo"] == {
        "name": "echo", "module": "paceline_echo", "distribution": "paceline-echo", "version": "1.0.0",
        "state": "active", "engines": ["echo"], "formats": ["echo"], "error": None,
        "managed": False, "source": "environment",
    }  # fmt: skip
    assert {name: plugin["state"] for name, plugin in found.items()} == dict.fromkeys(
        ("llama-cpp", "mlx", "echo"), "active"
    )


def test_its_models_are_in_the_library(installed):
    models = {model["id"]: model for model in installed.json("ls")}
    assert {"parrot", "chick", "stranger"} <= set(models)
    assert models["parrot"]["format"] == "echo"
    assert models["parrot"]["publisher"] == "birds"


def test_its_pair_rule_judges(installed):
    done = installed.paceline("pairs", "parrot", "--all")
    assert done.returncode == 0, done.stderr
    assert "the vocabularies are equal" in done.stdout
    assert "word 3 differs: ' not' / ' nought'" in done.stdout


def test_the_host_imports_nothing_of_the_worker(installed):
    done = subprocess.run(
        [installed.python, "-X", "importtime", "-m", "paceline", "plugins"],
        env=installed.env, capture_output=True, text=True,
    )  # fmt: skip
    assert "paceline_echo.engine" in done.stderr
    assert "paceline_echo_worker" not in done.stderr


@pytest.fixture(scope="session")
def runtime(installed):
    """The runtime of the echo engine, installed by the command."""
    done = installed.paceline("runtime", "get", "echo")
    assert done.returncode == 0, done.stdout + done.stderr
    return installed


def test_a_runtime_that_fails_its_smoke_test_is_not_installed(installed):
    """Before any other test installs it: the engine passes the fault on to its worker."""
    fault = json.dumps([{"at": "initialize", "do": "log", "value": "no such instruction"},
                        {"at": "initialize", "do": "signal", "value": "SIGILL"}])  # fmt: skip
    home = str(installed.models.parent / "smoke")
    done = installed.paceline("runtime", "get", "echo", PACELINE_ECHO_FAULTS=fault, PACELINE_HOME=home)
    assert done.returncode == 1
    assert "SIGILL" in done.stderr
    assert "no such instruction" in done.stderr
    assert "echo-any@1.0.0" not in installed.paceline("runtime", "ls", PACELINE_HOME=home).stdout


def test_its_runtime_installs_and_is_selected(runtime):
    assert "echo-any@1.0.0" in runtime.paceline("runtime", "ls").stdout


@pytest.fixture(scope="module")
def api(runtime):
    """A client of `paceline serve` on a free port."""
    log = runtime.models.parent / "serve.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [runtime.python, "-u", runtime.bin / "paceline", "serve", "--port", "0"],
            env=runtime.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True,
        ) as server,
    ):  # fmt: skip
        line = ""
        for line in server.stdout:
            if "http://" in line:
                break
        assert "http://" in line, log.read_text()
        url = "http://" + line.split("http://")[1].split()[0].rstrip("/.,;")
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client
        server.terminate()
        server.stdout.read()


def test_the_api_lists_its_models(api):
    listed = {model["id"] for model in api.get("/v1/models").raise_for_status().json()["data"]}
    assert {"parrot", "chick"} <= listed


def test_a_chat_through_the_api(api):
    answer = _chat(api, "/v1/chat/completions")
    assert answer["choices"][0]["message"]["content"] == LINE
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 11


def test_a_chat_with_its_draft_has_the_same_text_and_an_acceptance_record(api):
    answer = _chat(api, "/v1/chat/completions", draft_model="chick")
    assert answer["choices"][0]["message"]["content"] == LINE
    stats = answer["stats"]
    # Ten words and the end: every fourth of the draft's guesses is wrong.
    assert stats["draft_model"] == "chick"
    assert stats["accepted_draft_tokens_count"] == 9
    assert stats["total_draft_tokens_count"] == (
        stats["accepted_draft_tokens_count"]
        + stats["rejected_draft_tokens_count"]
        + stats["ignored_draft_tokens_count"]
    )


def test_a_stream_with_its_draft(api):
    body = {"model": "parrot", "draft_model": "chick", "stream": True, "messages": [{"role": "user", "content": LINE}]}
    with api.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(line) for line in data[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == LINE


def test_lm_studios_endpoint_serves_it_too(api):
    answer = _chat(api, "/api/v0/chat/completions", draft_model="chick")
    assert answer["choices"][0]["message"]["content"] == LINE
    assert answer["stats"]["accepted_draft_tokens_count"] == 9
    assert answer["runtime"]["name"] == "echo-any"


def test_a_draft_its_rule_refuses_is_a_client_error(api):
    body = {"model": "parrot", "draft_model": "stranger", "messages": [{"role": "user", "content": LINE}]}
    answer = api.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "draft_model"
    assert "word 3 differs" in answer.json()["error"]["message"]


def test_log_probabilities_through_the_api(api):
    choice = _chat(api, "/v1/chat/completions", logprobs=True, top_logprobs=2)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == LINE
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_prompt_lookup_through_the_api(api):
    answer = _chat(api, "/api/v0/chat/completions", speculative={"promptLookup": True})
    assert answer["choices"][0]["message"]["content"] == LINE
    stats = answer["stats"]
    assert "draft_model" not in stats
    assert stats["accepted_lookup_tokens_count"] == stats["accepted_draft_tokens_count"] > 0


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("grammar", 'root ::= "x"', "grammar"),
        ("response_format", {"type": "json_object"}, "response_format"),
        ("contextOverflowPolicy", "rollingWindow", "contextOverflowPolicy"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_its_worker_lacks_is_a_client_error(api, field, value, param, stream):
    body = {"model": "parrot", "messages": [{"role": "user", "content": LINE}], field: value, "stream": stream}
    answer = api.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert "the engine echo 1.0.0" in error["message"]


def _chat(api, path, **fields):
    body = {"model": "parrot", "messages": [{"role": "user", "content": LINE}], **fields}
    answer = api.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_from_wheel_to_runtime_and_away_again_without_a_network(wheels, tmp_path):
    """As a package of Paceline's home, beside the Paceline that runs the tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PACELINE_", "UV_", "PIP_"))}
    env |= {"PACELINE_HOME": str(tmp_path / "home"), "PACELINE_CACHE": str(tmp_path / "cache"), "PACELINE_OFFLINE": "1"}

    def paceline(*arguments):
        argv = [sys.executable, "-m", "paceline", *map(str, arguments)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    _, echo = wheels
    said = paceline("plugins", "install", echo, "--yes")
    assert f"+ paceline-echo 1.0.0, from {echo}" in said
    assert "engines it claims: echo" in said
    assert "echo is active: echo" in said

    installed = json.loads(paceline("runtime", "get", "echo", "--json"))
    assert (installed["id"], installed["selected_for"]) == ("echo-any@1.0.0", ["echo"])

    paceline("plugins", "remove", "paceline-echo", "--yes")
    assert "echo" not in {p["name"] for p in json.loads(paceline("plugins", "ls", "--json"))}
    assert [r["id"] for r in json.loads(paceline("runtime", "ls", "--json"))] == ["echo-any@1.0.0"]
