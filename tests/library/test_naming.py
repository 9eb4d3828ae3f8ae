from __future__ import annotations

from pathlib import Path

import pytest

from paceline.library.naming import Name, ids, name_of


@pytest.mark.parametrize(
    ("path", "base", "quantization"),
    [
        ("p/r/Qwen2.5-7B-Instruct-Q4_K_M.gguf", "qwen2.5-7b-instruct", "q4_k_m"),
        ("p/r/qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "qwen2.5-7b-instruct", "q4_k_m"),
        ("p/r/Llama-3.2-1B-UD-IQ2_XXS.gguf", "llama-3.2-1b", "ud-iq2_xxs"),
        ("p/r/Phi-4.i1-Q5_K_S.gguf", "phi-4", "q5_k_s"),
        ("p/r/gemma-3-4b-it-BF16.gguf", "gemma-3-4b-it", "bf16"),
        ("p/r/gpt-oss-20b-MXFP4.gguf", "gpt-oss-20b", "mxfp4"),
        ("p/r/deepseek-r1-distill-qwen-7b.gguf", "deepseek-r1-distill-qwen-7b", None),
        ("p/r/tiny-f16.gguf", "tiny", "f16"),
        ("p/Tiny-GGUF/model-Q8_0.gguf", "tiny", "q8_0"),
        ("p/Tiny-GGUF/Q8_0.gguf", "tiny", "q8_0"),
        ("p/Llama-3.2-1B-Instruct-4bit", "llama-3.2-1b-instruct", "4bit"),
        ("p/paceline-coder-7m-fp16", "paceline-coder-7m", "fp16"),
        ("p/Qwen3-0.6B-4bit-DWQ", "qwen3-0.6b", "4bit-dwq"),
    ],
)
def test_a_name_is_the_files_name_without_its_quantization(path, base, quantization):
    model_format = "gguf" if path.endswith(".gguf") else "mlx"
    assert name_of(Path("/m") / path, "Pub", model_format) == Name(base, quantization, "pub")


def test_an_id_is_as_short_as_can_be():
    assert ids([Name("a", "q4_0", "x"), Name("b", None, "y")], ["Q4_0", "F16"]) == ["a", "b"]


def test_a_shared_name_gets_its_quantization_then_its_publisher_then_a_number():
    names = [
        Name("a", "q4_0", "x"),
        Name("a", None, "x"),
        Name("a", "q8_0", "x"),
        Name("a", "q8_0", "y"),
        Name("a", "q8_0", "y"),
    ]
    assert ids(names, ["Q4_0", "F16", "Q8_0", "Q8_0", "Q8_0"]) == [
        "a@q4_0",
        "a@f16",
        "x/a@q8_0",
        "y/a@q8_0",
        "y/a@q8_0#2",
    ]
