"""Embeddings of a real sentence model through the API."""

import base64
import math
import shutil
import struct
import time

import httpx
import openai
import pytest

pytestmark = pytest.mark.runtime

CAT, KITTEN, BOND = "A cat sits on the mat.", "A kitten rests on the carpet.", "Bond yields rose sharply on Friday."


@pytest.fixture(scope="module")
def embedder(server, shared):
    """The id of an embedding model in the server's library."""
    folder = server.models / "sentence-transformers" / "all-minilm-l6-v2"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shared / "models" / "all-minilm-l6-v2-q8_0.gguf", folder / "all-minilm-l6-v2-q8_0.gguf")
    for _ in range(500):
        ids = [m["id"] for m in httpx.get(f"{server.url}/v1/models").json()["data"]]
        if found := [i for i in ids if "minilm" in i]:
            return found[0]
    raise AssertionError(ids)


def embed(server, model, given, path="/v1/embeddings", **options):
    return httpx.post(f"{server.url}{path}", json={"model": model, "input": given, **options}, timeout=60)


def computed(server):
    """Seconds of processor time that the workers took."""
    return sum(sum(worker.cpu_times()[:2]) for worker in server.workers())


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/v0/embeddings"])
def test_near_meanings_are_near_and_vectors_have_length_one(server, embedder, path):
    answer = embed(server, embedder, [CAT, KITTEN, BOND], path).json()
    cat, kitten, bond = (entry["embedding"] for entry in answer["data"])
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert len(cat) == 384
    assert all(math.isclose(dot(v, v), 1.0, abs_tol=1e-5) for v in (cat, kitten, bond))
    assert dot(cat, kitten) > 0.5 > 0.2 > dot(cat, bond)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 20


def test_a_text_has_the_same_vector_alone_and_beside_others(server, embedder):
    alone = embed(server, embedder, CAT).json()["data"][0]["embedding"]
    beside = embed(server, embedder, [BOND, CAT]).json()["data"][1]["embedding"]
    assert beside == pytest.approx(alone, abs=1e-2)
    assert dot(alone, beside) > 0.998


def test_tokens_of_both_kinds_of_models(server, embedder, pair):
    def ask(route, model, **fields):
        return httpx.post(f"{server.url}/api/v1/{route}", json={"model": model, **fields}, timeout=60)

    for model, text in ((pair[0], "def close(self):\n"), (embedder, "a cat sleeps")):
        tokens = ask("tokenize", model, text=text, add_special=False).json()["tokens"]
        assert tokens
        assert ask("detokenize", model, tokens=tokens).json()["text"].strip() == text.strip()
        unknown = ask("detokenize", model, tokens=[10_000_000])
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "tokens")
    whole = ask("tokenize", embedder, text="a cat sleeps").json()["tokens"]
    assert len(whole) == len(tokens) + 2
    assert embed(server, embedder, "a cat sleeps").json()["usage"]["prompt_tokens"] == len(whole)


def test_who_goes_away_ends_the_work(server, embedder):
    assert embed(server, embedder, CAT).status_code == 200
    begun = computed(server)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", json={"model": embedder, "input": [CAT * 40] * 2048}, timeout=1)
    worked = 0.0
    for _ in range(20):  # to the end it would take minutes
        time.sleep(1)
        before, worked = worked, computed(server) - begun
        if before == worked:
            break
    assert before == worked > 0
    assert embed(server, embedder, CAT).status_code == 200


def test_base64_holds_the_same_floats(server, embedder):
    plain = embed(server, embedder, CAT).json()["data"][0]["embedding"]
    packed = embed(server, embedder, CAT, encoding_format="base64").json()["data"][0]["embedding"]
    assert struct.unpack("<384f", base64.b64decode(packed)) == pytest.approx(plain, abs=1e-7)


def test_the_openai_sdk_embeds(server, embedder):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.embeddings.create(model=embedder, input=[CAT, KITTEN])
    assert dot(answer.data[0].embedding, answer.data[1].embedding) > 0.5


def test_mistakes_name_the_field(server, embedder, pair):
    cases = [
        (embed(server, embedder, "word " * 2000), "input"),
        (embed(server, embedder, []), "input"),
        (embed(server, embedder, ["", "a"]), None),
        (embed(server, embedder, [1, 2]), "input"),
        (embed(server, embedder, CAT, dimensions=8), "dimensions"),
        (embed(server, pair[0], CAT), "model"),
    ]
    for answer, param in cases:
        if param is None:  # a sentence model begins and ends every text with tokens of its own
            assert answer.status_code == 200
        else:
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    chat = httpx.post(
        f"{server.url}/v1/chat/completions", json={"model": embedder, "messages": [{"role": "user", "content": "x"}]}
    )
    assert (chat.status_code, chat.json()["error"]["param"]) == (400, "model")
    assert embed(server, "no-such-model", CAT).status_code == 404
