from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline import Model, ModelFacts, ModelKind, Runtime
from paceline.formats.tokenizer_json import pairing_facts
from paceline.types import PairStatus
from paceline_mlx.engine import Mlx

TOKENS = [f"t{i}" for i in range(300)]


@pytest.fixture
def judge(tmp_path):
    """A function from two vocabularies (lists of texts, or the tokenizer.json itself) to the verdict."""

    def model(name, tokenizer, eos) -> Model:
        folder: Path = tmp_path / name
        folder.mkdir(exist_ok=True)
        if tokenizer is not None:
            if isinstance(tokenizer, list):
                tokenizer = {"model": {"vocab": {text: i for i, text in enumerate(tokenizer)}}}
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        facts = ModelFacts(ModelKind.LLM, 1, pairing=pairing_facts(folder, None, eos))
        return Model(name, "mlx", folder, "local", facts)

    def judge_vocabularies(main, draft, main_eos="e", draft_eos="e"):
        return Mlx().judge_pair(model("main", main, main_eos), model("draft", draft, draft_eos), "default")

    return judge_vocabularies


def test_equal_vocabularies_pair(judge):
    verdict = judge(TOKENS, TOKENS)
    assert verdict.ok
    assert verdict.warnings == ()


def test_equal_sizes_are_not_enough(judge):
    verdict = judge(TOKENS, ["x", *TOKENS[1:]])
    assert verdict.status is PairStatus.TOKEN_DIFFERS
    assert verdict.message == "token 0 differs: ‘t0’ in the main model, ‘x’ in the draft"


def test_added_tokens_are_part_of_the_vocabulary(judge):
    model = {"vocab": {text: i for i, text in enumerate(TOKENS)}}
    main = {"model": model, "added_tokens": [{"id": 300, "content": "<a>"}]}
    draft = {"model": model, "added_tokens": [{"id": 300, "content": "<b>"}]}
    assert judge(main, main).ok
    assert judge(main, draft).message == "token 300 differs: ‘<a>’ in the main model, ‘<b>’ in the draft"


def test_an_id_without_a_token_is_told_as_that(judge):
    draft = {"model": {"vocab": {text: i for i, text in enumerate(TOKENS) if i != 7}}}
    assert judge(TOKENS, draft).message == "token 7 differs: ‘t7’ in the main model, no token in the draft"


@pytest.mark.parametrize(("difference", "ok"), [(128, True), (129, False)])
def test_sizes_may_differ_by_128(judge, difference, ok):
    verdict = judge(TOKENS, TOKENS[: 300 - difference])
    assert verdict.ok is ok
    assert verdict.status is (PairStatus.COMPATIBLE if ok else PairStatus.VOCABULARY_SIZE_DIFFERS)


def test_another_end_token_is_a_warning(judge):
    verdict = judge(TOKENS, TOKENS, draft_eos="other")
    assert verdict.ok
    assert "e and other" in verdict.warnings[0]


def test_without_a_tokenizer_nobody_can_say(judge):
    verdict = judge(TOKENS, None)
    assert verdict.status is PairStatus.NO_VOCABULARY
    assert "tokenizer.json" in verdict.message


def test_the_worker_runs_in_its_runtime(tmp_path):
    python = tmp_path / "env/bin/python"
    spec = Mlx().worker(Runtime("mlx", "1", "mac", ("mlx",), (), tmp_path, python))
    assert (spec.argv[0], spec.argv[-1]) == (str(python), "paceline_mlx_worker")
