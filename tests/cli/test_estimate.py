"""`paceline estimate` over the sample pair; nothing is loaded."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.runtime


@pytest.fixture
def paceline(llama_cpp_home, tmp_path):
    def run(*arguments, **variables):
        env = os.environ | {"PACELINE_HOME": str(llama_cpp_home), "PACELINE_MODELS": str(tmp_path), **variables}
        return subprocess.run(
            [sys.executable, "-m", "paceline", "estimate", *arguments], env=env, capture_output=True, text=True
        )

    return run


def test_a_pair_that_fits(paceline):
    done = paceline("paceline-coder-7m", "--draft", "paceline-coder-3m", PACELINE_OVERRIDE_MEMORY_AVAILABLE="1GiB")
    assert done.returncode == 0, done.stderr
    assert "paceline-coder-7m: 105.6 MiB (weights 7.5 MiB, cache 64.0 MiB for 8 requests of 2048 tokens" in done.stdout
    assert "compute 8.6 MiB, reading a long prompt 25.5 MiB)" in done.stdout
    assert "paceline-coder-3m: 27.3 MiB" in done.stdout
    assert "132.9 MiB needed, available 1.0 GiB (PACELINE_OVERRIDE_MEMORY_AVAILABLE)" in done.stdout
    assert done.stdout.endswith("It fits.\n")


def test_the_configuration_counts_and_programs_are_told_in_bytes(paceline):
    options = ("--parallel", "2", "--context-length", "1024", "--cache-type-k", "q8_0", "--json")
    done = paceline("paceline-coder-7m", *options, PACELINE_OVERRIDE_MEMORY_AVAILABLE="20MiB")
    assert done.returncode == 4, done.stderr
    told = json.loads(done.stdout)
    (model,) = told["models"]
    assert model["estimate"]["cache"] == 2 * 1024 * 8 * 128 * (34 + 64) // 32
    assert told["needed"] == {"host": model["estimate"]["total"], "gpus": 0}
    assert told["available"] == {"host": 20 << 20, "gpus": None}
    assert told["fits"] is False


def test_adapters_and_the_batch_count(paceline, tmp_path):
    adapter = tmp_path / "adapter.gguf"
    adapter.write_bytes(bytes(5 << 20))
    plain = json.loads(paceline("paceline-coder-7m", "--json").stdout)["models"][0]["estimate"]
    told = json.loads(paceline("paceline-coder-7m", "--lora", str(adapter), "--json").stdout)["models"][0]["estimate"]
    assert told["total"] - plain["total"] == 5 << 20
    small = json.loads(paceline("paceline-coder-7m", "--eval-batch-size", "128", "--json").stdout)
    assert small["models"][0]["estimate"]["compute"] < plain["compute"]
    absent = paceline("paceline-coder-7m", "--lora", "absent.gguf")
    assert absent.returncode == 1
    assert "is not the full path of an adapter" in absent.stderr


def test_unknown_memory_is_no_verdict_against_it(paceline):
    done = paceline("paceline-coder-7m", PACELINE_OVERRIDE_MEMORY_AVAILABLE="unknown")
    assert done.returncode == 0
    assert "available unknown" in done.stdout


def test_a_context_longer_than_the_model_s_is_refused(paceline):
    done = paceline("paceline-coder-7m", "--context-length", "999999")
    assert done.returncode == 1
    assert "at most 2048 tokens" in done.stderr
