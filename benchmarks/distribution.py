"""Are tokens that were drafted sampled from the main model's own distribution? A chi-square test of two tokens.

The main model's logits come from the engine itself, in the runtime's Python and without Paceline; the sampler chain is
written here once more, from its definition. The counts come from a worker that drafts: of every seed the first two
tokens, of which the second can be a drafted one. The test is Pearson's over the pairs; pairs expected fewer than five
times are one bin. Its probability is not taken from the chi-square distribution but counted: how many of 20,000 tables
drawn from the expected probabilities lie as far off. With a fixed list of seeds the result is the same every time.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from paceline.errors import PacelineError
from paceline.types import Runtime
from prompts import CODE, PROSE, chat_prompt
from worker import Worker

Array: TypeAlias = "np.ndarray[Any, Any]"
Pair: TypeAlias = tuple[int, int]

ALPHA = 0.01
"""Of all tests of an engine together: one is failed below this over their number (Bonferroni)."""

_EXACT = 4
_DRAWN = 20_000
_LEAST = 5.0
_OTHER = -1
"""In place of a token: any that has no bin."""

_PROMPTS = {"code": chat_prompt(CODE[3]), "prose": chat_prompt(PROSE[0]), "two words": "def get"}
_SAMPLINGS: dict[str, dict[str, Any]] = {
    "temperature 0.8, top-k 40, top-p 0.95, min-p 0.05": {"temperature": 0.8},
    "temperature 1.5, nothing cut off": {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "temperature 1, penalties, bias, top-k 20": {
        "temperature": 1.0, "top_k": 20, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.3, "presence_penalty": 0.2,
        "frequency_penalty": 0.1, "repeat_last_n": -1, "logit_bias": {"262": 1.5, "10": -2.0},
    },
}  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "logit_bias": {},
}  # fmt: skip

_LOGITS = {
    "llama.cpp": """
import json, sys
import numpy as np
from llama_cpp import Llama
path, contexts, target = sys.argv[1], json.load(sys.stdin), sys.argv[2]
# As the worker computes on the CPU: flash attention, values of the cache in BF16 (ggml type 30).
model = Llama(path, n_ctx=1024, logits_all=True, flash_attn=True, type_v=30, verbose=False)
rows = []
for tokens in contexts:
    model.reset()
    model.eval(tokens)
    rows.append(np.array(model.scores[len(tokens) - 1]))
np.save(target, np.array(rows, dtype=np.float32))
""",
    "mlx": """
import json, sys
import mlx.core as mx
import numpy as np
from mlx_lm import load
path, contexts, target = sys.argv[1], json.load(sys.stdin), sys.argv[2]
model, _ = load(path)
rows = [np.array(model(mx.array([tokens]))[0, -1].astype(mx.float32)) for tokens in contexts]
np.save(target, np.array(rows, dtype=np.float32))
""",
}


@dataclass(frozen=True)
class Fit:
    """One test."""

    engine: str
    prompt: str
    sampling: str
    samples: int
    drafted: int
    """Second tokens that the draft proposed and the main model chose."""
    bins: int
    statistic: float
    probability: float
    """Of a statistic as large, were the tokens sampled from the main model's probabilities."""
    tests: int
    """Of this engine."""

    @property
    def passed(self) -> bool:
        return self.probability >= ALPHA / self.tests


def fits(
    worker: Worker, runtime: Runtime, engine: str, main: Path, samples: int, *, at_a_time: int = 1
) -> Iterator[Fit]:
    """Test a worker that has its pair loaded, over some prompts and samplings, with so many samples each.

    Raises PacelineError when the engine does not say its logits.
    """
    # Seeds as a user may give them: any 32 bits.
    seeds = np.random.default_rng(1).integers(0, 2**32, samples).tolist()
    prompts = {n: worker.call("tokenize", text=text, add_special=True)["tokens"] for n, text in _PROMPTS.items()}
    firsts = dict(zip(prompts, logits(runtime, engine, main, [*prompts.values()]), strict=True))
    cells = [
        (prompt, name, probabilities(firsts[prompt], sampling, prompts[prompt]))
        for prompt in prompts
        for name, sampling in _SAMPLINGS.items()
    ]
    # Every first token that is likely enough to have bins of its own is gone on from.
    begun = sorted({(prompt, int(t)) for prompt, _, chances in cells for t in _likely(chances, samples)})
    rows = logits(runtime, engine, main, [[*prompts[prompt], t] for prompt, t in begun])
    seconds = dict(zip(begun, rows, strict=True))
    for prompt, name, chances in cells:
        tokens, sampling = prompts[prompt], _SAMPLINGS[name]
        following = {
            int(t): probabilities(seconds[prompt, int(t)], sampling, [*tokens, int(t)])
            for t in _likely(chances, samples)
        }
        seen, drafted = _sampled(worker, tokens, sampling, seeds, at_a_time)
        bins, statistic, probability = chi_square(expected_pairs(chances, following, samples), seen)
        yield Fit(engine, prompt, name, samples, drafted, bins, statistic, probability, len(cells))


