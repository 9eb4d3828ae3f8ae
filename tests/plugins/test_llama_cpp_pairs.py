from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest

from paceline import Model, Runtime
from paceline.formats.gguf import read_gguf
from paceline.formats.gguf_format import gguf_facts
from paceline.types import PairStatus
from paceline_llama_cpp.engine import LlamaCpp, LlamaCppCuda

TOKENS = [f"t{i}" for i in range(300)]
BASE = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}


def _model(path: Path) -> Model:
    return Model(path.stem, "gguf", path, "local", gguf_facts(read_gguf(path)))


@pytest.fixture
def judge(tmp_path, write_gguf):
    """A function from (main values, draft values, rules) to the verdict; values beside or instead of `BASE`."""

    def judge_values(main, draft, rules="today", tensors=()):
        a = write_gguf(tmp_path / "a.gguf", {**BASE, "tokenizer.ggml.tokens": TOKENS, **main})
        b = write_gguf(tmp_path / "b.gguf", {**BASE, "tokenizer.ggml.tokens": TOKENS, **draft}, tensors)
        return LlamaCpp().judge_pair(_model(a), _model(b), rules)

    return judge_values


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("today", {("gpt-neox", "mpt"), ("llama-spm", "phi-3"), ("qwen2", "qwen35")}),
        ("2025-02", {("gpt-neox", "mpt"), ("qwen2", "qwen35")}),
    ],
)
def test_of_all_real_vocabularies_exactly_these_pair(shared, rules, expected):
    prefix = "ggml-vocab-"
    models = [_model(p) for p in sorted((shared / "vocabs").glob(f"{prefix}*.gguf"))]
    engine = LlamaCpp()
    compatible = {
        (a.id.removeprefix(prefix), b.id.removeprefix(prefix))
        for a, b in permutations(models, 2)
        if engine.judge_pair(a, b, rules).ok
    }
    assert len(models) >= 17
    assert compatible == expected | {(b, a) for a, b in expected}


@pytest.mark.parametrize(("difference", "ok"), [(0, True), (128, True), (129, False)])
def test_sizes_may_differ_by_128(judge, difference, ok):
    verdict = judge({}, {"tokenizer.ggml.tokens": TOKENS[: 300 - difference]})
    assert verdict.ok is ok
    if not ok:
        assert verdict.status is PairStatus.VOCABULARY_SIZE_DIFFERS
        assert "differ by 129 tokens (300 in the main model, 171 in the draft)" in verdict.message
    assert judge({"tokenizer.ggml.tokens": TOKENS[: 300 - difference]}, {}).ok is ok


def test_a_smaller_vocabulary_is_a_warning(judge):
    (warning,) = judge({}, {"tokenizer.ggml.tokens": TOKENS[:290]}).warnings
    assert "300 and 290" in warning


def test_the_first_five_tokens_do_not_count(judge):
    assert judge({}, {"tokenizer.ggml.tokens": ["A", "B", "C", "D", "E", *TOKENS[5:]]}).ok


def test_the_sixth_token_counts_and_is_quoted(judge):
    verdict = judge({}, {"tokenizer.ggml.tokens": [*TOKENS[:5], "\n“x”", *TOKENS[6:]]})
    assert verdict.status is PairStatus.TOKEN_DIFFERS
    assert verdict.message == "token 5 differs: ‘t5’ in the main model, ‘\\n“x”’ in the draft"
    assert verdict.help


def test_the_last_common_token_counts(judge):
    verdict = judge({}, {"tokenizer.ggml.tokens": [*TOKENS[:249], "x"]})
    assert verdict.message == "token 249 differs: ‘t249’ in the main model, ‘x’ in the draft"


def test_empty_and_cut_tokens_compare_as_llama_cpp_compares_them(judge):
    assert judge(
        {"tokenizer.ggml.tokens": [*TOKENS[:9], "", b"ab\0c", *TOKENS[11:]]},
        {"tokenizer.ggml.tokens": [*TOKENS[:9], "[EMPTY_9]", "ab", *TOKENS[11:]]},
    ).ok
    verdict = judge({}, {"tokenizer.ggml.tokens": [*TOKENS[:9], "", *TOKENS[10:]]})
    assert verdict.message == "token 9 differs: ‘t9’ in the main model, ‘[EMPTY_9]’ in the draft"


def test_types_are_compared_today_and_were_not_in_2025(judge):
    main = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.bos_token_id": 1}
    draft = {**main, "tokenizer.ggml.model": "llama"}
    verdict = judge(main, draft)
    assert verdict.status is PairStatus.VOCABULARY_TYPE_DIFFERS
    assert "BPE in the main model, SPM in the draft" in verdict.message
    assert judge(main, draft, "2025-02").ok


@pytest.mark.parametrize(("name", "status"), [("bos", PairStatus.BOS_DIFFERS), ("eos", PairStatus.EOS_DIFFERS)])
def test_special_tokens_count_if_they_are_added(judge, name, status):
    token, add = f"tokenizer.ggml.{name}_token_id", f"tokenizer.ggml.add_{name}_token"
    assert judge({token: 1}, {token: 2}).ok
    assert judge({token: 1}, {token: 2}, "2025-02").status is status
    added = judge({token: 1, add: True}, {token: 2, add: True})
    assert added.status is status
    assert "id 1 in the main model, id 2 in the draft" in added.message
    one = judge({token: 1, add: True}, {token: 1})
    assert one.status is status
    assert one.message.startswith("the main model adds a")
    assert judge({token: 1}, {token: 1, add: True}).message.startswith("the draft adds a")


