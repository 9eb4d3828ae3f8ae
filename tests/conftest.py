"""Fixtures for all rooms: the shared test data beside the checkout, a writer of small GGUF files, the clients,
a tiny engine to install, and the real runtimes of llama.cpp and MLX."""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

WriteGguf = Callable[..., Path]

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of vocabularies and small models beside the checkout."""
    path = Path(__file__).parents[1].parent / "shared"
    if not path.is_dir():
        pytest.skip("the shared test data is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def write_gguf() -> WriteGguf:
    """A function that writes a GGUF file: `write_gguf(path, {"key": value}, tensors=[(name, shape, ggml type)])`.

    Values: bool, int (u32, or i32 below 0), float (f32), str, list of str or bytes, list of int (i32), or
    `(gguf type, value)` for another type. Tensors are filled with zeros.
    """
    return _write_gguf


@pytest.fixture(scope="session")
def clients() -> ModuleType:
    """`tests/clients.py`: what unmodified clients do, as functions of a server's address and a model."""
    return _module("clients")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`tests/tiny_engine.py`: a third-party engine of a few lines, whose packages are made on the spot and whose
    releases really install, in about a second and without network. The environment is set for this process, too."""
    world = _module("tiny_engine").TinyWorld(tmp_path / "tiny")
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    return world


@pytest.fixture(scope="session")
def tiny_engine() -> ModuleType:
    """The module of `tiny`, for tests that make their own world with it."""
    return _module("tiny_engine")


@pytest.fixture
def file_server(new_file_server: Callable[[], Any]) -> Iterator[Any]:
    """`tests/file_server.py`: an HTTP server and package index over loopback, with nothing in it yet."""
    server = new_file_server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def new_file_server() -> Callable[[], Any]:
    """Begins a `file_server` for tests that keep it longer; to be closed."""
    server: Callable[[], Any] = _module("file_server").FileServer
    return server


@pytest.fixture(scope="session")
def store_world() -> ModuleType:
    """`tests/store_world.py`: whole runtimes, made in a moment, without an installation."""
    return _module("store_world")


@pytest.fixture(scope="session")
def llama_cpp_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PACELINE_HOME, shared by the session, with the real llama.cpp runtime of this machine's CPU, selected for GGUF.

    `paceline runtime get` puts it there, with the user's own cache folder: seconds when the cache holds the built
    wheel, some minutes of compiling on a fresh machine. Tests that use it are marked `runtime` and leave it as it is.
    """
    return _home_with("llama.cpp:cpu", _common_folder(tmp_path_factory) / "llama-cpp-home")


@pytest.fixture(scope="session")
def llama_cpp_runtime(llama_cpp_home: Path) -> Any:
    """The runtime in `llama_cpp_home`."""
    from paceline.store import Store

    return Store(llama_cpp_home).selected("gguf")


@pytest.fixture(scope="session")
def mlx_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `llama_cpp_home`, with the MLX runtime of this machine, selected for MLX models; nothing is compiled."""
    return _home_with("mlx", _common_folder(tmp_path_factory) / "mlx-home")


@pytest.fixture(scope="session")
def mlx_runtime(mlx_home: Path) -> Any:
    """The runtime in `mlx_home`."""
    from paceline.store import Store

    return Store(mlx_home).selected("mlx")


def _common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that its processes share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def _home_with(query: str, home: Path) -> Path:
    """A home with a runtime; of processes that ask for the same at the same time one installs, the others wait."""
    argv = [sys.executable, "-m", "paceline", "runtime", "get", query, "--json"]
    done = subprocess.run(argv, env={**os.environ, "PACELINE_HOME": str(home)}, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        pytest.fail(f"the runtime {query} could not be installed: its messages are above", pytrace=False)
    return home


def _module(stem: str) -> ModuleType:
    """A helper module beside this file, which no test folder can import by name."""
    name = f"paceline_test_{stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{stem}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _write_gguf(
    path: Path,
    values: Mapping[str, object],
    tensors: Sequence[tuple[str, tuple[int, ...], int]] = (),
    *,
    version: int = 3,
    alignment: int = 32,
) -> Path:
    from paceline.formats.ggml_types import TENSOR_TYPES

    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, value in values.items():
        out += _string(key) + _value(value)
    offset = 0
    for name, shape, kind in tensors:
        out += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        _, block, block_bytes = TENSOR_TYPES[kind]
        count = 1
        for n in shape:
            count *= n
        offset += -(-count // block * block_bytes // alignment) * alignment
    if tensors:
        out += bytes(-len(out) % alignment) + bytes(offset)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<Ii", 5, value) if value < 0 else struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case tuple():
            kind, number = value
            return struct.pack("<I" + _CODES[kind], kind, number)
        case [str() | bytes(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_string(v) for v in value)
        case list():
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    raise TypeError(f"no GGUF value: {value!r}")
