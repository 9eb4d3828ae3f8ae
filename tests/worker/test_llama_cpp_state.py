"""A sequence's state with its values in another type: the format, byte by byte."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "runtimes" / "paceline_llama_cpp_worker" / "state.py"
spec = importlib.util.spec_from_file_location("llama_cpp_state", FILE)
state = importlib.util.module_from_spec(spec)
spec.loader.exec_module(state)

CELLS, LAYERS, WIDTH = 3, 2, 4


def u32(*numbers):
    return np.array(numbers, np.uint32).tobytes()


def written(kind, values, streams=1, at=0, transposed=0):
    keys = np.arange(CELLS * WIDTH, dtype=np.float16).tobytes()
    row = np.uint64(2 * WIDTH).tobytes()
    data = u32(0x67676D66, 0, streams) + u32(*[0] * at) + u32(CELLS)
    data += b"".join(u32(10 + cell, 1, 0) for cell in range(CELLS)) + u32(transposed, LAYERS)
    data += (u32(state.F16) + row + keys) * LAYERS
    data += b"".join(u32(kind) + row + value.tobytes() for value in values)
    return np.frombuffer(data + u32(*[0] * (streams - 1 - at)), np.uint8)


HALVES = [np.linspace(-3, 3, CELLS * WIDTH).astype(np.float16) * (layer + 1) for layer in range(LAYERS)]


def bf16(values):
    """Rounded to the nearest, ties to even, by hand."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    low, high = bits & 0xFFFF, bits >> 16
    up = (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
    return (high + up).astype(np.uint16)


def test_values_become_bf16_and_find_their_stream():
    changed = state.with_values(written(state.F16, HALVES), state.BF16, streams=4)
    assert changed.tobytes() == written(state.BF16, [bf16(v) for v in HALVES], streams=4).tobytes()


def test_what_is_bf16_becomes_f16_without_a_loss_and_comes_back():
    source = written(state.BF16, [bf16(v) for v in HALVES], streams=4, at=2)
    there = state.with_values(source, state.F16, streams=1)
    exact = [(bf16(v).astype(np.uint32) << 16).view(np.float32).astype(np.float16) for v in HALVES]
    assert there.tobytes() == written(state.F16, exact).tobytes()
    back = state.with_values(there, state.BF16, streams=4)
    assert back.tobytes() == written(state.BF16, [bf16(v) for v in HALVES], streams=4).tobytes()


@pytest.mark.parametrize(
    "broken",
    [
        written(state.F16, HALVES)[:-1],
        np.concatenate([written(state.F16, HALVES), np.zeros(1, np.uint8)]),
        written(state.F16, HALVES, transposed=1),
        written(8, HALVES),
        np.frombuffer(u32(0x67676D66, 0, 2, 0, 0), np.uint8),
        np.zeros(0, np.uint8),
    ],
    ids=["cut off", "longer", "transposed", "quantized", "empty sequence", "nothing"],
)
def test_another_form_is_not_read(broken):
    with pytest.raises(state.Unreadable):
        state.with_values(broken, state.BF16, streams=1)
