"""Listing, loading and unloading, and the health of the server."""

import pytest

import paceline

IDS = ["coder-7m", "coder-3m", "family/plain", "embedder"]


def test_openai_lists_every_model(client):
    told = client.get("/v1/models").json()
    assert told["object"] == "list"
    assert [m["id"] for m in told["data"]] == IDS
    assert told["data"][0] == {"id": "coder-7m", "object": "model", "created": 0, "owned_by": "tester"}


@pytest.mark.parametrize("model_id", IDS)
def test_one_model_also_with_a_slash_in_its_id(client, model_id):
    assert client.get(f"/v1/models/{model_id}").json()["id"] == model_id
    assert client.get(f"/api/v0/models/{model_id}").json()["id"] == model_id


@pytest.mark.parametrize("prefix", ["/v1", "/api/v0"])
def test_an_unknown_model(client, prefix):
    answer = client.get(f"{prefix}/models/coder-9m")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "coder-7m" in error["message"]


def test_lmstudio_shows_what_is_loaded(client):
    expected = {
        "id": "coder-7m",
        "object": "model",
        "type": "llm",
        "publisher": "tester",
        "arch": "llama",
        "compatibility_type": "gguf",
        "quantization": "Q8_0",
        "state": "not-loaded",
        "max_context_length": 2048,
    }
    assert client.get("/api/v0/models").json()["data"][0] == expected
    assert client.post("/api/v1/models/load", json={"model": "coder-7m", "context_length": 512}).status_code == 200
    told = client.get("/api/v0/models/coder-7m").json()
    assert told == {**expected, "state": "loaded", "loaded_context_length": 512}
    assert client.get("/api/v0/models").json()["data"][1]["state"] == "not-loaded"


def test_load_and_unload(client):
    told = client.post("/api/v1/models/load", json={"model": "coder-7m", "echo_load_config": True}).json()
    assert told == {
        "type": "llm",
        "instance_id": "coder-7m",
        "load_time_seconds": 0.25,
        "status": "loaded",
        "load_config": {"context_length": 2048, "parallel": 4},
    }
    (entry,) = client.get("/health").json()["loaded"]
    assert (entry["model"], entry["features"]) == ("coder-7m", ["generate", "draft"])
    entry = client.get("/api/v1/models").json()["models"][0]
    assert entry["loaded_instances"] == [{"id": "coder-7m", "config": told["load_config"]}]
    assert client.post("/api/v1/models/unload", json={"instance_id": "coder-7m"}).json() == {"instance_id": "coder-7m"}
    again = client.post("/api/v1/models/unload", json={"instance_id": "coder-7m"})
    assert again.status_code == 404
    assert again.json()["error"]["type"] == "model_not_found"


def test_every_way_to_load_has_a_field(client):
    config = {
        "context_length": 1024,
        "eval_batch_size": 256,
        "flash_attention": True,
        "offload_kv_cache_to_gpu": False,
        "parallel": 2,
        "queue": 0,
        "prompt_cache_bytes": 0,
        "threads": 3,
        "cache_type_k": "q8_0",
        "cache_type_v": "q8_0",
        "gpu_layers": -1,
        "main_gpu": 0,
        "tensor_split": [1, 0.5],
        "mmap": False,
        "mlock": True,
        "lora": [{"path": "/a.gguf", "scale": 0.5}],
    }
    told = client.post("/api/v1/models/load", json={"model": "coder-7m", "echo_load_config": True, **config}).json()
    assert told["load_config"] == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eval_batch_size", 0),
        ("flash_attention", "yes"),
        ("parallel", 65),
        ("queue", -1),
        ("queue", 1.5),
        ("prompt_cache_bytes", -1),
        ("cache_type_k", 8),
        ("gpu_layers", -2),
        ("tensor_split", []),
        ("tensor_split", [-1]),
        ("lora", [{"scale": 1}]),
        ("lora", "/a.gguf"),
        ("num_experts", 4),
    ],
)
def test_a_way_to_load_that_makes_no_sense_is_named(client, field, value):
    answer = client.post("/api/v1/models/load", json={"model": "coder-7m", field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(field)


def test_loading_an_unknown_model(client):
    answer = client.post("/api/v1/models/load", json={"model": "coder-9m"})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "model_not_found"
    assert "coder-7m" in answer.json()["error"]["message"]


def test_the_model_object_of_api_v1(client):
    assert client.get("/api/v1/models").json()["models"][0] == {
        "type": "llm",
        "publisher": "tester",
        "key": "coder-7m",
        "display_name": "Coder-7M",
        "architecture": "llama",
        "quantization": {"name": "Q8_0", "bits_per_weight": 8},
        "size_bytes": 4_500_000,
        "params_string": "7.1M",
        "loaded_instances": [],
        "max_context_length": 2048,
        "format": "gguf",
        "capabilities": {"vision": False, "trained_for_tool_use": False},
        "description": None,
    }
    assert client.get("/api/v1/models").json()["models"][3]["type"] == "embedding"


def test_health(client):
    assert client.get("/health").json() == {"status": "ok", "version": paceline.__version__, "loaded": []}
