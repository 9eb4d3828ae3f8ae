"""Models of other kinds on llama.cpp: recurrent, hybrid, with sliding windows. Tiny ones with random weights."""

import gguf
import numpy as np
import pytest

from paceline import paths, plugins

pytestmark = pytest.mark.runtime

WIDTH, LAYERS, VOCABULARY, CONTEXT = 64, 4, 4096, 1024
INNER, STATE, RANK, CONVOLUTION = 2 * WIDTH, 16, 32, 4
HEADS, HEADS_KV, FORWARD = 4, 2, 128
WINDOW = 64
BUCKETS = 32

TEXT = "".join(f"def helper_{n}(value):\n    return value + {n}\n\n" for n in range(12))
SAMPLINGS = [{"temperature": 0}, {"temperature": 0.8, "seed": 4}]


class Weights(dict):
    """Random tensors by name; drafts differ from their main models by a little noise."""

    def __init__(self, noise):
        super().__init__()
        self._random, self._other, self._noise = np.random.default_rng(3), np.random.default_rng(99), noise
        self.normal("token_embd.weight", VOCABULARY, WIDTH, scale=1.0)
        self.normal("output.weight", VOCABULARY, WIDTH, scale=0.5)
        self.set("output_norm.weight", np.ones(WIDTH))

    def set(self, name, value):
        self[name] = np.asarray(value, np.float32)

    def normal(self, name, *shape, scale=None):
        scale = scale or shape[-1] ** -0.5
        self.set(name, self._random.normal(0, scale, shape) + self._noise * self._other.normal(0, scale, shape))


def add_mamba(weights, layer):
    weights.set(f"{layer}.attn_norm.weight", np.ones(WIDTH))
    weights.normal(f"{layer}.ssm_in.weight", 2 * INNER, WIDTH)
    weights.normal(f"{layer}.ssm_conv1d.weight", INNER, CONVOLUTION)
    weights.normal(f"{layer}.ssm_conv1d.bias", INNER, scale=0.1)
    weights.normal(f"{layer}.ssm_x.weight", RANK + 2 * STATE, INNER)
    weights.normal(f"{layer}.ssm_dt.weight", INNER, RANK)
    weights.normal(f"{layer}.ssm_dt.bias", INNER, scale=0.5)
    weights.set(f"{layer}.ssm_a", -np.tile(np.arange(1, STATE + 1), (INNER, 1)))
    weights.set(f"{layer}.ssm_d", np.ones(INNER))
    weights.normal(f"{layer}.ssm_out.weight", WIDTH, INNER)


def add_attention(weights, layer, head):
    weights.set(f"{layer}.attn_norm.weight", np.ones(WIDTH))
    weights.normal(f"{layer}.attn_q.weight", HEADS * head, WIDTH)
    weights.normal(f"{layer}.attn_k.weight", HEADS_KV * head, WIDTH)
    weights.normal(f"{layer}.attn_v.weight", HEADS_KV * head, WIDTH)
    weights.normal(f"{layer}.attn_output.weight", WIDTH, HEADS * head)


def add_forward(weights, layer):
    weights.set(f"{layer}.ffn_norm.weight", np.ones(WIDTH))
    weights.normal(f"{layer}.ffn_gate.weight", FORWARD, WIDTH)
    weights.normal(f"{layer}.ffn_up.weight", FORWARD, WIDTH)
    weights.normal(f"{layer}.ffn_down.weight", WIDTH, FORWARD)


MAMBA = {
    "ssm.conv_kernel": CONVOLUTION,
    "ssm.inner_size": INNER,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": RANK,
}


def mamba(weights, layers):
    """Recurrent in every layer."""
    for layer in layers:
        add_mamba(weights, layer)
    return MAMBA | {"feed_forward_length": 0, "attention.head_count": 0}


