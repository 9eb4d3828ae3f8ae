"""Structured output: what a request's answer must match, `response_format` and `grammar`, as one grammar."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from paceline.api.body import Schema
from paceline.api.errors import ApiError
from paceline.serving.generation import Grammar, GrammarKind

MAX_SCHEMA_VALUES = 20_000
MAX_GRAMMAR_CHARS = 256 * 1024


class JsonSchema(Schema):
    """OpenAI's `json_schema`. `strict` changes nothing here: a schema is always enforced."""

    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    name: Annotated[str, Field(max_length=1024)] | None = None
    description: str | None = None
    strict: bool | None = None

    @field_validator("strict", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        # LM Studio's documentation writes it as a string.
        return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


class ResponseFormat(Schema):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """With `json_object`, as llama-server takes it: the schema of that object."""


def grammar_of(response_format: ResponseFormat | None, gbnf: str | None) -> tuple[Grammar, str] | None:
    """What the answer must match, and the field of the request that says so; None for an answer of any form.

    Raises ApiError, a 400, for both fields at once and for a grammar beyond the bounds.
    """
    from_format = _of_format(response_format) if response_format is not None else None
    if not gbnf:
        return from_format
    if from_format is not None:
        raise ApiError(
            400, "grammar: send either this field or response_format, not both.", code="invalid_value", param="grammar"
        )
    if len(gbnf) > MAX_GRAMMAR_CHARS:
        raise _too_large("grammar", len(gbnf))
    return Grammar(GrammarKind.GBNF, gbnf), "grammar"


def _of_format(wanted: ResponseFormat) -> tuple[Grammar, str] | None:
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        schema = {"type": "object", **(wanted.schema_ or {})}
        field = "response_format.schema" if wanted.schema_ else "response_format"
    else:
        field = "response_format.json_schema"
        if wanted.json_schema is None:
            raise ApiError(400, f"The field {field} is missing.", code="missing_required_parameter", param=field)
        schema, field = wanted.json_schema.schema_, f"{field}.schema"
    _bound(schema, field)
    return Grammar(GrammarKind.JSON_SCHEMA, schema), field


def _bound(schema: dict[str, Any], field: str) -> None:
    """Refuse a schema whose compilation would be its own attack. How deep it may be, `api.body` says."""
    todo: list[Any] = [schema]
    values = chars = 0
    while todo:
        value = todo.pop()
        values += 1
        if isinstance(value, str):
            chars += len(value)
        elif isinstance(value, dict):
            chars += sum(map(len, value))
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
    if values > MAX_SCHEMA_VALUES:
        raise ApiError(
            400,
            f"{field}: the schema has {values} values, more than {MAX_SCHEMA_VALUES}; ask for less at once.",
            code="invalid_value",
            param=field,
        )
    if chars > MAX_GRAMMAR_CHARS:
        raise _too_large(field, chars)


def _too_large(field: str, chars: int) -> ApiError:
    return ApiError(
        400,
        f"{field}: it has {chars} characters, more than {MAX_GRAMMAR_CHARS}; ask for less at once.",
        code="invalid_value",
        param=field,
    )
