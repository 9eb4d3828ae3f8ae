"""What a command imports is most of the time that it takes, so the quick ones import no more than they use."""

from __future__ import annotations

import pytest

from paceline.store import Store

CODE = """
import sys
from paceline.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print(*sorted(sys.modules))
"""
HEAVY = {"asyncio", "fastapi", "filelock", "hashlib", "httpx", "importlib.metadata", "importlib.resources",
         "packaging.markers", "pydantic", "rich", "subprocess", "tempfile", "uv"}  # fmt: skip
OURS = {"paceline.cli.getting", "paceline.cli.update", "paceline.host", "paceline.packages", "paceline.plugins",
        "paceline.registry", "paceline.survey", "paceline.types", "tiny_plugin"}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        (["ls"], HEAVY | OURS),
        (["select", "engine-linux-cpu@1.0"], HEAVY | OURS | {"packaging"}),
        (["select", "engine@1.0"], HEAVY | OURS),
        (["rollback"], HEAVY | OURS | {"packaging"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_quick_command_imports_no_more_than_it_uses(tiny, store_world, command, absent):
    store = Store(tiny.home)
    for version in ("1.0", "2.0"):
        runtime = store_world.add(store, version)
        store.note_loaded(runtime, "gguf")
        store.select(runtime)

    done = tiny.python("-c", CODE, "runtime", *command)
    assert done.returncode == 0, done.stderr
    assert "engine-linux-cpu@1.0" in done.stdout
    imported = set(done.stdout.splitlines()[-1].split())
    assert "paceline.store.store" in imported
    assert imported & absent == set()