def jamba(weights, layers):
    """A hybrid: every second layer attends."""
    for i, layer in enumerate(layers):
        if i % 2:
            add_attention(weights, layer, WIDTH // HEADS)
        else:
            add_mamba(weights, layer)
            for name, size in (("dt", RANK), ("b", STATE), ("c", STATE)):
                weights.set(f"{layer}.ssm_{name}_norm.weight", np.ones(size))
        add_forward(weights, layer)
    attention = {"attention.head_count": HEADS, "attention.head_count_kv": [HEADS_KV * (i % 2) for i in range(LAYERS)]}
    return MAMBA | attention | {"feed_forward_length": FORWARD}


def gemma3(weights, layers):
    """Every second layer sees no further back than a window."""
    head = 32
    for layer in layers:
        add_attention(weights, layer, head)
        add_forward(weights, layer)
        norms = {"attn_q_norm": head, "attn_k_norm": head, "post_attention_norm": WIDTH, "post_ffw_norm": WIDTH}
        for name, size in norms.items():
            weights.set(f"{layer}.{name}.weight", np.ones(size))
    return {
        "feed_forward_length": FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS_KV,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": 2,
    }


def t5(weights, layers):
    """An encoder that reads, and a decoder that writes."""
    del weights["output_norm.weight"]  # each part has its own
    for part, attentions in (("enc", ("attn",)), ("dec", ("attn", "cross_attn"))):
        weights.set(f"{part}.output_norm.weight", np.ones(WIDTH))
        for layer in layers:
            for attention in attentions:
                weights.set(f"{part}.{layer}.{attention}_norm.weight", np.ones(WIDTH))
                for name in "qkvo":
                    weights.normal(f"{part}.{layer}.{attention}_{name}.weight", WIDTH, WIDTH)
            weights.normal(f"{part}.{layer}.attn_rel_b.weight", BUCKETS, HEADS)
            add_forward(weights, f"{part}.{layer}")
    return {
        "feed_forward_length": FORWARD,
        "attention.head_count": HEADS,
        "attention.key_length": WIDTH // HEADS,
        "attention.value_length": WIDTH // HEADS,
        "attention.relative_buckets_count": BUCKETS,
    }


KINDS = {make.__name__: make for make in (mamba, jamba, gemma3)}


def write(path, make, vocabulary, noise, **more):
    """A model of a kind, with the tokenizer of another GGUF file; eight-bit weights, whose sums have no order."""
    eight_bits, kind = gguf.GGMLQuantizationType.Q8_0, make.__name__
    weights = Weights(noise)
    keys = make(weights, [f"blk.{i}" for i in range(LAYERS)])
    keys |= {"context_length": CONTEXT, "embedding_length": WIDTH, "block_count": LAYERS, **more}
    writer = gguf.GGUFWriter(path, kind)
    for field in vocabulary:
        writer.add_key_value(field.name, field.contents(), *field.types[:2])
    for name, value in keys.items():
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(f"{kind}.{name}", value)
    writer.add_float32(f"{kind}.attention.layer_norm_rms_epsilon", 1e-5)
    for name, value in weights.items():
        if value.ndim == 2 and name.endswith(".weight") and not any(part in name for part in ("conv1d", "rel_b")):
            writer.add_tensor(name, gguf.quants.quantize(value, eight_bits), raw_dtype=eight_bits)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Paths of a main model and a draft of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    sample = gguf.GGUFReader(paths.samples() / "paceline-coder-3m-q8_0.gguf")
    vocabulary = [field for field in sample.fields.values() if field.name.startswith("tokenizer.")]
    for kind, make in {**KINDS, "t5": t5}.items():
        write(folder / f"{kind}.gguf", make, vocabulary, 0.0)
        write(folder / f"{kind}-draft.gguf", make, vocabulary, 0.05)
    return {kind: (str(folder / f"{kind}.gguf"), str(folder / f"{kind}-draft.gguf")) for kind in (*KINDS, "t5")}


@pytest.fixture(scope="module")
def start(llama_cpp_runtime, module_wires):
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)

    def begin(main, draft=None, context_length=CONTEXT, parallel=4):
        wire = module_wires(spec.argv, dict(spec.env))
        wire.call("initialize", protocol=1)
        wire.call("load", role="main", path=main, context_length=context_length, options={"parallel": parallel})
        if draft is not None:
            wire.call("load", role="draft", path=draft)
        return wire

    return begin


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pair(start, models, kind):
    """A worker with both models of a kind."""
    return start(*models[kind])


