"""Prompts for the host: a few child processes that render chat templates, each replaced when a template breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from paceline.chat.child import HEADER, TIME_LIMIT_S
from paceline.child import ended
from paceline.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.chat.template import Message
    from paceline.types import Model


class Renderer:
    """Renders chat templates. Belongs to one event loop; `close()` it there."""

    def __init__(self, *, processes: int = 4) -> None:
        self._idle: list[_Child] = []
        self._slots = asyncio.Semaphore(processes)

    async def start(self) -> None:
        """Start one child ahead of the first request."""
        if not self._idle:
            self._idle.append(await _Child.start())

    async def prompt(self, model: Model, messages: Sequence[Message]) -> str:
        """The prompt that asks `model` for the next turn of `messages`; `TemplateError` says what the template said."""
        facts = model.facts
        if facts.chat_template is None:
            raise TemplateError(
                f"the model {model.id} has no chat template, so there is no known way to put messages to it",
                help="send a plain prompt to /v1/completions",
                param="model",
            )
        variables = {"bos_token": facts.bos_token or "", "eos_token": facts.eos_token or ""}
        return await self.render(facts.chat_template, messages, variables, owner=model.id)

    async def render(self, template: str, messages: Sequence[Message], variables: dict[str, Any], *, owner: str) -> str:
        """Render any template; `owner` names it in errors."""
        request = {"template": template, "messages": messages, "variables": variables}
        frame = json.dumps(request, separators=(",", ":")).encode()
        async with self._slots:
            child = self._idle.pop() if self._idle else await _Child.start()
            try:
                answer = await child.ask(frame)
            except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
                await child.kill()
                raise TemplateError(
                    f"the chat template of {owner} did not finish within {TIME_LIMIT_S:g} s "
                    "or used up its memory; it was stopped",
                    help="the template in the model's files is broken or hostile: send a plain prompt to "
                    "/v1/completions, or use other files of the model",
                    param="messages",
                ) from error
            except BaseException:
                # Cancelled between question and answer: what comes next on its pipe belongs to nobody.
                await child.kill()
                raise
            self._idle.append(child)
        if "prompt" in answer:
            return str(answer["prompt"])
        where = f", line {answer['line']}" if answer["line"] else ""
        if answer["refused"]:
            raise TemplateError(
                f"the chat template of {owner}{where} refuses these messages: {answer['failure']}", param="messages"
            )
        raise TemplateError(
            f"the chat template of {owner} failed{where}: {answer['failure']}",
            help="send a plain prompt to /v1/completions if the template cannot be mended",
            param="messages",
        )

    async def close(self) -> None:
        children, self._idle = self._idle, []
        for child in children:
            await child.end()


class _Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._requests = process.stdin
        self._answers = process.stdout

    @classmethod
    async def start(cls) -> _Child:
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "paceline.chat.child"),
                stdin=pipe,
                stdout=pipe,
                stderr=asyncio.subprocess.DEVNULL,
            )
        )

    async def ask(self, frame: bytes) -> dict[str, Any]:
        # The child's own timer starts when it has read the request; ours is for systems that have no such timer,
        # and leaves a child that is still starting its time.
        async with asyncio.timeout(TIME_LIMIT_S + 10):
            self._requests.write(HEADER.pack(len(frame)) + frame)
            await self._requests.drain()
            header = await self._answers.readexactly(HEADER.size)
            answer: dict[str, Any] = json.loads(await self._answers.readexactly(HEADER.unpack(header)[0]))
        return answer

    async def kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.end()

    async def end(self) -> None:
        self._requests.close()
        # What nobody reads would keep the pipe open.
        await self._answers.read()
        await ended(self._process)
