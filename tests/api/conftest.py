"""The API on a real port, over a serving room that plays scripts instead of running models."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from paceline.api import create_app
from paceline.errors import AmbiguousError, NotFoundError, PacelineError
from paceline.serving.generation import AcceptanceRecord, Completion, Piece, StopReason, TokenBatch
from paceline.serving.place import LoadedModel
from paceline.tokens import Permission, Tokens
from paceline.types import Model, ModelFacts, ModelKind, Runtime

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and m.content == 'forbidden' %}"
    "{{ raise_exception('no such system prompt') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_model(model_id: str, kind: ModelKind = ModelKind.LLM, template: str | None = CHAT_TEMPLATE) -> Model:
    facts = ModelFacts(
        kind,
        4_500_000,
        name=model_id.title(),
        arch="llama",
        quantization="Q8_0",
        parameters=7_100_000,
        max_context_length=2048,
        chat_template=template,
        bos_token="<s>",
        eos_token="</s>",
    )
    return Model(model_id, "gguf", Path(f"/models/{model_id}.gguf"), "tester", facts)


class FixedLibrary:
    """A library of these models."""

    def __init__(self) -> None:
        self._models = (
            make_model("coder-7m"),
            make_model("coder-3m"),
            make_model("family/plain", template=None),
            make_model("embedder", ModelKind.EMBEDDINGS),
        )

    def models(self) -> tuple[Model, ...]:
        return self._models

    def get(self, model_id: str, *, param: str = "model") -> Model:
        for model in self._models:
            if model.id == model_id:
                return model
        if model_id == "coder":
            raise AmbiguousError("'coder' means coder-3m and coder-7m")
        raise NotFoundError(f"no model is called {model_id!r}", help="did you mean coder-7m?", param=param)


RUNTIME = Runtime(
    "llama.cpp",
    "0.3.36",
    "linux-x86_64-cpu",
    ("gguf",),
    ("generate", "draft"),
    Path("/runtimes/x"),
    Path("/runtimes/x/python"),
)
RECORD = AcceptanceRecord(
    drafted=7,
    accepted=4,
    rejected=2,
    ignored=1,
    rounds=2,
    drafted_per_position=(2, 2, 2),
    accepted_per_position=(2, 1, 1),
)


def batch(*pieces: tuple[str, bool] | str) -> TokenBatch:
    pairs = [(p, False) if isinstance(p, str) else p for p in pieces]
    return TokenBatch(tuple(Piece(i, text, drafted) for i, (text, drafted) in enumerate(pairs)))


def completion(**changes: Any) -> Completion:
    values: dict[str, Any] = {
        "stop_reason": StopReason.EOS_FOUND,
        "stop_string": None,
        "prompt_tokens": 11,
        "cached_tokens": 3,
        "completion_tokens": 5,
        "queue_s": 0.0,
        "prompt_s": 0.02,
        "generation_s": 0.5,
    }
    return Completion(**{**values, **changes})


@dataclass
class Call:
    """One generation the API asked for."""

    model: Model
    draft: Model | None
    ttl_s: float | None
    params: Any


@dataclass
class ScriptedServing:
    """Plays `script` for every generation: batches and completions are yielded, exceptions raised, futures awaited."""

    script: list[Any] = field(default_factory=list)
    lease_error: PacelineError | None = None
    calls: list[Call] = field(default_factory=list)
    cancelled: queue.Queue[str] = field(default_factory=queue.Queue)
    """Receives the prompt of each generation that was left before its end."""
    began: queue.Queue[str] = field(default_factory=queue.Queue)
    leases: int = 0
    kept: dict[str, LoadedModel] = field(default_factory=dict)
    loads: list[Any] = field(default_factory=list)
    """(configuration, ttl_s, force) of each load."""
    closed: bool = False

    batch = staticmethod(batch)
    completion = staticmethod(completion)
    record = RECORD

    def reset(self) -> None:
        self.script = [batch("Hel"), batch("lo", ("!", True)), completion()]
        self.lease_error = None
        self.calls.clear()
        self.kept.clear()
        self.loads.clear()
        self.cancelled = queue.Queue()
        self.began = queue.Queue()

    @asynccontextmanager
    async def lease(self, model, *, draft=None, ttl_s=None):
        if self.lease_error is not None:
            raise self.lease_error
        self.leases += 1
        try:
            yield ScriptedLease(self, model, draft, ttl_s)
        finally:
            self.leases -= 1

    async def tokenize(self, model, text, *, add_special=True):
        if self.lease_error is not None:
            raise self.lease_error
        return [ord(letter) for letter in ("^" if add_special else "") + text]

    async def detokenize(self, model, tokens):
        return "".join(map(chr, tokens))

    def loaded(self):
        return tuple(self.kept.values())

    async def load(self, model, *, config=None, ttl_s=None, force=False):
        if self.lease_error is not None:
            raise self.lease_error
        self.loads.append((config, ttl_s, force))
        slots, features = config.parallel or 4, ("generate", "draft")
        loaded = LoadedModel(model, RUNTIME, config.context_length or 2048, None, 0.25, 0, slots, config, features)
        self.kept[model.id] = loaded
        return loaded

    async def unload(self, model_id):
        if self.kept.pop(model_id, None) is None:
            raise NotFoundError(f"model {model_id!r} is not loaded")

    async def close(self):
        self.closed = True


class ScriptedLease:
    def __init__(self, serving, model, draft, ttl_s):
        self.model, self.draft = model, draft
        self.runtime = RUNTIME
        self.context_length = 2048
        self._serving, self._ttl_s = serving, ttl_s

    async def generate(self, params):
        serving = self._serving
        serving.calls.append(Call(self.model, self.draft, self._ttl_s, params))
        serving.began.put(params.prompt)
        complete = False
        try:
            for step in serving.script:
                if isinstance(step, Future):
                    await asyncio.wrap_future(step)
                elif isinstance(step, Exception):
                    complete = True
                    raise step
                else:
                    complete = isinstance(step, Completion)
                    yield step
            complete = True
        finally:
            if not complete:
                serving.cancelled.put(params.prompt)


class Server:
    """An ASGI application behind uvicorn, on a free port of loopback, in a thread."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="critical", ws="none", lifespan="on", timeout_graceful_shutdown=5
        )
        self._server = uvicorn.Server(config)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.01)
            self._started.set()
            await serving

        asyncio.run(serve())

    def __enter__(self) -> str:
        self._thread.start()
        assert self._started.wait(30)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), self._state()

    def _state(self) -> str:
        assert self._thread.ident is not None
        stack = traceback.format_stack(sys._current_frames()[self._thread.ident])
        open_ = [vars(c) for c in self._server.server_state.connections]
        return f"still running: {asyncio.all_tasks(self._loop)}\nconnections: {open_}\n{''.join(stack)}"


