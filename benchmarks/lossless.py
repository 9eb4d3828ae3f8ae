"""A draft changes no token: the same requests with and without every drafter, token by token, on both engines.

    python benchmarks/lossless.py                                  both engines; minutes
    python benchmarks/lossless.py --engines llama.cpp --prompts 40
    python benchmarks/lossless.py --tables proof.json              the tables of an earlier run

Each setting is asked at every temperature; those with more than a temperature take turns with it from prompt to prompt.
Every request has a seed, and its answer without a draft is what the others are held to. Without a draft it is asked
twice, and the second answer is the one that counts, so that an engine that does not repeat itself, or reads a prompt in
another way than it remembers it, is not taken for a draft that changes something. One worker serves all of an engine's
requests, several at a time where it has the slots. Then distribution.py's test of the sampled tokens against the main
model's own probabilities.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from distribution import Fit, fit_table, fits
from heavy_pair import sample_draft, sample_main
from machine import describe_machine
from mlx_pair import sample_folders
from paceline.errors import PacelineError
from paceline.types import Runtime
from prompts import PROOF
from worker import Generated, Worker, selected_runtime, worker_spec

FORMATS = {"llama.cpp": "gguf", "mlx": "mlx"}
"""Engine -> the model format whose selected runtime is used."""

_AT_A_TIME = 16
_LONG = 12
"""Every so manieth answer goes on for long."""
_JSON_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 24}, "arguments": {"type": "array", "maxItems": 4}},
    "required": ["name", "arguments"],
}


@dataclass(frozen=True)
class Drafter:
    """What goes into a request's `draft`."""

    name: str
    knobs: Mapping[str, Any] | None
    feature: str | None = None
    """Which the worker must advertise."""


@dataclass(frozen=True)
class Setting:
    """What a request asks for beside its prompt and its draft."""

    asks: str
    """For what, beside its temperature."""
    temperature: float
    request: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 40
    share: int = 1
    """Every so manieth prompt is asked, ..."""
    first: int = 0
    """... from this one on, counted over all kinds."""
    feature: str | None = None

    @property
    def name(self) -> str:
        return f"{self.asks}, temperature {self.temperature:g}"


TEMPERATURES = (0.0, 0.8, 1.5)


def _spread(
    asks: str,
    request: Mapping[str, Any],
    *,
    among: int = 1,
    place: int = 0,
    max_tokens: int = 40,
    feature: str | None = None,
) -> tuple[Setting, ...]:
    """A setting at each temperature, which take turns from prompt to prompt; of `among` such settings it has the turns
    of its `place`."""
    share = among * len(TEMPERATURES)
    return tuple(
        Setting(asks, temperature, request, max_tokens, share, among * turn + place, feature)
        for turn, temperature in enumerate(TEMPERATURES)
    )


DRAFTERS = (
    Drafter("none, before", None),
    Drafter("draft, 4 tokens", {"exact_tokens": 4}),
    Drafter("draft, automatic", {}),
    Drafter("lookup, 4 tokens", {"model": False, "lookup": True, "exact_tokens": 4}, "lookup"),
    Drafter("lookup, automatic", {"model": False, "lookup": True}, "lookup"),
    Drafter("draft and lookup, automatic", {"lookup": True}, "lookup"),
)
_PENALTIES = {"repeat_penalty": 1.2, "presence_penalty": 0.2, "frequency_penalty": 0.1, "repeat_last_n": -1}
_BIAS = {str(token): 3.0 - token % 7 for token in range(0, 4096, 13)}
_JSON = {"json_schema": _JSON_SCHEMA}
_WORDS = {"regex": r"[a-z]+( [a-z]{1,8}){3,20}\."}
SETTINGS = (
    *(Setting("nothing else", temperature) for temperature in TEMPERATURES),
    *_spread("penalties", {"sampling": _PENALTIES}),
    *_spread("logit_bias", {"sampling": {"logit_bias": _BIAS}}),
    *_spread("stop strings", {"stop": ["return", "self.", "\n\n", "the"]}),
    *_spread("json schema", {"grammar": _JSON}, among=2, feature="grammar"),
    *_spread("regular expression", {"grammar": _WORDS}, among=2, place=1, feature="grammar"),
    *_spread("to 450 tokens", {"ignore_eos": True}, among=_LONG, max_tokens=450),
)


