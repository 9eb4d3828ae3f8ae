"""`mlx_lm.server`, the server of the mlx-lm that the selected MLX runtime holds, run by that runtime's Python."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paceline.errors import PacelineError
from servers import serving
from worker import selected_runtime

_OFFLINE = {"HF_HUB_OFFLINE": "1"}


@contextmanager
def running(main: Path, *, draft: Path | None = None, n: int | None = None) -> Iterator[str]:
    """A started server, with `n` tokens drafted at a time if there is a draft; its address.

    Raises PacelineError when it does not come up.
    """
    python = selected_runtime("mlx").python
    command: list[str | Path] = [python, "-I", "-m", "mlx_lm", "server", "--model", main, "--log-level", "WARNING"]
    if draft is not None:
        command += ["--draft-model", draft, "--num-draft-tokens", str(n)]
    with serving(command, _OFFLINE) as url:
        yield url


def version() -> str:
    """Of mlx-lm and mlx. Raises PacelineError when the runtime's Python does not say."""
    code = "import importlib.metadata as m; print('mlx-lm', m.version('mlx-lm') + ', mlx', m.version('mlx'))"
    command: list[str | Path] = [selected_runtime("mlx").python, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PacelineError(f"the MLX runtime does not say its version: {done.stderr.strip()[-500:]}")
    return f"mlx_lm.server of {done.stdout.strip()}"
