"""The harness of the protocol's contract: workers to hold to it, and a wire to each.

A worker is added to the contract by one entry in `CANDIDATES`: a function from the fixture request to a
`Candidate`. Every test of `test_contract.py` then runs against it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ECHO = Path(__file__).parents[1] / "thirdparty" / "paceline-echo" / "src" / "paceline_echo" / "_worker"
PATIENCE_S = 60.0
END_S = 3.0


@dataclass(frozen=True)
class Candidate:
    """A worker under test, with a model pair and a request it can serve."""

    argv: tuple[str, ...]
    engine: str
    main: Path
    draft: Path
    prompt: str
    """Its greedy answer has at least 12 tokens and ends by itself or goes on; both are fine."""
    context_length: int
    """Long enough that a generation that ignores the end is still running after a few round trips."""
    env: dict[str, str] = field(default_factory=dict)

    def cut_short(self, folder: Path) -> Path:
        """A copy of the main model in `folder`, of whose weights only the first 100 bytes came."""
        copy = folder / self.main.name
        if self.main.is_dir():
            shutil.copytree(self.main, copy, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(self.main, copy)
        for weights in copy.glob("*.safetensors") if copy.is_dir() else [copy]:
            os.truncate(weights, 100)
        return copy


def _echo(request: pytest.FixtureRequest) -> Candidate:
    from paceline.engine import python_worker

    folder = request.getfixturevalue("tmp_path_factory").mktemp("echo")
    words = ["to", "be", "or", "not", "that", "is", "the", "question"]
    vocabulary = [*words, *(f" {word}" for word in words)]
    main = {"name": "main", "parameters": 2000, "context_length": 10_000_000, "vocabulary": vocabulary}
    draft = main | {"name": "draft", "parameters": 1000, "wrong_every": 5}
    (folder / "main.echo").write_text(json.dumps(main))
    (folder / "draft.echo").write_text(json.dumps(draft))
    return Candidate(
        argv=python_worker(sys.executable, "paceline_echo_worker", ECHO).argv,
        engine="echo",
        main=folder / "main.echo",
        draft=folder / "draft.echo",
        prompt="What is it, then?\nto be or not to be, that is the question, – är det så?",
        context_length=10_000_000,
    )


def _llama_cpp(request: pytest.FixtureRequest) -> Candidate:
    from paceline import paths, plugins

    runtime = request.getfixturevalue("llama_cpp_runtime")
    spec = plugins.load().engine("llama.cpp").worker(runtime)
    return Candidate(
        argv=spec.argv,
        engine="llama.cpp",
        main=paths.samples() / "paceline-coder-7m-q8_0.gguf",
        draft=paths.samples() / "paceline-coder-3m-q8_0.gguf",
        prompt="<|im_start|>user\nWrite `close` in Python. Output code only.<|im_end|>\n<|im_start|>assistant\n",
        context_length=2048,
        env=dict(spec.env),
    )


def _mlx(request: pytest.FixtureRequest) -> Candidate:
    from paceline import plugins

    models = request.getfixturevalue("shared") / "models" / "mlx"
    spec = plugins.load().engine("mlx").worker(request.getfixturevalue("mlx_runtime"))
    return Candidate(
        argv=spec.argv,
        engine="mlx",
        main=models / "paceline-coder-7m-fp16",
        draft=models / "paceline-coder-3m-fp16",
        prompt="<|im_start|>user\nWrite `close` in Python. Output code only.<|im_end|>\n<|im_start|>assistant\n",
        context_length=2048,
        env=dict(spec.env),
    )


CANDIDATES = {"echo": _echo, "llama.cpp": _llama_cpp, "mlx": _mlx}
MARKS = {"llama.cpp": pytest.mark.runtime, "mlx": pytest.mark.runtime}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS.get(name, ())) for name in CANDIDATES])
def candidate(request):
    return CANDIDATES[request.param](request)


class Refused(Exception):
    """An error answer."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code: int = error["code"]
        self.data: dict[str, Any] = error.get("data") or {}
        self.kind: str | None = self.data.get("kind")


