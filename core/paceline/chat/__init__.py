"""Messages to prompts: a model's chat template, rendered where it can do no harm."""

from paceline.chat.rendering import Renderer

__all__ = ["Renderer"]
