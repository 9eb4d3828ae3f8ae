"""One asynchronous HTTP client for every server: what a user of the API sees of an answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from paceline.errors import PacelineError


@dataclass(frozen=True)
class Answer:
    """One streamed answer; times are seconds from the moment the request was sent."""

    arrivals: tuple[float, ...]
    """When each chunk with text came."""
    end: float
    text: str
    tokens: int
    """As the server counts them."""
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Run:
    """The answers to some prompts, asked by so many streams at a time."""

    wall_s: float
    answers: tuple[Answer, ...] = field(repr=False)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Run:
        answers = tuple(Answer(**{**a, "arrivals": tuple(a["arrivals"])}) for a in value["answers"])
        return cls(value["wall_s"], answers)

    @property
    def tokens(self) -> int:
        return sum(a.tokens for a in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """All tokens over the wall time, prompts included."""
        return self.tokens / self.wall_s

    @property
    def first_token_s(self) -> list[float]:
        return [a.arrivals[0] for a in self.answers if a.arrivals]

    @property
    def gaps_s(self) -> list[float]:
        """Between the chunks of an answer."""
        return [b - a for answer in self.answers for a, b in zip(answer.arrivals, answer.arrivals[1:], strict=False)]

    @property
    def acceptance(self) -> float | None:
        """Accepted of all drafted tokens."""
        drafted = sum(a.drafted for a in self.answers)
        return sum(a.accepted for a in self.answers) / drafted if drafted else None


async def ask_all(url: str, prompts: Sequence[str], body: Mapping[str, Any], streams: int) -> Run:
    """Ask for a streamed plain completion of each prompt, `streams` at a time, in the order given.

    Raises PacelineError with what the server said when one fails.
    """
    waiting = list(enumerate(prompts))[::-1]
    answers: dict[int, Answer] = {}

    async def stream(client: httpx.AsyncClient) -> None:
        while waiting:
            index, prompt = waiting.pop()
            answers[index] = await ask(client, {**body, "prompt": prompt})

    # A connection of its own for every request: a server may close an idle one at any moment.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        start = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(streams):
                    group.create_task(stream(client))
        except ExceptionGroup as failed:
            raise PacelineError(f"{url} failed: {failed.exceptions[0]}") from failed
        wall = time.perf_counter() - start
    return Run(wall, tuple(answers[i] for i in range(len(prompts))))


async def ask(client: httpx.AsyncClient, body: Mapping[str, Any]) -> Answer:
    """One streamed plain completion. Raises PacelineError with what the server said when it fails."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    arrivals: list[float] = []
    text: list[str] = []
    counts = {"tokens": 0, "drafted": 0, "accepted": 0}
    start = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise PacelineError(f"{answer.status_code}: {(await answer.aread()).decode(errors='replace')[:500]}")
        async for line in answer.aiter_lines():
            now = time.perf_counter() - start
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise PacelineError(f"the stream failed: {chunk['error'].get('message')}")
            said = "".join(choice.get("text") or "" for choice in chunk["choices"])
            if said:
                arrivals.append(now)
                text.append(said)
            counts |= counts_of(chunk)
    return Answer(tuple(arrivals), time.perf_counter() - start, "".join(text), **counts)


def counts_of(chunk: Mapping[str, Any]) -> dict[str, int]:
    """Token counts of a chunk that has any: OpenAI's `usage`, Paceline's `stats`, llama-server's `timings`."""
    counts: dict[str, int] = {}
    if usage := chunk.get("usage"):
        counts["tokens"] = usage["completion_tokens"]
    if "total_draft_tokens_count" in (stats := chunk.get("stats") or {}):
        counts |= {"drafted": stats["total_draft_tokens_count"], "accepted": stats["accepted_draft_tokens_count"]}
    if "draft_n" in (timings := chunk.get("timings") or {}):
        counts |= {"drafted": timings["draft_n"], "accepted": timings["draft_n_accepted"]}
    return counts
