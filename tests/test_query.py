from __future__ import annotations

import pytest

from paceline import query
from paceline.errors import UsageError
from paceline.types import Recipe, Release, Requirements


def release(engine, platform, version):
    return Release(engine, version, platform, ("gguf",), Requirements(), Recipe())


ALL = [
    release("llama.cpp", "linux-x86_64-cpu", "0.3.9"),
    release("llama.cpp", "linux-x86_64-cpu", "0.3.36"),
    release("llama.cpp", "linux-x86_64-cpu-wheel", "0.3.36"),
    release("llama.cpp-cuda", "linux-x86_64-cuda12", "b9999"),
    release("llama.cpp-cuda", "linux-x86_64-cuda12", "b10000"),
    release("mlx", "mac-arm64-metal", "0.32.2"),
    release("mlx", "linux-x86_64-cpu", "0.32.2"),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "llama.cpp",
            [
                "llama.cpp-cuda-linux-x86_64-cuda12@b10000",
                "llama.cpp-cuda-linux-x86_64-cuda12@b9999",
                "llama.cpp-linux-x86_64-cpu@0.3.36",
                "llama.cpp-linux-x86_64-cpu@0.3.9",
                "llama.cpp-linux-x86_64-cpu-wheel@0.3.36",
            ],
        ),
        ("llama.cpp:cuda@b9999", ["llama.cpp-cuda-linux-x86_64-cuda12@b9999"]),
        ("llama.cpp-cuda@b09999", ["llama.cpp-cuda-linux-x86_64-cuda12@b9999"]),
        ("llama.cpp:cpu:wheel", ["llama.cpp-linux-x86_64-cpu-wheel@0.3.36"]),
        (
            "llama.cpp-linux-x86_64-cpu",
            ["llama.cpp-linux-x86_64-cpu@0.3.36", "llama.cpp-linux-x86_64-cpu@0.3.9"],
        ),
        ("llama.cpp-linux-x86_64-cpu@0.3.9", ["llama.cpp-linux-x86_64-cpu@0.3.9"]),
        ("llama.cpp-linux-x86_64-cpu@0.3.9.0", ["llama.cpp-linux-x86_64-cpu@0.3.9"]),
        ("mlx:LINUX", ["mlx-linux-x86_64-cpu@0.32.2"]),
        (":metal", ["mlx-mac-arm64-metal@0.32.2"]),
        ("@0.32.2", ["mlx-linux-x86_64-cpu@0.32.2", "mlx-mac-arm64-metal@0.32.2"]),
        ("llama", []),
        ("llama.cpp@0.3", []),
        ("mlx:mlx", []),
    ],
)
def test_a_query_finds(text, found):
    assert [r.id for r in query.select(text, ALL)] == found


@pytest.mark.parametrize("text", ["", "  ", "@", "llama.cpp@", "llama.cpp:", "a::b", "a@1@2"])
def test_what_is_no_query_is_a_usage_error(text):
    with pytest.raises(UsageError, match="is no query"):
        query.parse(text)
