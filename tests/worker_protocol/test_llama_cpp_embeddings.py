"""Requests for embeddings on llama.cpp: many texts at once, queued and cancelled like generations."""

import gguf
import numpy as np
import pytest

from paceline import plugins

pytestmark = pytest.mark.runtime

WORDS = ["the", "market", "fell", "while", "a", "small", "cat", "slept", "near", "one", "old", "river", "stone", "town"]
MANY = 2048


def texts(count):
    """Different texts of 1 to 40 words, and one as long as the model reads."""
    random = np.random.default_rng(5)
    some = [" ".join(random.choice(WORDS, random.integers(1, 41))) for _ in range(count - 1)]
    return [*some[: count // 2], " ".join(random.choice(WORDS, 250)), *some[count // 2 :]]


@pytest.fixture(scope="module")
def model(shared):
    return shared / "models" / "all-minilm-l6-v2-q8_0.gguf"


@pytest.fixture
def load(wires, llama_cpp_runtime):
    """Start a worker with a sentence model, and one place in its queue."""
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)

    def begin(path, **options):
        wire = wires(spec.argv, dict(spec.env))
        wire.call("initialize", protocol=1)
        wire.call("load", role="main", path=str(path), options={"embedding": True, "queue": 1, **options})
        return wire

    return begin


def progress(worker, id):
    return worker.wait_for(lambda f: f.get("method") == "progress" and f["params"]["request"] == id)


def told(worker, id):
    return [f["params"]["fraction"] for f in worker.frames if f.get("params", {}).get("request") == id]


def in_32_bits(source, path):
    """A copy of a model whose weights, and so all that is computed, are 32 bits wide."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "bert")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), *field.types[:2])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("bits", [8, 32])
def test_texts_have_the_vectors_they_have_alone_in_their_order(load, model, tmp_path, bits):
    worker = load(model) if bits == 8 else load(in_32_bits(model, tmp_path / "wide.gguf"), flash_attention=False)
    given = texts(60)
    id = worker.begin("embed", inputs=given)
    together = worker.answer(id)
    alone = [worker.call("embed", inputs=[text]) for text in given]
    assert together["prompt_tokens"] == sum(answer["prompt_tokens"] for answer in alone)
    expected = np.array([answer["embeddings"][0] for answer in alone])
    vectors = np.array(together["embeddings"])
    # Eight bits turn the last bit of a sum into the last of eight; the activation comes from a table of 16 bits.
    assert abs(vectors - expected).max() < (1e-2 if bits == 8 else 1e-4)
    assert (vectors * expected).sum(axis=1).min() > (0.998 if bits == 8 else 1 - 1e-6)
    fractions = told(worker, id)
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert 4 < len(fractions) < 12  # a few batches of 16 texts or 512 tokens


def test_a_request_is_cancelled_between_two_batches(load, model, refused, eventually):
    worker = load(model)
    long = worker.begin("embed", inputs=texts(MANY))
    progress(worker, long)
    assert worker.call("health") == {"state": "busy", "running": [long], "waiting": []}
    waiting = worker.begin("embed", inputs=["a"])
    with pytest.raises(refused) as error:
        worker.call("embed", inputs=["b"])
    assert (error.value.kind, error.value.data["waiting"], error.value.data["limit"]) == ("overloaded", 1, 1)
    assert worker.call("health") == {"state": "busy", "running": [long], "waiting": [waiting]}
    worker.call("cancel", request=waiting)
    with pytest.raises(refused, match="before it began"):
        worker.answer(waiting)
    after = worker.begin("embed", inputs=["c"])
    worker.call("cancel", request=long)
    with pytest.raises(refused) as error:
        worker.answer(long)
    assert error.value.kind == "cancelled"
    assert len(worker.answer(after)["embeddings"]) == 1
    assert max(told(worker, long)) < 0.9
    assert eventually(lambda: worker.call("health") == {"state": "idle", "running": [], "waiting": []})


def test_who_cancels_late_ends_nobody_else(load, model):
    worker = load(model)
    first = worker.begin("embed", inputs=["a"])
    worker.answer(first)
    worker.call("cancel", request=first)
    assert worker.call("embed", inputs=["a"])["prompt_tokens"] == 3