@dataclass(frozen=True)
class Comparison:
    """The answer to one prompt with a drafter beside the one without a draft."""

    engine: str
    setting: str
    drafter: str
    kind: str
    prompt: int
    """Its place among those of its kind."""
    tokens: int
    """Of the answer without a draft."""
    first_difference: int | None
    """The first token that is another one, counted from 0; `tokens` where the draft's answer only goes on; None if the
    answers are equal."""
    drafted: int
    accepted: int
    skipped: str | None
    """Why the draft took no part, in the worker's words."""
    plain_ids: tuple[int, ...] = field(default=(), repr=False)
    """Both answers where they differ; empty otherwise."""
    drafted_ids: tuple[int, ...] = field(default=(), repr=False)

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Comparison:
        value = dict(zip((each.name for each in fields(cls)), values, strict=True))
        return cls(**{**value, "plain_ids": tuple(value["plain_ids"]), "drafted_ids": tuple(value["drafted_ids"])})


@dataclass(frozen=True)
class Proof:
    """What one engine was held to."""

    engine: str
    runtime: str
    comparisons: tuple[Comparison, ...] = field(repr=False)
    fits: tuple[Fit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The comparisons as lists of their fields' values, since there are thousands."""
        return {**asdict(self), "comparisons": [astuple(c) for c in self.comparisons]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Proof:
        comparisons = tuple(map(Comparison.from_json, value["comparisons"]))
        found = tuple(Fit(**fit) for fit in value["fits"])
        return cls(value["engine"], value["runtime"], comparisons, found)


def prove(
    engine: str,
    runtime: Runtime,
    main: Path,
    draft: Path,
    *,
    prompts: int | None = None,
    seeds: int = 2000,
    settings: Sequence[Setting] = SETTINGS,
    drafters: Sequence[Drafter] = DRAFTERS,
) -> Proof:
    """Compare all that the runtime's worker offers, over `prompts` of each kind (all unless given), then test the
    distribution of `seeds` samples (none if 0). Raises WorkerError with the worker's message when it fails."""
    with Worker(worker_spec(runtime)) as worker:
        features = {*worker.call("initialize", protocol=1)["features"]}
        slots = worker.call("load", role="main", path=str(main)).get("slots", 1)
        worker.call("load", role="draft", path=str(draft))
        able = [d for d in drafters if d.feature is None or d.feature in features]
        found: list[Comparison] = []
        for setting in settings:
            asked = _asked(prompts, setting)
            if asked and (setting.feature is None or setting.feature in features):
                at_a_time = min(slots, _AT_A_TIME)
                found.extend(_compare(worker, engine, setting, able, asked, at_a_time))
                _say(found)
        fitting = tuple(fits(worker, runtime, engine, main, seeds, at_a_time=slots)) if seeds else ()
    return Proof(engine, runtime.id, tuple(found), fitting)


def first_difference(plain: Sequence[int], drafted: Sequence[int]) -> int | None:
    """Where the first token differs, or the shorter answer ends; None of equal answers."""
    for at, (a, b) in enumerate(zip(plain, drafted, strict=False)):
        if a != b:
            return at
    return None if len(plain) == len(drafted) else min(len(plain), len(drafted))


def read(path: Path) -> list[Proof]:
    """What an earlier run has found."""
    return [Proof.from_json(value) for value in json.loads(path.read_text())["proofs"]]


def tables(proofs: Sequence[Proof]) -> str:
    """Markdown: the comparisons and the tests of the distribution."""
    return f"{table(proofs)}\n{fit_table([fit for proof in proofs for fit in proof.fits])}"


def table(proofs: Iterable[Proof]) -> str:
    """Markdown: a row for each engine, setting and drafter."""
    rows: dict[tuple[str, str, str], list[Comparison]] = defaultdict(list)
    for comparison in (c for proof in proofs for c in proof.comparisons):
        rows[comparison.engine, comparison.setting, comparison.drafter].append(comparison)
    head = (
        "| engine | request | drafter | prompts | tokens | identical | different | first difference at token |"
        " drafted | accepted |\n|" + " --- |" * 10 + "\n"
    )
    return head + "".join(_row(key, found) for key, found in rows.items())


def _row(key: tuple[str, str, str], found: Sequence[Comparison]) -> str:
    places = sorted(c.first_difference for c in found if c.first_difference is not None)
    figures = (
        len(found),
        sum(c.tokens for c in found),
        len(found) - len(places),
        len(places),
        ", ".join(map(str, places[:5])) + (", …" if len(places) > 5 else ""),
        sum(c.drafted for c in found),
        sum(c.accepted for c in found),
    )
    return f"| {' | '.join([*key, *map(str, figures)])} |\n"


def _asked(count: int | None, setting: Setting) -> list[tuple[str, int, str]]:
    """The kind, place and text of every prompt that is asked, of the first `count` of each kind."""
    prompts = [(kind, i, text) for kind, texts in PROOF.items() for i, text in enumerate(texts[:count])]
    return prompts[setting.first :: setting.share]


def _compare(
    worker: Worker,
    engine: str,
    setting: Setting,
    drafters: Sequence[Drafter],
    asked: Sequence[tuple[str, int, str]],
    at_a_time: int,
) -> Iterator[Comparison]:
    sampling = {**setting.request.get("sampling", {}), "temperature": setting.temperature}

    def answers(knobs: Mapping[str, Any] | None) -> list[Generated]:
        requests = [
            {**setting.request, "sampling": {**sampling, "seed": seed}, "prompt": text}
            | {"max_tokens": setting.max_tokens, "draft": knobs}
            for seed, (_, _, text) in enumerate(asked)
        ]
        return worker.generate_all(requests, at_a_time)

    # A long prompt that is remembered may go on with other bits than one that was read just now.
    before, plain = answers(None), answers(None)
    for drafter in drafters:
        answered = before if drafter.knobs is None else answers(drafter.knobs)
        for (kind, place, _), without, drafted in zip(asked, plain, answered, strict=True):
            at = first_difference(without.tokens, drafted.tokens)
            record = drafted.result["acceptance"] or {"drafted": 0, "accepted": 0}
            yield Comparison(
                engine, setting.name, drafter.name, kind, place, len(without.tokens), at,
                record["drafted"], record["accepted"], drafted.result["draft_skipped"],
                *((tuple(without.tokens), tuple(drafted.tokens)) if at is not None else ()),
            )  # fmt: skip


def _say(found: Sequence[Comparison]) -> None:
    last = [c for c in found if c.setting == found[-1].setting]
    different = sum(c.first_difference is not None for c in last)
    print(f"{last[0].engine}, {last[0].setting}: {len(last)} compared, {different} different", file=sys.stderr)


def _pair(engine: str) -> tuple[Path, Path]:
    return (sample_main(), sample_draft()) if engine == "llama.cpp" else sample_folders()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show that a draft changes no token.")
    parser.add_argument("--engines", nargs="+", choices=[*FORMATS], default=[*FORMATS])
    asks = dict.fromkeys(s.asks for s in SETTINGS)
    parser.add_argument("--settings", nargs="+", choices=[*asks], help="at their temperatures; all unless given")
    parser.add_argument("--prompts", type=int, help="of each kind; all of them unless given")
    parser.add_argument("--seeds", type=int, default=2000, help="samples for the test of the distribution; 0: no test")
    parser.add_argument("--json", type=Path, help="keep every comparison in this file")
    parser.add_argument("--write", type=Path, help="write the tables to this file")
    parser.add_argument("--tables", type=Path, metavar="JSON", help="compare nothing, read an earlier file")
    options = parser.parse_args(argv)
    try:
        if options.tables:
            proofs = read(options.tables)
        else:
            proofs = _proofs(options)
    except PacelineError as error:
        print(f"error: {error.message}", *([f"help: {error.help}"] if error.help else []), sep="\n", file=sys.stderr)
        return error.exit_status
    text = tables(proofs)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0


def _proofs(options: argparse.Namespace) -> list[Proof]:
    head = {"measures": "lossless", "machine": describe_machine()}
    proofs = []
    for engine in options.engines:
        started = time.monotonic()
        runtime = selected_runtime(FORMATS[engine])
        settings = [s for s in SETTINGS if options.settings is None or s.asks in options.settings]
        asked = {"prompts": options.prompts, "seeds": options.seeds, "settings": settings}
        proofs.append(prove(engine, runtime, *_pair(engine), **asked))
        print(f"{engine} took {time.monotonic() - started:.0f} s", file=sys.stderr)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(head | {"proofs": [p.to_json() for p in proofs]}))
    return proofs


if __name__ == "__main__":
    sys.exit(main())
