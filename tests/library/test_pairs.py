from __future__ import annotations

import sqlite3

import pytest

from paceline.engine import Engine
from paceline.errors import NotFoundError, UsageError
from paceline.library import Library
from paceline.library.pairs import PairIndex
from paceline.plugins import Plugin, Plugins, PluginState, load
from paceline.types import PairStatus, PairVerdict, WorkerSpec

TOKENS = [f"t{i}" for i in range(20)]


class _Rules(Engine):
    """An engine that counts its judgements and refuses what its name says."""

    formats = ("gguf",)
    pair_rules = ("now", "then")

    def __init__(self, name="echo", refuse=(), crash=False):
        self.name, self._refuse, self._crash = name, refuse, crash
        self.asked: list[str] = []

    def worker(self, runtime) -> WorkerSpec:
        raise AssertionError("no worker is started to judge a pair")

    def judge_pair(self, main, draft, rules):
        self.asked.append(rules)
        if self._crash:
            raise RuntimeError("a plugin's bug")
        if rules in self._refuse:
            return PairVerdict(PairStatus.TOKEN_DIFFERS, f"{self.name} refuses", help="none")
        return PairVerdict(PairStatus.COMPATIBLE, "fine", warnings=("careful",))


class _OtherRules(_Rules):
    def judge_pair(self, main, draft, rules):
        return super().judge_pair(main, draft, rules)


def _plugins(*engines, version="1"):
    plugin = Plugin("p", "p", "p", version, PluginState.ACTIVE, engines=tuple(e.name for e in engines))
    return Plugins((plugin,), {e.name: e for e in engines})


@pytest.fixture
def trio(add_model, open_library) -> Library:
    """`big`, `small` (same vocabulary) and `other` (small, another vocabulary)."""
    add_model("big.gguf", rows=64)
    add_model("small.gguf", rows=8)
    add_model("other.gguf", rows=8, tokens=["x", *TOKENS[1:9], "y", *TOKENS[10:]])
    return open_library()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "pairs.sqlite"


def test_verdicts_of_real_rules(trio, cache):
    index = PairIndex(trio, load(), cache)
    assert index.judge(trio.get("big"), trio.get("small")).ok
    refused = index.judge(trio.get("big"), trio.get("other"))
    assert refused.status is PairStatus.TOKEN_DIFFERS
    assert refused.message == "token 9 differs: ‘t9’ in the main model, ‘y’ in the draft"


def test_the_host_refuses_before_any_engine_is_asked(trio, add_model, cache):
    add_model("embedder.gguf", rows=2, general__architecture="bert")
    trio.refresh()
    engine = _Rules()
    index = PairIndex(trio, _plugins(engine), cache)
    big, small = trio.get("big"), trio.get("small")
    assert index.judge(big, big).status is PairStatus.SAME_MODEL
    assert index.judge(small, big).status is PairStatus.DRAFT_NOT_SMALLER
    assert index.judge(big, trio.get("embedder")).status is PairStatus.NOT_A_LANGUAGE_MODEL
    assert engine.asked == []


def test_another_format_is_refused_with_the_engines_named(shared, cache, tmp_path):
    library = Library(load().formats.values(), [shared / "models"], tmp_path / "c.sqlite")
    verdict = PairIndex(library, load(), cache).judge(
        library.get("paceline-coder-7m@q8_0"), library.get("paceline-coder-3m@fp16")
    )
    assert verdict.status is PairStatus.DIFFERENT_FORMAT
    assert "gguf (llama.cpp or llama.cpp-cuda)" in verdict.message
    assert "mlx (mlx)" in verdict.message


def test_fewer_bytes_do_not_make_up_for_more_parameters(add_model, open_library, write_gguf, models, cache):
    add_model("wide.gguf", rows=32)
    values = {"general.architecture": "llama"}
    write_gguf(models / "packed.gguf", values, [("a", (64, 50), 8)])
    library = open_library()
    assert library.get("packed").facts.size_bytes < library.get("wide").facts.size_bytes
    verdict = PairIndex(library, _plugins(_Rules()), cache).judge(library.get("wide"), library.get("packed"))
    assert verdict.status is PairStatus.DRAFT_NOT_SMALLER


def test_a_shorter_context_and_equal_parameters_are_warnings(add_model, models, open_library, write_gguf, cache):
    add_model("m-f16.gguf", rows=32)
    quantized = {"general.architecture": "llama", "llama.context_length": 1024}
    write_gguf(models / "q.gguf", quantized, [("token_embd.weight", (64, 32), 8)])
    library = open_library()
    verdict = PairIndex(library, _plugins(_Rules()), cache).judge(library.get("m"), library.get("q"))
    assert verdict.ok
    assert verdict.warnings[0] == "careful"
    assert "1024" in verdict.warnings[1]
    assert "as many parameters" in verdict.warnings[2]


