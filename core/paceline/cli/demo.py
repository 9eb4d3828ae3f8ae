"""`paceline demo`: from nothing to a speculative answer, and what it measured."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from paceline import paths
from paceline.cli.numbers import Finite
from paceline.cli.policy import policy_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from paceline.host import Host
    from paceline.preferences import Policy
    from paceline.serving.generation import Completion, GenerateParams, TokenBatch
    from paceline.serving.pool import Serving
    from paceline.types import Model, Runtime

MAIN, DRAFT = "paceline/paceline-coder-7m", "paceline/paceline-coder-3m"
PROMPT = "Write a Python function `write_lines`: Write lines to a file."

_DRAFTED = "bold green"
_FIXED = 4
"""Tokens drafted at a time in the run that is shown, so that there is something to see."""
_WARM_UP = 256
"""Tokens after which `Automatic` has learned what pays (docs/performance.md)."""


@click.command()
@click.option("--prompt", default=PROMPT, show_default=True, help="What to ask the main model.")
@click.option("--model", "main_id", default=MAIN, show_default=True, help="Main model.")
@click.option("--draft", "draft_id", default=DRAFT, show_default=True, help="Draft model.")
@click.option("--max-tokens", default=160, show_default=True, type=click.IntRange(min=2), help="Longest answer.")
@click.option(
    "--runs", default=5, show_default=True, type=click.IntRange(min=1), help="Runs each speed is the median of."
)
@click.option("--temperature", default=0.0, show_default=True, type=Finite(min=0), help="0 is greedy.")
@click.option("--seed", default=1, show_default=True, type=int, help="Seed of every run.")
@policy_options()
def demo(
    prompt: str,
    main_id: str,
    draft_id: str,
    max_tokens: int,
    runs: int,
    temperature: float,
    seed: int,
    policy: Policy,
) -> None:
    """Install the best runtime for this machine, where none is selected, and generate with a pair of models.

    The answer is generated without and with the draft model; tokens that the draft proposed are marked.
    """
    from rich.console import Console

    from paceline.host import open_host
    from paceline.serving.generation import DraftKnobs, GenerateParams, Sampling

    console = Console(highlight=False, soft_wrap=True)
    host = open_host()
    main, draft = host.library.get(main_id), host.library.get(draft_id)
    runtime = _runtime(console, host, main, policy)
    _index(console, host, main, draft)
    plain = GenerateParams(prompt, max_tokens=max_tokens, sampling=Sampling(temperature=temperature, seed=seed))
    ways = {
        "Without": _Way(None, plain),
        "With draft": _Way(draft, replace(plain, draft=DraftKnobs(exact_tokens=_FIXED))),
        "Automatic": _Way(draft, replace(plain, draft=DraftKnobs())),
    }
    asyncio.run(_ride(console, host, runtime, main, ways, runs))


def _runtime(console: Console, host: Host, main: Model, policy: Policy) -> Runtime:
    """The selected runtime for the main model's format, installed if there is none."""
    runtime = host.store.selected(main.format, main.id)
    if runtime is None:
        from paceline.cli.getting import install_best

        runtime = install_best(host.plugins, host.store, main.format, policy)
    console.print(f"[bold]Runtime[/bold]   {runtime.id}")
    return runtime


def _index(console: Console, host: Host, main: Model, draft: Model) -> None:
    models = host.library.models()
    console.print(f"[bold]Library[/bold]   {len(models)} models, the samples and {paths.models()}")
    verdict = host.pairs.judge(main, draft)
    console.print(f"[bold]Pair[/bold]      {draft.id} drafts for {main.id}: {verdict.status}, {verdict.message}")


@dataclass(frozen=True)
class _Way:
    """One way to generate: with which draft, and with what request."""

    draft: Model | None
    params: GenerateParams


