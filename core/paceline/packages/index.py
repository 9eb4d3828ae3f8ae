"""Whether the package index that the user has configured answers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from paceline import child
from paceline.packages.uv import uv_command, uv_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

ASKED_FOR = "packaging"
"""A small package that every index has."""
_TIMEOUT_S = "10"


def why_unreachable(environ: Mapping[str, str]) -> str | None:
    """Uv's own reason why it got no answer, None when it got one. Uses no cache; takes some seconds at most."""
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.in")
        wanted.write_text(f"{ASKED_FOR}\n")
        argv: list[str | Path] = ["pip", "compile", wanted, "--no-deps", "--no-header"]
        argv += ["--cache-dir", Path(folder, "cache")]
        env = {**uv_environment(environ, pinned=False), "UV_HTTP_TIMEOUT": _TIMEOUT_S, "UV_HTTP_RETRIES": "0"}
        status = child.run(uv_command(argv, env), env=env, cwd=Path(folder), on_line=said.append)
    told = [line.strip(" ×╰─▶│\n") for line in said if line.strip(" ×╰─▶│\n")]
    return " ".join(told)[-400:] or f"uv ended with status {status}" if status else None
