"""Vectors of MLX folders as sentence-transformers save them, beside those pooled here from mlx-lm's own last states."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from paceline import LoadConfig, Model, ModelKind, plugins
from paceline.formats.mlx import MlxFormat

pytestmark = [pytest.mark.runtime, pytest.mark.parametrize("candidate", ["mlx"], indirect=True)]

SCRIPT = Path(__file__).with_name("make_mlx_models.py")
TEXT = "".join(f"def helper_{n}(value):\n    return value + {n}\n\n" for n in range(40))
TEXTS = [TEXT[:1200], *(TEXT[n : 5 * n] for n in range(3, 40)), "a"]

# In the runtime: the last states of each text alone, of a model whose weights are put in their places one by one.
STATES = """
import importlib, json, sys
from pathlib import Path
import mlx.core as mx
import numpy as np

folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
config = json.loads((folder / "config.json").read_text())
module = importlib.import_module("mlx_lm.models." + config["model_type"])
inner = module.Model(module.ModelArgs.from_dict(config)).model
inner.load_weights(list(mx.load(str(folder / "model.safetensors")).items()))
for tokens in texts:
    print(json.dumps(inner(mx.array([tokens]))[0].astype(mx.float32).tolist()))
"""


@pytest.fixture(scope="module")
def models(candidate, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedders")
    subprocess.run([candidate.argv[0], "-I", str(SCRIPT), str(folder), str(candidate.main)], check=True)
    return folder


@pytest.fixture
def load(worker):
    def begin(path, **options):
        return worker.call("load", role="main", path=str(path), options={"embedding": True, **options})

    return begin


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_vectors_are_the_pooled_states(candidate, models, worker, load, pooling):
    folder = models / pooling
    assert MlxFormat().read(folder).kind is ModelKind.EMBEDDINGS
    assert load(folder)["context_length"] == 2048
    answer = worker.call("embed", inputs=TEXTS)
    tokens = [worker.call("tokenize", text=text)["tokens"] for text in TEXTS]
    assert answer["prompt_tokens"] == sum(map(len, tokens))
    command = [candidate.argv[0], "-I", "-c", STATES, str(folder), json.dumps(tokens)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    states = [np.array(json.loads(line)) for line in said]
    pooled = {"last": lambda s: s[-1], "mean": lambda s: s.mean(axis=0), "cls": lambda s: s[0]}
    expected = np.array([pooled[pooling](state) for state in states])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = np.array(answer["embeddings"])
    assert abs(vectors - expected).max() < 5e-3  # sixteen-bit weights and states
    other = np.array([pooled["mean" if pooling != "mean" else "last"](state) for state in states])
    assert abs(vectors - other / np.linalg.norm(other, axis=1, keepdims=True))[0].max() > 0.02
    alone = np.array([worker.call("embed", inputs=[text])["embeddings"][0] for text in TEXTS[:6]])
    assert abs(vectors[:6] - alone).max() < 5e-3


def test_it_makes_embeddings_and_nothing_else(candidate, models, worker, load, refused):
    load(models / "last")
    for method, params in (
        ("generate", {"prompt": "a"}),
        ("load", {"role": "draft", "path": str(candidate.draft)}),
    ):
        with pytest.raises(refused, match="makes embeddings") as error:
            worker.call(method, **params)
        assert error.value.kind == "unsupported"
    with pytest.raises(refused) as error:
        worker.call("embed", inputs=["a", "word " * 3000])
    assert error.value.kind == "context_exceeded"
    worker.call("load", role="main", path=str(candidate.main))
    with pytest.raises(refused, match="load an embedding model"):
        worker.call("embed", inputs=["a"])


@pytest.mark.parametrize(
    ("name", "words"),
    [("two", r"pooled as \['cls', 'mean'\]"), ("headless", "does not give its last states|cannot load")],
)
def test_what_cannot_be_pooled_says_why(models, worker, load, refused, name, words):
    with pytest.raises(refused, match=words) as error:
        load(models / name)
    assert error.value.kind == "load_failed"
    with pytest.raises(refused, match="no model is loaded"):
        worker.call("embed", inputs=["a"])


def test_a_folder_that_does_not_say_how_is_refused(candidate, load, refused, models):
    with pytest.raises(refused, match="does not say how its states become one vector"):
        load(candidate.main)
    modules = models / "mean" / "modules.json"
    said = modules.read_text()
    try:
        modules.write_text(json.dumps([*json.loads(said), {"type": "x.models.Dense", "path": "2_Dense"}]))
        with pytest.raises(refused, match="passes through Dense"):
            load(models / "mean")
    finally:
        modules.write_text(said)


def test_no_cache_is_estimated(candidate, models, mlx_runtime):
    path = models / "last"
    model = Model("m", "mlx", path, "test", MlxFormat().read(path))
    told = plugins.load().engine("mlx").estimate(model, LoadConfig(parallel=8), runtime=mlx_runtime)
    assert (told.cache, told.parallel, told.context_length) == (0, 1, 2048)