def probabilities(logits: Array, sampling: Mapping[str, Any], history: Sequence[int]) -> Array:
    """What each token's chance is after the whole chain, shape (n_vocab,); `history` is what penalties look at.

    The order is llama.cpp's: bias, penalties, top-k, top-p, min-p, temperature.
    """
    s = {**_DEFAULTS, **sampling}
    logits = logits.astype(np.float64)
    for token, bias in s["logit_bias"].items():
        logits[int(token)] += bias
    for token, count in Counter(history).items():
        repeated = logits[token] * s["repeat_penalty"] if logits[token] <= 0 else logits[token] / s["repeat_penalty"]
        logits[token] = repeated - count * s["frequency_penalty"] - s["presence_penalty"]
    kept = np.argsort(-logits, kind="stable")[: s["top_k"] or None]
    weights = np.exp(logits[kept] - logits[kept[0]])
    if s["top_p"] < 1:
        enough = np.searchsorted(np.cumsum(weights), s["top_p"] * weights.sum()) + 1
        kept, weights = kept[:enough], weights[:enough]
    kept = kept[weights >= s["min_p"] * weights[0]]
    chances = np.zeros(len(logits))
    chances[kept] = np.exp((logits[kept] - logits[kept[0]]) / s["temperature"])
    result: Array = chances / chances.sum()
    return result


def expected_pairs(first: Array, seconds: Mapping[int, Array], samples: int) -> dict[Pair, float]:
    """How often each pair of tokens is expected. Pairs expected fewer than five times are put together: those of one
    first token where together they are expected so often, otherwise those of all."""
    expected: dict[Pair, float] = {}
    for token, chances in seconds.items():
        counts = samples * first[token] * chances
        large = np.flatnonzero(counts >= _LEAST)
        expected |= {(token, int(second)): float(counts[second]) for second in large}
        rest = float(counts.sum() - counts[large].sum())
        if rest >= _LEAST:
            expected[token, _OTHER] = rest
    rest = samples - sum(expected.values())
    # What is left over by rounding alone is no bin.
    return expected | ({(_OTHER, _OTHER): rest} if rest > 1e-6 * samples else {})


def chi_square(expected: Mapping[Pair, float], seen: Mapping[Pair, int]) -> tuple[int, float, float]:
    """Pearson's statistic of the counts: bins, statistic, and the probability of one as large, by drawing tables.

    A pair that was seen and cannot be makes the statistic infinite and the probability 0.
    """
    bins: Counter[Pair] = Counter()
    for pair, count in seen.items():
        coarser = (pair, (pair[0], _OTHER), (_OTHER, _OTHER))
        bins[next((p for p in coarser if p in expected), coarser[-1])] += count
    if any(pair not in expected for pair in bins):
        return len(expected), float("inf"), 0.0
    wanted = np.array([*expected.values()])
    counts = np.array([bins[pair] for pair in expected])
    statistic = float(((counts - wanted) ** 2 / wanted).sum())
    drawn = np.random.default_rng(2).multinomial(int(counts.sum()), wanted / wanted.sum(), size=_DRAWN)
    farther = int((((drawn - wanted) ** 2 / wanted).sum(axis=1) >= statistic).sum())
    return len(expected), statistic, (1 + farther) / (1 + _DRAWN)


def logits(runtime: Runtime, engine: str, model: Path, contexts: Sequence[Sequence[int]]) -> Array:
    """The engine's own logits after each context, shape (contexts, n_vocab), computed in the runtime's Python.

    Raises PacelineError with what the engine said when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "logits.npy"
        command = [str(runtime.python), "-I", "-c", _LOGITS[engine], str(model), str(target)]
        done = subprocess.run(command, input=json.dumps(contexts), capture_output=True, text=True, check=False)
        if done.returncode:
            raise PacelineError(f"{engine} did not compute logits: {done.stderr.strip()[-500:]}")
        found: Array = np.load(target)
        return found


def fit_table(found: Sequence[Fit]) -> str:
    """Markdown: a row for each test."""
    head = "| engine | prompt | sampling | samples | second tokens drafted | bins | chi-square | p | passed |\n"
    rows = "".join(
        f"| {fit.engine} | {fit.prompt} | {fit.sampling} | {fit.samples} | {fit.drafted} | {fit.bins} |"
        f" {fit.statistic:.1f} | {fit.probability:.4f} | {'yes' if fit.passed else 'no'} |\n"
        for fit in found
    )
    threshold = f"\nA test is failed below p = {ALPHA} over the number of tests of its engine.\n"
    return head + "|" + " --- |" * 9 + "\n" + rows + threshold if found else ""


def _likely(chances: Array, samples: int) -> Array:
    return np.flatnonzero(chances * samples >= _LEAST)


def _sampled(
    worker: Worker, tokens: Sequence[int], sampling: Mapping[str, Any], seeds: Sequence[int], at_a_time: int
) -> tuple[Counter[Pair], int]:
    """How often each pair came, and how many second tokens the draft proposed."""
    requests = [
        {"prompt": tokens, "max_tokens": 2 + _EXACT, "ignore_eos": True, "draft": {"exact_tokens": _EXACT}}
        | {"sampling": {**sampling, "seed": seed}}
        for seed in seeds
    ]
    answers = worker.generate_all(requests, at_a_time)
    return Counter((a.tokens[0], a.tokens[1]) for a in answers), sum(a.drafted[1] for a in answers)