@pytest.fixture(scope="module")
def forgetful(start, models, kind):
    """Generate with the main model of a kind, nothing being remembered from before."""
    main, _ = models[kind]
    wire = start(main)

    def generate(**params):
        wire.call("load", role="main", path=main, context_length=CONTEXT, options={"parallel": 4})
        answer = wire.generate(**params)
        assert answer.result["cached_tokens"] == 0
        return answer

    return generate


def request(sampling=SAMPLINGS[0], **more):
    return {"sampling": sampling, "ignore_eos": True, "max_tokens": 60} | more


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded"])
def test_a_draft_and_what_is_remembered_change_nothing(pair, forgetful, sampling):
    first = forgetful(prompt=TEXT, **request(sampling))
    assert len(set(first.tokens)) > 20
    pair.generate(prompt=TEXT, **request(sampling))
    again = pair.generate(prompt=TEXT, **request(sampling))
    assert again.tokens == first.tokens
    assert again.result["cached_tokens"] >= again.result["prompt_tokens"] - 8
    for draft in ({"exact_tokens": 4}, {"exact_tokens": 1}, {}, {"model": False, "lookup": True, "exact_tokens": 3}):
        answer = pair.generate(prompt=TEXT, **request(sampling), draft=draft)
        assert answer.tokens == first.tokens
        assert answer.result["draft_skipped"] is None
        if draft.get("exact_tokens") == 4:
            assert answer.result["acceptance"]["accepted"] > 0
            assert answer.result["acceptance"]["rejected"] > 0


def test_the_next_turn_does_not_read_all_again(pair, forgetful):
    one, other = TEXT + "one", TEXT + "one\n# not what was answered\n" + "two"
    first = pair.generate(prompt=one, **request(), draft={"exact_tokens": 2})
    turn = pair.generate(prompt=other, **request())
    assert turn.result["cached_tokens"] >= first.result["prompt_tokens"] - 10
    assert turn.tokens == forgetful(prompt=other, **request()).tokens
    assert pair.generate(prompt=one, **request()).tokens == first.tokens


def test_a_conversation_goes_on_where_the_answer_ended(pair, forgetful):
    prompt = pair.call("tokenize", text=TEXT + "three", add_special=True)["tokens"]
    answer = pair.generate(prompt=prompt, **request(), draft={"exact_tokens": 3}).tokens
    turn = [*prompt, *answer, *prompt[:20]]
    going_on = pair.generate(prompt=turn, **request())
    assert going_on.result["cached_tokens"] >= len(prompt) - 8
    assert going_on.tokens == forgetful(prompt=turn, **request()).tokens


def test_what_a_lane_lost_comes_back_as_it_was(start, models, kind, taking_turns):
    prompts = [[1 + (i * i + n) % 700 for i in range(150)] for n in range(2)]
    one, two = (taking_turns(start(*models[kind], parallel=n), prompts, draft={"exact_tokens": 2}) for n in (1, 2))
    assert one == two
    assert min(one[1][2:]) > 140


def test_a_beginning_is_shared_with_what_runs_beside_it(pair, forgetful):
    prompts = [TEXT * 3 + f"number {n}" for n in range(4)]
    together = [
        pair.begin("generate", prompt=text, **request(SAMPLINGS[1]), draft={"exact_tokens": 1 + n})
        for n, text in enumerate(prompts)
    ]
    answers = [pair.generated(id) for id in together]
    for text, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == forgetful(prompt=text, **request(SAMPLINGS[1])).tokens


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded"])
def test_many_streams_of_all_lengths_say_what_each_says_alone(start, models, kind, sampling):
    wire = start(*models[kind], context_length=256)

    def asked(i, **more):
        rolls = {"max_tokens": 300, "context_overflow": "rollingWindow"} if i % 4 == 0 else {}
        return request(sampling, prompt=TEXT[: 40 + 150 * (i % 3)] + f"{i}", max_tokens=4 + 23 * i % 70) | rolls | more

    drafts = [None, {"exact_tokens": 3}, {}, {"model": False, "lookup": True}]
    together = [wire.begin("generate", **asked(i, draft=drafts[i % 3 if i % 2 else -1])) for i in range(9)]
    wire.first_tokens(together[1])
    wire.call("cancel", request=together[1])
    for i, answer in enumerate([wire.generated(id) for id in together]):
        alone = wire.generate(**asked(i)).tokens
        assert answer.tokens == (alone if i != 1 else alone[: len(answer.tokens)])


