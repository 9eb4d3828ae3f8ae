"""Vectors of the sentence model beside a BERT written here in numpy, over the weights of the same file."""

import re

import numpy as np
import pytest

from paceline import plugins

pytestmark = pytest.mark.runtime

TEXTS = [
    "A cat sleeps on the sofa.",
    "The bond market fell sharply after the announcement, economists said.",
    "def close(self): pass",
    "Paceline manages runtimes for local language models; a draft model runs ahead of a larger one.",
]


@pytest.fixture(scope="module")
def model(shared):
    return shared / "models" / "all-minilm-l6-v2-q8_0.gguf"


def test_vectors_are_those_of_a_bert_computed_by_hand(wires, llama_cpp_runtime, model):
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)
    worker = wires(spec.argv, dict(spec.env))
    worker.call("initialize", protocol=1)
    worker.call("load", role="main", path=str(model), options={"embedding": True})
    bert = Bert(model)
    vectors = np.array(worker.call("embed", inputs=TEXTS)["embeddings"])
    expected = np.array([bert.embed(text) for text in TEXTS])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert ((vectors * expected).sum(axis=1) > 0.999).all()
    # The texts are apart from one another, so the agreement says something.
    assert (expected @ expected.T)[~np.eye(len(TEXTS), dtype=bool)].max() < 0.5


class Bert:
    """Devlin et al., 2018: embeddings, post-norm layers, here with the mean of all tokens as the sentence's vector."""

    def __init__(self, path):
        import gguf

        reader = gguf.GGUFReader(path)
        self.weights = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors
        }
        self.layers = reader.get_field("bert.block_count").contents()
        self.heads = reader.get_field("bert.attention.head_count").contents()
        self.epsilon = reader.get_field("bert.attention.layer_norm_epsilon").contents()
        self.ids = {token: i for i, token in enumerate(reader.get_field("tokenizer.ggml.tokens").contents())}

    def embed(self, text):
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
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)

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
