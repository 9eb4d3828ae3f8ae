"""The local HTTP API: OpenAI's routes under /v1, LM Studio's under /api/v0 and /api/v1."""

from paceline.api.app import create_app

__all__ = ["create_app"]
