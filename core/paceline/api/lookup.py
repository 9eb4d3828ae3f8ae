"""Which model a request means. Never another than the one it names."""

from __future__ import annotations

from paceline.api.errors import ApiError
from paceline.errors import AmbiguousError, NotFoundError
from paceline.library import Library
from paceline.types import Model, ModelKind


def find_model(library: Library, model_id: str, param: str = "model") -> Model:
    """The model of that id; a 404 with the closest ids, or a 400 for an id that means several.

    May look at the disk: call it in a thread.
    """
    try:
        return library.get(model_id, param=param)
    except NotFoundError as error:
        hint = f" Help: {error.help}" if error.help else ""
        message = f'Cannot find model "{model_id}": {error.message}.{hint}'
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
