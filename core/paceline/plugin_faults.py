"""What a plugin's code may do when it is called, besides what it should: told in a line, and never the host's end."""

from __future__ import annotations

FAULTS = (Exception, SystemExit)
"""What is caught around a call into a plugin."""

WAY_OUT = "update the plugin, or report this to its author; `paceline plugins` shows which one brings what"


def say(error: BaseException) -> str:
    """An error of a plugin in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def show(value: object) -> str:
    """A value that a plugin gave, cut short."""
    try:
        return repr(value)[:200]
    except Exception:
        return f"a {type(value).__name__}"


def owner(brought: object) -> str:
    """The engine or format, with the module it is from: `engine echo (paceline_echo.engine)`."""
    return f"{getattr(brought, 'name', '?')} ({type(brought).__module__})"