async def _ride(console: Console, host: Host, runtime: Runtime, main: Model, ways: dict[str, _Way], runs: int) -> None:
    from paceline.chat.rendering import Renderer

    renderer = Renderer()
    serving = host.serving()
    try:
        question = ways["Without"].params.prompt
        prompt = await renderer.prompt(main, [{"role": "user", "content": question}])
        ways = {name: replace(way, params=replace(way.params, prompt=prompt)) for name, way in ways.items()}
        await _answer(None, serving, main, ways["With draft"])  # loads both models and warms them up
        console.print("\n[bold]Without a draft[/bold]\n")
        await _answer(console, serving, main, ways["Without"])
        console.print(f"\n[bold]With the draft, {_FIXED} tokens ahead[/bold]   ", end="")
        legend = "like this" if console.color_system is None else "green"
        console.print(_mark(console, legend), "= proposed by the draft, agreed to by the main model\n")
        shown = await _answer(console, serving, main, ways["With draft"])
        learned = 0
        while learned < _WARM_UP:
            learned += len((await _answer(None, serving, main, ways["Automatic"])).tokens)
        # Interleaved, so that whatever else this machine does meets all alike.
        done: dict[str, list[_Run]] = {name: [] for name in ways}
        for _ in range(runs):
            for name, way in ways.items():
                done[name].append(await _answer(None, serving, main, way))
        _report(console, runtime, shown.completion, done)
    finally:
        await serving.close()
        await renderer.close()


@dataclass(frozen=True)
class _Run:
    tokens: tuple[int, ...]
    first_token_s: float
    completion: Completion

    @property
    def speed(self) -> float:
        return self.completion.tokens_per_second or 0.0


async def _answer(console: Console | None, serving: Serving, main: Model, way: _Way) -> _Run:
    """One generation, shown as it streams if there is a console."""
    from paceline.serving.generation import Completion

    tokens: list[int] = []
    started = time.monotonic()
    first_token_s = 0.0
    completion: Completion | None = None
    async with serving.lease(main, draft=way.draft) as lease:
        async for item in lease.generate(way.params):
            if isinstance(item, Completion):
                completion = item
                continue
            first_token_s = first_token_s or time.monotonic() - started
            tokens.extend(piece.token for piece in item.pieces)
            if console is not None:
                _show(console, item)
    if console is not None:
        console.print()
    assert completion is not None
    return _Run(tuple(tokens), first_token_s, completion)


def _show(console: Console, batch: TokenBatch) -> None:
    run, drafted = "", False
    for piece in batch.pieces:
        if piece.text and piece.drafted != drafted:
            _print_run(console, run, drafted)
            run, drafted = "", piece.drafted
        run += piece.text
    _print_run(console, run, drafted)


def _print_run(console: Console, text: str, drafted: bool) -> None:
    from rich.text import Text

    if text:
        console.print(_mark(console, text) if drafted else Text(text), end="")


def _mark(console: Console, text: str) -> Text:
    """`text` as the draft's: green, or between marks where there is no colour."""
    from rich.text import Text

    return Text(f"{{+{text}+}}") if console.color_system is None else Text(text, style=_DRAFTED)


def _report(console: Console, runtime: Runtime, shown: Completion, done: dict[str, list[_Run]]) -> None:
    record = shown.acceptance
    if record is None or not record.drafted:
        console.print(
            f"\n[bold]Acceptance[/bold]    nothing was drafted: {shown.draft_skipped or 'the answer was too short'}"
        )
    else:
        console.print(
            f"\n[bold]Acceptance[/bold]    drafted {record.drafted} = accepted {record.accepted} "
            f"+ rejected {record.rejected} + ignored {record.ignored}: {record.acceptance_rate or 0:.0%} accepted"
        )
        per_position = zip(record.accepted_per_position, record.drafted_per_position, strict=True)
        console.print(
            f"              {record.mean_accepted_length or 0:.2f} accepted per verification; by position "
            + " ".join(f"{a}/{d}" for a, d in per_position)
        )
    medians = {name: statistics.median(run.speed for run in runs) for name, runs in done.items()}
    slow = medians["Without"]
    for name, runs in done.items():
        ratio = f"{medians[name] / slow:5.2f}x" if slow else ""
        console.print(f"[bold]{name:<12}[/bold]{medians[name]:8.1f} tokens/s   {ratio}   {_spread(runs)}")
    everything = [run.tokens for runs in done.values() for run in runs]
    same = all(tokens == everything[0] for tokens in everything)
    console.print(f"[bold]Same answer[/bold]   {'yes, token by token' if same else 'no'}, on {runtime.id}")
    console.print(
        f"\n`With draft` always drafts {_FIXED} tokens. `Automatic` drafts as far as it pays, as does every\n"
        "request that names a draft model. These models are tiny: the larger the main model beside\n"
        "its draft, the more is gained."
    )


def _spread(runs: list[_Run]) -> str:
    speeds = [run.speed for run in runs]
    return f"median of {len(speeds)} runs, {min(speeds):.0f} to {max(speeds):.0f}"
