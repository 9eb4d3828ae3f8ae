"""When a model's file is read into memory rather than mapped."""

import pytest

from paceline_llama_cpp_worker.mapping import is_worth_reading

MIB = 2**20


@pytest.fixture
def machine(tmp_path):
    """The files that the kernel would show, and a model of 1 MiB."""

    def make(*, pages="always [madvise] never", free=100 * MIB, most=None, used=0, name="model.gguf"):
        files = {
            "sys/kernel/mm/transparent_hugepage/enabled": pages,
            "proc/meminfo": f"MemTotal:  1 kB\nMemAvailable:   {free // 1024} kB\nBuffers: 2 kB\n",
        }
        if most is not None:
            files |= {"sys/fs/cgroup/memory.max": f"{most}\n", "sys/fs/cgroup/memory.current": f"{used}\n"}
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        model = tmp_path / name
        model.write_bytes(bytes(MIB))
        return model, tmp_path

    return make


@pytest.mark.parametrize(
    ("facts", "reads"),
    [
        ({}, True),
        ({"pages": "[always] madvise never"}, True),
        ({"pages": "always madvise [never]"}, False),
        ({"free": 3 * MIB}, True),
        ({"free": 3 * MIB - 1024}, False),
        ({"most": "max"}, True),
        ({"most": 4 * MIB, "used": MIB}, True),
        ({"most": 4 * MIB, "used": 2 * MIB}, False),
        ({"free": 5 * MIB, "name": "model-00001-of-00002.gguf"}, False),
        ({"free": 6 * MIB, "name": "model-00001-of-00002.gguf"}, True),
    ],
)
def test_a_file_is_read_where_memory_is_plentiful(machine, facts, reads):
    model, root = machine(**facts)
    assert is_worth_reading(model, [], root) is reads


def test_with_a_gpu_it_is_mapped(machine):
    model, root = machine()
    assert not is_worth_reading(model, ["CUDA0"], root)


@pytest.mark.parametrize("missing", ["sys/kernel/mm/transparent_hugepage/enabled", "proc/meminfo", "model.gguf"])
def test_what_cannot_be_found_out_means_mapped(machine, missing):
    model, root = machine()
    (root / missing).unlink()
    assert not is_worth_reading(model, [], root)


def test_a_kernel_that_says_it_otherwise_means_mapped(machine):
    model, root = machine(most="many")
    assert not is_worth_reading(model, [], root)