def test_answers_are_remembered_by_vocabulary_over_processes(trio, add_model, cache):
    add_model("twin-of-small.gguf", rows=4)
    trio.refresh()
    engine = _Rules()
    index = PairIndex(trio, _plugins(engine), cache)
    first = index.judge(trio.get("big"), trio.get("small"))
    assert index.judge(trio.get("big"), trio.get("twin-of-small")) == first
    assert engine.asked == ["now"]
    index.judge(trio.get("big"), trio.get("small"), "then")
    assert engine.asked == ["now", "then"]

    later = _Rules()
    assert PairIndex(trio, _plugins(later), cache).judge(trio.get("big"), trio.get("small")) == first
    assert later.asked == []
    newer = _Rules()
    PairIndex(trio, _plugins(newer, version="2"), cache).judge(trio.get("big"), trio.get("small"))
    assert newer.asked == ["now"], "a new version of the plugin is asked anew"


@pytest.mark.parametrize("damage", [b"no database", b""])
def test_a_damaged_memory_is_rebuilt(trio, cache, damage):
    cache.write_bytes(damage)
    PairIndex(trio, _plugins(_Rules()), cache).judge(trio.get("big"), trio.get("small"))
    connection = sqlite3.connect(cache)
    assert connection.execute("SELECT count(*) FROM verdicts").fetchone() == (1,)
    connection.close()


def test_one_engine_that_agrees_is_enough_and_one_can_be_asked_alone(trio, cache):
    strict, lax = _Rules("strict", refuse=("now",)), _OtherRules("lax")
    index = PairIndex(trio, _plugins(strict, lax), cache)
    big, small = trio.get("big"), trio.get("small")
    assert index.judge(big, small).ok
    assert index.judge(big, small, engine="strict").message == "strict refuses"
    with pytest.raises(NotFoundError, match="nobody"):
        index.judge(big, small, engine="nobody")


def test_engines_with_the_same_rules_are_asked_once(trio, cache):
    first, second = _Rules("one", refuse=("now",)), _Rules("two", refuse=("now",))
    assert not PairIndex(trio, _plugins(first, second), cache).judge(trio.get("big"), trio.get("small")).ok
    assert (first.asked, second.asked) == (["now"], [])


def test_an_engines_bug_is_a_verdict_and_is_not_remembered(trio, cache):
    big, small = trio.get("big"), trio.get("small")
    verdict = PairIndex(trio, _plugins(_Rules(crash=True)), cache).judge(big, small)
    assert verdict.status is PairStatus.UNREADABLE
    assert "a plugin's bug" in verdict.message
    assert PairIndex(trio, _plugins(_Rules()), cache).judge(big, small).ok


def test_without_an_engine_nobody_knows(trio, cache):
    verdict = PairIndex(trio, _plugins(), cache).judge(trio.get("big"), trio.get("small"))
    assert verdict.status is PairStatus.UNREADABLE


def test_unknown_rules_are_a_usage_error(trio, cache):
    with pytest.raises(UsageError) as error:
        PairIndex(trio, load(), cache).pairs(rules="tomorrow")
    assert "2025-02" in error.value.help


def test_pairs_lists_all_or_the_compatible(trio, cache):
    index = PairIndex(trio, load(), cache)
    assert len(index.pairs()) == 6
    assert [(p.main.id, p.draft.id) for p in index.pairs(refused=False)] == [("big", "small")]
    assert {p.draft.id: p.verdict.ok for p in index.pairs(trio.get("big"))} == {"small": True, "other": False}


def test_the_shared_models_pair_as_their_makers_say(shared, cache, tmp_path):
    library = Library(load().formats.values(), [shared / "models"], tmp_path / "c.sqlite")
    index = PairIndex(library, load(), cache)
    for suffix in ("@q8_0", "@f16", "@fp16"):
        main, draft = library.get(f"paceline-coder-7m{suffix}"), library.get(f"paceline-coder-3m{suffix}")
        assert index.judge(main, draft).ok
    for suffix in ("@f16", "@fp16"):
        verdict = index.judge(library.get(f"paceline-coder-7m{suffix}"), library.get(f"other-vocab-1m{suffix}"))
        assert verdict.status is PairStatus.TOKEN_DIFFERS
        assert verdict.message == "token 265 differs: ‘de’ in the main model, ‘Ġi’ in the draft"
    for draft in ("weak-draft-1m", "bad-draft-1m"):
        assert index.judge(library.get("paceline-coder-7m@f16"), library.get(draft)).ok