def test_another_pre_tokenizer_is_a_warning(judge):
    verdict = judge({}, {"tokenizer.ggml.pre": "qwen35"})
    assert verdict.ok
    assert "qwen2 and qwen35" in verdict.warnings[0]


@pytest.mark.parametrize(
    ("arch", "status"),
    [
        ("llada", PairStatus.NOT_A_LANGUAGE_MODEL),
        ("t5encoder", PairStatus.NOT_A_LANGUAGE_MODEL),
    ],
)
def test_some_architectures_cannot_take_part(judge, arch, status):
    for verdict, role in (
        (judge({"general.architecture": arch}, {}), "the main model"),
        (judge({}, {"general.architecture": arch}), "the draft"),
    ):
        assert verdict.status is status
        assert verdict.message.startswith(f"{role} ({arch})")


@pytest.mark.parametrize(("arch", "kind"), [("mamba2", "recurrent"), ("qwen35moe", "hybrid")])
def test_a_state_that_cannot_forget_is_a_warning(judge, arch, kind):
    for verdict, role in (
        (judge({"general.architecture": arch}, {}), "the main model"),
        (judge({}, {"general.architecture": arch}), "the draft"),
    ):
        assert verdict.ok
        (warning,) = verdict.warnings
        assert warning.startswith(f"{role} ({arch}) keeps a {kind} state")


@pytest.mark.parametrize("arch", ["eagle3", "dflash", "gemma4-assistant"])
def test_special_drafts_are_refused(judge, arch):
    verdict = judge({}, {"general.architecture": arch})
    assert verdict.status is PairStatus.SPECIAL_DRAFT
    assert arch in verdict.message


def test_the_heads_of_multi_token_prediction_are_a_special_draft(judge):
    draft = {"general.architecture": "glm4moe", "glm4moe.block_count": 3}
    verdict = judge({}, draft, tensors=[("blk.2.nextn.eh_proj.weight", (32,), 0)])
    assert verdict.status is PairStatus.SPECIAL_DRAFT


def test_without_a_vocabulary_nobody_can_say(judge):
    verdict = judge({}, {"tokenizer.ggml.model": "none"})
    assert verdict.status is PairStatus.NO_VOCABULARY
    assert "the draft" in verdict.message


def test_a_refusal_stands_when_the_files_are_gone(tmp_path, write_gguf):
    a = write_gguf(tmp_path / "a.gguf", {**BASE, "tokenizer.ggml.tokens": TOKENS})
    b = write_gguf(tmp_path / "b.gguf", {**BASE, "tokenizer.ggml.tokens": TOKENS[::-1]})
    main, draft = _model(a), _model(b)
    b.unlink()
    verdict = LlamaCpp().judge_pair(main, draft, "today")
    assert verdict.status is PairStatus.TOKEN_DIFFERS


def test_the_worker_runs_in_its_runtime(tmp_path, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "darwin")
    python = tmp_path / "env/bin/python"
    runtime = Runtime("llama.cpp", "1", "linux", ("gguf",), (), tmp_path, python)
    spec = LlamaCpp().worker(runtime)
    assert spec.argv[0] == str(python)
    assert spec.argv[-1] == "paceline_llama_cpp_worker"
    assert spec.env == {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "2000"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert LlamaCpp().worker(runtime).env == {"GGML_NO_BACKTRACE": "1", "OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_on_linux_a_worker_asks_for_huge_pages_unless_the_environment_speaks_of_them(
    tmp_path, monkeypatch, said, given
):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("GLIBC_TUNABLES", said)
    runtime = Runtime("llama.cpp", "1", "linux", ("gguf",), (), tmp_path, tmp_path / "env/bin/python")
    assert LlamaCpp().worker(runtime).env["GLIBC_TUNABLES"] == given


@pytest.mark.skipif(sys.platform != "linux", reason="LD_LIBRARY_PATH is Linux's")
@pytest.mark.parametrize("folder", ["cuda_runtime", "cu13"], ids=["the packages of CUDA 12", "of CUDA 13"])
def test_the_cuda_worker_finds_the_libraries_of_its_runtime(tmp_path, monkeypatch, folder):
    def library(path, value, *needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        source = tmp_path / f"{value}.c"
        source.write_text(f"int figure_{value}(void) {{ return {value}; }}\n")
        linked = [f"-L{path.parent}" for path in needed] + [f"-l:{path.name}" for path in needed]
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source, "-Wl,--no-as-needed", *linked], check=True)
        return path

    packages = tmp_path / "env/lib/python3.12/site-packages"
    cudart = library(packages / "nvidia" / folder / "lib/libcudart.so.99", 1)
    driver = library(tmp_path / "drivers/libcuda.so.99", 2)
    ggml = library(packages / "llama_cpp/lib/libggml-cuda.so", 3, cudart, driver)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver.parent))
    runtime = Runtime("llama.cpp-cuda", "1", "linux", ("gguf",), (), tmp_path, tmp_path / "env/bin/python")
    spec = LlamaCppCuda().worker(runtime)
    assert spec.env["GGML_NO_BACKTRACE"] == "1"
    load = [sys.executable, "-c", "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).figure_1())", str(ggml)]
    assert subprocess.check_output(load, env=dict(spec.env), text=True) == "1\n"
    plain = LlamaCpp().worker(runtime)
    assert subprocess.run(load, env=dict(plain.env), capture_output=True).returncode != 0