class Wire:
    """A running worker and everything it has said."""

    def __init__(self, argv: tuple[str, ...], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], **(env or {})},
        )
        self.frames: list[dict[str, Any]] = []
        """In the order they came."""
        self.garbage: list[bytes] = []
        self.log = b""
        self._last_id = 0
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._read_frames), threading.Thread(target=self._read_log)]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def begin(self, method: str, **params: Any) -> int:
        """Send a request and return its id."""
        self._last_id += 1
        frame = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        self.send(json.dumps(frame).encode() + b"\n")
        return self._last_id

    def answer(self, id: int | None) -> Any:
        """The result of a request; raises `Refused` for an error answer."""
        frame = self.wait_for(lambda f: "id" in f and f["id"] == id and "method" not in f)
        if "error" in frame:
            raise Refused(frame["error"])
        return frame["result"]

    def call(self, method: str, **params: Any) -> Any:
        return self.answer(self.begin(method, **params))

    def errors(self) -> list[int]:
        """The codes of the errors that answer no request."""
        with self._changed:
            return [f["error"]["code"] for f in self.frames if f.get("id", 0) is None]

    def wait_for(self, wanted: Any) -> dict[str, Any]:
        """The first frame, past or to come, of which `wanted` is true."""
        with self._changed:
            seen = 0

            def found() -> bool:
                nonlocal seen
                while seen < len(self.frames):
                    if wanted(self.frames[seen]):
                        return True
                    seen += 1
                return self.process.stdout.closed

            if not self._changed.wait_for(found, PATIENCE_S):
                raise AssertionError(f"no such frame in {PATIENCE_S:.0f} s; log: {self.log.decode(errors='replace')}")
            if seen == len(self.frames):
                raise AssertionError(f"the worker ended first; log: {self.log.decode(errors='replace')}")
            return self.frames[seen]

    def first_tokens(self, id: int) -> dict[str, Any]:
        return self.wait_for(lambda f: f.get("method") == "tokens" and f["params"]["request"] == id)

    def pieces(self, id: int) -> list[tuple[int, str, bool]]:
        """What a request has streamed so far, the trailing elements that may be left out filled in."""
        with self._changed:
            notes = [f["params"] for f in self.frames if f.get("method") == "tokens" and f["params"]["request"] == id]
        return [(p[0], p[1] if len(p) > 1 else "", p[2] if len(p) > 2 else False) for n in notes for p in n["pieces"]]

    def logprobs(self, id: int) -> list[dict[str, Any]]:
        """The log probabilities among what a request has streamed so far."""
        with self._changed:
            notes = [f["params"] for f in self.frames if f.get("method") == "tokens" and f["params"]["request"] == id]
        return [p[3] for n in notes for p in n["pieces"] if len(p) > 3]

    def generate(self, **params: Any) -> Generated:
        return self.generated(self.begin("generate", **params))

    def generated(self, id: int) -> Generated:
        result = self.answer(id)
        return Generated(result, self.pieces(id), self.logprobs(id))

    def hang_up(self) -> int:
        """Close the worker's standard input and return its exit status; it has `END_S` to end."""
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(END_S)

    def end(self) -> int:
        """The exit status of a worker that ends by itself, everything it said read."""
        status = self.process.wait(PATIENCE_S)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        return status

    def close(self) -> None:
        try:
            self.hang_up()
        finally:
            self.process.kill()
            self.process.wait()
            for thread in self._threads:
                thread.join()

    def _read_frames(self) -> None:
        with self.process.stdout:
            for line in self.process.stdout:
                try:
                    frame = json.loads(line)
                    assert frame["jsonrpc"] == "2.0"
                except (ValueError, TypeError, KeyError, AssertionError):
                    self.garbage.append(line)
                    continue
                with self._changed:
                    self.frames.append(frame)
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _read_log(self) -> None:
        with self.process.stderr:
            for line in self.process.stderr:
                self.log += line


@dataclass(frozen=True)
class Generated:
    result: dict[str, Any]
    pieces: list[tuple[int, str, bool]]
    logprobs: list[dict[str, Any]]

    @property
    def text(self) -> str:
        return "".join(text for _, text, _ in self.pieces)

    @property
    def tokens(self) -> list[int]:
        return [token for token, _, _ in self.pieces]

    @property
    def drafted(self) -> int:
        return sum(drafted for _, _, drafted in self.pieces)


def _wires():
    """Start workers: `wires(argv, env)`. Each must end when its standard input does, and must have sent only frames."""
    started: list[Wire] = []

    def start(argv: tuple[str, ...], env: dict[str, str] | None = None) -> Wire:
        started.append(Wire(argv, env))
        return started[-1]

    yield start
    for wire in started:
        wire.close()
    assert [line for wire in started for line in wire.garbage] == []


wires = pytest.fixture(_wires, name="wires")
module_wires = pytest.fixture(_wires, scope="module", name="module_wires")


@pytest.fixture
def bare(wires, candidate):
    """A worker that has only just started."""
    return wires(candidate.argv, candidate.env)


@pytest.fixture
def worker(bare):
    """An initialized worker."""
    bare.call("initialize", protocol=1, host="contract test")
    return bare


@pytest.fixture
def loaded(worker, candidate):
    """A worker with its main model."""
    worker.call("load", role="main", path=str(candidate.main), context_length=candidate.context_length)
    return worker


@pytest.fixture
def paired(loaded, candidate):
    """A worker with both models."""
    loaded.call("load", role="draft", path=str(candidate.draft), context_length=candidate.context_length)
    return loaded


def eventually(condition, patience_s: float = PATIENCE_S) -> bool:
    """Whether `condition` becomes true within its time."""
    end = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(name="eventually", scope="session")
def _eventually():
    return eventually


@pytest.fixture(scope="session")
def taking_turns():
    """Hold conversations with a worker that answer by answer take turns; their tokens, and how many each turn found."""

    def talk(wire: Wire, prompts: list[list[int]], **request: Any) -> tuple[list[list[int]], list[int]]:
        histories = [list(prompt) for prompt in prompts]
        answers = []
        for turn in range(3):
            for history in histories:
                sampling = {"temperature": 0.8, "seed": turn}
                answer = wire.generate(prompt=history, max_tokens=12, sampling=sampling, ignore_eos=True, **request)
                history += [*answer.tokens, *history[:5]]
                answers.append(answer)
        return [answer.tokens for answer in answers], [answer.result["cached_tokens"] for answer in answers]

    return talk


@pytest.fixture(scope="session")
def refused():
    """The exception of an error answer."""
    return Refused
