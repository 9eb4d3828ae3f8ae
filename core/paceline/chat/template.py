"""A model's chat template: messages in, prompt out, in the dialect that Hugging Face's `apply_chat_template` defines.

Templates come from model files, so they are untrusted. Jinja's immutable sandbox keeps them away from Python;
time and memory are bounded by the process this runs in (`paceline.chat.child`), because a single operation such as
`10 ** 10 ** 10` can neither be interrupted nor foreseen from inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from types import TracebackType

    from jinja2.parser import Parser

MAX_TEMPLATE_CHARS = 512 * 1024
"""The largest template of a published model known to us has 17,000."""
MAX_PROMPT_CHARS = 16 * 1024 * 1024

Message = Mapping[str, Any]


class TemplateFailure(Exception):
    """Why there is no prompt. `line` is the template's; `refused` says the template itself raised it."""

    def __init__(self, message: str, *, line: int | None = None, refused: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.refused = refused


class ChatTemplate:
    """One compiled template. Raises `TemplateFailure` for a source that is no template."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateFailure(f"the template has {len(source)} characters, more than {MAX_TEMPLATE_CHARS}")
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateFailure(error.message or "syntax error", line=error.lineno) from error
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise TemplateFailure(f"the template cannot be compiled ({type(error).__name__})") from error
        self._knows_developer = "developer" in source
        self.wants_parts = self._find_out_whether_it_wants_parts()

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """The prompt that asks for the assistant's next turn. `variables`: `bos_token`, `eos_token` and the like."""
        return self._render([self._adapt(m) for m in messages], {**_defaults(), **variables})

    def _render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate({"messages": messages, **variables}):
                length += len(piece)
                if length > MAX_PROMPT_CHARS:
                    raise TemplateFailure(f"the prompt has more than {MAX_PROMPT_CHARS} characters")
                pieces.append(piece)
        except TemplateFailure:
            raise
        except _Refused as error:
            raise TemplateFailure(str(error), line=_line(error.__traceback__), refused=True) from error
        except MemoryError as error:
            raise TemplateFailure("it ran out of memory", line=_line(error.__traceback__)) from error
        # Whatever Python raises inside a template is the template's fault: a wrong type, a missing key.
        except Exception as error:
            said = str(error) or type(error).__name__
            if not isinstance(error, jinja2.TemplateError):
                said = f"{type(error).__name__}: {error}"
            raise TemplateFailure(said, line=_line(error.__traceback__)) from error
        return "".join(pieces)

    def _adapt(self, message: Message) -> dict[str, Any]:
        """The message with its content and role as this template knows them."""
        adapted = dict(message)
        content = adapted.get("content")
        if self.wants_parts and isinstance(content, str):
            adapted["content"] = [{"type": "text", "text": content}]
        elif not self.wants_parts and isinstance(content, list):
            adapted["content"] = "\n".join(part["text"] for part in content)
        if adapted.get("role") == "developer" and not self._knows_developer:
            adapted["role"] = "system"
        return adapted

    def _find_out_whether_it_wants_parts(self) -> bool:
        """Some templates only print content that is a list of parts: show both forms, see which comes through."""
        mark = "paceline-content-probe"

        def shows(content: object) -> bool:
            try:
                return mark in self._render([{"role": "user", "content": content}], _defaults())
            except TemplateFailure:
                return False

        return not shows(mark) and shows([{"type": "text", "text": mark}])


@lru_cache(maxsize=64)
def compiled(source: str) -> ChatTemplate:
    """`ChatTemplate(source)`, remembered by its text."""
    return ChatTemplate(source)


class _Refused(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's words for training. In a prompt it is its body, in its own scope."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


def _defaults() -> dict[str, Any]:
    """What every template gets. `tools` and `documents` stay undefined, as in llama.cpp: templates that loop over them
    without asking fail on None. `functions` and `datetime` are Firefunction's names."""
    return {
        "add_generation_prompt": True,
        "functions": "",
        "datetime": datetime.now().strftime("%b %d %Y %H:%M:%S"),
    }


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _line(trace: TracebackType | None) -> int | None:
    """The innermost template line of a traceback; jinja2 has mapped it back to the source."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
