"""Vectors of the sentence model beside a BERT written here in numpy, over the weights of the same file."""

import re
import shutil

import gguf
import numpy as np
import pytest

from paceline import plugins

pytestmark = pytest.mark.runtime

POOLINGS = {"mean": 1, "cls": 2, "last": 3}
"""Name -> `llama_pooling_type`, as the key `{architecture}.pooling_type` holds it."""

TEXTS = [
    "A cat sleeps on the sofa.",
    "The bond market fell sharply after the announcement, economists said.",
    "def close(self): pass",
    "Paceline manages runtimes for local language models; a draft model runs ahead of a larger one.",
]


@pytest.fixture(scope="module")
def model(shared):
    return shared / "models" / "all-minilm-l6-v2-q8_0.gguf"


@pytest.fixture(scope="module")
def embed(module_wires, llama_cpp_runtime):
    """A function from a model and texts to their vectors, in one request."""
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)
    worker = module_wires(spec.argv, dict(spec.env))
    worker.call("initialize", protocol=1)

    def vectors(path, texts):
        worker.call("load", role="main", path=str(path), options={"embedding": True})
        return np.array(worker.call("embed", inputs=texts)["embeddings"])

    return vectors


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_a_bert_computed_by_hand(embed, model, tmp_path, pooling):
    path = shutil.copyfile(model, tmp_path / model.name)
    gguf.GGUFReader(path, "r+").fields["bert.pooling_type"].parts[-1][0] = POOLINGS[pooling]
    vectors = embed(path, TEXTS)
    bert = Bert(model)
    expected = np.array([bert.embed(text, pooling) for text in TEXTS])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert ((vectors * expected).sum(axis=1) > 0.999).all()
    # The texts are apart from one another, and the poolings are, so the agreement says something.
    assert (expected @ expected.T)[~np.eye(len(TEXTS), dtype=bool)].max() < 0.9
    for other in POOLINGS.keys() - {pooling}:
        assert ((vectors * [bert.embed(text, other) for text in TEXTS]).sum(axis=1) < 0.99).all()


class Bert:
    """Devlin et al., 2018: embeddings, post-norm layers, and one vector of a text's last states."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.weights = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors
        }
        self.layers = reader.get_field("bert.block_count").contents()
        self.heads = reader.get_field("bert.attention.head_count").contents()
        self.epsilon = reader.get_field("bert.attention.layer_norm_epsilon").contents()
        self.ids = {token: i for i, token in enumerate(reader.get_field("tokenizer.ggml.tokens").contents())}

    def embed(self, text, pooling):
        w = self.weights
        tokens = [self.ids["[CLS]"], *self.pieces(text), self.ids["[SEP]"]]
        x = w["token_embd.weight"][tokens] + w["position_embd.weight"][: len(tokens)] + w["token_types.weight"][0]
        x = self.norm(x, "token_embd_norm")
        for layer in range(self.layers):
            name = f"blk.{layer}"
            x = self.norm(x + self.attention(x, name), f"{name}.attn_output_norm")
            inner = self.linear(x, f"{name}.ffn_up")
            inner = inner * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
            x = self.norm(x + self.linear(inner, f"{name}.ffn_down"), f"{name}.layer_output_norm")
        pooled = {"mean": x.mean(axis=0), "cls": x[0], "last": x[-1]}[pooling]
        return pooled / np.linalg.norm(pooled)

    def attention(self, x, name):
        q, k, v = (
            self.linear(x, f"{name}.attn_{part}").reshape(len(x), self.heads, -1).swapaxes(0, 1) for part in "qkv"
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1), f"{name}.attn_output")

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def pieces(self, text):
        """WordPiece of plain English: the longest piece that fits, again and again. The file marks beginnings."""
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            left = f"▁{word}"
            while left:
                end = next(n for n in range(len(left), 0, -1) if left[:n] in self.ids)
                yield self.ids[left[:end]]
                left = left[end:]
