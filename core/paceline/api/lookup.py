"""Which model a request means. Never another than the one it names."""

from __future__ import annotations

import difflib

from paceline.api.errors import ApiError
from paceline.errors import AmbiguousError, NotFoundError
from paceline.library import Library
from paceline.types import Model, ModelKind


def find_model(library: Library, model_id: str, param: str = "model") -> Model:
    """The model of that id; a 404 with the closest ids, or a 400 for an id that means several."""
    try:
        return library.get(model_id)
    except NotFoundError as error:
        message = f'Cannot find model "{model_id[:200]}". {_hint(library, model_id)}'
        raise ApiError(404, message, code="model_not_found", param=param) from error
    except AmbiguousError as error:
        raise ApiError(400, error.message, code="ambiguous_model", param=param) from error


def find_language_model(library: Library, model_id: str, param: str = "model") -> Model:
    """As `find_model`, refusing what cannot generate text."""
    model = find_model(library, model_id, param)
    if model.facts.kind is ModelKind.EMBEDDINGS:
        raise ApiError(
            400, f"{model.id} is an embedding model; it cannot generate text.", code="invalid_value", param=param
        )
    return model


def _hint(library: Library, model_id: str) -> str:
    ids = [model.id for model in library.models()]
    close = difflib.get_close_matches(model_id[:200], ids, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if not ids:
        return "The library is empty; `paceline ls` shows where models are looked for."
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"The library has {', '.join(ids[:5])}{more}."
