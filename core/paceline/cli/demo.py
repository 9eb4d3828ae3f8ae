"""`paceline demo`: from nothing to a speculative answer, and what it measured."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from paceline import paths

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from paceline.host import Host
    from paceline.serving.generation import Completion, GenerateParams, TokenBatch
    from paceline.serving.pool import Serving
    from paceline.types import Model, Runtime

MAIN, DRAFT = "paceline/paceline-coder-7m", "paceline/paceline-coder-3m"
PROMPT = "Write a Python function `write_lines`: Write lines to a file."

_DRAFTED = "bold green"


@click.command()
@click.option("--prompt", default=PROMPT, show_default=True, help="What to ask the main model.")
@click.option("--model", "main_id", default=MAIN, show_default=True, help="Main model.")
@click.option("--draft", "draft_id", default=DRAFT, show_default=True, help="Draft model.")
@click.option("--max-tokens", default=160, show_default=True, type=click.IntRange(min=2), help="Longest answer.")
@click.option(
    "--runs", default=5, show_default=True, type=click.IntRange(min=1), help="Runs each speed is the median of."
)
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(min=0), help="0 is greedy.")
@click.option("--seed", default=1, show_default=True, type=int, help="Seed of every run.")
def demo(prompt: str, main_id: str, draft_id: str, max_tokens: int, runs: int, temperature: float, seed: int) -> None:
    """Install the best runtime for this machine and generate with a pair of models.

    The answer is generated without and with the draft model; tokens that the draft proposed are marked.
    """
    from rich.console import Console

    from paceline.host import open_host
    from paceline.serving.generation import DraftKnobs, GenerateParams, Sampling

    console = Console(highlight=False, soft_wrap=True)
    host = open_host()
    main, draft = host.library.get(main_id), host.library.get(draft_id)
    runtime = _runtime(console, host, main)
    _index(console, host, main, draft)
    plain = GenerateParams(prompt, max_tokens=max_tokens, sampling=Sampling(temperature=temperature, seed=seed))
    asyncio.run(_ride(console, host, runtime, main, draft, plain, replace(plain, draft=DraftKnobs()), runs))


def _runtime(console: Console, host: Host, main: Model) -> Runtime:
    """The selected runtime for the main model's format, installed if there is none."""
    runtime = host.store.selected(main.format, main.id)
    if runtime is None:
        from paceline.cli.runtime import install_best

        runtime = install_best(host.plugins, host.store, main.format)
    console.print(f"[bold]Runtime[/bold]   {runtime.id}")
    return runtime


def _index(console: Console, host: Host, main: Model, draft: Model) -> None:
    models = host.library.models()
    console.print(f"[bold]Library[/bold]   {len(models)} models, the samples and {paths.models()}")
    verdict = host.pairs.judge(main, draft)
    console.print(f"[bold]Pair[/bold]      {draft.id} drafts for {main.id}: {verdict.status}, {verdict.message}")


async def _ride(
    console: Console,
    host: Host,
    runtime: Runtime,
    main: Model,
    draft: Model,
    plain: GenerateParams,
    drafted: GenerateParams,
    runs: int,
) -> None:
    from paceline.chat.rendering import Renderer

    renderer = Renderer()
    serving = host.serving()
    try:
        prompt = await renderer.prompt(main, [{"role": "user", "content": plain.prompt}])
        plain, drafted = replace(plain, prompt=prompt), replace(drafted, prompt=prompt)
        await _answer(None, serving, main, draft, drafted)  # loads both models and warms them up
        console.print("\n[bold]Without a draft[/bold]\n")
        first = await _answer(console, serving, main, None, plain)
        console.print("\n[bold]With the draft[/bold]   ", end="")
        legend = "like this" if console.color_system is None else "green"
        console.print(_mark(console, legend), "= proposed by the draft, agreed to by the main model\n")
        second = await _answer(console, serving, main, draft, drafted)
        # Interleaved, so that whatever else this machine does meets both alike.
        plain_runs, drafted_runs = [first], [second]
        for _ in range(runs - 1):
            plain_runs.append(await _answer(None, serving, main, None, plain))
            drafted_runs.append(await _answer(None, serving, main, draft, drafted))
        _report(console, runtime, plain_runs, drafted_runs)
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


async def _answer(
    console: Console | None, serving: Serving, main: Model, draft: Model | None, params: GenerateParams
) -> _Run:
    """One generation, shown as it streams if there is a console."""
    from paceline.serving.generation import Completion

    tokens: list[int] = []
    started = time.monotonic()
    first_token_s = 0.0
    completion: Completion | None = None
    async with serving.lease(main, draft=draft) as lease:
        async for item in lease.generate(params):
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


def _report(console: Console, runtime: Runtime, plain: list[_Run], drafted: list[_Run]) -> None:
    slow, fast = (statistics.median(run.speed for run in runs) for runs in (plain, drafted))
    record = drafted[0].completion.acceptance
    console.print()
    if record is not None and record.drafted:
        rate = record.acceptance_rate or 0.0
        console.print(
            f"[bold]Acceptance[/bold]    drafted {record.drafted} = accepted {record.accepted} "
            f"+ rejected {record.rejected} + ignored {record.ignored}"
        )
        console.print(
            f"              {rate:.0%} accepted, {record.mean_accepted_length or 0.0:.2f} tokens per verification"
        )
        per_position = zip(record.accepted_per_position, record.drafted_per_position, strict=True)
        console.print("              by position: " + " ".join(f"{a}/{d}" for a, d in per_position))
    else:
        why = drafted[0].completion.draft_skipped or "the draft was never sure enough to propose a token"
        console.print(f"[bold]Acceptance[/bold]    nothing was drafted: {why}")
    console.print(f"[bold]Without[/bold]       {slow:8.1f} tokens/s   {_spread(plain)}")
    console.print(f"[bold]With draft[/bold]    {fast:8.1f} tokens/s   {_spread(drafted)}")
    ratio = fast / slow if slow else 0.0
    console.print(f"[bold]Ratio[/bold]         {ratio:8.2f}x            measured on {runtime.id}")
    same = all(run.tokens == plain[0].tokens for run in [*plain, *drafted])
    console.print(f"[bold]Same answer[/bold]   {'yes, token by token' if same else 'no'}")
    if ratio < 1:
        console.print(
            "\nHere the draft does not pay. That is the truth about this pair: its main model is so small that a "
            "token\nof it costs hardly more than a token of the draft. A draft pays for a main model many times larger."
        )


def _spread(runs: list[_Run]) -> str:
    speeds = [run.speed for run in runs]
    return f"median of {len(speeds)} runs, {min(speeds):.0f} to {max(speeds):.0f}"