@pytest.fixture(scope="session")
def _running():
    serving = ScriptedServing()
    with Server(create_app(serving, FixedLibrary())) as url:
        yield serving, url
    assert serving.closed
    assert serving.leases == 0


@pytest.fixture
def serving(_running) -> ScriptedServing:
    _running[0].reset()
    return _running[0]


@pytest.fixture
def base_url(_running) -> str:
    return _running[1]


@dataclass
class Managed:
    """A real `paceline serve` over the tiny engine, with the echo engine beside it."""

    tiny: Any
    url: str
    process: subprocess.Popen[str]
    log: Path
    admin: str
    user: str

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def said(self) -> str:
        return self.log.read_text()

    def until(self, what: Callable[[], Any]) -> Any:
        """The first true value of `what`."""
        deadline = time.monotonic() + 60
        while not (value := what()):
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.02)
        return value

    def update(self) -> dict[str, Any]:
        with self.client(self.user) as http:
            return http.get("/api/v1/runtimes/updates").json()

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def managed(tiny, tmp_path):
    """Starts one: `managed(*options, **variables)`."""
    echo = tmp_path / "echo" / "paceline_echo-1.0.dist-info"
    echo.mkdir(parents=True)
    (echo / "METADATA").write_text("Metadata-Version: 2.1\nName: paceline-echo\nVersion: 1.0\n")
    (echo / "entry_points.txt").write_text("[paceline]\necho = paceline_echo\n")
    source = Path(__file__).parents[1] / "thirdparty" / "paceline-echo" / "src"
    path = os.pathsep.join([tiny.environment()["PYTHONPATH"], str(echo.parent), str(source)])
    tokens = Tokens(tiny.home)
    _, admin = tokens.create("admin", Permission)
    _, user = tokens.create("user", [Permission.INFERENCE])
    started = []

    def start(*options: str, **variables: str) -> Managed:
        log = tmp_path / f"serve-{len(started)}.log"
        env = {**os.environ, **tiny.environment(), "PACELINE_PLUGINS": "tiny,echo", "PYTHONPATH": path}
        env |= {"PACELINE_MODELS": str(tmp_path / "models"), "PACELINE_UPDATE": "off", **variables}
        command = [sys.executable, "-m", "paceline", "serve", "--port", "0", *options]
        with log.open("w") as stderr:
            process = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=stderr, stdin=subprocess.DEVNULL, text=True
            )
        said = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert url, log.read_text()
        started.append(Managed(tiny, url[0], process, log, admin, user))
        return started[-1]

    yield start
    for server in started:
        try:
            server.end()
        finally:
            server.process.kill()
            server.process.wait()
            server.process.stdout.close()


@pytest.fixture
def events():
    """Parses a stream into its JSON events, and checks that it is well-formed and ends with [DONE]."""

    def parse(text: str, *, done: bool = True) -> list[dict[str, Any]]:
        blocks = text.split("\n\n")
        assert blocks.pop() == ""
        assert all(block.startswith("data: ") for block in blocks), blocks
        data = [block.removeprefix("data: ") for block in blocks]
        assert (data[-1] == "[DONE]") is done
        return [json.loads(d) for d in data if d != "[DONE]"]

    return parse


@pytest.fixture
def client(base_url, serving):
    with httpx.Client(base_url=base_url, timeout=30) as http:
        yield http