def test_a_prompt_that_parts_far_back_is_read_from_there(pair, forgetful):
    # Further back than a window sees: what the cache keeps of it must still be there, or be computed anew.
    pair.generate(prompt=TEXT * 3 + "a long one", **request())
    for other in (TEXT + "x" * 300, TEXT[:200] + "y"):
        assert pair.generate(prompt=other, **request()).tokens == forgetful(prompt=other, **request()).tokens


@pytest.mark.parametrize("policy", ["rollingWindow", "truncateMiddle"])
def test_a_full_context_rolls_on(start, models, kind, policy):
    wire = start(*models[kind], context_length=256)
    plain = wire.generate(prompt="def close(", **request(max_tokens=450, context_overflow=policy))
    assert plain.result["context_dropped"] > 128
    for draft in ({"exact_tokens": 4}, {"exact_tokens": 3, "model": False, "lookup": True}):
        answer = wire.generate(prompt="def close(", **request(max_tokens=450, context_overflow=policy), draft=draft)
        assert answer.tokens == plain.tokens


def test_main_model_and_draft_may_be_of_different_kinds(start, models, kind):
    others = [models[other][1] for other in KINDS if other != kind]
    wire = start(models[kind][0])
    plain = wire.generate(prompt=TEXT, **request())
    for draft in others:
        wire.call("load", role="draft", path=draft)
        answer = wire.generate(prompt=TEXT, **request(), draft={"exact_tokens": 3})
        assert answer.result["acceptance"]["drafted"] > 0
        assert answer.tokens == plain.tokens


@pytest.mark.parametrize("options", [{}, {"embedding": True}], ids=str)
def test_a_model_of_two_parts_is_refused_and_the_worker_lives(start, models, refused, options):
    main, draft = models["t5"]
    wire = start(*models["gemma3"])
    with pytest.raises(refused, match="reads with an encoder") as error:
        wire.call("load", role="draft", path=draft)
    assert error.value.kind == "load_failed"
    with pytest.raises(refused, match="reads with an encoder") as error:
        wire.call("load", role="main", path=main, options=options)
    assert error.value.kind == "load_failed"
    assert error.value.data["help"]
    wire.call("load", role="main", path=models["gemma3"][0])
    assert wire.generate(prompt=TEXT, max_tokens=2).result["completion_tokens"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_come_together_have_the_vectors_they_have_alone(tmp_path, wires, llama_cpp_runtime, kind):
    sample = gguf.GGUFReader(paths.samples() / "paceline-coder-3m-q8_0.gguf")
    vocabulary = [field for field in sample.fields.values() if field.name.startswith("tokenizer.")]
    write(tmp_path / "model.gguf", KINDS[kind], vocabulary, 0.0, pooling_type=gguf.PoolingType.LAST)
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)
    worker = wires(spec.argv, dict(spec.env))
    worker.call("initialize", protocol=1)
    worker.call("load", role="main", path=str(tmp_path / "model.gguf"), options={"embedding": True})
    texts = [TEXT, *(TEXT[: 7 * n] for n in range(1, 40)), TEXT[::-1]]
    together = np.array(worker.call("embed", inputs=texts)["embeddings"])
    alone = np.array([worker.call("embed", inputs=[text])["embeddings"][0] for text in texts])
    assert abs(together - alone).max() < 1e-2
    assert len(np.unique(together.round(3), axis=0)) == len(texts)
