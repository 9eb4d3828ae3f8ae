"""How models are loaded, through the API and over the real llama.cpp."""

import httpx
import pytest

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def modest(serve, llama_cpp_home, tmp_path_factory):
    """A server with defaults of its own."""
    flags = ("--context-length", "512", "--parallel", "2", "--cache-type-k", "q8_0")
    with serve(llama_cpp_home, tmp_path_factory.mktemp("models"), *flags) as server:
        yield server


def load(server, **fields):
    return httpx.post(f"{server.url}/api/v1/models/load", json=fields, timeout=60)


def complete(server, **fields):
    body = {"prompt": "def close(", "max_tokens": 24, "temperature": 0, **fields}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def config_of(server, model):
    models = httpx.get(f"{server.url}/api/v1/models").json()["models"]
    (instance,) = next(m for m in models if m["key"] == model)["loaded_instances"]
    return instance["config"]


def test_defaults_of_the_server_and_wishes_of_a_load(modest, pair):
    main, draft = pair
    expected = {"context_length": 512, "parallel": 2, "cache_type_k": "q8_0"}
    answer = complete(modest, model=main, draft_model=draft)
    assert answer["stats"]["total_draft_tokens_count"] > 0
    assert config_of(modest, main) == expected
    (worker,) = modest.workers()
    told = load(modest, model=main, parallel=2, echo_load_config=True).json()
    assert told["load_config"] == expected
    assert modest.workers() == [worker]
    wish = {"context_length": 256, "flash_attention": False, "mmap": False, "offload_kv_cache_to_gpu": False}
    told = load(modest, model=main, echo_load_config=True, **wish).json()
    assert told["load_config"] == {**expected, **wish}
    assert modest.workers() != [worker]
    assert complete(modest, model=main, draft_model=draft)["choices"][0]["text"]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("cache_type_v", "q99", "must be one of"),
        ("main_gpu", 9, "no GPU 9"),
        ("tensor_split", [0, 0], "not all of them 0"),
        ("lora", [{"path": "/nowhere/adapter.gguf"}], "not the full path of an adapter"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_name(modest, pair, field, value, reason):
    answer = load(modest, model=pair[0], **{field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    assert reason in answer.json()["error"]["message"]
    assert complete(modest, model=pair[0])["choices"][0]["text"]


def test_what_does_not_fit_is_refused_with_the_numbers(serve, llama_cpp_home, tmp_path, monkeypatch, pair):
    monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "48MiB")
    main, draft = pair
    with serve(llama_cpp_home, tmp_path) as server:
        refused = httpx.post(f"{server.url}/v1/completions", json={"model": main, "prompt": "a"}, timeout=60)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (400, "insufficient_memory")
        assert "weights 7.5 MiB, cache 64.0 MiB for 8 requests of 2048 tokens" in error["message"]
        assert "parallel 1 fits" in error["message"]
        assert server.workers() == []
        assert load(server, model=main, parallel=1).status_code == 200
        assert complete(server, model=main, draft_model=draft)["stats"]["total_draft_tokens_count"] > 0
        assert load(server, model=main, parallel=8).json()["error"]["code"] == "insufficient_memory"
        assert config_of(server, main) == {"context_length": 2048, "parallel": 1}
        assert load(server, model=main, parallel=8, force=True).status_code == 200
    with serve(llama_cpp_home, tmp_path, "--no-memory-check") as server:
        assert complete(server, model=main)["choices"][0]["text"]
